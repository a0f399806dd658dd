"""NeuronMCT against contributions worked out by hand."""

import torch
from baseline_networks import dense_target, planted
from torch import nn

from pathways.baselines import NeuronMCT
from pathways.class_pathways import ClassPathways
from pathways.target import GatedTarget


def test_one_hidden_layer_is_activation_times_weight():
    # Activations 1, 2, 3, 0; logits -1 and 2, so that the second row of weights counts.
    target = dense_target([[1, 0], [0, 1], [1, 1], [-1, 0]], [[2, -3, 1, 5], [1, 2, -1, 4]])
    e = NeuronMCT(target, kept=0.5)(torch.tensor([[1.0, 2.0]]))
    assert e.logits.tolist() == [[-1.0, 2.0]]
    assert e.importance.tolist() == [[1.0, 4.0, 3.0, 0.0]]
    assert e.pathway.mask().int().tolist() == [[0, 1, 1, 0]]
    assert e.gated_logits.tolist() == [[-3.0, 1.0]]


def test_two_hidden_layers_follow_the_chain_rule():
    # Activations 3, 0 and 3, 0, 6; the second logit, 2 * 3 - 6 / 2 = 3, is predicted. Its gradient
    # is (2, 0, -1/2) at the second site and 2 * 1 - 1/2 * 2 = 1 at the first neuron.
    target = dense_target([[1, 1], [1, -1]], [[1, 2], [-1, 1], [2, 0]], [[1, 1, -1], [2, 0, -0.5]])
    e = NeuronMCT(target, kept=0.4)(torch.tensor([[1.0, 2.0]]))
    assert e.importance.tolist() == [[3.0, 0.0, 6.0, 0.0, 3.0]]
    assert e.pathway.mask().int().tolist() == [[1, 0, 1, 0, 0]]  # ties go to the first
    per_site = NeuronMCT(target, kept=0.6, per_site=True)(torch.tensor([[1.0, 2.0]]))
    assert per_site.pathway.mask().int().tolist() == [[1, 0, 1, 0, 1]]


def test_a_channel_is_the_sum_of_its_units():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
        net[0].bias.zero_()
        net[3].weight.copy_(torch.tensor([[1.0, -1.0, 3.0, -1.0]]))
    image = torch.tensor([[[[2.0, 5.0]]]])  # channels 2, 5 and 4, 10
    units = NeuronMCT(GatedTarget(net, image, granularity="unit"), kept=0.5)(image)
    assert units.importance.tolist() == [[2.0, 5.0, 12.0, 10.0]]
    channels = NeuronMCT(GatedTarget(net, image), kept=0.5)(image)
    assert channels.importance.tolist() == [[3.0, 2.0]]


def test_the_baseline_is_what_remains():
    options = {"baseline": [torch.tensor([1.0, 1.0])]}
    target = dense_target([[1, 0], [0, 1]], [[1, 1]], **options)
    e = NeuronMCT(target, kept=0.5)(torch.tensor([[1.0, 3.0]]))
    assert e.importance.tolist() == [[0.0, 2.0]]
    assert e.gated_logits.tolist() == [[4.0]]


def test_planted_circuit():
    target = GatedTarget(planted(), torch.zeros(1, 1, 4, 4))
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    images[:4, :, :, 2:] = 0
    images[4:, :, :, :2] = 0
    e = NeuronMCT(target, kept=2 / 12)(images)
    assert e.predictions.tolist() == [0] * 4 + [1] * 4
    neurons = [[0, 6]] * 4 + [[1, 7]] * 4
    assert [row.nonzero().flatten().tolist() for row in e.pathway.mask()] == neurons
    assert torch.equal(e.gated_logits.amax(1), e.logits.amax(1))
    iou = e.pathway.pairwise_iou()
    assert (iou[:4, :4] == 1).all()
    assert (iou[:4, 4:] == 0).all()
    one = ClassPathways.from_pathways(e.pathway[torch.tensor([0, 4])], torch.tensor([0, 1]))
    assert torch.equal(
        target.gated(images, one.for_predictions(e.predictions).gates()), e.gated_logits
    )

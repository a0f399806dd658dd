"""ActiveNeurons and TopActivation on activations that are written down."""

import torch
from baseline_networks import dense_target
from torch import nn

from pathways.baselines import ActiveNeurons, TopActivation
from pathways.target import GatedTarget


def two_channels(granularity):
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0, 0.0]).reshape(3, 1, 1, 1))
        net[0].bias.zero_()
    return GatedTarget(net, torch.zeros(1, 1, 1, 2), granularity=granularity)


# The first channel has activations 4, 0, the second 0, 1, the third none.
IMAGE = torch.tensor([[[[4.0, -1.0]]]])


def test_active_channels_and_units():
    e = ActiveNeurons(two_channels("channel"))(IMAGE)
    assert e.importance.tolist() == [[0.5, 0.5, 0.0]]
    assert e.pathway.mask().int().tolist() == [[1, 1, 0]]
    e = ActiveNeurons(two_channels("unit"))(IMAGE)
    assert e.importance.tolist() == [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]]
    assert e.pathway.sizes().tolist() == [2]


def test_active_neurons_give_the_clean_logits(target, images):
    e = ActiveNeurons(target)(images)
    assert torch.equal(e.gated_logits, e.logits)
    assert target.sites.granularity == "channel" or (e.pathway.kept() < 1).all()
    floored = ActiveNeurons(target, min_keep=1.0)(images)
    assert floored.pathway.kept().tolist() == [1.0] * 5


def test_top_activation():
    e = TopActivation(two_channels("channel"), kept=1 / 3)(IMAGE)
    assert e.importance.tolist() == [[2.0, 0.5, 0.0]]
    assert e.pathway.mask().int().tolist() == [[1, 0, 0]]
    e = TopActivation(two_channels("unit"), kept=1 / 6)(IMAGE)
    assert e.importance.tolist() == [[4.0, 0.0, 0.0, 1.0, 0.0, 0.0]]


def test_top_activation_is_per_site_unless_asked():
    target = dense_target([[1], [2]], [[10, 0], [0, 10]], [[1, 1]])
    image = torch.ones(1, 1)
    assert TopActivation(target, kept=0.5)(image).pathway.sizes(True).tolist() == [[1, 1]]
    everywhere = TopActivation(target, kept=0.5, per_site=False)(image)
    assert everywhere.pathway.mask().int().tolist() == [[0, 0, 1, 1]]


def test_negative_activations_count_by_size():
    net = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.5), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[0].bias.zero_()
    target = GatedTarget(net, torch.zeros(1, 2))
    image = torch.tensor([[-4.0, 1.0]])
    assert TopActivation(target, kept=0.5)(image).pathway.mask().int().tolist() == [[1, 0]]
    assert ActiveNeurons(target)(image).pathway.mask().int().tolist() == [[0, 1]]

"""GreedyPruning: sorted where scores stay, a plain loop where they change, the legacy rule."""

from itertools import pairwise

import numpy
import pytest
import torch
from baseline_networks import dense, dense_target
from torch import nn

from pathways.baselines import GreedyPruning, NeuronMCT, greedy
from pathways.target import GatedTarget


def test_additive_network_is_sorted_by_contribution():
    # Nothing cancels, so that every score stays what it is: |a * w| = 6, 2, 0, 1, 12.
    target = dense_target([[1], [2], [-1], [1], [3]], [[6, 1, 9, 1, 4]])
    for rounds in (1, 2, 5, 100):
        for kept, mask in ((0.2, [0, 0, 0, 0, 1]), (0.6, [1, 1, 0, 0, 1])):
            e = GreedyPruning(target, kept=kept, rounds=rounds)(torch.ones(1, 1))
            assert e.pathway.mask().int().tolist() == [mask]
    importance = GreedyPruning(target, kept=0.0, rounds=5)(torch.ones(1, 1)).importance
    torch.testing.assert_close(importance, torch.tensor([[0.8, 0.6, 0.2, 0.4, 1.0]]))
    assert NeuronMCT(target, kept=0.6)(torch.ones(1, 1)).pathway == e.pathway


def test_scores_are_taken_anew_in_every_round():
    # Neurons a, b, c = 1, 1.1, 3.1, then d = relu(a + b - 1.5) = 0.6 and e = c; f = 3 d + e. At
    # first the scores are 3, 3.3, 3.1, 1.8, 3.1; once d is gone, a and b are worth nothing.
    target = dense_target(
        [[1], [1.1], [3.1]], [[1, 1, 0], [0, 0, 1]], [[3, 1]], bias={1: [-1.5, 0.0]}
    )
    once = NeuronMCT(target, kept=0.4)(torch.ones(1, 1))
    assert once.pathway.mask().int().tolist() == [[0, 1, 1, 0, 0]]
    e = GreedyPruning(target, kept=0.4)(torch.ones(1, 1))
    assert e.pathway.mask().int().tolist() == [[0, 0, 1, 0, 1]]
    torch.testing.assert_close(e.gated_logits, torch.tensor([[3.1]]))
    torch.testing.assert_close(e.importance, torch.tensor([[0.6, 0.4, 1.0, 0.2, 0.8]]))


def plain_greedy(net, image, count, per_round):
    """One neuron after another, by a plain network with multiplications."""
    first, _, second, _, head = net
    mask = torch.ones(first.out_features + second.out_features)
    target_class = None
    while int(mask.sum()) > count:
        gates = mask.clone().requires_grad_(True)
        hidden = first(image).relu() * gates[: first.out_features]
        logits = head(second(hidden).relu() * gates[first.out_features :])
        target_class = int(logits.argmax()) if target_class is None else target_class
        (gradient,) = torch.autograd.grad(logits[0, target_class], gates)
        scores = gradient.abs() * mask
        left = [i for i in range(len(mask)) if mask[i] > 0]
        worst = sorted(left, key=lambda i: (float(scores[i]), -i))
        for neuron in worst[: min(per_round, len(left) - count)]:
            mask[neuron] = 0
    return mask.bool()


@pytest.mark.parametrize(("rounds", "per_round"), [(16, 1), (8, 2), (4, 4)])
def test_against_a_plain_loop(rounds, per_round):
    torch.manual_seed(0)
    net = dense(torch.randn(12, 5), torch.randn(8, 12), torch.randn(3, 8))
    images = torch.randn(6, 5)
    target = GatedTarget(net, images[:1])
    e = GreedyPruning(target, kept=0.2, rounds=rounds)(images)
    expected = [plain_greedy(net, image, 4, per_round) for image in images.split(1)]
    assert torch.equal(e.pathway.mask(), torch.stack(expected))


@pytest.mark.parametrize("options", [{}, {"per_site": True}, {"min_keep": 0.5}])
def test_nothing_is_restored_and_the_dead_go_first(target, images, options, monkeypatch):
    masks = []

    def record(target, images, gates, classes=None, site=None):
        masks.append(gates > 0)
        return gate_gradients(target, images, gates, classes, site)

    gate_gradients = greedy.gate_gradients
    monkeypatch.setattr(greedy, "gate_gradients", record)
    e = GreedyPruning(target, kept=0.2, rounds=3, **options)(images)
    masks.append(e.pathway.mask())
    assert len(masks) == 4
    for before, after in pairwise(masks):
        assert (before | ~after).all()
        assert (before.sum(1) > after.sum(1)).all()
    if options == {}:
        dead = NeuronMCT(target, kept=0.0)(images).importance == 0
        alive_at_least = e.importance.masked_fill(dead, 2).amin(1)
        assert (alive_at_least >= e.importance.masked_fill(~dead, -1).amax(1)).all()


def legacy_rule(scores, rounds):
    """The published rule on scores that do not change, in NumPy."""
    mask = numpy.ones(len(scores))
    for percentile in range(rounds):
        current = scores * mask
        filled = numpy.where(current <= 0, current.max(), current)
        threshold = numpy.percentile(filled, percentile)
        mask[current <= threshold] = 0
        mask[current <= 0] = 1
    return mask


@pytest.mark.parametrize("rounds", [0, 10, 30, 40, 60, 98])
def test_legacy_rule(rounds):
    generator = numpy.random.default_rng(0)
    scores = numpy.concatenate([generator.permutation(60) + 1.0, numpy.zeros(60)])
    first = nn.Linear(1, 120, bias=False)
    head = nn.Linear(120, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor(numpy.where(scores > 0, 1.0, -1.0))[:, None])
        head.weight.copy_(torch.tensor(scores)[None])
    target = GatedTarget(nn.Sequential(first, nn.ReLU(), head), torch.ones(1, 1))
    e = GreedyPruning(target, kept=1 - rounds / 100, legacy=True)(torch.ones(2, 1))
    expected = legacy_rule(scores, rounds)
    assert e.pathway.mask().int().tolist() == [expected.astype(int).tolist()] * 2
    # Half of the neurons are dead, and all of them stay; what was removed comes back.
    assert expected[60:].all()
    if rounds > 30:
        assert 0.7 < expected.mean() < 0.8
    own = GreedyPruning(target, kept=1 - rounds / 100)(torch.ones(2, 1)).pathway
    assert own.sizes().tolist() == [round(120 * (1 - rounds / 100))] * 2


def test_refusals(target):
    with pytest.raises(ValueError, match="GreedyPruning: rounds must be at least 1, got 0"):
        GreedyPruning(target, kept=0.5, rounds=0)
    with pytest.raises(ValueError, match="legacy needs kept, which is its number of rounds"):
        GreedyPruning(target, like=NeuronMCT(target, kept=0.5), legacy=True)

"""EffectivePath by hand: layers, skips, channels, nested thetas; union and similarity."""

from itertools import pairwise

import pytest
import torch
from baseline_networks import dense_target, planted
from torch import nn

from pathways.baselines import EffectivePath
from pathways.baselines.effective_path import path_similarity
from pathways.target import GatedTarget

IMAGE = torch.ones(1, 1)


def two_layers():
    """Activations 1, 2, 3; A = 1 + 2 + 6 = 9 and B = 4 - 2 = 2; the first logit is A + B."""
    return dense_target([[1], [2], [3]], [[1, 1, 2], [4, -1, 0]], [[1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("theta", "mask"),
    [
        (0.5, [0, 0, 1, 1, 0]),  # A's 9 reach 5.5, and 6 reach 4.5 of A
        (0.6666, [0, 0, 1, 1, 0]),
        (0.7, [0, 1, 1, 1, 0]),  # 6.3 of A take 6 and 2
        (0.8, [0, 1, 1, 1, 0]),
        (0.83, [1, 1, 1, 1, 1]),  # 9.13 take B too, and B takes the first neuron
        (1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_two_layers(theta, mask):
    e = EffectivePath(two_layers(), theta=theta)(IMAGE)
    assert e.pathway.mask().int().tolist() == [mask]


def test_importance_is_one_minus_the_least_theta():
    target = two_layers()
    importance = EffectivePath(target, kept=0.4)(IMAGE).importance
    # The first neuron comes in by B (9 / 11), before A would take it (8 / 9).
    expected = torch.tensor([[1 - 9 / 11, 1 - 6 / 9, 1.0, 1.0, 1 - 9 / 11]])
    torch.testing.assert_close(importance, expected)
    for theta in torch.arange(0.02, 1.0, 0.05).tolist():
        own = EffectivePath(target, theta=theta)(IMAGE).pathway.mask()
        assert torch.equal(own, importance > 1 - theta)
    assert EffectivePath(target, kept=0.6)(IMAGE).pathway.mask().int().tolist() == [[0, 1, 1, 1, 0]]


def test_pathways_are_nested_in_theta(target, images):
    masks = [EffectivePath(target, theta=theta)(images).pathway for theta in (0.2, 0.5, 0.8, 1.0)]
    for small, large in pairwise(masks):
        assert (small - large).sizes().sum() == 0
    ranked = EffectivePath(target, kept=0.3)(images).importance
    for theta, pathway in zip((0.2, 0.5, 0.8), masks, strict=False):
        assert torch.equal(pathway.mask(), ranked > 1 - theta)


class Skip(nn.Module):
    """h = relu(3 x), y = relu(h - 1), z = relu(y + h)."""

    def forward(self, x):
        h = torch.relu(3 * x)
        return torch.relu(torch.relu(h - 1) + h)


@pytest.mark.parametrize(("theta", "mask"), [(0.5, [1, 0, 1]), (0.6, [1, 0, 1]), (0.9, [1, 1, 1])])
def test_an_input_past_a_skip_counts_for_what_it_brings_itself(theta, mask):
    # Of z = 5, h brings 3 by the skip; what it brings through y (2) is y's.
    target = GatedTarget(Skip(), IMAGE)
    assert EffectivePath(target, theta=theta)(IMAGE).pathway.mask().int().tolist() == [mask]
    importance = EffectivePath(target, kept=1.0)(IMAGE).importance
    torch.testing.assert_close(importance, torch.tensor([[1.0, 0.4, 1.0]]))


def test_against_weights_of_a_plain_network():
    torch.manual_seed(0)
    weights = [torch.randn(7, 4), torch.randn(6, 7), torch.randn(3, 6)]
    images = torch.randn(8, 4)
    e = EffectivePath(dense_target(*weights), theta=0.6)(images)
    for image, row in zip(images, e.pathway.mask(), strict=True):
        first = (weights[0] @ image).relu()
        second = (weights[1] @ first).relu()
        logits = weights[2] @ second
        upper = smallest(weights[2][logits.argmax()] * second, 0.6)
        lower = set()
        for neuron in upper:
            lower |= smallest(weights[1][neuron] * first, 0.6)
        assert set(row[:7].nonzero().flatten().tolist()) == lower
        assert set(row[7:].nonzero().flatten().tolist()) == upper


def smallest(contributions, theta):
    """Fewest inputs whose contributions reach theta of their sum."""
    total = float(contributions.sum())
    if total <= 0:
        total = float(contributions.clamp_min(0).sum())
    taken, reached = set(), 0.0
    for index in contributions.argsort(descending=True).tolist():
        if reached >= theta * total or contributions[index] <= 0:
            break
        taken.add(index)
        reached += float(contributions[index])
    return taken


def test_value_that_is_not_positive():
    # Both logits are negative; the positive contributions of the predicted one are 1 and 3.
    target = dense_target([[1], [1], [1]], [[1, 3, 2], [0, 0, 0]], bias={1: [-8.0, -9.0]})
    e = EffectivePath(target, theta=0.5)(IMAGE)
    assert e.logits.tolist() == [[-2.0, -9.0]]
    assert e.pathway.mask().int().tolist() == [[0, 1, 0]]
    nothing = EffectivePath(dense_target([[1]], [[-1], [-2]]))(IMAGE)
    assert nothing.pathway.sizes().tolist() == [0]
    assert nothing.importance.tolist() == [[0.0]]


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_planted_circuit_and_class_union(granularity):
    target = GatedTarget(planted(), torch.zeros(1, 1, 4, 4), granularity=granularity)
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    images[:4, :, :, 2:] = 0
    images[4:, :, :, :2] = 0
    method = EffectivePath(target, theta=0.5)
    e = method(images)
    assert e.predictions.tolist() == [0] * 4 + [1] * 4
    channels = [[0, 6]] * 4 + [[1, 7]] * 4
    if granularity == "channel":
        assert [row.nonzero().flatten().tolist() for row in e.pathway.mask()] == channels
    else:
        # Half of the sum over 8 bright positions, each by one unit per site.
        assert ((e.pathway.sizes(True) >= 3) & (e.pathway.sizes(True) <= 5)).all()
        for row, own in zip(e.pathway.mask().reshape(8, 12, 16).any(2), channels, strict=True):
            assert row.nonzero().flatten().tolist() == own
    classes = method.class_paths(e)
    assert classes.threshold == 0.0
    union = torch.stack([e.pathway.mask()[:4].any(0), e.pathway.mask()[4:].any(0)])
    assert torch.equal(classes.pathway.mask(), union)
    similarity = path_similarity(e.pathway, classes)
    assert similarity.tolist() == [[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4
    transferred = target.gated(images, classes.for_predictions(e.predictions).gates())
    assert torch.equal(transferred.argmax(1), e.predictions)


def test_empty_pathway_is_inside_every_class(target, images):
    e = EffectivePath(target, kept=0.0)(images)
    classes = EffectivePath(target).class_paths(EffectivePath(target)(images))
    assert path_similarity(e.pathway, classes).tolist() == [[1.0] * 3] * 5


def test_theta_is_checked(target):
    for theta in (0.0, 1.1):
        with pytest.raises(ValueError, match=rf"theta must be in \(0, 1\], got {theta}"):
            EffectivePath(target, theta=theta)

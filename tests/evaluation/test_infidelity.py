"""Infidelity and sensitivity by hand: linear and quadratic functions, gated runs, refusals."""

import pytest
import torch
from torch import nn

from pathways.baselines import NeuronMCT
from pathways.evaluation.infidelity import infidelity, sensitivity_max
from pathways.maps import pathway_gradient
from pathways.pathway import Pathway
from pathways.target import GatedTarget


def make_target(granularity="channel"):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 20, 3)
    )
    return GatedTarget(net, torch.zeros(1, 2, 5, 4), granularity=granularity)


@pytest.fixture
def images():
    return torch.randn(6, 2, 5, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def classes():
    return torch.tensor([0, 1, 2, 2, 1, 0])


def linear_target(granularity="channel"):
    """Linear around any input: every activation is far from its kink."""
    target = make_target(granularity)
    nn.init.constant_(target.model[0].bias, 20.0)
    return target


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_gradients_of_linear_targets_are_faithful(images, classes, granularity):
    target = linear_target(granularity)
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(6, target.sites.num_neurons, generator=generator) < 0.5
    pathway = Pathway.from_mask(mask, target.sites)
    gated = pathway_gradient(target, images, pathway, classes)
    plain = pathway_gradient(target, images, torch.ones(1, mask.shape[1]), classes)
    assert infidelity(target, images, gated, classes, pathway).max() < 1e-6
    assert infidelity(target, images, plain, classes).max() < 1e-6
    # The gradient of one function is not that of the other.
    assert infidelity(target, images, plain, classes, pathway).min() > 1e-4
    assert infidelity(target, images, gated, classes).min() > 1e-4


def test_by_hand(images, classes):
    target = linear_target()
    slope = pathway_gradient(target, images, torch.ones(1, 5), classes)
    # d . (a - slope) squared has the mean sigma^2 |a - slope|^2.
    wrong = slope + 0.1
    found = infidelity(target, images, wrong, classes, samples=2000, sigma=0.5)
    assert found.tolist() == pytest.approx([0.25 * 0.01 * 40] * 6, rel=0.15)
    doubled = infidelity(target, images, 2 * slope, classes)
    expected = infidelity(target, images, 0 * slope, classes)
    torch.testing.assert_close(doubled, expected, rtol=1e-3, atol=5e-6)
    assert infidelity(target, images, 2 * slope, classes, rescale=True).max() < 1e-6
    nothing = infidelity(target, images, 0 * slope, classes, rescale=True)
    torch.testing.assert_close(nothing, expected)


def test_batches_and_seeds(images, classes):
    target = make_target()
    slope = pathway_gradient(target, images, torch.ones(1, 5), classes)
    pathway = NeuronMCT(target, kept=0.5)(images).pathway
    expected = infidelity(target, images, slope, classes, pathway)
    found = infidelity(target, images, slope, classes, pathway, batch_size=4)
    torch.testing.assert_close(found, expected)
    one = infidelity(target, images, slope, classes, pathway[0])
    torch.testing.assert_close(one[0], expected[0])
    assert not torch.equal(infidelity(target, images, slope, classes, pathway, seed=1), expected)
    assert infidelity(target, images[:0], slope[:0], classes[:0]).shape == (0,)


def test_sensitivity(images):
    assert sensitivity_max(lambda x: x.new_ones(len(x), 3), images).tolist() == [0.0] * 6
    # Of the input itself: the longest step over its length, at most radius sqrt(40) / |x|.
    found = sensitivity_max(lambda x: x, images, samples=50, radius=0.1)
    bound = 0.1 * 40**0.5 / images.double().flatten(1).norm(dim=1)
    assert bool((found < bound).all())
    assert bool((found > 0.55 * bound).all())  # a uniform step has 1 / sqrt(3) of the bound
    more = sensitivity_max(lambda x: x, images, samples=60, radius=0.1)
    assert bool((more >= found).all())
    torch.testing.assert_close(
        sensitivity_max(lambda x: x, images, samples=50, radius=0.1, batch_size=4), found
    )
    assert sensitivity_max(torch.zeros_like, images).isnan().all()
    assert sensitivity_max(lambda x: x, images[:0]).shape == (0,)
    method = NeuronMCT(make_target(), kept=0.5)
    assert sensitivity_max(lambda x: method(x).importance, images).shape == (6,)


def test_refusals(images, classes):
    target = make_target()
    with pytest.raises(ValueError, match=r"attributions must be \(6, 2, 5, 4\) like images"):
        infidelity(target, images, images[:, :1], classes)
    with pytest.raises(ValueError, match=r"classes must be int64 \[6\], got torch.int64 \(5,\)"):
        infidelity(target, images, images, classes[1:])
    with pytest.raises(ValueError, match=r"must be int64 \[6\], got torch.float32 \(6,\)"):
        infidelity(target, images, images, classes.float())
    for shift, got in ((1, r"1\.\.3"), (-1, r"-1\.\.1")):
        with pytest.raises(ValueError, match=rf"classes must be in \[0, 3\), got {got}"):
            infidelity(target, images, images, classes + shift)
    pathway = Pathway.from_mask(torch.ones(2, 5), target.sites)
    with pytest.raises(ValueError, match="pathway must have 6 rows or one, got 2"):
        infidelity(target, images, images, classes, pathway)
    with pytest.raises(ValueError, match="sigma positive, got 0, 64 and 0"):
        infidelity(target, images, images, classes, samples=0)
    with pytest.raises(ValueError, match=r"sigma positive, got 10, 64 and -1"):
        infidelity(target, images, images, classes, sigma=-1)
    with pytest.raises(ValueError, match="radius positive, got 10, 0 and 0"):
        sensitivity_max(torch.ones_like, images, batch_size=0)

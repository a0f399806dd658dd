"""Quick figures: the same as those of evaluate, and its refusals."""

import math

import pytest
import torch

from pathways import Explainer, GatedTarget, GenCNP
from pathways.baselines import RandomPathway
from pathways.evaluation import default_blanks, evaluate
from pathways.evaluation.quick import QUICK, TOLD, quick_figures


def random_method(granularity="channel"):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 5, 3), torch.nn.ReLU(), torch.nn.Conv2d(5, 7, 3), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(7, 3),
    )  # fmt: skip
    target = GatedTarget(net, torch.zeros(1, 2, 7, 6), granularity=granularity)
    # Spread over the classes, which an untrained net is not.
    with torch.no_grad():
        net[-1].weight.mul_(20)
        net[-1].bias.sub_(target(torch.randn(99, 2, 7, 6)).mean(0))
    return RandomPathway(target, kept=0.6)


@pytest.mark.parametrize("granularity", ["channel", "unit"])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_figures_are_those_of_evaluate(granularity, batch_size):
    method = random_method(granularity)
    images = torch.randn(33, 2, 7, 6)
    assert len(method.target(images).argmax(1).unique()) == 3
    blanks = default_blanks(images)
    settings = {"threshold": 0.4, "batch_size": batch_size, "seed": 3}
    found = quick_figures(method, images, blanks=blanks, **settings)
    wanted = evaluate(method, images, None, blanks=blanks, ranking_images=0, **settings).metrics()
    assert tuple(found) == QUICK
    for name, value in found.items():
        assert value == pytest.approx(wanted[name], abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("reads", [False, True])
def test_generators_that_read_the_logits_have_their_control(reads):
    target = random_method().target
    generator = GenCNP(target.sites, 3, width=8, start=0.0, reads_logits=reads)
    method, images = Explainer(target, generator), torch.randn(33, 2, 7, 6)
    blanks = default_blanks(images)
    found = quick_figures(method, images, blanks=blanks)
    assert tuple(found) == QUICK + (TOLD if reads else ())
    wanted = evaluate(method, images, None, blanks=blanks, ranking_images=0).metrics()
    for name in TOLD:
        assert found.get(name, math.nan) == pytest.approx(wanted[name], nan_ok=True)
        assert math.isnan(wanted[name]) != reads


def test_refusals():
    method = random_method()
    images = torch.randn(3, 2, 7, 6)
    blanks = default_blanks(images)
    with pytest.raises(ValueError, match="at least two inputs, got 1"):
        quick_figures(method, images[:1], blanks=blanks)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        quick_figures(method, images, blanks=blanks, batch_size=0)
    with pytest.raises(ValueError, match="at least one blank"):
        quick_figures(method, images, blanks=blanks[:0])

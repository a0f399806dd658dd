"""Ablation values: cases by hand, and the target that must keep its own."""

import math

import pytest
import torch

from pathways.evaluation import ablation_agreement
from pathways.evaluation.runs import gated_logits, with_baseline
from pathways.pathway import Pathway
from pathways.target import GatedTarget


def test_evidence_at_its_mean_by_hand(explaining, images):
    e = explaining(images)
    mean = explaining.target.mean_baseline([images])
    # Every class has the same share of inputs: mean evidence is about 1.5 / 4, below 1.
    values = {"zero": None, "mean": mean, "high": [torch.full((8,), 9.0)]}
    found = ablation_agreement(explaining.target, images, e.logits, e.pathway, values)
    assert list(found) == ["zero", "mean", "high"]
    assert found["zero"].agreement == found["mean"].agreement == 1
    assert found["zero"].kl == pytest.approx(0, abs=1e-6)
    clean = e.logits.double().log_softmax(1)
    changed = e.logits.double() + torch.where(e.logits == 5, mean[0][:4].double(), 0.0)
    kl = (clean.exp() * (clean - changed.log_softmax(1))).sum(1).mean()
    assert found["mean"].kl == pytest.approx(float(kl), rel=1e-5)
    # Evidence of 9 for all other classes wins over at most 2, always.
    assert found["high"].agreement == 0


@pytest.mark.parametrize("granularity", ["channel", "unit"])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_as_a_target_that_was_made_with_the_baseline(granularity, batch_size):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(75, 3)
    )
    images = torch.randn(11, 1, 7, 7)
    target = GatedTarget(net, images[:1], granularity=granularity)
    mean = target.mean_baseline(images.split(5))
    pathway = Pathway.from_mask(torch.rand(11, target.sites.num_neurons) < 0.5, target.sites)
    made = GatedTarget(net, images[:1], granularity=granularity, baseline=mean)
    logits, values = target(images), {"zero": None, "mean": mean}
    found = ablation_agreement(target, images, logits, pathway, values, batch_size=batch_size)
    # Whichever baseline the target has, the same runs.
    again = ablation_agreement(made, images, logits, pathway, values, batch_size=batch_size)
    assert found == again
    gated = gated_logits(made, images, pathway)
    agreement = (gated.argmax(1) == logits.argmax(1)).double().mean()
    assert found["mean"].agreement == pytest.approx(float(agreement))
    assert found["mean"].kl != found["zero"].kl
    assert with_baseline(target, mean).fingerprint == made.fingerprint


def test_the_target_keeps_its_baseline(explaining, images):
    target = explaining.target
    e = explaining(images)
    own = [torch.ones(8)]
    made = with_baseline(target, own)
    fingerprint = made.fingerprint
    ablation_agreement(made, images, e.logits, e.pathway, {"zero": None})
    assert torch.equal(made.baseline[0], own[0])
    assert target.baseline is None
    with pytest.raises(ValueError, match="baseline of site relu#0 must have shape"):
        ablation_agreement(made, images, e.logits, e.pathway, {"bad": [torch.ones(7)]})

    def failing(*_):
        raise RuntimeError("no")

    handle = target.model.register_forward_hook(failing)
    with pytest.raises(RuntimeError, match="no"):
        ablation_agreement(made, images, e.logits, e.pathway, {"zero": None})
    handle.remove()
    assert made.fingerprint == fingerprint
    assert made.fingerprint != target.fingerprint


def test_no_inputs_give_nan(explaining):
    nothing = Pathway.from_mask(torch.zeros(0, 8), explaining.sites)
    found = ablation_agreement(
        explaining.target, torch.zeros(0, 4), torch.zeros(0, 4), nothing, {"zero": None}
    )
    assert math.isnan(found["zero"].agreement)
    assert math.isnan(found["zero"].kl)


def test_refusals(explaining, images):
    e = explaining(images)
    with pytest.raises(ValueError, match=r"logits and gated_logits must both be \[N, K\]"):
        ablation_agreement(explaining.target, images, e.logits[1:], e.pathway, {"zero": None})
    with pytest.raises(ValueError, match="pathway must have 80 rows or one, got 79"):
        ablation_agreement(explaining.target, images, e.logits, e.pathway[1:], {"zero": None})

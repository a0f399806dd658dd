"""Sweeps: how many inputs each figure takes, and what is kept of them."""

import json
import math

import pytest
import torch
from torch import nn

from pathways.baselines import RandomPathway
from pathways.evaluation.sweeps import SweepMeter
from pathways.explainer import Explanation
from pathways.target import GatedTarget


@pytest.fixture(scope="module")
def deep():
    torch.manual_seed(0)
    layers = [layer for _ in range(7) for layer in (nn.Linear(5, 5), nn.ReLU())]
    images = torch.randn(20, 5)
    return RandomPathway(GatedTarget(nn.Sequential(*layers), images[:1]), kept=0.7), images


def swept(method, images, limit, batch_size=6):
    meter = SweepMeter(method.target, limit)
    parts = []
    for batch in images.split(batch_size):
        parts.append(method(batch))
        meter.update(batch, parts[-1])
    return meter.finish(images, Explanation.cat(parts), images, batch_size, seed=0)


@pytest.mark.parametrize(("limit", "seen", "few"), [(8, 8, 8), (None, 20, 10), (0, 0, 0)])
def test_minimality_takes_fewer_inputs_of_a_deep_target(deep, limit, seen, few):
    # Eight runs per input, of which there may be four per input of all 20: ten inputs.
    found = swept(*deep, limit)
    assert found.ranking.images == seen
    assert found.minimality_images == few
    assert int(found.minimality.pairs.max()) == few
    assert found.sparsity.images == 20


def test_a_single_input_is_always_measured(deep):
    method, images = deep
    assert swept(method, images[:1], None).minimality_images == 1


def test_batches_do_not_matter(deep):
    method, images = deep
    one, other = (swept(method, images, 13, batch_size) for batch_size in (1, 20))
    assert one.figures() == pytest.approx(other.figures())


def test_json_and_figures_agree(deep):
    found = swept(*deep, 9)
    report = json.loads(json.dumps(found.to_json()))
    figures = found.figures()
    assert figures["cpr"] == report["ranking"]["cpr"]
    assert figures["necessity"] == report["necessity"]["probability"]
    assert figures["minimality"] == report["minimality"]["redundant"]
    assert figures["agreement_other_ablation"] == report["ablation"]["mean"]["agreement"]
    assert figures["dead_share"] == report["sparsity"]["dead_share"]
    assert all(math.isnan(v) for k, v in swept(*deep, 0).figures().items() if k[:2] in ("cp", "ne"))


def test_refusals(deep):
    with pytest.raises(ValueError, match="ranking_images must not be negative, got -3"):
        SweepMeter(deep[0].target, -3)

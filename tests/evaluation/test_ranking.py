"""Ranking curve: a target whose curve is known, areas by hand, and laws of CPR and CMD."""

import json
import math

import pytest
import torch
from torch import nn

from pathways.evaluation import ranking_curve
from pathways.evaluation.ranking import SIZES, Ranking
from pathways.evaluation.runs import with_baseline
from pathways.target import GatedTarget


@pytest.fixture(scope="module")
def additive():
    """Logits (x0 + x1 + x2 + x3, 0): every neuron kept adds its input to class 0."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[1.0] * 4, [0.0] * 4]))
        net[2].bias.zero_()
    return GatedTarget(net, torch.zeros(1, 4))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_curve_and_areas_by_hand(additive):
    images = torch.tensor([[1.0, 2.0, 0.5, 0.25], [0.25, 0.5, 2.0, 1.0]])
    sizes = (0.0, 0.25, 0.5, 1.0)
    curve = ranking_curve(additive, images, additive(images), images, sizes=sizes)
    full = sigmoid(3.75)
    expected = [0.5 / full, sigmoid(2) / full, sigmoid(3) / full, 1.0]
    assert curve.faithfulness == pytest.approx(expected)
    # Nothing kept gives equal logits: class 0 wins the tie.
    assert curve.agreement == (1, 1, 1, 1)
    assert curve.kept == sizes
    area = 0.25 * (expected[0] + expected[1]) / 2 + 0.25 * (expected[1] + expected[2]) / 2
    area += 0.5 * (expected[2] + expected[3]) / 2
    assert curve.cpr == pytest.approx(area)
    assert curve.cmd == pytest.approx(1 - area)
    assert curve.images == 2


def test_areas_are_divided_by_the_range_of_sizes(additive):
    images = torch.tensor([[1.0, 2.0, 0.5, 0.25]])
    curve = ranking_curve(additive, images, additive(images), images, sizes=(0.5, 1.0))
    ratio = sigmoid(3) / sigmoid(3.75)
    assert curve.cpr == pytest.approx((ratio + 1) / 2)
    assert curve.cmd == pytest.approx((1 - ratio) / 2)


def test_more_than_the_clean_confidence_is_not_clipped(additive):
    # Neuron 3 speaks against the predicted class: without it the margin rises from 1 to 3.
    target = GatedTarget(additive.model, torch.zeros(1, 4))
    weight = target.model[2].weight
    saved = weight.clone()
    try:
        with torch.no_grad():
            weight[0, 3] = -1.0
        images = torch.tensor([[1.0, 1.0, 1.0, 2.0]])
        curve = ranking_curve(target, images, target(images), -images, sizes=(0.75, 1.0))
    finally:
        with torch.no_grad():
            weight.copy_(saved)
    ratio = sigmoid(3) / sigmoid(1)
    assert ratio > 1
    assert curve.faithfulness == pytest.approx((ratio, 1.0))
    assert curve.cpr == pytest.approx((ratio + 1) / 2)
    assert curve.cmd == pytest.approx((ratio - 1) / 2)


def test_the_better_ranking_has_the_larger_area(additive):
    images = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) * 3
    logits = additive(images)
    best = ranking_curve(additive, images, logits, images)
    worst = ranking_curve(additive, images, logits, -images)
    assert best.cpr > worst.cpr
    assert best.cmd < worst.cmd
    assert best.sizes == SIZES
    # Four neurons: the nine sizes round to four numbers of them.
    assert best.kept == (0, 0, 0, 0, 0.25, 0.25, 0.5, 0.75, 1)
    assert best.faithfulness[-1] == pytest.approx(1)
    assert best.cpr + best.cmd == pytest.approx(1)


def test_ties_go_to_the_first_neuron(additive):
    images = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    logits = additive(images)
    tied = ranking_curve(additive, images, logits, torch.zeros(1, 4), sizes=(0.5, 1))
    assert tied.faithfulness[0] == pytest.approx(sigmoid(3) / sigmoid(10))


def test_ties_go_to_the_first_of_many_neurons():
    """Few values are sorted in order by any algorithm."""
    net = nn.Sequential(nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(500))
        net[0].bias.zero_()
        net[2].weight.zero_()
        net[2].weight[0, :250] = 0.01
        net[2].bias.zero_()
    target = GatedTarget(net, torch.zeros(1, 500))
    images = torch.ones(3, 500)
    importance = torch.zeros(3, 500)
    importance[1, 499] = 1.0  # one neuron before the ties
    logits = target(images)
    curve = ranking_curve(target, images, logits, importance, sizes=(0.3, 0.5))
    rows = [
        (sigmoid(1.5), sigmoid(2.5)),
        (sigmoid(1.49), sigmoid(2.49)),
        (sigmoid(1.5), sigmoid(2.5)),
    ]
    means = [sum(row[i] for row in rows) / 3 / sigmoid(2.5) for i in (0, 1)]
    assert curve.faithfulness == pytest.approx(means)


def test_ablation_replaces_what_is_off_and_the_target_keeps_its_own(additive):
    images = torch.tensor([[1.0, 2.0, 0.5, 0.25]])
    logits = additive(images)
    ones = [torch.ones(4)]
    sizes = (0.0, 1.0)
    zero = ranking_curve(additive, images, logits, images, sizes=sizes)
    other = ranking_curve(additive, images, logits, images, sizes=sizes, ablation=ones)
    assert other.faithfulness[0] == pytest.approx(sigmoid(4) / sigmoid(3.75))
    assert additive.baseline is None
    own = with_baseline(additive, ones)
    assert own.fingerprint != additive.fingerprint
    assert ranking_curve(own, images, logits, images, sizes=sizes) == other
    assert ranking_curve(own, images, logits, images, sizes=sizes, ablation=None) == zero
    with pytest.raises(ValueError, match="baseline of site 1#0 must have shape"):
        ranking_curve(additive, images, logits, images, ablation=[torch.ones(3)])
    assert additive.baseline is None


@pytest.mark.parametrize("granularity", ["channel", "unit"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_and_granularity(granularity, batch_size):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3)
    )
    images = torch.randn(13, 1, 7, 7)
    target = GatedTarget(net, images[:1], granularity=granularity)
    importance = torch.rand(13, target.sites.num_neurons)
    logits = target(images)
    curve = ranking_curve(target, images, logits, importance, batch_size=batch_size)
    # Naive: one input and one size at a time.
    for position, size in enumerate(SIZES):
        ratios = []
        for i in range(13):
            mask = torch.zeros(1, target.sites.num_neurons)
            best = importance[i].topk(round(size * target.sites.num_neurons)).indices
            mask[0, best] = 1
            gated = target.gated(images[i : i + 1], mask).softmax(1)
            clean = logits[i].softmax(0)
            ratios.append(float(gated[0, clean.argmax()] / clean.max()))
        assert curve.faithfulness[position] == pytest.approx(sum(ratios) / 13, rel=1e-4)


def test_no_inputs_give_nan(additive):
    nothing = torch.zeros(0, 4)
    curve = ranking_curve(additive, nothing, torch.zeros(0, 2), nothing)
    assert math.isnan(curve.cpr)
    assert math.isnan(curve.cmd)
    assert all(math.isnan(value) for value in (*curve.faithfulness, *curve.agreement))
    assert curve.images == 0


def test_json(additive):
    images = torch.ones(2, 4)
    curve = ranking_curve(additive, images, additive(images), images, sizes=(0, 1))
    assert json.loads(json.dumps(curve.to_json()))["kept"] == [0, 1]


def test_refusals(additive):
    images = torch.ones(2, 4)
    logits = additive(images)
    for sizes in ((), (0.5, 0.1), (0.5, 0.5), (-0.1, 1), (0.5, 1.5)):
        with pytest.raises(ValueError, match=r"sizes must ascend within \[0, 1\]"):
            Ranking(additive, sizes)
    with pytest.raises(ValueError, match=r"at least two numbers of neurons, got .* of 4 neurons"):
        Ranking(additive, (0.9, 1.0))
    with pytest.raises(ValueError, match=r"must be \[2, 2\] and \[2, 4\], got \(2, 2\) and \(2, 3"):
        ranking_curve(additive, images, logits, images[:, :3])
    with pytest.raises(ValueError, match="must have 2 rows, got 1 and 2"):
        ranking_curve(additive, images, logits[:1], images)
    with pytest.raises(ValueError, match="importance must be comparable, got NaN"):
        ranking_curve(additive, images, logits, images * float("nan"))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ranking_curve(additive, images, logits, images, batch_size=0)

"""Effective size, dead members, Gini index and entropy: by hand, by naive formulas, and laws."""

import math

import pytest
import torch
from torch import nn

from pathways.baselines import ActiveNeurons
from pathways.evaluation import SparsityMeter, complexity, sparseness
from pathways.evaluation.sparsity import active_neurons
from pathways.pathway import Pathway
from pathways.target import GatedTarget


def measured(target, images, mask, importance=None):
    meter = SparsityMeter(target)
    pathway = Pathway.from_mask(torch.as_tensor(mask), target.sites)
    importance = (
        torch.ones(len(images), target.sites.num_neurons) if importance is None else importance
    )
    meter.update(images, pathway, importance)
    return meter.compute()


def test_dead_members_of_planted_circuits(explaining, images):
    # One evidence neuron and four constants are kept, all of them active; three are not.
    e = explaining(images)
    found = measured(explaining.target, images, e.pathway.mask())
    assert (found.kept, found.kept_effective, found.dead_share) == (5 / 8, 5 / 8, 0)
    assert found.active == 5 / 8
    everything = measured(explaining.target, images, torch.ones(80, 8))
    assert (everything.kept, everything.kept_effective) == (1, 5 / 8)
    assert everything.dead_share == pytest.approx(3 / 8)


def test_empty_pathways_have_no_dead_members(explaining):
    images = torch.eye(4)[:2]
    # Of the second row's two members, evidence of classes 0 and 1, one is active.
    mask = torch.tensor([[0] * 8, [1, 1, 0, 0, 0, 0, 0, 0]])
    found = measured(explaining.target, images, mask)
    assert found.dead_share == 0.5
    assert found.kept == pytest.approx(1 / 8)
    assert found.kept_effective == pytest.approx(1 / 16)
    assert math.isnan(measured(explaining.target, images, torch.zeros(2, 8)).dead_share)
    importance = torch.tensor([[0.0] * 8, [1.0, 1, 0, 0, 0, 0, 0, 0]])
    found = measured(explaining.target, images, mask, importance)
    assert found.complexity == pytest.approx(math.log(2))


@pytest.fixture(scope="module", params=["channel", "unit"])
def convolution(request):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)
    )
    images = torch.randn(9, 1, 7, 7) / 4
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([-9.0, -0.2, 0.0, 0.2, 9.0]))  # dead, and never dead
    return GatedTarget(net, images[:1], granularity=request.param), images


def test_active_neurons_are_those_of_the_baseline(convolution):
    target, images = convolution
    active = active_neurons(target, images)
    assert torch.equal(active.mask(), ActiveNeurons(target)(images).pathway.mask())
    assert 0 < active.kept().mean() < 1


def test_negative_activations_are_active():
    target = GatedTarget(nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU()), torch.zeros(1, 2))
    with torch.no_grad():
        target.model[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        target.model[0].bias.zero_()
    images = torch.tensor([[1.0, 0.0]])  # activations 1, -0.01 and 0
    assert active_neurons(target, images).mask().tolist() == [[True, True, False]]


def test_against_one_input_at_a_time(convolution):
    target, images = convolution
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(9, target.sites.num_neurons, generator=generator) < 0.5
    importance = torch.rand(9, target.sites.num_neurons, generator=generator)
    found = measured(target, images, mask, importance)
    active = active_neurons(target, images).mask()
    effective, dead, gini = [], [], []
    for i in range(9):
        effective.append(float((mask[i] & active[i]).double().mean()))
        dead.append(float((mask[i] & ~active[i]).sum() / mask[i].sum()))
        values = sorted(importance[i].double().add(1e-7).tolist())
        n = len(values)
        gini.append(
            sum((2 * k - n - 1) * a for k, a in enumerate(values, start=1)) / (n * sum(values))
        )
    assert found.kept_effective == pytest.approx(sum(effective) / 9)
    assert found.dead_share == pytest.approx(sum(dead) / 9, rel=1e-5)
    assert found.sparseness == pytest.approx(sum(gini) / 9)
    meter = SparsityMeter(target)
    for start in range(0, 9, 4):
        rows = slice(start, start + 4)
        meter.update(images[rows], Pathway.from_mask(mask[rows], target.sites), importance[rows])
    assert vars(meter.compute()) == pytest.approx(vars(found))


def test_gini_and_entropy_by_hand():
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-4.0, 1.0, -3.0, 2.0]])
    # (-3 - 2 + 3 + 12) / (4 * 10), whatever signs and order.
    assert sparseness(values).tolist() == pytest.approx([0.25, 0.25], abs=1e-6)
    expected = -sum(p * math.log(p) for p in (0.1, 0.2, 0.3, 0.4))
    assert complexity(values).tolist() == pytest.approx([expected, expected])
    assert complexity(torch.ones(1, 7)).item() == pytest.approx(math.log(7))
    # Quantus' constant makes a row of zeros even; its entropy has none.
    assert sparseness(torch.zeros(1, 7)).item() == pytest.approx(0, abs=1e-9)
    assert complexity(torch.zeros(1, 7)).isnan().all()


def test_laws_of_gini_and_entropy():
    values = torch.rand(5, 33, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(sparseness(values), sparseness(values * 7), atol=1e-5)
    assert torch.allclose(complexity(values), complexity(values * 7))
    assert (sparseness(values + 1) < sparseness(values)).all()
    assert (complexity(values + 1) > complexity(values)).all()
    assert (sparseness(values.square()) > sparseness(values)).all()
    assert sparseness(torch.zeros(2, 0)).isnan().all()
    assert sparseness(torch.tensor([[float("nan"), 1.0]])).isnan().all()


def test_rows_are_worked_on_in_parts(monkeypatch):
    values = torch.rand(7, 33, generator=torch.Generator().manual_seed(0))
    whole = sparseness(values), complexity(values)
    for few in (1, 70):
        monkeypatch.setattr("pathways.evaluation.sparsity._VALUES", few)
        assert torch.equal(sparseness(values), whole[0])
        assert torch.equal(complexity(values), whole[1])
    assert sparseness(values[:0]).shape == complexity(values[:0]).shape == (0,)


class RefusesNothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu().view(len(x), -1)  # -1 is ambiguous for an empty batch


def test_no_inputs_are_not_run():
    target = GatedTarget(RefusesNothing(), torch.ones(1, 2))
    assert math.isnan(measured(target, torch.zeros(0, 2), torch.zeros(0, 2)).kept)


def test_importance_may_be_missing(explaining, images):
    e = explaining(images)
    meter = SparsityMeter(explaining.target)
    meter.update(images[:30], e.pathway[:30], e.importance[:30])
    meter.update(images[30:], e.pathway[30:])
    found = meter.compute()
    assert found.images == 80
    assert found.kept == 5 / 8
    assert found.sparseness == pytest.approx(float(sparseness(e.importance[:30]).mean()))


def test_no_inputs_give_nan(explaining):
    found = measured(explaining.target, torch.zeros(0, 4), torch.zeros(0, 8))
    assert found.images == 0
    assert all(math.isnan(value) for name, value in found.to_json().items() if name != "images")


def test_refusals(explaining, images):
    with pytest.raises(ValueError, match=r"pathway must have 80 rows and importance be \[80, 8\]"):
        measured(explaining.target, images, torch.ones(79, 8))
    with pytest.raises(ValueError, match=r"got 80 and \(80, 7\)"):
        measured(explaining.target, images, torch.ones(80, 8), torch.ones(80, 7))

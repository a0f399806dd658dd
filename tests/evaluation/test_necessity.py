"""Necessity and minimality: known circuits, skip connections, and one run at a time."""

import math

import pytest
import torch
from torch import nn

from pathways.evaluation import minimality, necessity
from pathways.evaluation.leak import random_like
from pathways.evaluation.runs import gated_logits
from pathways.pathway import Pathway
from pathways.target import GatedTarget


def of(target, mask) -> Pathway:
    return Pathway.from_mask(torch.as_tensor(mask), target.sites)


def test_necessity_of_planted_circuits(explaining, images):
    e = explaining(images)
    result = necessity(explaining.target, images, e.logits, e.pathway)
    # The complement is the evidence of other classes, of which there is none: equal logits, and
    # class 0 wins the tie.
    assert result.probability == pytest.approx(1 / 4)
    assert result.agreement == 1 / 4
    clean = e.logits.double().softmax(1).amax(1)
    assert result.ratio == pytest.approx(float((0.25 / clean).mean()))
    assert result.kept == pytest.approx(3 / 8)
    drawn = random_like(e.pathway, 0).complement()
    gated = gated_logits(explaining.target, images, drawn)
    assert result.random_agreement == (gated.argmax(1) == e.predictions).double().mean()
    own = gated.double().softmax(1).gather(1, e.predictions.unsqueeze(1))
    assert result.random_probability == pytest.approx(float(own.mean()))
    again = necessity(explaining.target, images, e.logits, e.pathway, batch_size=7)
    assert again == result


def test_an_empty_pathway_is_not_necessary(explaining, images):
    target = explaining.target
    logits = target(images)
    nothing, everything = (of(target, torch.full((80, 8), value)) for value in (0, 1))
    result = necessity(target, images, logits, nothing)
    assert (result.agreement, result.ratio, result.kept) == (1, 1, 1)
    assert result.probability == pytest.approx(float(logits.double().softmax(1).amax(1).mean()))
    assert result.random_probability == result.probability
    result = necessity(target, images, logits, everything)
    assert (result.agreement, result.probability, result.kept) == (0.25, 0.25, 0)


class Skip(nn.Module):
    """Logits of x plus those of a block of its own: the block adds what is there already."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return x + self.second(x)


def test_minimality_sees_a_redundant_block():
    target = GatedTarget(Skip(), torch.zeros(1, 3))
    images = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 2], [0, 2, 0]])
    everything = of(target, torch.ones(4, 6))
    result = minimality(target, images, everything)
    # Without the first site all logits are 0: class 0 wins, right for one input of four.
    assert result.per_site.tolist() == [0.25, 1.0]
    assert result.redundant == 5 / 8
    assert result.pairs.tolist() == [4, 4]


def test_minimality_compares_with_the_pathway_and_leaves_out_empty_sites():
    target = GatedTarget(Skip(), torch.zeros(1, 3))
    images = torch.tensor([[1.0, 3, 0], [1, 3, 0]])
    # Only neuron 0 is kept, which makes the clean prediction 1 a 0; the second row has no block.
    result = minimality(target, images, of(target, [[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]]))
    assert result.per_site.tolist() == [1.0, 1.0]
    assert result.pairs.tolist() == [2, 1]
    result = minimality(target, images, of(target, [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]))
    assert result.per_site[0] == 0
    assert math.isnan(result.per_site[1])
    assert result.pairs.tolist() == [1, 0]


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_against_one_run_at_a_time(granularity):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )
    images = torch.randn(11, 1, 7, 7)
    target = GatedTarget(net, images[:1], granularity=granularity)
    mask = torch.rand(11, target.sites.num_neurons) < 0.7
    pathway, logits = of(target, mask), target(images)
    found = necessity(target, images, logits, pathway, batch_size=4)
    sites = minimality(target, images, pathway, batch_size=4)
    left, same = [], torch.zeros(2)
    for i in range(11):
        image = images[i : i + 1]
        rest = target.gated(image, (~mask[i : i + 1]).float()).softmax(1)
        left.append(float(rest[0, logits[i].argmax()]))
        whole = target.gated(image, mask[i : i + 1].float()).argmax()
        for site in range(2):
            gates = [gate.clone() for gate in pathway[i].gates()]
            gates[site].zero_()
            same[site] += target.gated(image, gates).argmax() == whole
    assert found.probability == pytest.approx(sum(left) / 11, rel=1e-5)
    assert sites.per_site.tolist() == pytest.approx((same / 11).tolist())


def test_no_inputs_give_nan(explaining):
    target = explaining.target
    nothing = of(target, torch.zeros(0, 8))
    result = necessity(target, torch.zeros(0, 4), torch.zeros(0, 4), nothing)
    assert math.isnan(result.probability)
    assert math.isnan(result.kept)
    sites = minimality(target, torch.zeros(0, 4), nothing)
    assert math.isnan(sites.redundant)
    assert sites.pairs.tolist() == [0]


def test_refusals(explaining, images):
    e = explaining(images)
    with pytest.raises(ValueError, match=r"logits must be \[80, 4\], got \(79, 4\)"):
        necessity(explaining.target, images, e.logits[1:], e.pathway)
    with pytest.raises(ValueError, match="necessity: pathway must have 80 rows, got 1"):
        necessity(explaining.target, images, e.logits, e.pathway[0])
    with pytest.raises(ValueError, match="minimality: pathway must have 80 rows, got 1"):
        minimality(explaining.target, images, e.pathway[0])

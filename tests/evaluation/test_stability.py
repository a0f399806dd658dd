"""Stability: binomial intervals, the bootstrap they stand for, and laws of the certified core."""

import math

import pytest
import torch

from pathways.class_pathways import ClassPathways
from pathways.evaluation import core_transfer, stability, transfer
from pathways.evaluation.stability import selection_intervals
from pathways.pathway import Pathway
from pathways.sites import Site, Sites


def classes_of(members, counts, threshold=0.5) -> ClassPathways:
    members = torch.tensor(members)
    sites = Sites([Site("a", 0, "relu", (members.shape[1],))])
    return ClassPathways(members, torch.tensor(counts), sites, threshold=threshold)


def test_intervals_by_hand():
    # A neuron in 1 of 4 inputs: P(0) = (3/4)^4 = .316, P(<= 2) = .949, P(<= 3) = .996.
    classes = classes_of([[0, 1, 2, 3, 4]], [4])
    low, high = selection_intervals(classes, 0, 0.95)
    assert low.tolist() == [0, 0, 0, 0.25, 1]
    assert high.tolist() == [0, 0.75, 1, 1, 1]
    # At 50 % the tails are .25 and .75: P(<= 1) = .738 for 1 of 4; P(0) + P(1) = .3125 for 2 of 4.
    low, high = selection_intervals(classes, 0, 0.5)
    assert low.tolist() == [0, 0, 0.25, 0.5, 1]
    assert high.tolist() == [0, 0.5, 0.75, 1, 1]


def test_a_tail_that_is_reached_exactly():
    """Neurons in half of j inputs: tails that are sums of binomial(j, 1/2), the quantile being the
    frequency at which the sum reaches them, whatever rounding does to it."""
    for count in range(2, 41, 2):
        classes = classes_of([[count // 2]], [count])
        total = 0
        for k in range(count // 2):
            total += math.comb(count, k)
            confidence = 1 - 2 * total / 2**count
            if total < 2**count * 1e-6 or not 0 < confidence < 1:
                continue
            low, high = selection_intervals(classes, 0, confidence)
            assert low.tolist() == [k / count]
            assert high.tolist() == [(count - k - 1) / count]


@pytest.mark.parametrize("count", [1, 7, 40])
def test_intervals_are_those_of_resampling(count):
    generator = torch.Generator().manual_seed(count)
    mask = torch.rand(count, 65, generator=generator) < torch.rand(65, generator=generator)
    pathway = Pathway.from_mask(mask, Sites([Site("a", 0, "relu", (65,))]))
    classes = ClassPathways.from_pathways(pathway, torch.zeros(count, dtype=torch.int64))
    low, high = selection_intervals(classes, 0, 0.9)
    draws = torch.randint(count, (20000, count), generator=generator)
    weights = torch.nn.functional.one_hot(draws, count).sum(1).double()
    frequency = weights @ mask.double() / count
    # The share of resamples at most at each bound, by the definition of a quantile.
    slack = 0.015
    assert ((frequency <= low + 1e-9).double().mean(0) >= 0.05 - slack).all()
    assert ((frequency < low - 1e-9).double().mean(0) < 0.05 + slack).all()
    assert ((frequency <= high + 1e-9).double().mean(0) >= 0.95 - slack).all()
    assert ((frequency < high - 1e-9).double().mean(0) < 0.95 + slack).all()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_the_class_pathway_lies_between_core_and_possible(threshold):
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([1, 2, 5, 9, 30, 0])
    members = (torch.rand(6, 70, generator=generator) * (counts + 1).unsqueeze(1)).long()
    classes = classes_of(members.tolist(), counts.tolist(), threshold)
    previous = None
    for confidence in (0.5, 0.9, 0.99):
        found = stability(classes, confidence)
        assert found.core - classes.pathway == nothing(classes)
        assert classes.pathway - found.possible == nothing(classes)
        assert found.core & found.undecided == nothing(classes)
        assert found.core | found.undecided == found.possible
        if previous is not None:  # more confidence, more abstention
            assert found.core - previous.core == nothing(classes)
            assert previous.possible - found.possible == nothing(classes)
        previous = found
    assert found.undecided.sizes()[3:5].min() > 0
    assert found.possible.sizes()[5] == 0
    assert math.isnan(found.per_class[5])


def nothing(classes) -> Pathway:
    return Pathway.from_mask(torch.zeros(len(classes), classes.sites.num_neurons), classes.sites)


def test_shares_by_hand():
    # 4 inputs, threshold 1/2: 4 of 4 is sure; 1, 2 and 3 of 4 are not; 0 of 4 is out.
    found = stability(classes_of([[4, 4, 3, 1, 0], [4, 4, 4, 4, 0], [0, 0, 0, 0, 0]], [4, 4, 0]))
    assert found.per_class[:2].tolist() == [0.5, 1.0]
    assert math.isnan(found.per_class[2])
    assert found.stability == 0.75
    assert found.counts.tolist() == [4, 4, 0]
    assert found.core.mask()[0].tolist() == [True, True, False, False, False]
    assert found.undecided.mask()[0].tolist() == [False, False, True, True, False]


def test_more_inputs_decide_more():
    shares = [stability(classes_of([[j, 4 * j // 5, j // 5]], [j])).stability for j in (5, 20, 100)]
    assert shares == [1 / 3, 1, 1]


def test_no_classes_and_no_neurons():
    sites = Sites([Site("a", 0, "relu", (3,))])
    none = torch.zeros(0, dtype=torch.int64)
    found = stability(ClassPathways(torch.zeros(0, 3, dtype=torch.int64), none, sites))
    assert math.isnan(found.stability)
    assert len(found.core) == 0
    assert math.isnan(stability(classes_of([[0, 0]], [3])).stability)


def test_core_transfer_on_planted_circuits(explaining, images):
    support, query = explaining(images[:40]), explaining(images[40:])
    classes = ClassPathways.from_pathways(support.pathway, support.predictions, num_classes=4)
    found = stability(classes)
    assert found.stability == 1
    core, possible = core_transfer(explaining.target, found, images[40:], query.logits)
    (point,) = transfer(
        explaining.target,
        support.pathway,
        support.predictions,
        images[40:],
        query.logits,
        shots=(None,),
    )
    assert core == possible == point.own


def test_core_transfer_without_what_is_undecided(explaining, images):
    target = explaining.target
    # Constants are always selected; the evidence of a class in 7 of 10 inputs only.
    evidence, constant = 7 * torch.eye(4, dtype=torch.int64), torch.full((4, 4), 10)
    members = torch.cat([evidence, constant], dim=1)
    classes = ClassPathways(members, torch.tensor([10, 10, 10, 0]), target.sites)
    found = stability(classes, 0.99)
    assert found.undecided.sizes().tolist() == [1, 1, 1, 0]
    core, possible = core_transfer(target, found, images, target(images), batch_size=7)
    # The 20 inputs of class 3 are not covered; without evidence class 0 wins the tie.
    assert core.agreement == pytest.approx(1 / 3)
    assert core.kept == 4 / 8
    assert possible.agreement == 1
    assert possible.kept == 5 / 8
    nobody = core_transfer(target, found, images[3:4], target(images[3:4]))
    assert math.isnan(nobody[0].agreement)


def test_refusals(explaining, images):
    classes = classes_of([[1]], [1])
    for confidence in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got"):
            stability(classes, confidence)
    with pytest.raises(ValueError, match=r"logits must be \[80, 4\], got \(1, 4\)"):
        core_transfer(explaining.target, stability(classes), images, torch.zeros(1, 4))

"""Recovery of known circuits against counts by hand."""

import math

import pytest
import torch

from pathways.evaluation import recovery
from pathways.pathway import Pathway
from pathways.sites import Site, Sites

TRUTH = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]).bool()
MASK = torch.tensor(
    [
        [1, 1, 1, 0, 0, 0],  # exactly the circuit of class 0
        [1, 0, 0, 0, 1, 1],  # a third of it, and two others
        [1, 1, 1, 1, 1, 1],  # everything, of class 1
        [0, 0, 0, 0, 0, 0],  # nothing, of class 1
    ]
)
LABELS = torch.tensor([0, 0, 1, 1])


def test_by_hand():
    found = recovery(MASK, LABELS, TRUTH)
    assert found.recall == pytest.approx((1 + 1 / 3 + 1 + 0) / 4)
    assert found.precision == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)  # nothing has no precision
    assert found.f1 == pytest.approx((1 + 1 / 3 + 1 / 2 + 0) / 4)
    expected = torch.tensor([[2 / 3, 2 / 3, 2 / 3], [0.5, 1 / 3, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(found.per_class, expected)
    assert found.roles == {}


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_pathways_of_both_granularities(granularity):
    shape = (3, 2, 1) if granularity == "unit" else (6, 2, 1)
    sites = Sites([Site("a", 0, "relu", shape)], granularity=granularity)
    assert sites.num_neurons == 6
    of_mask = recovery(MASK, LABELS, TRUTH)
    found = recovery(Pathway.from_mask(MASK, sites), LABELS, TRUTH)
    assert (found.recall, found.precision, found.f1) == (
        of_mask.recall, of_mask.precision, of_mask.f1,
    )  # fmt: skip


def test_f1_is_that_of_sets():
    generator = torch.Generator().manual_seed(1)
    mask, truth = (torch.rand(50, 37, generator=generator) < share for share in (0.4, 0.3))
    labels = torch.arange(50)
    both, sizes = (mask & truth).sum(1), mask.sum(1) + truth.sum(1)
    assert recovery(mask, labels, truth).f1 == pytest.approx(float((2 * both / sizes).mean()))


def test_more_rows_than_are_unpacked_at_a_time():
    repeated = recovery(MASK.repeat(700, 1), LABELS.repeat(700), TRUTH, roles={"own": TRUTH})
    once = recovery(MASK, LABELS, TRUTH, roles={"own": TRUTH})
    assert (repeated.recall, repeated.precision, repeated.f1) == pytest.approx(
        (once.recall, once.precision, once.f1)
    )
    torch.testing.assert_close(repeated.per_class, once.per_class)
    assert repeated.roles == pytest.approx(once.roles) and once.roles["own"] == once.recall


def test_equal_sizes_make_recall_and_precision_equal():
    generator = torch.Generator().manual_seed(2)
    order = torch.rand(20, 15, generator=generator).argsort(1)
    truth = torch.rand(20, 15, generator=generator).argsort(1) < 4
    found = recovery(order < 4, torch.arange(20), truth)
    assert 0 < found.recall < 1
    assert found.recall == pytest.approx(found.precision) == pytest.approx(found.f1)


def test_an_alternative_circuit():
    truth = torch.tensor([[1, 1, 1, 0, 0, 0]]).bool()
    other = torch.tensor([[1, 0, 0, 1, 1, 0]]).bool()
    mask = torch.tensor([[1, 0, 0, 1, 1, 0], [1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1]])
    labels = torch.zeros(3, dtype=torch.int64)
    found = recovery(mask, labels, truth, alternative=other)
    # All of the other; two thirds of either, three of four in one of them; none.
    assert found.recall == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found.precision == pytest.approx((1 + 3 / 4 + 0) / 3)
    assert recovery(mask, labels, truth).recall == pytest.approx((1 / 3 + 2 / 3) / 3)
    same = recovery(MASK, LABELS, TRUTH, alternative=TRUTH)
    assert same.recall == recovery(MASK, LABELS, TRUTH).recall


def test_roles_count_the_own_class_alone():
    roles = {
        "first": torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool(),
        "last": torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]]).bool(),
        "none": torch.zeros(2, 6, dtype=torch.bool),
    }
    found = recovery(MASK, LABELS, TRUTH, roles=roles).roles
    assert found["first"] == pytest.approx((1 + 0.5) / 2)  # class 1 has none
    assert found["last"] == pytest.approx((0 + 1 + 1 + 0) / 4)
    assert math.isnan(found["none"])


def test_nothing_to_average():
    empty = recovery(MASK[:0], LABELS[:0], TRUTH)
    assert all(math.isnan(value) for value in (empty.recall, empty.precision, empty.f1))
    assert empty.per_class.shape == (2, 3) and empty.per_class.isnan().all()
    one_class = recovery(MASK[:1], LABELS[:1], TRUTH)
    assert one_class.per_class[1].isnan().all() and one_class.recall == 1
    no_circuit = recovery(MASK[:1], LABELS[:1], torch.zeros(1, 6))
    assert math.isnan(no_circuit.recall) and no_circuit.precision == 0
    # Where one of two circuits is empty, the other one is what can be found.
    assert recovery(MASK[:1], LABELS[:1], torch.zeros(2, 6), alternative=TRUTH).recall == 1


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ((MASK, LABELS, TRUTH[:, :5]), {}, r"pathway must be \[4, 5\] .*, got \(4, 6\)"),
        ((MASK, LABELS[:3], TRUTH), {}, r"pathway must be \[3, 6\] .*, got \(4, 6\)"),
        ((MASK, LABELS, TRUTH[0]), {}, r"truth must be \[K, D\]"),
        ((MASK, LABELS, TRUTH), {"alternative": TRUTH[:1]}, r"alternative must be .*got \(1, 6\)"),
        ((MASK, LABELS, TRUTH), {"roles": {"odd": TRUTH[0]}}, r"odd must be .*, got \(6,\)"),
        ((MASK, LABELS + 1, TRUTH), {}, r"labels must be in \[0, 2\), got 1..2"),
        ((MASK, LABELS - 1, TRUTH), {}, r"labels must be in \[0, 2\), got -1..0"),
    ],
)
def test_bad_input(arguments, more, message):
    with pytest.raises(ValueError, match=message):
        recovery(*arguments, **more)

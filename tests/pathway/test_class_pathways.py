"""ClassPathways: frequencies, thresholds, top-k and refusals."""

import pytest
import torch

from pathways.class_pathways import ClassPathways
from pathways.packing import random_words, scored_mask, top_k_mask
from pathways.pathway import Pathway
from pathways.sites import Site, Sites

SITES = Sites([Site("a", 0, "relu", (3,)), Site("b", 0, "relu", (66,))])
# Class 0: four inputs, class 2: one input, class 1 and 3: none.
PREDICTIONS = torch.tensor([0, 0, 2, 0, 0])


@pytest.fixture
def pathway() -> Pathway:
    mask = torch.zeros(5, 69, dtype=torch.bool)
    mask[[0, 1, 3, 4], 0] = True  # neuron 0: 4 of 4 in class 0
    mask[[0, 1, 2], 1] = True  # neuron 1: 2 of 4 in class 0, and class 2
    mask[0, 2] = True  # neuron 2: 1 of 4 in class 0
    mask[2, 68] = True  # last neuron of the last site: class 2
    return Pathway.from_mask(mask, SITES, "target")


@pytest.fixture
def classes(pathway) -> ClassPathways:
    return ClassPathways.from_pathways(pathway, PREDICTIONS, num_classes=4)


def members(pathway: Pathway) -> list[list[int]]:
    return [row.nonzero().squeeze(1).tolist() for row in pathway.mask()]


def test_frequencies_by_hand(classes):
    assert classes.counts.tolist() == [4, 0, 1, 0]
    assert classes.frequency.dtype == torch.float64
    assert classes.frequency[0, :3].tolist() == [1.0, 0.5, 0.25]
    assert classes.frequency[2, [0, 1, 68]].tolist() == [0.0, 1.0, 1.0]
    assert not classes.frequency[[1, 3]].any()
    assert classes.classes.tolist() == [0, 2]
    assert len(classes) == 4
    assert classes.fingerprint == "target"


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.0, [0, 1, 2]), (0.25, [0, 1, 2]), (0.5, [0, 1]), (0.51, [0]), (1.0, [0])],
)
def test_thresholds(classes, threshold, expected):
    cut = classes.with_threshold(threshold)
    assert cut.threshold == threshold
    assert members(cut.pathway) == [expected, [], [1, 68], []]


@pytest.mark.parametrize(("count", "threshold"), [(10, k / 10) for k in range(1, 11)])
def test_threshold_of_a_decimal_fraction_is_inclusive(count, threshold):
    mask = torch.zeros(count, 69, dtype=torch.bool)
    mask[: round(threshold * count), 0] = True
    pathway = Pathway.from_mask(mask, SITES)
    classes = ClassPathways.from_pathways(pathway, torch.zeros(count).long(), threshold)
    assert members(classes[0]) == [[0]]


def test_intersection_and_union_are_the_limits(pathway):
    rows = pathway[PREDICTIONS == 0]
    union, intersection = rows[0], rows[0]
    for row in rows:
        union, intersection = union | row, intersection & row
    classes = ClassPathways.from_pathways(pathway, PREDICTIONS)
    assert classes.with_threshold(0.0)[0] == union
    assert classes.with_threshold(1.0)[0] == intersection


def test_a_single_input_is_its_own_class_pathway(pathway, classes):
    assert classes[2] == pathway[2]


def test_top_k(classes):
    assert members(classes.top_k(2)) == [[0, 1], [], [1, 68], []]
    # Mean sizes: (3 + 2 + 1 + 1) / 4 = 1.75, rounded 2, and 2.
    assert classes.top_k().sizes().tolist() == [2, 0, 2, 0]
    assert classes.top_k(69).sizes().tolist() == [69, 0, 69, 0]
    with pytest.raises(ValueError, match=r"k must be in \[0, 69\], got 70"):
        classes.top_k(70)


def test_agnostic_averages_over_classes(classes):
    # Mean frequencies of neurons 0, 1, 2, 68: 0.5, 0.75, 0.125, 0.5.
    assert members(classes.agnostic()) == [[0, 1, 68]]
    assert members(classes.agnostic(0.6)) == [[1]]
    assert members(classes.agnostic(0.0)) == [[0, 1, 2, 68]]
    empty = ClassPathways.from_pathways(Pathway.cat([classes[0]])[:0], torch.zeros(0).long())
    assert len(empty) == 0
    with pytest.raises(ValueError, match="every class is empty"):
        empty.agnostic()


def test_for_predictions(classes):
    rows = classes.for_predictions(torch.tensor([2, 0, 2]))
    assert rows == Pathway.cat([classes[2], classes[0], classes[2]])
    assert len(classes.for_predictions(torch.zeros(0, dtype=torch.int64))) == 0


def test_refusals(pathway, classes):
    with pytest.raises(IndexError, match=r"class must be in \[0, 4\), got 4"):
        classes[4]
    with pytest.raises(IndexError, match=r"class must be in \[0, 4\), got -1"):
        classes[-1]
    with pytest.raises(ValueError, match="class 1 is empty"):
        classes[1]
    with pytest.raises(ValueError, match="class 3 is empty"):
        classes.for_predictions(torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"predictions must be in \[0, 4\), got 7"):
        classes.for_predictions(torch.tensor([0, 7]))
    with pytest.raises(ValueError, match=r"predictions must be in \[0, 2\), got 2"):
        ClassPathways.from_pathways(pathway, PREDICTIONS, num_classes=2)
    with pytest.raises(ValueError, match=r"predictions must be in \[0, \), got -1"):
        ClassPathways.from_pathways(pathway, PREDICTIONS - 1)
    with pytest.raises(ValueError, match=r"predictions must be \[5\], got \(4,\)"):
        ClassPathways.from_pathways(pathway, PREDICTIONS[:4])
    with pytest.raises(TypeError, match=r"predictions must be integers, got torch\.float32"):
        ClassPathways.from_pathways(pathway, PREDICTIONS.float())
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 1.5"):
        classes.with_threshold(1.5)
    with pytest.raises(ValueError, match=r"members must be \[K, 69\] and counts \[K\]"):
        ClassPathways(classes.members[:, 1:], classes.counts, SITES)


def test_repr_and_device(classes):
    assert repr(classes) == "ClassPathways(4 classes, 2 empty, 5 inputs, threshold 0.5)"
    assert classes.to("cpu").pathway == classes.pathway


def test_top_k_mask_is_exact_with_ties():
    scores = torch.tensor([[0.5, 0.5, 0.5, 0.9], [0.1, 0.2, 0.3, 0.4]])
    mask = top_k_mask(scores, torch.tensor([2, 0]))
    assert mask.tolist() == [[True, False, False, True], [False] * 4]


def test_scored_mask_per_site_and_global():
    scores = torch.rand(1, 69, generator=torch.Generator().manual_seed(0))
    scores[0, :3] += 1  # the three best of all are the first site
    per_site = scored_mask(scores, torch.tensor([[1, 2]]), SITES)
    assert [part.sum().item() for part in SITES.split(per_site)] == [1, 2]
    everywhere = scored_mask(scores, torch.tensor([3]), SITES)
    assert everywhere.nonzero()[:, 1].tolist() == [0, 1, 2]


def test_random_words_have_the_sizes_and_follow_the_seed():
    sizes = torch.tensor([[1, 40], [3, 0], [0, 66]]).repeat(50, 1)
    drawn = Pathway(random_words(sizes, SITES, torch.Generator().manual_seed(1)), SITES)
    again = Pathway(random_words(sizes, SITES, torch.Generator().manual_seed(1)), SITES)
    other = Pathway(random_words(sizes, SITES, torch.Generator().manual_seed(2)), SITES)
    assert torch.equal(drawn.sizes(per_site=True), sizes)
    assert drawn == again
    assert drawn != other
    # Every neuron of the first site is equally likely: 50 draws of 1 of 3.
    counts = drawn.mask()[::3, :3].sum(0)
    assert counts.sum() == 50
    assert counts.min() >= 5

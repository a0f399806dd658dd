"""ClassIoU: against a naive loop, chance level, and splits that must not matter."""

import math

import pytest
import torch

from pathways.evaluation import ClassIoU
from pathways.pathway import Pathway
from pathways.sites import Site, Sites

SITES = Sites([Site("a", 0, "relu", (10,)), Site("b", 0, "relu", (70,))])


def random_case(rows: int = 40, classes: int = 4, density: float = 0.4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, 80, generator=generator) < density
    labels = torch.randint(classes, (rows,), generator=generator)
    return Pathway.from_mask(mask, SITES), labels


def computed(pathway, labels, classes=4, **options):
    metric = ClassIoU(pathway.sites, classes, **options)
    metric.update(pathway, labels)
    return metric.compute()


def test_matrix_against_the_naive_loop():
    pathway, labels = random_case()
    iou = pathway.pairwise_iou().double()
    result = computed(pathway, labels)
    for c in range(4):
        for d in range(4):
            pairs = [
                iou[i, k].item()
                for i in range(40)
                for k in range(40)
                if labels[i] == c and labels[k] == d and (c != d or i < k)
            ]
            assert result["matrix"][c, d].item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    within = result["matrix"].diagonal()
    assert torch.equal(result["per_class"], within)
    assert float(result["aciou"]) == pytest.approx(float(within.mean()))
    between = result["matrix"][~torch.eye(4, dtype=torch.bool)].mean()
    assert float(result["between_class_iou"]) == pytest.approx(float(between))
    assert float(result["gap"]) == pytest.approx(float(within.mean() - between))
    assert float(result["ratio"]) == pytest.approx(float(within.mean() / between))


def test_planted_circuits():
    # Each class has its own neurons, no two classes share any.
    labels = torch.arange(12) % 4
    mask = torch.zeros(12, 80)
    for row, label in enumerate(labels.tolist()):
        mask[row, 20 * label : 20 * label + 20] = 1
    result = computed(Pathway.from_mask(mask, SITES), labels)
    assert float(result["aciou"]) == 1
    assert float(result["between_class_iou"]) == 0
    assert float(result["gap"]) == 1
    assert float(result["aciou_corrected"]) == 1


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_chance_of_independent_masks(density):
    # E[IoU] of independent masks of density rho is about rho / (2 - rho): .333 and .053.
    sites = Sites([Site("a", 0, "relu", (2000,))])
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(40, 2000, generator=generator) < density
    result = computed(Pathway.from_mask(mask, sites), torch.zeros(40).long(), 1)
    expected = density / (2 - density)
    assert float(result["aciou"]) == pytest.approx(expected, abs=0.005)
    assert float(result["chance"]) == pytest.approx(expected, abs=0.005)
    assert float(result["aciou_corrected"]) == pytest.approx(0, abs=0.005)


def test_chance_keeps_the_density_of_each_site():
    # One site full, one empty: with sizes kept per site there is nothing left to chance.
    mask = torch.zeros(6, 80)
    mask[:, :10] = 1
    result = computed(Pathway.from_mask(mask, SITES), torch.zeros(6).long(), 1)
    assert float(result["chance"]) == 1
    assert float(result["aciou"]) == 1
    assert float(result["aciou_corrected"]) == 0


def test_full_pathways_are_not_similar_beyond_chance():
    result = computed(Pathway.from_mask(torch.ones(8, 80), SITES), torch.arange(8) % 4)
    assert float(result["aciou"]) == 1
    assert float(result["between_class_iou"]) == 1
    assert float(result["gap"]) == 0
    assert float(result["aciou_corrected"]) == 0


def test_batches_merges_and_order_do_not_matter():
    pathway, labels = random_case(80)
    expected = computed(pathway, labels, chance_rows=5, seed=3)
    batched = ClassIoU(SITES, 4, chance_rows=5, seed=3)
    for start in range(0, 80, 7):
        batched.update(pathway[start : start + 7], labels[start : start + 7])
    first, second = (ClassIoU(SITES, 4, chance_rows=5, seed=3) for _ in range(2))
    first.update(pathway[:30], labels[:30])
    second.update(pathway[30:], labels[30:])
    first.merge_state(second)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    shuffled = computed(pathway[order], labels[order], chance_rows=5, seed=3)
    for result in (batched.compute(), first.compute(), shuffled):
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, equal_nan=True)
    assert computed(pathway, labels, chance_rows=5, seed=4)["chance"] != expected["chance"]


def test_small_and_empty_classes():
    pathway, _ = random_case(3)
    result = computed(pathway, torch.tensor([0, 0, 2]))
    assert [math.isnan(v) for v in result["per_class"]] == [False, True, True, True]
    assert float(result["aciou"]) == pytest.approx(float(pathway[0].iou(pathway[1])))
    across = (pathway[0].iou(pathway[2]) + pathway[1].iou(pathway[2])) / 2
    assert float(result["between_class_iou"]) == pytest.approx(float(across))
    alone = computed(pathway[:1], torch.tensor([1]))
    assert math.isnan(alone["aciou"])
    assert math.isnan(alone["between_class_iou"])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_inputs():
    assert math.isnan(ClassIoU(SITES, 4).compute()["aciou"])


def test_refusals():
    pathway, labels = random_case(3)
    metric = ClassIoU(SITES, 4)
    with pytest.raises(ValueError, match=r"predictions must be \[3\], got \(2,\)"):
        metric.update(pathway, labels[:2])
    with pytest.raises(ValueError, match=r"predictions must be in \[0, 4\), got 9"):
        metric.update(pathway, torch.tensor([0, 9, 1]))
    other = Sites([Site("a", 0, "relu", (80,))])
    with pytest.raises(ValueError, match="pathway must have the sites"):
        metric.update(Pathway.from_mask(pathway.mask(), other), labels)
    with pytest.raises(ValueError, match="permutations must be at least 1"):
        ClassIoU(SITES, 4, permutations=0)

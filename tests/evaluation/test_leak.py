"""Leak controls: planted explainers that leak, that explain, and that do nothing."""

import math

import pytest
import torch

from pathways.class_pathways import ClassPathways
from pathways.evaluation import (
    blank_hit,
    mask_probe,
    mask_swap_flip,
    random_agreement,
    wrong_class,
)
from pathways.evaluation.leak import other_classes, random_like, swap_partners
from pathways.evaluation.probe import _PENALTIES, _ridge
from pathways.evaluation.runs import gated_logits
from pathways.pathway import Pathway
from pathways.sites import Site, Sites


def class_pathways(explainer, images) -> ClassPathways:
    e = explainer(images)
    return ClassPathways.from_pathways(e.pathway, e.predictions, num_classes=4)


def test_leaking_explainer_is_perfectly_faithful_and_caught(leaking, images, blanks):
    e = leaking(images)
    assert torch.equal(e.predictions, e.gated_predictions)
    classes = class_pathways(leaking, images)
    result = wrong_class(leaking.target, images, e.logits, classes)
    assert result.flip == 1
    assert result.pairs == 80 * 3
    assert result.probability > 0.9
    assert blank_hit(leaking.target, classes, blanks).rate == 1
    assert mask_swap_flip(leaking.target, images, e.pathway, e.predictions) == 1
    assert mask_probe(e.pathway, e.predictions).accuracy == 1


def test_doing_nothing_does_not_leak(doing_nothing, images, blanks):
    e = doing_nothing(images)
    classes = class_pathways(doing_nothing, images)
    result = wrong_class(doing_nothing.target, images, e.logits, classes)
    assert result.flip == 0
    assert result.probability == pytest.approx(result.clean_probability)
    assert blank_hit(doing_nothing.target, classes, blanks).rate == 1 / 4
    assert mask_swap_flip(doing_nothing.target, images, e.pathway, e.predictions) == 0
    assert random_agreement(doing_nothing.target, images, e.pathway, e.predictions) == 1


def test_explaining_pathways_do_not_decide(explaining, images, blanks):
    e = explaining(images)
    assert torch.equal(e.predictions, e.gated_predictions)
    classes = class_pathways(explaining, images)
    result = wrong_class(explaining.target, images, e.logits, classes)
    # Without evidence all logits are equal, and the first class wins the tie: 60 inputs of the
    # other classes under the pathway of class 0.
    assert result.flip == pytest.approx(60 / 240)
    assert result.probability == pytest.approx(0.25)
    assert result.matrix[1:, 0].tolist() == [1, 1, 1]
    assert result.matrix[0, 1:].tolist() == [0, 0, 0]
    assert math.isnan(result.matrix[2, 2])


def test_clean_probability_by_hand(leaking):
    # Evidence 1 for class 0: p of any other class is 1 / (e + 3).
    images = torch.eye(4)
    logits = leaking.target(images)
    result = wrong_class(leaking.target, images, logits, class_pathways(leaking, images))
    assert result.clean_probability == pytest.approx(1 / (math.e + 3))
    # Under the leaking pathway of class 1: logits 1, 5, 0, 0.
    expected = math.exp(5) / (math.e + math.exp(5) + 2)
    assert result.probability == pytest.approx(expected)


def test_batch_size_does_not_matter(leaking, explaining, images, blanks):
    for explainer in (leaking, explaining):
        e = explainer(images)
        classes = class_pathways(explainer, images)
        target = explainer.target
        results = [
            (
                wrong_class(target, images, e.logits, classes, batch_size=b).probability,
                blank_hit(target, classes, blanks, batch_size=b).rate,
                mask_swap_flip(target, images, e.pathway, e.predictions, batch_size=b),
                random_agreement(target, images, e.pathway, e.predictions, batch_size=b),
            )
            for b in (1, 7, 200)
        ]
        assert results[0] == pytest.approx(results[1])
        assert results[0] == pytest.approx(results[2])


def test_sampled_wrong_classes(leaking, images):
    e = leaking(images)
    classes = class_pathways(leaking, images)
    sampled = wrong_class(leaking.target, images, e.logits, classes, classes_per_image=1, seed=5)
    assert sampled.pairs == 80
    assert sampled.flip == 1
    again = wrong_class(leaking.target, images, e.logits, classes, classes_per_image=1, seed=5)
    assert torch.equal(sampled.matrix.isnan(), again.matrix.isnan())
    with pytest.raises(ValueError, match="classes_per_image must be at least 1, got 0"):
        wrong_class(leaking.target, images, e.logits, classes, classes_per_image=0)
    with pytest.raises(ValueError, match=r"logits must be \[80, 4\], got \(79, 4\)"):
        wrong_class(leaking.target, images, e.logits[1:], classes)


def test_empty_classes_are_left_out(leaking, images, blanks):
    some = images[:40][torch.arange(40) % 4 < 2]  # classes 0 and 1 only
    classes = class_pathways(leaking, some)
    logits = leaking.target(images)
    result = wrong_class(leaking.target, images, logits, classes)
    # Classes 0 and 1 have one other class, 2 and 3 have two.
    assert result.pairs == 40 * 1 + 40 * 2
    clean = logits.softmax(1)
    expected = [
        clean[row, wrong].item()
        for row in range(80)
        for wrong in (0, 1)
        if logits[row].argmax() != wrong
    ]
    assert result.clean_probability == pytest.approx(sum(expected) / 120)
    hit = blank_hit(leaking.target, classes, blanks)
    assert hit.rate == 1
    assert hit.hits.any(1).tolist() == [True, True, False, False]
    assert hit.predictions.shape == (3,)


def test_single_class_has_no_wrong_one(leaking, images):
    one = images[::4]
    classes = class_pathways(leaking, one)
    logits = leaking.target(one)
    result = wrong_class(leaking.target, one, logits, classes)
    assert result.pairs == 0
    assert math.isnan(result.flip)
    assert math.isnan(result.probability)
    e = leaking(one)
    assert math.isnan(mask_swap_flip(leaking.target, one, e.pathway, e.predictions))


def test_blank_hit_needs_blanks_and_classes(leaking, images, blanks):
    classes = class_pathways(leaking, images)
    with pytest.raises(ValueError, match="got 0 and 4"):
        blank_hit(leaking.target, classes, blanks[:0])
    e = leaking(images[:0])
    empty = ClassPathways.from_pathways(e.pathway, e.predictions, num_classes=4)
    with pytest.raises(ValueError, match="got 3 and 0"):
        blank_hit(leaking.target, empty, blanks)


def test_other_classes():
    predictions = torch.tensor([0, 1, 3, 3])
    others = other_classes(predictions, torch.tensor([0, 1, 2]), 4)
    assert [sorted(row) for row in others.tolist()] == [
        [-1, 1, 2],
        [-1, 0, 2],
        [0, 1, 2],
        [0, 1, 2],
    ]
    assert (others[:2, :2] >= 0).all()


def test_swap_partners_are_uniform_over_other_classes():
    predictions = torch.tensor([0, 1, 1, 0, 2])
    seen = [set() for _ in range(5)]
    for seed in range(60):
        rows, partners = swap_partners(predictions, seed)
        assert rows.tolist() == list(range(5))
        assert (predictions[rows] != predictions[partners]).all()
        for row, partner in zip(rows.tolist(), partners.tolist(), strict=True):
            seen[row].add(partner)
    assert seen == [{1, 2, 4}, {0, 3, 4}, {0, 3, 4}, {1, 2, 4}, {0, 1, 2, 3}]
    assert swap_partners(torch.zeros(3, dtype=torch.int64))[0].tolist() == []
    assert swap_partners(torch.zeros(0, dtype=torch.int64))[0].tolist() == []


def test_random_like_matches_sizes_per_site(leaking, images):
    pathway = leaking(images).pathway
    drawn = random_like(pathway, 1)
    assert torch.equal(drawn.sizes(per_site=True), pathway.sizes(per_site=True))
    assert drawn != pathway
    assert drawn == random_like(pathway, 1)


def test_rows_are_checked(leaking, images):
    e = leaking(images)
    with pytest.raises(ValueError, match=r"random_agreement: predictions must be \[80\]"):
        random_agreement(leaking.target, images, e.pathway, e.predictions[1:])
    with pytest.raises(ValueError, match=r"mask_swap_flip: predictions must be \[80\]"):
        mask_swap_flip(leaking.target, images, e.pathway, e.predictions[1:])
    with pytest.raises(ValueError, match="pathway must have 80 rows or one, got 2"):
        gated_logits(leaking.target, images, e.pathway[:2])
    for size in (0, -1):  # -1 would give no logits at all
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
            gated_logits(leaking.target, images, e.pathway, size)
    with pytest.raises(ValueError, match=r"predictions must be \[80\], got \(3,\)"):
        mask_probe(e.pathway, e.predictions[:3])


def probe_case(rows: int, classes: int, signal: float, seed: int = 0):
    """Random masks in which twenty blocks of ten neurons tell the class with chance ``signal``."""
    generator = torch.Generator().manual_seed(seed)
    sites = Sites([Site("a", 0, "relu", (100,)), Site("b", 0, "relu", (100,))])
    labels = torch.randint(classes, (rows,), generator=generator)
    mask = torch.rand(rows, 200, generator=generator) < 0.5
    own = torch.arange(200)[None] // 10 == labels[:, None]
    follows = torch.rand(rows, 200, generator=generator) < signal
    return Pathway.from_mask((mask & ~(follows & ~own)) | (follows & own), sites), labels


def test_probe_reads_a_leak_and_nothing_from_noise():
    pathway, labels = probe_case(400, 5, 0.9)
    assert mask_probe(pathway, labels).accuracy == 1
    pathway, labels = probe_case(400, 5, 0.0)
    noise = mask_probe(pathway, labels)
    assert noise.accuracy < 0.32  # 0.2 plus three standard deviations of 200 draws
    assert noise.rows == 200
    assert noise.chance < 0.3


def test_probe_of_equal_masks_is_chance():
    pathway, labels = probe_case(100, 3, 0.0)
    result = mask_probe(pathway[torch.zeros(100, dtype=torch.int64)], labels)
    assert 0.2 < result.accuracy <= result.chance


def test_probe_matches_a_ridge_regression_in_primal_form():
    # The dual solution on intersections must be the textbook one on the unpacked masks.
    pathway, labels = probe_case(120, 4, 0.3)
    result = mask_probe(pathway, labels, seed=2)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(2))
    x = pathway.mask().double()
    train, test = order[:60], order[60:]
    mean = x[train].mean(0)
    y = torch.nn.functional.one_hot(labels, 4).double()
    z = x[train] - mean
    penalty = result.penalty * z.square().sum(1).mean()
    weights = torch.linalg.solve(
        z.T @ z + penalty * torch.eye(200, dtype=torch.float64), z.T @ (y[train] - y[train].mean(0))
    )
    guesses = ((x[test] - mean) @ weights + y[train].mean(0)).argmax(1)
    assert result.accuracy == pytest.approx(float((guesses == labels[test]).double().mean()))


@pytest.mark.parametrize("seed", range(4))
def test_probe_penalty_is_the_best_by_explicit_leave_one_out(seed):
    pathway, labels = probe_case(48, 4, 0.12, seed)
    z = pathway.mask().double()
    kernel = (z - z.mean(0)) @ (z - z.mean(0)).T
    onehot = torch.nn.functional.one_hot(labels, 4).double()
    mean = onehot.mean(0)
    weights, penalty = _ridge(kernel, onehot - mean, labels, mean)
    accuracies = {}
    for candidate in _PENALTIES:
        damped = kernel + candidate * kernel.diagonal().mean() * torch.eye(48)
        correct = 0
        for row in range(48):
            rest = torch.arange(48) != row
            dual = torch.linalg.solve(damped[rest][:, rest], (onehot - mean)[rest])
            guess = (kernel[row, rest] @ dual + mean).argmax()
            correct += int(guess == labels[row])
        accuracies[candidate] = correct
    best = max(accuracies.values())
    assert penalty == max(c for c, correct in accuracies.items() if correct == best)
    damped = kernel + penalty * kernel.diagonal().mean() * torch.eye(48)
    torch.testing.assert_close(weights, torch.linalg.solve(damped, onehot - mean))


def test_probe_rows_are_bounded_and_few_rows_are_nan():
    pathway, labels = probe_case(100, 3, 0.9)
    assert mask_probe(pathway, labels, max_rows=20).rows == 10
    assert math.isnan(mask_probe(pathway[:1], labels[:1]).accuracy)

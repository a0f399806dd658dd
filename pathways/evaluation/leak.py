"""Leak controls: does the image decide, or does the pathway itself carry the class?

A generator can read the class off the features and write it into the mask. Such a pathway agrees
with the target, transfers perfectly and explains nothing. Every control here applies pathways where
they should *not* produce their class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pathways.class_pathways import ClassPathways
from pathways.evaluation.runs import check_rows, gated_logits
from pathways.packing import random_words
from pathways.pathway import Pathway
from pathways.target import GatedTarget


@dataclass(frozen=True)
class WrongClass:
    """Result of :func:`wrong_class`.

    Args:
        flip (float): share of (input, other class) pairs whose gated prediction is the other class.
        probability (float): mean gated softmax probability of the other class.
        clean_probability (float): the same in the clean run, what ``probability`` should be.
        pairs (int): number of pairs; the figures are NaN for none.
        matrix (Tensor[K, K]): flip rate by (predicted class, class of the pathway), float64; NaN
            where there is no pair.
    """

    flip: float
    probability: float
    clean_probability: float
    pairs: int
    matrix: Tensor


def wrong_class(
    target: GatedTarget,
    images: Tensor,
    logits: Tensor,
    class_pathways: ClassPathways,
    *,
    classes_per_image: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> WrongClass:
    """Run inputs of predicted class c under the pathways of other classes c'.

    Flip rate and probability: lower is better, in [0, 1]; 0 (and the clean probability) for
    pathways that carry no class, 1 for pathways that decide alone. Sensitive to weak pathways: one
    that destroys the image's own evidence makes the target fall back on some class, which is not
    always c'.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs.
        logits (Tensor[N, K]): their clean logits.
        class_pathways (ClassPathways): made from other inputs.
        classes_per_image (int or None): how many other classes to try for each input, drawn with
            ``seed``; None is all of them.
        batch_size (int): inputs per run.
        seed (int): of the draw.

    Raises:
        ValueError: logits that do not fit, or ``classes_per_image`` below 1.

    Source: our choice, method section "specificity"; the failure is that of amortised selectors in
    Jethwani et al., AISTATS 2021 (arXiv:2103.01890).
    """
    num_classes = target.num_classes
    if classes_per_image is not None and classes_per_image < 1:
        raise ValueError(
            f"wrong_class: classes_per_image must be at least 1, got {classes_per_image}"
        )
    if logits.shape != (len(images), num_classes):
        raise ValueError(
            f"wrong_class: logits must be [{len(images)}, {num_classes}], got {tuple(logits.shape)}"
        )
    logits = logits.cpu()
    predictions = logits.argmax(1)
    others = other_classes(predictions, class_pathways.classes.cpu(), num_classes, seed)
    if classes_per_image is not None:
        others = others[:, :classes_per_image]
    flips = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    pairs = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    probability = clean_probability = 0.0
    clean = logits.double().softmax(1)
    for column in others.unbind(1):
        rows = (column >= 0).nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        wrong = column[rows]
        gated = gated_logits(
            target, images[rows], class_pathways.for_predictions(wrong), batch_size
        )
        cells = (predictions[rows], wrong)
        flips.index_put_(cells, (gated.argmax(1) == wrong).double(), accumulate=True)
        pairs.index_put_(cells, torch.ones_like(wrong), accumulate=True)
        index = wrong.unsqueeze(1)
        probability += float(gated.double().softmax(1).gather(1, index).sum())
        clean_probability += float(clean[rows].gather(1, index).sum())
    total = int(pairs.sum())
    return WrongClass(
        flip=_ratio(float(flips.sum()), total),
        probability=_ratio(probability, total),
        clean_probability=_ratio(clean_probability, total),
        pairs=total,
        matrix=flips / pairs,
    )


def other_classes(
    predictions: Tensor, candidates: Tensor, num_classes: int, seed: int = 0
) -> Tensor:
    """All candidate classes but the own one, in random order.

    Args:
        predictions (Tensor[N], int64): own class of each input.
        candidates (Tensor[M], int64): classes to choose from.
        num_classes (int): K.
        seed (int): of the order.

    Returns:
        Tensor[N, M]: int64, -1 where an input has fewer than M other classes.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(len(predictions), num_classes, generator=generator)
    allowed = torch.zeros(num_classes, dtype=torch.bool)
    allowed[candidates] = True
    allowed = allowed.expand(len(predictions), -1).clone()
    allowed.scatter_(1, predictions.unsqueeze(1), False)
    order = scores.masked_fill(~allowed, -1.0).argsort(dim=1, descending=True)
    order = order.masked_fill(~allowed.gather(1, order), -1)
    return order[:, : len(candidates)]


@dataclass(frozen=True)
class BlankHit:
    """Result of :func:`blank_hit`.

    Args:
        rate (float): share of (class, blank) pairs in which the blank is predicted as the class.
        chance (float): that share for pathways that carry no class, one over the number of
            non-empty classes.
        hits (Tensor[K, B]): bool, by class and blank; False for empty classes.
        predictions (Tensor[B]): int64, clean prediction of every blank.
    """

    rate: float
    chance: float
    hits: Tensor
    predictions: Tensor


@torch.no_grad()
def blank_hit(
    target: GatedTarget,
    class_pathways: ClassPathways,
    blanks: Tensor,
    batch_size: int = 64,
) -> BlankHit:
    """Run inputs without content under every class pathway.

    Lower is better, in [0, 1]; chance is one over the number of non-empty classes (a blank has some
    clean prediction, which is one class's own), 1 means that the pathway alone decides. Sensitive
    to the choice of blanks, of which training may have seen some, and coarse with few of them.

    Args:
        target (GatedTarget): the target.
        class_pathways (ClassPathways): pathways of the classes.
        blanks (Tensor[B, ...]): model inputs without content, see
            :func:`pathways.evaluation.default_blanks` (black, the data's mean and white) and
            :func:`pathways.evaluation.unseen_blanks`.
        batch_size (int): inputs per run.

    Raises:
        ValueError: no blanks, or every class is empty.

    Source: our choice, method section "specificity".
    """
    classes = class_pathways.classes.cpu()
    if len(blanks) == 0 or len(classes) == 0:
        raise ValueError(
            "blank_hit: at least one blank and one non-empty class are needed, "
            f"got {len(blanks)} and {len(classes)}"
        )
    hits = torch.zeros(target.num_classes, len(blanks), dtype=torch.bool)
    for label in classes.tolist():
        gated = gated_logits(target, blanks, class_pathways[label], batch_size)
        hits[label] = gated.argmax(1) == label
    clean = target(blanks.to(target.device)).argmax(1).cpu()
    rate = float(hits[classes].double().mean())
    return BlankHit(rate=rate, chance=1.0 / len(classes), hits=hits, predictions=clean)


def mask_swap_flip(
    target: GatedTarget,
    images: Tensor,
    pathway: Pathway,
    predictions: Tensor,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Share of inputs that take the class of another input whose pathway they are run under.

    Lower is better, in [0, 1]; the instance-wise form of the wrong-class flip. The other input is
    drawn uniformly among those with another predicted class; NaN when all predictions are equal.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs.
        pathway (Pathway): their N pathways.
        predictions (Tensor[N], int64): their clean predictions.
        batch_size (int): inputs per run.
        seed (int): of the draw.

    Raises:
        ValueError: another number of pathways or predictions.

    Source: our choice, method sections "specificity" and "mask-leak probe".
    """
    check_rows("mask_swap_flip", images, predictions)
    predictions = predictions.cpu()
    rows, partners = swap_partners(predictions, seed)
    if len(rows) == 0:
        return float("nan")
    gated = gated_logits(target, images[rows], pathway[partners], batch_size)
    return float((gated.argmax(1) == predictions[partners]).double().mean())


def swap_partners(predictions: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """For every input another one with a different prediction, drawn uniformly.

    Args:
        predictions (Tensor[N], int64): on the CPU.
        seed (int): of the draw.

    Returns:
        rows (Tensor[M], inputs that have a partner) and partners (Tensor[M]), int64.
    """
    order = predictions.argsort(stable=True)
    counts = torch.bincount(predictions, minlength=1)
    starts = counts.cumsum(0) - counts
    own = counts[predictions]
    choices = len(predictions) - own
    rows = (choices > 0).nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(len(predictions), generator=generator, dtype=torch.float64)
    # Position among the others in class order: skip the own class's block.
    position = (draw * choices).long().clamp_max((choices - 1).clamp_min(0))
    position = position + torch.where(position >= starts[predictions], own, 0)
    return rows, order[position[rows]]


def random_agreement(
    target: GatedTarget,
    images: Tensor,
    pathway: Pathway,
    predictions: Tensor,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Agreement of random pathways with as many neurons at every site as each input's own.

    A reference, in [0, 1]: an explainer's agreement means something only well above it. Approaches
    1 when nearly everything is kept.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs.
        pathway (Pathway): their N pathways, whose sizes are matched.
        predictions (Tensor[N], int64): their clean predictions.
        batch_size (int): inputs per run.
        seed (int): of the random pathways.

    Raises:
        ValueError: another number of pathways or predictions.

    Source: the random baseline of arXiv:2103.16886, matched per input and site.
    """
    check_rows("random_agreement", images, predictions)
    drawn = random_like(pathway, seed)
    gated = gated_logits(target, images, drawn, batch_size)
    return float((gated.argmax(1) == predictions.cpu()).double().mean())


def random_like(pathway: Pathway, seed: int = 0) -> Pathway:
    """Uniformly random pathways with as many neurons at every site, row by row."""
    generator = torch.Generator().manual_seed(seed)
    words = random_words(pathway.sizes(per_site=True), pathway.sites, generator)
    return Pathway(words, pathway.sites, pathway.fingerprint)


def _ratio(total: float, count: int) -> float:
    return total / count if count else float("nan")

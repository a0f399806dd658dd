"""Transfer: class pathways made from a few inputs, applied to others without the generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pathways.class_pathways import ClassPathways
from pathways.evaluation.leak import other_classes, random_like
from pathways.evaluation.metrics import Agreement, DropInConfidence, IncreaseInConfidence
from pathways.evaluation.runs import gated_logits
from pathways.explainer import Explanation
from pathways.pathway import Pathway
from pathways.target import GatedTarget

SHOTS = (1, 2, 5, 10, 50)


@dataclass(frozen=True)
class Scores:
    """Faithfulness of one kind of pathway on the query inputs; fractions, NaN without inputs.

    Args:
        agreement (float): share of inputs whose prediction stays.
        mic (float): share of inputs that become more confident.
        mdc (float): mean relative drop of the probability of the clean prediction.
        kept (float): mean share of neurons kept.
    """

    agreement: float
    mic: float
    mdc: float
    kept: float


NOTHING = Scores(*[float("nan")] * 4)


@dataclass(frozen=True)
class TransferPoint:
    """Transfer with j support inputs per class.

    Args:
        shots (int or None): j asked for; None is all support inputs.
        images_per_class (float): mean number there were, over classes with any.
        coverage (float): share of query inputs whose predicted class has a pathway; only these
            count.
        own (Scores): under the pathway of the predicted class.
        wrong_class (Scores): control, under the pathway of another class drawn at random; a pathway
            that decides alone makes this agreement 0, one that explains lowers it little.
        random (Scores): control, under random neurons, as many at every site.
        agnostic (Scores): control, under one pathway for all classes (majority over classes).
        instance (Scores): control, under the input's own pathway, which no class pathway needs to
            exceed; NaN where it was not given.
    """

    shots: int | None
    images_per_class: float
    coverage: float
    own: Scores
    wrong_class: Scores
    random: Scores
    agnostic: Scores
    instance: Scores

    def to_json(self) -> dict[str, Any]:
        """A dictionary of numbers."""
        return asdict(self)


def transfer(
    target: GatedTarget,
    support: Pathway,
    support_predictions: Tensor,
    images: Tensor,
    logits: Tensor,
    *,
    instance: Explanation | None = None,
    shots: Sequence[int | None] = (*SHOTS, None),
    threshold: float = 0.5,
    batch_size: int = 64,
    seed: int = 0,
) -> list[TransferPoint]:
    """Transfer curve over the number of support inputs per class.

    For each j, j support inputs per predicted class (drawn with ``seed``, those of a smaller j
    among them) give the class pathways; every query input is run under the pathway of its predicted
    class, without the generator. Agreement and mIC: higher is better; mDC and kept: lower is
    better. A value of j above the largest class is left out.

    Args:
        target (GatedTarget): the target.
        support (Pathway): pathways of the support inputs.
        support_predictions (Tensor[S], int64): their predicted classes.
        images (Tensor[N, ...]): query inputs, none of them in the support.
        logits (Tensor[N, K]): their clean logits.
        instance (Explanation or None): the method's explanation of the query inputs, N rows, for
            the control with their own pathways; its gated logits are used, nothing is run.
        shots (sequence of int or None): values of j, at least 1; None is all support inputs.
        threshold (float): of the class pathways.
        batch_size (int): inputs per run.
        seed (int): of every draw.

    Returns:
        list of TransferPoint: in the order of ``shots``.

    Raises:
        ValueError: no support inputs, a j below 1, or predictions or explanations that do not fit.

    Source: transfer protocol of arXiv:2309.09887; threshold and controls are our choice.
    """
    if len(support) == 0:
        raise ValueError("transfer: at least one support input is needed, got none")
    if instance is not None and len(instance) != len(images):
        raise ValueError(f"transfer: instance must have {len(images)} rows, got {len(instance)}")
    counts = torch.bincount(support_predictions.cpu(), minlength=target.num_classes)
    points = []
    for count in shots:
        if count is not None and count < 1:
            raise ValueError(f"transfer: shots must be at least 1, got {count}")
        if count is not None and count > int(counts.max()):
            continue
        rows = class_rows(support_predictions.cpu(), count, seed)
        classes = ClassPathways.from_pathways(
            support[rows],
            support_predictions.to(support.device)[rows.to(support.device)],
            threshold,
            target.num_classes,
        )
        points.append(_point(target, classes, images, logits, instance, count, batch_size, seed))
    return points


def class_rows(predictions: Tensor, count: int | None, seed: int = 0) -> Tensor:
    """Rows of at most ``count`` inputs per class, drawn at random; a smaller count gives a subset.

    Args:
        predictions (Tensor[S], int64): on the CPU.
        count (int or None): per class; None is all.
        seed (int): of the draw.

    Returns:
        Tensor[M]: int64, ascending.
    """
    if count is None:
        return torch.arange(len(predictions))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(predictions), generator=generator)
    order = order[predictions[order].argsort(stable=True)]
    sizes = torch.bincount(predictions, minlength=1)
    rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[predictions[order]]
    return order[rank < count].sort().values


def _point(
    target: GatedTarget,
    classes: ClassPathways,
    images: Tensor,
    logits: Tensor,
    instance: Explanation | None,
    count: int | None,
    batch_size: int,
    seed: int,
) -> TransferPoint:
    logits = logits.cpu()
    predictions = logits.argmax(1)
    covered = (classes.counts.cpu()[predictions] > 0).nonzero().squeeze(1)
    coverage = len(covered) / len(images) if len(images) else float("nan")
    images, logits, predictions = images[covered], logits[covered], predictions[covered]
    by_itself = NOTHING
    if instance is not None:
        gated = instance.gated_logits.cpu()[covered]
        by_itself = scores(logits, gated, instance.pathway[covered])

    def score(rows: Tensor, pathway: Pathway) -> Scores:
        gated = gated_logits(target, images[rows], pathway, batch_size)
        return scores(logits[rows], gated, pathway)

    everything = torch.arange(len(images))
    own = classes.for_predictions(predictions)
    wrong = other_classes(predictions, classes.classes.cpu(), target.num_classes, seed)[:, 0]
    has_other = (wrong >= 0).nonzero().squeeze(1)
    return TransferPoint(
        shots=count,
        images_per_class=float(classes.counts.sum()) / max(len(classes.classes), 1),
        coverage=coverage,
        own=score(everything, own),
        wrong_class=score(has_other, classes.for_predictions(wrong[has_other])),
        random=score(everything, random_like(own, seed)),
        agnostic=score(everything, classes.agnostic()),
        instance=by_itself,
    )


def scores(logits: Tensor, gated: Tensor, pathway: Pathway) -> Scores:
    """Agreement, mIC, mDC and kept of one set of runs; NaN without inputs."""
    if len(logits) == 0:
        return NOTHING
    values = []
    for metric in (Agreement(), IncreaseInConfidence(), DropInConfidence()):
        metric.update(logits, gated)
        values.append(float(metric.compute()))
    agreement, mic, mdc = values
    return Scores(agreement, mic, mdc, kept=float(pathway.kept().double().mean()))

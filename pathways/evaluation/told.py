"""Leak control of generators that read the target's logits: is being told a class enough?

Such a generator knows the predicted class, and could answer with a mask that makes that class win.
Here the features are of one input and the logits of another, or the logits have their two first
classes exchanged. A generator that decided only where both agree would pass: that is what swapped
masks and blank inputs are for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pathways.evaluation.leak import swap_partners
from pathways.evaluation.runs import check_rows
from pathways.explainer import Explainer, PathwayMethod

CLOSE = 0.1
"""Where the two highest probabilities are less than this apart, either class is an answer."""


@dataclass(frozen=True)
class ToldControl:
    """Result of :func:`told_control`; NaN for methods that do not read the logits.

    Args:
        flip (float): share of inputs that take the class of another input whose logits are read.
        agreement (float): share of those that keep their own.
        kept (float): their mean share of neurons kept: no more than with their own logits, or the
            generator would answer a contradiction with everything.
        runner_up_flip (float): share of inputs that take their second most likely class when told
            it was the first; without close calls, where the two are less than ``CLOSE`` apart.
        blank_hit (float): share of (blank, class) pairs that take the class that is told.
        chance (float): that of ``blank_hit``, one over the number of predicted classes.
    """

    flip: float
    agreement: float
    kept: float
    runner_up_flip: float
    blank_hit: float
    chance: float


def margins(logits: Tensor) -> Tensor:
    """Difference of the two highest probabilities of each row ``[N, K]``, K at least 2."""
    first, second = logits.softmax(1).topk(2, dim=1)[0].unbind(1)
    return first - second


@torch.no_grad()
def told_control(
    method: PathwayMethod,
    images: Tensor,
    logits: Tensor,
    *blanks: Tensor,
    batch_size: int = 64,
    seed: int = 0,
) -> ToldControl:
    """Gate inputs by pathways made from their own features and other logits.

    ``flip``, ``runner_up_flip`` and ``blank_hit``: lower is better, in [0, 1]; 1 means that what is
    told is what comes out. ``agreement``: higher is better.

    Args:
        method (PathwayMethod): an :class:`pathways.Explainer` whose generator reads the logits
            (``reads_logits``); there is nothing to control in other methods.
        images (Tensor[N, ...]): model inputs.
        logits (Tensor[N, K]): their clean logits.
        blanks (Tensor[B, ...], any number): model inputs without content; each is told every
            predicted class, by the logits of the first input that has it.
        batch_size (int): inputs per run, at least 1.
        seed (int): of whose logits an input gets: those of one with another predicted class.

    Raises:
        ValueError: another number of logits than images, or a batch size below 1.

    Source: our choice.
    """
    if batch_size < 1:
        raise ValueError(f"told_control: batch_size must be at least 1, got {batch_size}")
    logits = logits.cpu()
    predictions = logits.argmax(1)
    check_rows("told_control", images, predictions)
    nothing = float("nan")
    if not isinstance(method, Explainer) or not method.generator.reads_logits:
        return ToldControl(nothing, nothing, nothing, nothing, nothing, nothing)
    rows, partners = swap_partners(predictions, seed)
    found, kept = _told(method, images, rows, logits[partners], batch_size)
    runner_up = nothing
    if logits.shape[1] > 1:
        clear = (margins(logits) >= CLOSE).nonzero().squeeze(1)
        values, classes = logits[clear].topk(2, dim=1)
        exchanged = logits[clear].scatter(1, classes, values.flip(1))
        runner_up = _share(_told(method, images, clear, exchanged, batch_size)[0] == classes[:, 1])
    present = predictions.unique()
    hits = [
        _blank_hits(method, part, logits, present)
        for group in blanks
        for part in group.split(batch_size)
        if len(part)
    ]
    return ToldControl(
        flip=_share(found == predictions[partners]),
        agreement=_share(found == predictions[rows]),
        kept=_share(kept),
        runner_up_flip=runner_up,
        blank_hit=_share(torch.cat(hits)) if hits else nothing,
        chance=1.0 / len(present) if len(present) else nothing,
    )


def _told(
    explainer: Explainer, images: Tensor, rows: Tensor, logits: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Gated predictions and shares kept of these rows, on the CPU, told these logits."""
    device = explainer.target.device
    predictions, kept = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0)]
    for start in range(0, len(rows), batch_size):
        part = images[rows[start : start + batch_size].to(images.device)].to(device)
        told = logits[start : start + batch_size].to(device)
        mask = explainer.generator.masks(explainer.importance(part, told)[1])
        predictions.append(explainer.target.gated(part, mask).argmax(1).cpu())
        kept.append(mask.mean(1).cpu())
    return torch.cat(predictions), torch.cat(kept)


def _blank_hits(explainer: Explainer, blanks: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
    """Of every class: which blanks take it when told so."""
    target, generator = explainer.target, explainer.generator
    blanks = blanks.to(target.device)
    _, summaries = target.features(blanks, reduce=generator.summary)
    predictions = logits.argmax(1)
    hits = []
    for label in classes.tolist():
        told = logits[(predictions == label).nonzero()[0]].to(target.device)
        importance, _ = generator.from_summaries(summaries, told.expand(len(blanks), -1))
        gated = target.gated(blanks, generator.masks(importance))
        hits.append((gated.argmax(1) == label).cpu())
    return torch.cat(hits)


def _share(values: Tensor) -> float:
    return float(values.double().mean())

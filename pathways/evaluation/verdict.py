"""Leak control of generators that read the target's logits: is naming a class enough to decide it?

Such a generator is told the predicted class, and could answer it with a mask that makes that class
win whatever the image shows. The other leak controls would not notice if it did so only where the
features allow it. Here the features are of one input and the logits of another one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pathways.evaluation.leak import swap_partners
from pathways.evaluation.runs import check_rows
from pathways.explainer import Explainer, PathwayMethod


@dataclass(frozen=True)
class VerdictControl:
    """Result of :func:`verdict_control`; NaN for methods that do not read the logits.

    Args:
        flip (float): share of inputs that take the class that was named.
        agreement (float): share of inputs that keep their own all the same.
        blank_hit (float): share of (blank, class) pairs that take the class that was named.
    """

    flip: float
    agreement: float
    blank_hit: float


@torch.no_grad()
def verdict_control(
    method: PathwayMethod,
    images: Tensor,
    logits: Tensor,
    blanks: Tensor,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> VerdictControl:
    """Gate inputs by pathways made from their own features and the logits of another input.

    ``flip`` and ``blank_hit``: lower is better, in [0, 1]; for blanks chance is one over the number
    of predicted classes, 1 means that what is named is what comes out. ``agreement``: higher is
    better. Sensitive to close calls, where either class is right.

    Args:
        method (PathwayMethod): an :class:`pathways.Explainer` whose generator reads the logits
            (``verdict``); there is nothing to control in other methods.
        images (Tensor[N, ...]): model inputs.
        logits (Tensor[N, K]): their clean logits.
        blanks (Tensor[B, ...]): model inputs without content.
        batch_size (int): inputs per run.
        seed (int): of the draw: each input gets the logits of one with another predicted class,
            each blank those of the first input of every predicted class.

    Raises:
        ValueError: another number of logits than images.

    Source: our choice.
    """
    predictions = logits.argmax(1).cpu()
    check_rows("verdict_control", images, predictions)
    if not isinstance(method, Explainer) or not method.generator.sees_verdict:
        return VerdictControl(float("nan"), float("nan"), float("nan"))
    images, logits, blanks = images.cpu(), logits.cpu(), blanks.cpu()
    rows, partners = swap_partners(predictions, seed)
    found = _told(method, images[rows], logits[partners], batch_size)
    named, own = predictions[partners], predictions[rows]
    classes = predictions.unique()
    examples = torch.stack([(predictions == label).nonzero()[0, 0] for label in classes])
    told = logits[examples].repeat(len(blanks), 1)
    seen = _told(method, blanks.repeat_interleave(len(classes), dim=0), told, batch_size)
    return VerdictControl(
        flip=_share(found == named),
        agreement=_share(found == own),
        blank_hit=_share(seen == classes.repeat(len(blanks))),
    )


def _told(explainer: Explainer, images: Tensor, logits: Tensor, batch_size: int) -> Tensor:
    """Gated predictions ``[N]``, on the CPU, where the generator is told these logits."""
    device = explainer.target.device
    predictions = [torch.zeros(0, dtype=torch.int64)]
    for part, told in zip(images.split(batch_size), logits.split(batch_size), strict=True):
        part = part.to(device)
        _, importance = explainer.importance(part, told.to(device))
        gated = explainer.target.gated(part, explainer.generator.masks(importance))
        predictions.append(gated.argmax(1).cpu())
    return torch.cat(predictions)


def _share(values: Tensor) -> float:
    return float(values.double().mean())

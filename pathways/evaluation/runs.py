"""Runs of a target over more inputs than fit in one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pathways.explainer import Explanation, PathwayMethod
from pathways.pathway import Pathway
from pathways.target import GatedTarget

# Called with (what is being done, inputs done, inputs in all).
Progress = Callable[[str, int, int], None]


def explain_batches(
    method: PathwayMethod,
    images: Tensor,
    batch_size: int = 64,
    *,
    explained: Callable[[Tensor, Explanation], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Explanation:
    """Explanation of every input on the CPU, without the importance (it is D floats per input).

    Args:
        method (PathwayMethod): explainer or baseline.
        images (Tensor[N, ...]): model inputs, N >= 1; on any device, moved batch by batch.
        batch_size (int): at least 1.
        explained (callable or None): called with every batch, on the target's device, and its whole
            explanation.
        progress (callable or None): called with the number of inputs done.

    Raises:
        ValueError: no inputs, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"explain_batches: batch_size must be at least 1, got {batch_size}")
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size].to(method.target.device)
        part = method(batch)
        if explained is not None:
            explained(batch, part)
        parts.append(
            Explanation(
                part.logits.detach().cpu(),
                part.gated_logits.detach().cpu(),
                part.logits.new_zeros(len(part.logits), 0).cpu(),
                part.pathway.to("cpu"),
            )
        )
        if progress is not None:
            progress(start + len(batch))
    return Explanation.cat(parts)


@torch.no_grad()
def gated_logits(
    target: GatedTarget, images: Tensor, pathway: Pathway, batch_size: int = 64
) -> Tensor:
    """Logits ``[N, K]`` on the CPU of every input under its own row of a pathway.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs, on any device.
        pathway (Pathway): N rows, or one for all inputs.
        batch_size (int): inputs per run; only that many rows are unpacked at a time.

    Raises:
        ValueError: another number of rows, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"gated_logits: batch_size must be at least 1, got {batch_size}")
    if len(pathway) not in (1, len(images)):
        raise ValueError(
            f"gated_logits: pathway must have {len(images)} rows or one, got {len(pathway)}"
        )
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size].to(target.device)
        rows = pathway if len(pathway) == 1 else pathway[start : start + batch_size]
        gates = [gate.to(target.device) for gate in rows.gates()]
        parts.append(target.gated(batch, gates).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, target.num_classes)


def with_baseline(target: GatedTarget, baseline: Sequence[Tensor] | None) -> GatedTarget:
    """The same target with another value for gated-off activations; the one given keeps its own.

    The two share the model. The fingerprint covers the baseline, so that theirs differ: pathways
    that are run under another baseline keep the fingerprint of the target they were found for.

    Args:
        target (GatedTarget): the target.
        baseline (sequence of Tensor or None): as ``GatedTarget.baseline``; None is zero.

    Raises:
        ValueError: a baseline that does not fit the sites.
    """
    other = copy.copy(target)
    other.baseline = None if baseline is None else list(baseline)
    return other


def check_rows(where: str, images: Tensor, predictions: Tensor) -> None:
    """One prediction per input.

    Raises:
        ValueError: another number of them.
    """
    if predictions.shape != (len(images),):
        raise ValueError(
            f"{where}: predictions must be [{len(images)}], got {tuple(predictions.shape)}"
        )

"""Runs of a target over more inputs than fit in one batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pathways.pathway import Pathway
from pathways.target import GatedTarget

# Called with (what is being done, inputs done, inputs in all).
Progress = Callable[[str, int, int], None]


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
        ValueError: another number of rows.
    """
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


def check_rows(where: str, images: Tensor, predictions: Tensor) -> None:
    """One prediction per input.

    Raises:
        ValueError: another number of them.
    """
    if predictions.shape != (len(images),):
        raise ValueError(
            f"{where}: predictions must be [{len(images)}], got {tuple(predictions.shape)}"
        )

"""Recovery: how much of a known circuit a pathway finds, and how much of the pathway is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from pathways.pathway import Pathway

# Rows are unpacked so many at a time: a bound on memory.
_ROWS = 1024


@dataclass(frozen=True)
class Recovery:
    """Result of :func:`recovery`; means over inputs, NaN without inputs.

    Args:
        recall (float): share of the circuit that is in the pathway. Higher is better.
        precision (float): share of the pathway that is in the circuit; empty pathways do not count.
            Higher is better.
        f1 (float): harmonic mean of the two, input by input. Higher is better.
        per_class (Tensor[K, 3]): recall, precision and f1 of each class's inputs, float64; NaN for
            classes without inputs.
        roles (dict): share of the neurons of each role that is kept.
    """

    recall: float
    precision: float
    f1: float
    per_class: Tensor
    roles: dict[str, float] = field(default_factory=dict)


def recovery(
    pathway: Pathway | Tensor,
    labels: Tensor,
    truth: Tensor,
    *,
    alternative: Tensor | None = None,
    roles: Mapping[str, Tensor] | None = None,
) -> Recovery:
    """Compare pathways with the known circuits of their classes.

    All figures are in [0, 1]. Recall rewards large pathways and precision small ones: compare
    methods at equal size, or by f1. Where two circuits do the same, an input is measured against
    the one of which it has the larger share, and no neuron of either counts against its precision.

    Args:
        pathway (Pathway or Tensor[N, D]): of N inputs; a tensor is bool or 0 / 1.
        labels (Tensor[N], int64): class of each input whose circuit it is compared with, in [0, K).
        truth (Tensor[K, D]): bool, circuit of every class, flat in site order.
        alternative (Tensor[K, D] or None): bool, a second circuit per class that does the same.
        roles (mapping of str to Tensor[K, D] or None): neurons of each role as seen by each class;
            an input counts in the roles of which its class has any neuron.

    Returns:
        Recovery: NaN where there is nothing to average, recall of empty circuits included.

    Raises:
        ValueError: shapes that do not fit, or a label outside [0, K).

    Source: our choice, method section "recommended test oracles" (planted circuits).

    Example:
        >>> truth = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]).bool()
        >>> found = recovery(torch.tensor([[1, 0, 0, 1]]), torch.tensor([0]), truth)
        >>> found.recall, found.precision, found.f1
        (0.5, 0.5, 0.5)
    """
    labels = labels.cpu()
    named = {"truth": truth, "alternative": alternative, **(roles or {})}
    for name, value in named.items():
        if value is not None and (value.dim() != 2 or value.shape != truth.shape):
            raise ValueError(
                f"recovery: {name} must be [K, D] like truth {tuple(truth.shape)}, "
                f"got {tuple(value.shape)}"
            )
    classes, neurons = truth.shape
    if isinstance(pathway, Pathway):
        shape: tuple[int, ...] = (len(pathway), pathway.sites.num_neurons)
    else:
        shape = tuple(pathway.shape)
    if shape != (len(labels), neurons):
        raise ValueError(
            f"recovery: pathway must be [{len(labels)}, {neurons}] by labels and truth, got {shape}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"recovery: labels must be in [0, {classes}), "
            f"got {int(labels.min())}..{int(labels.max())}"
        )
    circuits = [value.cpu().bool() for value in (truth, alternative) if value is not None]
    members = [value.cpu().bool() for value in (roles or {}).values()]
    parts = [torch.zeros(0, 3 + len(members), dtype=torch.float64)]
    for start in range(0, len(labels), _ROWS):
        chosen = pathway[start : start + _ROWS]
        mask = chosen.mask() if isinstance(chosen, Pathway) else chosen.bool()
        own = labels[start : start + _ROWS]
        parts.append(_rows(mask.cpu(), own, circuits, members))
    rows = torch.cat(parts)
    per_class = [rows[labels == label, :3].nanmean(0) for label in range(classes)]
    recall, precision, f1, *shares = rows.nanmean(0).tolist()
    return Recovery(
        recall, precision, f1, torch.stack(per_class), dict(zip(roles or {}, shares, strict=True))
    )


def _rows(mask: Tensor, labels: Tensor, circuits: list[Tensor], roles: list[Tensor]) -> Tensor:
    """Recall, precision, f1 and share of every role of each row: float64 ``[N, 3 + R]``."""
    own = [circuit[labels] for circuit in circuits]
    # torch.fmax: an empty circuit has no recall, and the other one counts.
    recall = reduce(torch.fmax, [_share(mask, circuit) for circuit in own])
    precision = _share(reduce(torch.logical_or, own), mask)
    found = precision.nan_to_num(0.0)
    total = recall + found
    f1 = torch.where(total == 0, 0.0, 2 * recall * found / total)
    return torch.stack([recall, precision, f1, *(_share(mask, r[labels]) for r in roles)], 1)


def _share(mask: Tensor, of: Tensor) -> Tensor:
    """Share of the neurons ``of`` each row that are in ``mask``: float64 ``[N]``, NaN of none."""
    return (mask & of).sum(1).double() / of.sum(1)

"""Class-wise similarity of pathways: acIOU, what of it chance explains, and overlap of classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from pathways import ops
from pathways.packing import random_words
from pathways.pathway import Pathway
from pathways.sites import Sites


class ClassIoU(Metric):
    """How similar pathways of one class are, and how different those of two classes.

    ``compute`` gives a dictionary:

    - ``aciou``: mean over classes of the mean IoU of all pairs of that class. Higher is better, in
      [0, 1]. Sensitive to density: independent masks of density r have an expected IoU of about
      r / (2 - r), so dense pathways score high for nothing; an all-ones pathway scores 1.
    - ``chance``: the same for random pathways with as many neurons at every site (seeded
      permutations within sites).
    - ``aciou_corrected``: (aciou - chance) / (1 - chance). Higher is better, at most 1, 0 at chance
      and for full pathways, where nothing is left to tell apart.
    - ``between_class_iou``: mean over pairs of classes of the mean IoU of pairs across them. Lower
      is better, in [0, 1]: one mask for everything has perfect acIOU, and only this shows it.
    - ``gap``: aciou - between_class_iou, and ``ratio``: aciou / between_class_iou. Higher is
      better.
    - ``per_class`` ``[K]`` and ``matrix`` ``[K, K]``: the mean IoU per class and per pair of
      classes.

    All float64. Classes with fewer than two inputs are NaN in ``per_class`` and left out of the
    means.

    Args:
        sites (Sites): the sites.
        num_classes (int): K.
        permutations (int): random pathways per input for ``chance``, at least 1.
        chance_rows (int): inputs per class that ``chance`` is computed on, at least 2; a bound on
            time.
        seed (int): of the permutations.

    Raises:
        ValueError: a value outside its range.

    Source: acIOU of arXiv:2309.09887 (name; the formula is our reading, with IoU over the neurons
    of all sites as in arXiv:2103.16886); chance correction and between-class overlap are our
    choice.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    words: list[Tensor]
    classes: list[Tensor]

    def __init__(
        self,
        sites: Sites,
        num_classes: int,
        *,
        permutations: int = 4,
        chance_rows: int = 32,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 1 or permutations < 1 or chance_rows < 2:
            raise ValueError(
                "ClassIoU: num_classes and permutations must be at least 1, chance_rows 2, "
                f"got {num_classes}, {permutations} and {chance_rows}"
            )
        self.sites = sites
        self.num_classes = num_classes
        self.permutations = permutations
        self.chance_rows = chance_rows
        self.seed = seed
        # Pairs cross batches, so the packed pathways themselves are the state: D / 8 bytes per
        # input.
        self.add_state("words", [], dist_reduce_fx="cat")
        self.add_state("classes", [], dist_reduce_fx="cat")

    def update(self, pathway: Pathway, predictions: Tensor) -> None:
        """Add the rows of a pathway and the predicted class of each, int64 ``[N]`` in [0, K).

        Raises:
            ValueError: a pathway of other sites, or predictions that do not fit.
        """
        if pathway.sites != self.sites:
            raise ValueError(
                f"ClassIoU: pathway must have the sites {self.sites!r}, got {pathway.sites!r}"
            )
        if predictions.shape != (len(pathway),):
            raise ValueError(
                f"ClassIoU: predictions must be [{len(pathway)}], got {tuple(predictions.shape)}"
            )
        outside = predictions[(predictions < 0) | (predictions >= self.num_classes)]
        if len(outside):
            raise ValueError(
                f"ClassIoU: predictions must be in [0, {self.num_classes}), got {int(outside[0])}"
            )
        self.words.append(pathway.words.to(self.device))
        self.classes.append(predictions.to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """The dictionary described above."""
        # After a sync across processes the lists are single tensors.
        words = _joined(self.words, (0, self.sites.num_words), self.device)
        classes = _joined(self.classes, (0,), self.device)
        matrix = _mean_overlap(words, classes, self.num_classes)
        per_class = matrix.diagonal().clone()
        aciou = per_class.nanmean()
        between = _off_diagonal_mean(matrix)
        chance = self._chance(words, classes)
        room = 1.0 - chance
        corrected = torch.where(room > 1e-12, (aciou - chance) / room, torch.zeros_like(room))
        return {
            "aciou": aciou,
            "aciou_corrected": corrected,
            "chance": chance,
            "between_class_iou": between,
            "gap": aciou - between,
            "ratio": aciou / between,
            "per_class": per_class,
            "matrix": matrix,
        }

    def _chance(self, words: Tensor, classes: Tensor) -> Tensor:
        """acIOU of pathways whose neurons are drawn anew within every site."""
        sizes = Pathway(words, self.sites).sizes(per_site=True)
        # Only sizes matter here. Sorted, they give the same draws in whatever order batches came.
        order = torch.arange(len(sizes), device=sizes.device)
        for key in [*sizes.unbind(1)[::-1], classes]:
            order = order[key[order].argsort(stable=True)]
        chosen = []
        for label in range(self.num_classes):
            rows = order[classes[order] == label]
            if len(rows) > self.chance_rows:
                spread = torch.linspace(0, len(rows) - 1, self.chance_rows, dtype=torch.float64)
                rows = rows[spread.round().long().to(rows.device)]
            chosen.append(rows)
        rows = torch.cat(chosen)
        generator = torch.Generator().manual_seed(self.seed)
        draws = []
        for _ in range(self.permutations):
            drawn = random_words(sizes[rows], self.sites, generator)
            matrix = _mean_overlap(drawn, classes[rows], self.num_classes)
            draws.append(matrix.diagonal().nanmean())
        return torch.stack(draws).mean()


def _mean_overlap(words: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Mean IoU per pair of classes, float64 ``[K, K]``, symmetric; NaN where there is no pair."""
    sums, pairs = ops.class_overlap(words, classes, num_classes)
    return sums / pairs


def _off_diagonal_mean(matrix: Tensor) -> Tensor:
    off = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return matrix[off].nanmean()


def _joined(parts: list[Tensor] | Tensor, empty: tuple[int, ...], device: torch.device) -> Tensor:
    if isinstance(parts, Tensor):
        return parts
    if not parts:
        return torch.zeros(empty, dtype=torch.int64, device=device)
    return torch.cat(parts)

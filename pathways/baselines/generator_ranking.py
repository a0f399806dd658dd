"""The generator's ranking at sizes that it did not choose, to compare it at equal size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathways.baselines.scored import ScoredMethod
from pathways.explainer import Explainer


class GeneratorRanking(ScoredMethod):
    """Keeps the neurons that a generator finds most important, as many as asked for.

    The generator is trained for the size that it chooses by itself for every input. At another one
    this shows what its ranking is worth, not what a generator trained for that size would do.

    Args:
        explainer (Explainer): the generator and its target.
        kept, like, per_site, min_keep: how many neurons, see
            :class:`~pathways.baselines.scored.ScoredMethod`.

    Raises:
        ValueError: both or none of ``like`` and ``kept``, another target, a value outside [0, 1].

    Source: our choice.

    Example:
        >>> from pathways import Explainer, GatedTarget, GenCNP
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> target = GatedTarget(net, torch.zeros(1, 4))
        >>> explainer = Explainer(target, GenCNP(target.sites, num_classes=3, width=8))
        >>> GeneratorRanking(explainer, kept=0.5)(torch.randn(2, 4)).pathway.sizes().tolist()
        [4, 4]
    """

    def __init__(self, explainer: Explainer, **size: Any) -> None:
        super().__init__(explainer.target, **size)
        self.explainer = explainer

    @torch.no_grad()
    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and the generator's importance ``[N, D]``, in (0, 1)."""
        return self.explainer.importance(images)

"""Random pathways: what agreement is worth when neurons are drawn by lot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathways.baselines.scored import ScoredMethod, draws
from pathways.target import GatedTarget


class RandomPathway(ScoredMethod):
    """Keeps neurons drawn uniformly at random, as many as asked for.

    The draw of an input depends on its bytes and the seed alone, so that it is the same in every
    batch, order and device.

    Args:
        target (GatedTarget): the target.
        seed (int): of the draw.
        kept, like, per_site, min_keep: how many neurons, see
            :class:`~pathways.baselines.scored.ScoredMethod`; per site unless ``per_site`` is False.

    Raises:
        ValueError: both or none of ``like`` and ``kept``, another target, a value outside [0, 1].

    Source: random pruning of arXiv:2103.16886, uniform within layers; matching sizes is our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> target = GatedTarget(net, torch.zeros(1, 4))
        >>> RandomPathway(target, kept=0.5)(torch.randn(2, 4)).pathway.sizes().tolist()
        [4, 4]
    """

    per_site_default = True

    def __init__(self, target: GatedTarget, *, seed: int = 0, **size: Any) -> None:
        super().__init__(target, **size)
        self.seed = seed

    @torch.no_grad()
    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and the random numbers that decide, ``[N, D]`` in [0, 1)."""
        return self.target(images), draws(images, self.sites.num_neurons, self.seed)

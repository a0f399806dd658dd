"""Greedy pruning: neurons removed round by round, scored anew after every round."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathways.baselines.gradients import gate_gradients
from pathways.baselines.scored import ScoredMethod
from pathways.target import GatedTarget


class GreedyPruning(ScoredMethod):
    """Removes the neurons that matter least in many small rounds, and never restores one.

    Every round scores the neurons that are left by ``|a * df/da|`` in the run that is gated by
    them, with f the logit of the class predicted at first, and removes those of the lowest scores
    (dead ones come first) until the share wanted after that round is left. Importance is the order
    of removal as rank / number of neurons, in (0, 1], within sites with ``per_site``. It costs one
    forward and one backward pass per round.

    Args:
        target (GatedTarget): the target.
        rounds (int): at least 1, and no more are made than there are neurons to remove; the sizes
            fall linearly from all neurons to the size wanted.
        legacy (bool): for comparisons only, the published code's rule: round i removes scores up to
            their i-th percentile, where scores <= 0 count as the largest, and *restores* every
            neuron whose score is <= 0, which are the dead and the removed ones. Runs
            100 * (1 - ``kept``) rounds; sizes are whatever comes out, ``rounds``, ``per_site`` and
            ``like`` have no meaning.
        kept, like, per_site, min_keep: how many neurons, see
            :class:`~pathways.baselines.scored.ScoredMethod`; over all sites together by default.

    Raises:
        ValueError: ``rounds`` below 1, ``legacy`` without ``kept``; sizes as for ``ScoredMethod``;
            scores that are not finite.
        RuntimeError: the target runs a site where no gradient can reach it.

    Source: Khakzar et al., CVPR 2021 (arXiv:2103.16886), 100 rounds; that nothing is restored is
    our choice and what the paper describes.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> method = GreedyPruning(GatedTarget(net, torch.zeros(1, 4)), kept=0.25, rounds=3)
        >>> method(torch.randn(2, 4)).pathway.sizes().tolist()
        [2, 2]
    """

    rank_depends_on_sizes = True

    def __init__(
        self, target: GatedTarget, *, rounds: int = 100, legacy: bool = False, **size: Any
    ) -> None:
        if rounds < 1:
            raise ValueError(f"GreedyPruning: rounds must be at least 1, got {rounds}")
        if legacy and size.get("kept") is None:
            raise ValueError("GreedyPruning: legacy needs kept, which is its number of rounds")
        super().__init__(target, **size)
        self.rounds = rounds
        self.legacy = legacy
        if legacy:
            self.own_threshold = 0.0

    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and importance ``[N, D]``; 0 and 1 with ``legacy``."""
        return self.rank(images, self.sizes(images))

    def sizes(self, images: Tensor) -> Tensor | None:
        return None if self.legacy else super().sizes(images)

    def rank(self, images: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """:meth:`importance` for given sizes, which decide how many go in a round."""
        mask = torch.ones(len(images), self.sites.num_neurons, device=images.device)
        if sizes is None:
            return self._legacy(images, mask)
        per_site = sizes.dim() == 2
        total = torch.tensor(self.sites.sizes if per_site else self.sites.num_neurons)
        removed = total.to(images.device) - sizes
        logits, gradient = gate_gradients(self.target, images, mask)
        classes, finite = logits.argmax(1), gradient.isfinite().all(1, keepdim=True)
        importance = mask
        # No more rounds than neurons to remove, for every input by itself.
        most = removed.amax(1, keepdim=True) if per_site else removed
        rounds = most.clamp(1, self.rounds)
        for done in range(1, 1 + (int(rounds.max()) if len(images) else 0)):
            if done > 1:
                gradient = gate_gradients(self.target, images, mask, classes)[1]
            left = mask > 0
            order = self._order(gradient.abs().masked_fill(~left, -1.0), per_site)
            if not per_site and any(self.floors):
                # What the floor keeps outlives better neurons, and ranks above them from here on.
                order = self._order(order + self.floor(order), per_site)
            running = (done <= rounds).reshape(-1, 1)
            importance = torch.where(left & running, order, importance)
            keep = sizes + removed - removed * rounds.clamp_max(done) // rounds
            mask = self.select(importance, keep).to(mask.dtype)
        return logits, importance.masked_fill(~finite, torch.nan)

    def _order(self, scores: Tensor, per_site: bool) -> Tensor:
        """Ranks / number of neurons, 1 for the highest score; ties go to the first."""
        ranks = []
        for part in self.sites.split(scores) if per_site else [scores]:
            count = part.shape[1]
            order = part.argsort(dim=1, descending=True, stable=True)
            values = torch.arange(count, 0, -1, device=part.device, dtype=part.dtype) / count
            ranks.append(torch.zeros_like(part).scatter_(1, order, values.expand_as(order)))
        return torch.cat(ranks, dim=1)

    def _legacy(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        assert self.kept is not None
        logits, gradient = gate_gradients(self.target, images, mask)
        classes = logits.argmax(1)
        for percentile in range(round(100 * (1 - self.kept))):
            if percentile > 0:
                gradient = gate_gradients(self.target, images, mask, classes)[1]
            scores = (mask * gradient).abs()
            largest = scores.amax(1, keepdim=True)
            threshold = _quantile(scores.where(scores > 0, largest), percentile / 100)
            mask = ((scores > threshold) | (scores <= 0)).to(mask.dtype)
        return logits, mask


def _quantile(values: Tensor, q: float) -> Tensor:
    """Quantile of each row ``[N, 1]``, linear; torch.quantile takes no more than 2^24 values."""
    ordered = values.sort(dim=1).values
    position = q * (values.shape[1] - 1)
    low = int(position)
    high = min(low + 1, values.shape[1] - 1)
    return ordered[:, low : low + 1].lerp(ordered[:, high : high + 1], position - low)

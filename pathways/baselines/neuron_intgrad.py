"""NeuronIntGrad: contributions of neurons, integrated while one site is scaled up from zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathways.baselines.gradients import gate_gradients
from pathways.baselines.scored import ScoredMethod
from pathways.target import GatedTarget


class NeuronIntGrad(ScoredMethod):
    """Keeps the neurons with the largest integrated gradients of the predicted class's logit f.

    For every site alone, its activation a is scaled by alpha_k = k / n, k = 0 .. n, and importance
    is ``|a * mean over k of df/da at alpha_k a|``, summed over positions for channels. It costs
    (n + 1) passes per site; those that lie below the site need no gradient.

    Args:
        target (GatedTarget): the target.
        steps (int): n, at least 1.
        legacy_alphas (bool): scale by k (k + 1) / (2 n) instead, up to (n + 1) / 2: the published
            code adds k / n to the factor it has instead of setting it. For comparisons only.
        kept, like, per_site, min_keep: how many neurons, see
            :class:`~pathways.baselines.scored.ScoredMethod`; over all sites together by default.

    Raises:
        ValueError: ``steps`` below 1; sizes as for ``ScoredMethod``; scores that are not finite.
        RuntimeError: the target runs a site where no gradient can reach it.

    Source: Khakzar et al., CVPR 2021 (arXiv:2103.16886), n = 10; sites are calls, where the
    published code takes modules, which misplaces reused ones; channels are our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> method = NeuronIntGrad(GatedTarget(net, torch.zeros(1, 4)), kept=0.25)
        >>> [round(float(alpha), 1) for alpha in method.alphas][:4]
        [0.0, 0.1, 0.2, 0.3]
    """

    def __init__(
        self,
        target: GatedTarget,
        *,
        steps: int = 10,
        legacy_alphas: bool = False,
        **size: Any,
    ) -> None:
        super().__init__(target, **size)
        if steps < 1:
            raise ValueError(f"NeuronIntGrad: steps must be at least 1, got {steps}")
        self.alphas = torch.arange(steps + 1, dtype=torch.float64) / steps
        if legacy_alphas:
            self.alphas = self.alphas.cumsum(0)

    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and importance ``[N, D]``, at least 0; 0 for dead neurons."""
        logits = self.target(images)
        classes = logits.argmax(1)
        parts = []
        for site, size in enumerate(self.sites.sizes):
            total = torch.zeros(len(images), size, device=images.device)
            for alpha in self.alphas.tolist():
                gates = torch.ones(1, self.sites.num_neurons, device=images.device)
                self.sites.split(gates)[site].fill_(alpha)
                total += gate_gradients(self.target, images, gates, classes, site)[1]
            parts.append((total / len(self.alphas)).abs())
        return logits, torch.cat(parts, dim=1)

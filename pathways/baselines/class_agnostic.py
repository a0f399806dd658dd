"""One mask for every input: how sparse a target can be made without explaining anything."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pathways import ops
from pathways.baselines.scored import site_floors
from pathways.explainer import Explanation
from pathways.packing import scored_mask, top_k_mask
from pathways.pathway import Pathway
from pathways.sites import Sites
from pathways.target import GatedTarget


class ClassAgnosticMask:
    """A single mask, optimised directly, that all inputs share.

    The control of the generator: what it keeps beyond this, or agrees less at equal size, it does
    not owe to the input. It cannot leak a class, having none.

    Args:
        target (GatedTarget): the target.
        min_keep (float): every site keeps at least this share of its neurons (at least one), the
            most important ones; in [0, 1].
        sigma (float): width of the quantiser's distance kernel, > 0.
        gamma (float): temperature of the quantiser, > 0.
        start (float): mean initial score, > 0; scores are spread by half of it to either side, so
            that every neuron starts on.
        kept (float or None): share of all neurons to keep, in [0, 1], floors included; None: as
            many as the weight of the share kept in :meth:`fit` leaves.

    Raises:
        ValueError: a value outside its range.

    Source: our choice, method section "specificity" (control); quantiser of arXiv:2108.06983.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> mask = ClassAgnosticMask(GatedTarget(net, torch.zeros(1, 4)))
        >>> e = mask.fit(torch.randn(16, 4), steps=2)(torch.randn(3, 4))
        >>> len(e.pathway), e.pathway[0] == e.pathway[2]
        (3, True)
    """

    def __init__(
        self,
        target: GatedTarget,
        *,
        min_keep: float = 0.05,
        sigma: float = 1.0,
        gamma: float = 2.0,
        start: float = 2.0,
        kept: float | None = None,
    ) -> None:
        if kept is not None and not 0.0 <= kept <= 1.0:
            raise ValueError(f"ClassAgnosticMask: kept must be in [0, 1], got {kept}")
        if not (sigma > 0 and gamma > 0 and start > 0):
            raise ValueError(
                "ClassAgnosticMask: sigma, gamma and start must be positive, "
                f"got {sigma}, {gamma} and {start}"
            )
        self.target = target
        self.floors = site_floors(target.sites, min_keep)
        self.sigma = sigma
        self.gamma = gamma
        self.start = start
        size = None if kept is None else round(kept * target.sites.num_neurons)
        self.size = None if size is None else max(size, sum(self.floors))
        self.score: Tensor | None = None
        self._fingerprint = target.fingerprint

    @property
    def sites(self) -> Sites:
        """The target's sites."""
        return self.target.sites

    def fit(
        self,
        images: Tensor,
        *,
        steps: int = 300,
        batch_size: int = 64,
        learning_rate: float = 0.05,
        sparsity: float = 1.0,
        sparsity_warmup: float = 0.2,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> ClassAgnosticMask:
        """Optimise the mask: KL(clean || gated) + sparsity * mean over sites of the share kept.

        With ``kept`` the mask is in every step the best neurons, as many as wanted, and only the KL
        decides which they are.

        Args:
            images (Tensor[N, ...]): model inputs, N >= 1; labels are not needed.
            steps (int): Adam steps, at least 1.
            batch_size (int): inputs per step, drawn without replacement until all were used.
            learning_rate (float): of Adam, lowered to 0 along a cosine.
            sparsity (float): weight of the share kept, >= 0.
            sparsity_warmup (float): share of the steps over which that weight grows from 0.
            seed (int): of the initial scores and the batches.
            progress (callable or None): called with (steps done, steps).

        Returns:
            ClassAgnosticMask: itself.

        Raises:
            ValueError: no images, or a value outside its range.
        """
        if len(images) == 0:
            raise ValueError("ClassAgnosticMask.fit: images must hold at least one input, got none")
        if steps < 1 or batch_size < 1:
            raise ValueError(
                "ClassAgnosticMask.fit: steps and batch_size must be at least 1, "
                f"got {steps} and {batch_size}"
            )
        if sparsity < 0 or not 0 <= sparsity_warmup <= 1 or learning_rate <= 0:
            raise ValueError(
                "ClassAgnosticMask.fit: sparsity must be >= 0, sparsity_warmup in [0, 1] and "
                f"learning_rate > 0, got {sparsity}, {sparsity_warmup} and {learning_rate}"
            )
        device = self.target.device
        generator = torch.Generator().manual_seed(seed)
        # With everything on, the KL has no gradient and only sparsity acts: equal scores would all
        # cross the threshold in the same step. Spread ones cross one by one.
        spread = torch.rand(1, self.sites.num_neurons, generator=generator)
        score = (self.start * (0.5 + spread)).to(device).requires_grad_(True)
        optimizer = torch.optim.Adam([score], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        queue = torch.zeros(0, dtype=torch.int64)
        warm = max(1.0, sparsity_warmup * steps)
        weight = sparsity if self.size is None else 0.0
        for step in range(steps):
            if len(queue) < min(batch_size, len(images)):
                queue = torch.randperm(len(images), generator=generator)
            rows, queue = queue[:batch_size], queue[batch_size:]
            batch = images[rows].to(device)
            clean = self.target(batch)
            with torch.enable_grad():
                mask = self._mask(score)
                gated = self.target.gated(batch, mask)
                divergence = F.kl_div(
                    gated.float().log_softmax(1),
                    clean.float().log_softmax(1),
                    reduction="batchmean",
                    log_target=True,
                )
                kept = torch.stack([part.mean() for part in self.sites.split(mask)]).mean()
                loss = divergence + weight * min(1.0, (step + 1) / warm) * kept
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, steps)
        self.score = score.detach()
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Explanation:
        """Explain a batch ``[N, ...]``: the same importance, in (0, 1), and pathway for every row.

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        if self.score is None:
            raise RuntimeError("ClassAgnosticMask: fit must be called before explaining")
        importance = self.score.sigmoid()
        mask = self._mask(self.score)
        rows = torch.zeros(len(images), dtype=torch.int64)
        return Explanation(
            self.target(images),
            self.target.gated(images, mask),
            importance.expand(len(images), -1),
            Pathway.from_mask(mask, self.sites, self._fingerprint)[rows],
        )

    def _mask(self, score: Tensor) -> Tensor:
        """0/1 mask ``[1, D]`` with the floor of every site; the gradient is the quantiser's."""
        fixed = score.detach()
        floors = torch.tensor([self.floors], device=score.device)
        floor = scored_mask(fixed, floors, self.sites)
        if self.size is None:
            mask = ops.binarize(score.sigmoid(), self.sigma, self.gamma)
            return torch.where(floor, mask + (1.0 - mask).detach(), mask)
        sizes = torch.tensor([self.size], device=score.device)
        chosen = top_k_mask(fixed.masked_fill(floor, math.inf), sizes).to(score.dtype)
        # The quantiser decides at the score of the last neuron that is kept.
        least = fixed.where(chosen > 0, math.inf).amin()
        mask = ops.binarize((score - least).sigmoid(), self.sigma, self.gamma)
        return mask + (chosen - mask).detach()

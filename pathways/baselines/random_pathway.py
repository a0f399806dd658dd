"""Random pathways: what agreement is worth when neurons are drawn by lot."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from pathways.explainer import Explanation, PathwayMethod
from pathways.packing import scored_mask, top_k_mask
from pathways.pathway import Pathway
from pathways.sites import Sites
from pathways.target import GatedTarget


class RandomPathway:
    """Keeps neurons drawn uniformly at random, as many as asked for.

    The draw of an input depends on its bytes and the seed alone, so that it is the same in every
    batch, order and device.

    Args:
        target (GatedTarget): the target.
        like (PathwayMethod or None): another method of the same target, whose size is matched input
            by input.
        kept (float or None): share of neurons to keep, in [0, 1]; exactly one of ``like`` and
            ``kept`` is given.
        per_site (bool): match the number of neurons at every site (default), or their sum only.
        min_keep (float or None): every site keeps at least this share and at least one neuron, the
            generator's floor, which may raise a size that would be smaller; None is no floor.
        seed (int): of the draw.

    Raises:
        ValueError: both or none of ``like`` and ``kept``, another target, a value outside [0, 1].

    Source: random pruning of arXiv:2103.16886, uniform within layers; matching sizes is our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> target = GatedTarget(net, torch.zeros(1, 4))
        >>> RandomPathway(target, kept=0.5)(torch.randn(2, 4)).pathway.sizes().tolist()
        [4, 4]
    """

    def __init__(
        self,
        target: GatedTarget,
        *,
        like: PathwayMethod | None = None,
        kept: float | None = None,
        per_site: bool = True,
        min_keep: float | None = None,
        seed: int = 0,
    ) -> None:
        if (like is None) == (kept is None):
            raise ValueError("RandomPathway: exactly one of like and kept must be given")
        if like is not None and like.target is not target:
            raise ValueError("RandomPathway: like must explain the same target")
        if kept is not None and not 0.0 <= kept <= 1.0:
            raise ValueError(f"RandomPathway: kept must be in [0, 1], got {kept}")
        self.target = target
        self.like = like
        self.kept = kept
        self.per_site = per_site
        no_floor = [0] * len(target.sites)
        self.floors = no_floor if min_keep is None else site_floors(target.sites, min_keep)
        self.seed = seed
        available = target.sites.sizes if per_site else target.sites.num_neurons
        self._sizes = (torch.tensor(available).double() * (kept or 0.0)).round().long()
        self._fingerprint = target.fingerprint

    @property
    def sites(self) -> Sites:
        """The target's sites."""
        return self.target.sites

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Explanation:
        """Explain a batch ``[N, ...]``; importance is the random score that decided, in [0, 1)."""
        if self.like is not None:
            other = self.like(images)
            logits = other.logits
            sizes = other.pathway.sizes(self.per_site).cpu()
        else:
            logits = self.target(images)
            sizes = self._sizes.expand(len(images), *self._sizes.shape)
        importance = self._scores(images)
        mask = self._mask(importance, sizes).to(images.device)
        gated_logits = self.target.gated(images, mask)
        pathway = Pathway.from_mask(mask, self.sites, self._fingerprint)
        return Explanation(logits, gated_logits, importance.to(images.device), pathway)

    def _scores(self, images: Tensor) -> Tensor:
        """One draw per input from its bytes; a stream shared by a batch would depend on it."""
        scores = torch.empty(len(images), self.sites.num_neurons)
        generator = torch.Generator()
        key = self.seed.to_bytes(8, "little", signed=True)
        for row, image in zip(scores, images.detach().cpu().contiguous(), strict=True):
            raw = image.reshape(-1).view(torch.uint8).numpy().tobytes()
            digest = hashlib.blake2b(raw, key=key, digest_size=8).digest()
            generator.manual_seed(int.from_bytes(digest, "little", signed=True))
            torch.rand(len(row), generator=generator, out=row)
        return scores

    def _mask(self, scores: Tensor, sizes: Tensor) -> Tensor:
        floors = torch.tensor(self.floors)
        if self.per_site:
            return scored_mask(scores, sizes.maximum(floors), self.sites)
        floor = scored_mask(scores, floors.expand(len(scores), -1), self.sites)
        # Scores are below 1, so the floor's neurons come first and count towards the size.
        return top_k_mask(scores + floor.float(), sizes.maximum(floors.sum()))


def site_floors(sites: Sites, min_keep: float) -> list[int]:
    """Least number of neurons per site, as the generator's: ``min_keep`` of them, at least one.

    Raises:
        ValueError: ``min_keep`` outside [0, 1].
    """
    if not 0.0 <= min_keep <= 1.0:
        raise ValueError(f"min_keep must be in [0, 1], got {min_keep}")
    return [max(1, math.ceil(min_keep * size)) for size in sites.sizes]

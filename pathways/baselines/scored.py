"""What baselines share: from scores of neurons to pathways of a wanted size, and draws by input."""

from __future__ import annotations

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pathways.explainer import Explanation, PathwayMethod
from pathways.packing import scored_mask, top_k_mask
from pathways.pathway import Pathway
from pathways.sites import Sites
from pathways.target import GatedTarget

# Rankings that methods of several sizes remember together, in bytes. Those of units of a large
# target would fill any memory.
_REMEMBERED = 2**31


class ScoredMethod(ABC):
    """A pathway method that scores every neuron of an input and keeps the best.

    A method of its own is a subclass with :meth:`importance`. How many neurons are kept is decided
    here, the same way for all methods, so that they can be compared at equal size.

    Args:
        target (GatedTarget): the target.
        kept (float or None): share of neurons to keep, in [0, 1], the same for every input.
        like (PathwayMethod or None): another method of the same target, whose size is matched input
            by input. Exactly one of ``kept`` and ``like`` is given; neither for the own size of a
            method that has one (``own_threshold``).
        per_site (bool or None): keep that share, or that many, at every site (True) or over all
            sites together (False); None is the method's ``per_site_default``.
        min_keep (float or None): every site keeps at least this share and at least one neuron, the
            generator's floor, which may raise a size that would be smaller; None is no floor.

    Raises:
        ValueError: both of ``kept`` and ``like``, or none of them for a method without a size of
            its own; another target, or a value outside [0, 1]. When explaining: scores that are not
            finite.

    Source: percentiles of scores over all layers are arXiv:2103.16886's; ``per_site``, ``like`` and
    the floor are our choice.

    Example:
        >>> class FirstNeurons(ScoredMethod):
        ...     def importance(self, images):
        ...         logits = self.target(images)
        ...         row = torch.arange(self.sites.num_neurons, 0, -1.0)
        ...         return logits, row.expand(len(images), -1)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> method = FirstNeurons(GatedTarget(net, torch.zeros(1, 4)), kept=0.25)
        >>> method(torch.randn(1, 4)).pathway.mask().int().tolist()
        [[1, 1, 0, 0, 0, 0, 0, 0]]
    """

    own_threshold: float | None = None
    """Importance above which a neuron belongs to the method's own pathway; None: it has none."""

    class_threshold: ClassVar[float | None] = None
    """Frequency from which a neuron belongs to a class pathway that is made from the method's; None
    leaves it to whoever makes them."""

    per_site_default: ClassVar[bool] = False
    """Whether sizes are per site unless the caller says."""

    rank_depends_on_sizes: ClassVar[bool] = False
    """Whether :meth:`rank` looks at the sizes."""

    def __init__(
        self,
        target: GatedTarget,
        *,
        kept: float | None = None,
        like: PathwayMethod | None = None,
        per_site: bool | None = None,
        min_keep: float | None = None,
    ) -> None:
        name = type(self).__name__
        if kept is not None and like is not None:
            at_most = "exactly" if self.own_threshold is None else "at most"
            raise ValueError(f"{name}: {at_most} one of like and kept must be given, got both")
        if kept is None and like is None and self.own_threshold is None:
            raise ValueError(f"{name}: exactly one of like and kept must be given, got none")
        if like is not None and like.target is not target:
            raise ValueError(f"{name}: like must explain the same target")
        if kept is not None and not 0.0 <= kept <= 1.0:
            raise ValueError(f"{name}: kept must be in [0, 1], got {kept}")
        self.target = target
        self.kept = kept
        self.like = like
        self.per_site = self.per_site_default if per_site is None else per_site
        no_floor = [0] * len(target.sites)
        self.floors = no_floor if min_keep is None else site_floors(target.sites, min_keep)
        self._fingerprint = target.fingerprint
        self._rankings: dict[bytes, tuple[Tensor, Tensor]] | None = None

    def resized(self, kept: float) -> ScoredMethod:
        """The same method at another size; both rank an input only once from now on.

        Rankings of the inputs that either explains stay in memory as long as one of them does, up
        to 2 GiB; those of further inputs are made anew.

        Args:
            kept (float): share of neurons to keep, in [0, 1].

        Raises:
            ValueError: a value outside [0, 1].
        """
        if not 0.0 <= kept <= 1.0:
            raise ValueError(f"{type(self).__name__}: kept must be in [0, 1], got {kept}")
        if self._rankings is None and not self.rank_depends_on_sizes:
            self._rankings = {}
        other = copy.copy(self)
        other.kept, other.like = kept, None
        return other

    @property
    def sites(self) -> Sites:
        """The target's sites."""
        return self.target.sites

    @abstractmethod
    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and importance ``[N, D]``, finite; a row by its input alone."""

    def rank(self, images: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """:meth:`importance`, for a method whose ranking depends on how many are to be kept."""
        return self.importance(images)

    def sizes(self, images: Tensor) -> Tensor | None:
        """Neurons to keep, int64 ``[N]`` or per site ``[N, L]``, floors included; None: the
        method's own."""
        floors = torch.tensor(self.floors, device=images.device)
        if self.like is not None:
            sizes = self.like(images).pathway.sizes(self.per_site).to(images.device)
        elif self.kept is not None:
            counts = self.sites.portions(self.kept)
            sizes = torch.tensor(counts if self.per_site else sum(counts), device=images.device)
            sizes = sizes.expand(len(images), *sizes.shape)
        else:
            return None
        return sizes.maximum(floors if self.per_site else floors.sum())

    def select(self, importance: Tensor, sizes: Tensor | None) -> Tensor:
        """The neurons of highest importance, bool ``[N, D]``; ties go to the first.

        Args:
            importance (Tensor[N, D]): finite.
            sizes (Tensor[N], Tensor[N, L] or None): as :meth:`sizes` gives them.
        """
        if sizes is not None and sizes.dim() == 2:
            return scored_mask(importance, sizes, self.sites)
        floor = self.floor(importance)
        if sizes is None:
            assert self.own_threshold is not None
            return (importance > self.own_threshold) | floor
        # The floor's neurons come first and count towards the size.
        return top_k_mask(importance.masked_fill(floor, math.inf), sizes)

    def floor(self, importance: Tensor) -> Tensor:
        """The most important neurons of every site, as many as its floor; bool ``[N, D]``."""
        floors = torch.tensor([self.floors], device=importance.device)
        return scored_mask(importance, floors.expand(len(importance), -1), self.sites)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Explanation:
        """Explain a batch ``[N, ...]``.

        Raises:
            ValueError: scores that are not finite, as those of inputs with a NaN.
        """
        sizes = self.sizes(images)
        logits, importance = self._ranked(images, sizes)
        bad = int(((~importance.isfinite()).any(1) | logits.isnan().any(1)).sum())
        if bad:
            raise ValueError(
                f"{type(self).__name__}: scores must be finite, got others for {bad} of "
                f"{len(images)} inputs"
            )
        mask = self.select(importance, sizes)
        gated_logits = self.target.gated(images, mask)
        pathway = Pathway.from_mask(mask, self.sites, self._fingerprint)
        return Explanation(logits, gated_logits, importance, pathway)

    def _ranked(self, images: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """:meth:`rank`, remembered by the bytes of the batch once there are several sizes."""
        if self._rankings is None:
            return self.rank(images, sizes)
        raw = images.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        # A method that chooses the size may rank no further than that.
        kind = f"{tuple(images.shape)} {images.dtype} {images.device} {sizes is None}"
        key = hashlib.blake2b(raw, digest_size=16).digest() + kind.encode()
        if key in self._rankings:
            return self._rankings[key]
        found = self.rank(images, sizes)
        held = sum(part.nbytes for ranking in self._rankings.values() for part in ranking)
        if held + sum(part.nbytes for part in found) <= _REMEMBERED:
            self._rankings[key] = found
        return found


def class_threshold(method: PathwayMethod, otherwise: float = 0.5) -> float:
    """Frequency from which a neuron belongs to a class pathway made from the method's pathways.

    Args:
        method (PathwayMethod): any; a ``ScoredMethod`` may have a ``class_threshold`` of its own.
        otherwise (float): for those that have none.
    """
    own: float | None = getattr(method, "class_threshold", None)
    return otherwise if own is None else own


def site_floors(sites: Sites, min_keep: float) -> list[int]:
    """Least number of neurons per site, as the generator's: ``min_keep`` of them, at least one.

    Raises:
        ValueError: ``min_keep`` outside [0, 1].
    """
    if not 0.0 <= min_keep <= 1.0:
        raise ValueError(f"min_keep must be in [0, 1], got {min_keep}")
    return sites.floors(min_keep)


def draws(images: Tensor, count: int, seed: int) -> Tensor:
    """Uniform random numbers that depend on an input's bytes and the seed alone.

    A stream shared by a batch would depend on the batch; these are the same in every batch, order
    and device.

    Args:
        images (Tensor[N, ...]): inputs.
        count (int): numbers per input.
        seed (int): any.

    Returns:
        Tensor[N, count]: float32 in [0, 1), on the device of ``images``.
    """
    scores = torch.empty(len(images), count)
    generator = torch.Generator()
    key = seed.to_bytes(8, "little", signed=True)
    for row, image in zip(scores, images.detach().cpu().contiguous(), strict=True):
        raw = image.reshape(-1).view(torch.uint8).numpy().tobytes()
        digest = hashlib.blake2b(raw, key=key, digest_size=8).digest()
        generator.manual_seed(int.from_bytes(digest, "little", signed=True))
        torch.rand(count, generator=generator, out=row)
    return scores.to(images.device)

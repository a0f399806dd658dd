"""Pathway: bit-packed sets of neurons, one per input, with set algebra and files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pathways import ops
from pathways.files import check_fingerprint, read_safetensors, write_safetensors
from pathways.packing import full_words, popcounts, site_words
from pathways.sites import Sites

if TYPE_CHECKING:
    from pathways.target import GatedTarget

FORMAT_VERSION = 1


class Pathway:
    """The kept neurons of N inputs, one bit per neuron, every site starting on a word boundary.

    Args:
        words (Tensor[N, num_words], int64): packed neurons (``Sites.pack``); not copied. Bits
            behind the last neuron of a site are zero.
        sites (Sites): where the neurons are.
        fingerprint (str): ``target.fingerprint`` of the target they belong to; ``""`` is unknown.

    Raises:
        TypeError: words that are not int64.
        ValueError: words of another shape, or with bits behind the last neuron of a site.

    Operators ``a & b`` (and), ``a | b`` (or), ``a - b`` (in a and not in b), ``a ^ b`` (in one of
    them) work row by row; a pathway of one row is combined with every row of the other. ``a == b``
    is true when sites and all rows are equal. Combining pathways of different sites or targets is
    refused.

    Example:
        >>> from pathways.sites import Site, Sites
        >>> sites = Sites([Site("a", 0, "relu", (3, 4, 4)), Site("b", 0, "relu", (2,))])
        >>> a = Pathway.from_mask(torch.tensor([[1, 1, 0, 0, 1]]), sites)
        >>> b = Pathway.from_mask(torch.tensor([[0, 1, 1, 0, 1]]), sites)
        >>> (a & b).mask().int().tolist(), a.iou(b).tolist(), a.sizes(per_site=True).tolist()
        ([[0, 1, 0, 0, 1]], [0.5], [[2, 1]])
    """

    def __init__(self, words: Tensor, sites: Sites, fingerprint: str = "") -> None:
        if words.dtype != torch.int64:
            raise TypeError(f"Pathway: words must be int64, got {words.dtype}")
        if words.dim() != 2 or words.shape[1] != sites.num_words:
            raise ValueError(
                f"Pathway: words must be [N, {sites.num_words}], got {tuple(words.shape)}"
            )
        self.words = words
        self.sites = sites
        self.fingerprint = fingerprint
        if bool((words & ~full_words(sites, words.device)).any()):
            raise ValueError(
                "Pathway: words must be zero behind the last neuron of every site, got set bits"
            )

    @classmethod
    def from_mask(cls, mask: Tensor, sites: Sites, fingerprint: str = "") -> Pathway:
        """Pack a 0/1 mask.

        Args:
            mask (Tensor[N, D]): bool, integer or floating, values 0 and 1, flat in site order.
            sites (Sites): the sites.
            fingerprint (str): ``target.fingerprint``.

        Raises:
            ValueError: another shape, or values other than 0 and 1.
        """
        if mask.dim() != 2 or mask.shape[1] != sites.num_neurons:
            raise ValueError(
                f"Pathway.from_mask: mask must be [N, {sites.num_neurons}], got {tuple(mask.shape)}"
            )
        # Importance passed by mistake would otherwise become a pathway of every neuron.
        if mask.dtype != torch.bool:
            kept = mask != 0
            if bool((kept & (mask != 1)).any()):
                raise ValueError("Pathway.from_mask: mask must hold only 0 and 1, got other values")
            mask = kept
        return cls._of(sites.pack(mask), sites, fingerprint)

    @classmethod
    def _of(cls, words: Tensor, sites: Sites, fingerprint: str) -> Pathway:
        """Without the checks, for words that are right by construction."""
        pathway = cls.__new__(cls)
        pathway.words, pathway.sites, pathway.fingerprint = words, sites, fingerprint
        return pathway

    # ------------------------------------------------------------------ rows

    def __len__(self) -> int:
        return self.words.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Pathway:
        """Rows: an int gives one row, a slice or an index tensor (int64 or bool) several.

        Raises:
            IndexError: out of range.
        """
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"Pathway: row must be in [0, {len(self)}), got {index}")
            index %= len(self)
            index = slice(index, index + 1)
        elif isinstance(index, Tensor):
            index = index.to(self.device)
        return self._of(self.words[index], self.sites, self.fingerprint)

    def __iter__(self) -> Iterator[Pathway]:
        return (self[row] for row in range(len(self)))

    @staticmethod
    def cat(parts: Iterable[Pathway]) -> Pathway:
        """Join the rows of several pathways.

        Raises:
            ValueError: there are none, or they have different sites or targets.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("Pathway.cat: expected at least one pathway, got none")
        fingerprint = ""
        for part in parts:
            fingerprint = parts[0]._common_fingerprint(part, "cat") or fingerprint
        words = torch.cat([part.words for part in parts])
        return Pathway._of(words, parts[0].sites, fingerprint)

    @property
    def device(self) -> torch.device:
        """Where the words are."""
        return self.words.device

    def to(self, device: torch.device | str) -> Pathway:
        """The same pathway on another device."""
        return self._of(self.words.to(device), self.sites, self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"Pathway({len(self)} rows, {len(self.sites)} sites, {self.sites.num_neurons} "
            f"{self.sites.granularity} neurons)"
        )

    # ------------------------------------------------------------------ masks

    def mask(self) -> Tensor:
        """Unpacked: bool ``[N, D]``, flat in site order."""
        return self.sites.unpack(self.words)

    def gates(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """What ``GatedTarget.gated`` takes: per site ``[N, C]`` (channel) or ``[N, C, *space]``."""
        return self.sites.gates(self.mask().to(dtype))

    # ------------------------------------------------------------------ algebra

    def __and__(self, other: Pathway) -> Pathway:
        return self._combined(other, "&")

    def __or__(self, other: Pathway) -> Pathway:
        return self._combined(other, "|")

    def __sub__(self, other: Pathway) -> Pathway:
        return self._combined(other, "-")

    def __xor__(self, other: Pathway) -> Pathway:
        return self._combined(other, "^")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pathway):
            return NotImplemented
        if self.sites != other.sites or _differ(self.fingerprint, other.fingerprint):
            return False
        return torch.equal(self.words, other.words.to(self.device))

    def complement(self) -> Pathway:
        """The neurons that are not in the pathway."""
        words = self.words ^ full_words(self.sites, self.device)
        return self._of(words, self.sites, self.fingerprint)

    def _combined(self, other: Pathway, operator: str) -> Pathway:
        if not isinstance(other, Pathway):
            return NotImplemented
        fingerprint = self._common_fingerprint(other, operator)
        self._check_rows(other, operator)
        a, b = self.words, other.words
        if operator == "&":
            words = a & b
        elif operator == "|":
            words = a | b
        elif operator == "^":
            words = a ^ b
        else:
            words = a & ~b
        return self._of(words, self.sites, fingerprint)

    def _common_fingerprint(self, other: Pathway, operation: str) -> str:
        if self.sites != other.sites:
            raise ValueError(
                f"Pathway {operation}: both pathways must have the same sites, "
                f"got {self.sites!r} and {other.sites!r}"
            )
        if _differ(self.fingerprint, other.fingerprint):
            raise ValueError(
                f"Pathway {operation}: both pathways must belong to one target, "
                f"got {self.fingerprint} and {other.fingerprint}"
            )
        if self.device != other.device:
            raise ValueError(
                f"Pathway {operation}: both pathways must be on the same device "
                f"(got {self.device} and {other.device})"
            )
        return self.fingerprint or other.fingerprint

    def _check_rows(self, other: Pathway, operation: str) -> None:
        if len(self) != len(other) and 1 not in (len(self), len(other)):
            raise ValueError(
                f"Pathway {operation}: both pathways must have as many rows, or one of them one, "
                f"got {len(self)} and {len(other)} rows"
            )

    # ------------------------------------------------------------------ sizes and overlap

    def sizes(self, per_site: bool = False) -> Tensor:
        """Number of kept neurons: int64 ``[N]``, or ``[N, L]`` per site."""
        return popcounts(self.words, self.sites, per_site)

    def kept(self, per_site: bool = False) -> Tensor:
        """Kept share in [0, 1], 1 - sparsity: float32 ``[N]`` over all neurons, or ``[N, L]``."""
        sizes = self.sizes(per_site).float()
        if per_site:
            return sizes / torch.tensor(self.sites.sizes, device=self.device)
        return sizes / self.sites.num_neurons

    def iou(self, other: Pathway, per_site: bool = False) -> Tensor:
        """Intersection over union, row by row; pathways of one row are compared with every row.

        Args:
            other (Pathway): as many rows, or one.
            per_site (bool): over the neurons of each site instead of all.

        Returns:
            Tensor[N] or Tensor[N, L]: float32 in [0, 1]; 1 where both are empty.

        Source: method of Khakzar et al. (arXiv:2103.16886), neurons of all sites flattened.
        """
        self._common_fingerprint(other, "iou")
        self._check_rows(other, "iou")
        shared = popcounts(self.words & other.words, self.sites, per_site)
        union = self.sizes(per_site) + other.sizes(per_site) - shared
        return torch.where(union == 0, 1.0, shared / union.clamp_min(1)).float()

    def pairwise_iou(self, other: Pathway | None = None, site: int | str | None = None) -> Tensor:
        """IoU of every row with every row of ``other`` (None: of this pathway itself).

        Args:
            other (Pathway or None): M rows.
            site (int, str or None): only the neurons of this site (index, key or module path).

        Returns:
            Tensor[N, M]: float32 in [0, 1]; an empty union is 1.
        """
        return ops.pairwise_iou(*self._pair(other, site, "pairwise_iou"))

    def pairwise_intersection(
        self, other: Pathway | None = None, site: int | str | None = None
    ) -> Tensor:
        """Number of shared neurons, int32 ``[N, M]``; arguments as in :meth:`pairwise_iou`."""
        return ops.pairwise_intersection(*self._pair(other, site, "pairwise_intersection"))

    def _pair(
        self, other: Pathway | None, site: int | str | None, operation: str
    ) -> tuple[Tensor, Tensor]:
        other = self if other is None else other
        self._common_fingerprint(other, operation)
        if site is None:
            return self.words, other.words
        position = self.sites.index(site) if isinstance(site, str) else site
        if not 0 <= position < len(self.sites):
            raise IndexError(
                f"Pathway {operation}: site must be in [0, {len(self.sites)}), got {position}"
            )
        words = site_words(self.sites, position)
        return self.words[:, words], other.words[:, words]

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file with a versioned header, in one step.

        Args:
            path (path): file to write.
            extra (mapping or None): JSON-able notes of your own; ``extra`` in the file's header.

        Raises:
            OSError: the file cannot be written; an old file is left as it was.
        """
        write_pathways(path, "pathway", {"words": self.words}, self.sites, self.fingerprint, extra)

    @classmethod
    def load(cls, path: str | os.PathLike[str], target: GatedTarget | str | None = None) -> Pathway:
        """Read what :meth:`save` wrote, onto the CPU.

        Args:
            path (path): the file.
            target (GatedTarget, str or None): the target at hand, or its fingerprint: a pathway of
                another one is refused. None takes the file as it is.

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged or foreign file, or a pathway of another target (both are named).
        """
        tensors, sites, header = read_pathways(path, "pathway", target)
        try:
            return cls(tensors["words"], sites, header["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error})") from error


def _differ(a: str, b: str) -> bool:
    """Whether two fingerprints contradict each other; an unknown one contradicts nothing."""
    return bool(a) and bool(b) and a != b


def write_pathways(
    path: str | os.PathLike[str],
    kind: str,
    tensors: Mapping[str, Tensor],
    sites: Sites,
    fingerprint: str,
    extra: Mapping[str, Any] | None,
    **header: str,
) -> None:
    """Write packed neurons with the header every pathway file has."""
    description = {
        "sites": json.dumps(sites.to_json()),
        "granularity": sites.granularity,
        "fingerprint": fingerprint,
        "extra": json.dumps(dict(extra or {})),
        **header,
    }
    write_safetensors(path, tensors, kind=kind, version=FORMAT_VERSION, header=description)


def read_pathways(
    path: str | os.PathLike[str], kind: str, target: GatedTarget | str | None
) -> tuple[dict[str, Tensor], Sites, dict[str, str]]:
    """Read tensors, sites and header of a pathway file, checked against a target."""
    tensors, header = read_safetensors(path, kind=kind, version=FORMAT_VERSION)
    if target is not None:
        check_fingerprint(path, header.get("fingerprint", ""), target)
    try:
        sites = Sites.from_json(json.loads(header["sites"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return tensors, sites, header

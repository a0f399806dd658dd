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
from pathways.packing import full_words, popcounts, site_words, top_k_mask
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
        _write(path, "pathway", {"words": self.words}, self.sites, self.fingerprint, extra)

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
        tensors, sites, header = _read(path, "pathway", target)
        try:
            return cls(tensors["words"], sites, header["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error})") from error


class ClassPathways:
    """What the pathways of one class's inputs share, for every class.

    The frequency p of a neuron is the share of the class's inputs whose pathway contains it; the
    class pathway is ``{neuron: p >= threshold}``: 0.5 is the majority, 1 the intersection, 0 the
    union.

    Args:
        members (Tensor[K, D], int64): in how many of the class's pathways each neuron is.
        counts (Tensor[K], int64): inputs per class; 0 makes the class empty.
        sites (Sites): the sites.
        fingerprint (str): ``target.fingerprint``.
        threshold (float): in [0, 1].

    Raises:
        ValueError: shapes that do not fit, or a threshold outside [0, 1].

    Source: arXiv:2309.09887 (shared concepts of j inputs); the frequency threshold is our choice.

    Example:
        >>> from pathways.sites import Site, Sites
        >>> sites = Sites([Site("a", 0, "relu", (3,))])
        >>> pathway = Pathway.from_mask(torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]]), sites)
        >>> classes = ClassPathways.from_pathways(pathway, torch.tensor([0, 0, 1]), threshold=0.6)
        >>> classes.frequency.tolist(), classes[0].mask().int().tolist()
        ([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]], [[1, 0, 0]])
    """

    def __init__(
        self,
        members: Tensor,
        counts: Tensor,
        sites: Sites,
        fingerprint: str = "",
        threshold: float = 0.5,
    ) -> None:
        if counts.dim() != 1 or members.shape != (len(counts), sites.num_neurons):
            raise ValueError(
                f"ClassPathways: members must be [K, {sites.num_neurons}] and counts [K], "
                f"got {tuple(members.shape)} and {tuple(counts.shape)}"
            )
        self.members = members
        self.counts = counts
        self.threshold = _checked_threshold(threshold)
        # p >= 0 would be every neuron; the limit from above is the union.
        mask = (self.frequency >= self.threshold) & (members > 0)
        self.pathway = Pathway.from_mask(mask, sites, fingerprint)

    @classmethod
    def from_pathways(
        cls,
        pathway: Pathway,
        predictions: Tensor,
        threshold: float = 0.5,
        num_classes: int | None = None,
    ) -> ClassPathways:
        """Class pathways of a set of inputs.

        Args:
            pathway (Pathway): N rows.
            predictions (Tensor[N], int64): class of each row; the target's prediction, since that
                is what a pathway explains.
            threshold (float): in [0, 1].
            num_classes (int or None): K; None is the largest class that occurs, plus one.

        Raises:
            TypeError: predictions that are not integers.
            ValueError: another number of predictions, or a class outside [0, K).
        """
        predictions = _checked_classes(
            predictions, len(pathway), num_classes, "ClassPathways.from_pathways"
        ).to(pathway.device)
        if num_classes is None:
            num_classes = int(predictions.max()) + 1 if len(predictions) else 0
        sites = pathway.sites
        members = [
            ops.class_frequency(
                pathway.words[:, site_words(sites, i)], predictions, num_classes, size
            )
            for i, size in enumerate(sites.sizes)
        ]
        counts = torch.bincount(predictions, minlength=num_classes)
        return cls(torch.cat(members, dim=1), counts, sites, pathway.fingerprint, threshold)

    @property
    def sites(self) -> Sites:
        """The sites."""
        return self.pathway.sites

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the target."""
        return self.pathway.fingerprint

    @property
    def frequency(self) -> Tensor:
        """Share of the class's inputs whose pathway contains a neuron: float64 ``[K, D]``; 0 for an
        empty class."""
        return self.members.double() / self.counts.clamp_min(1).unsqueeze(1)

    @property
    def classes(self) -> Tensor:
        """Classes that have a pathway, int64, ascending."""
        return self.counts.nonzero().squeeze(1)

    def __len__(self) -> int:
        """Number of classes K, empty ones included."""
        return len(self.counts)

    def __getitem__(self, index: int) -> Pathway:
        """Pathway of one class, one row.

        Raises:
            IndexError: no such class.
            ValueError: a class without inputs.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"ClassPathways: class must be in [0, {len(self)}), got {index}")
        if self.counts[index] == 0:
            raise ValueError(f"ClassPathways: class {index} is empty, no input was predicted as it")
        return self.pathway[int(index)]

    def __repr__(self) -> str:
        return (
            f"ClassPathways({len(self)} classes, {int((self.counts == 0).sum())} empty, "
            f"{int(self.counts.sum())} inputs, threshold {self.threshold})"
        )

    def for_predictions(self, predictions: Tensor) -> Pathway:
        """The class pathway of each input: N rows.

        Args:
            predictions (Tensor[N], int64): classes.

        Raises:
            ValueError: a class outside [0, K) or an empty one.
        """
        predictions = _checked_classes(
            predictions, None, len(self), "ClassPathways.for_predictions"
        ).to(self.pathway.device)
        empty = predictions[self.counts[predictions] == 0]
        if len(empty):
            raise ValueError(
                f"ClassPathways: class {int(empty[0])} is empty, no input was predicted as it"
            )
        return self.pathway[predictions]

    def with_threshold(self, threshold: float) -> ClassPathways:
        """The same frequencies cut at another threshold in [0, 1]."""
        return ClassPathways(self.members, self.counts, self.sites, self.fingerprint, threshold)

    def top_k(self, k: int | None = None) -> Pathway:
        """The k most frequent neurons of every class: K rows, those of empty classes empty.

        Args:
            k (int or None): neurons per class; None is the mean size of the class's own pathways,
                rounded. Ties go to the neuron that comes first.

        Raises:
            ValueError: k outside [0, D].
        """
        neurons = self.sites.num_neurons
        if k is None:
            sizes = self.members.sum(1) / self.counts.clamp_min(1)
            wanted = sizes.round().long()
        elif not 0 <= k <= neurons:
            raise ValueError(f"ClassPathways.top_k: k must be in [0, {neurons}], got {k}")
        else:
            wanted = (self.counts > 0) * k
        return Pathway.from_mask(top_k_mask(self.frequency, wanted), self.sites, self.fingerprint)

    def agnostic(self, threshold: float | None = None) -> Pathway:
        """One pathway for all classes, one row: the control for class-wise transfer.

        Args:
            threshold (float or None): on the frequency averaged over the non-empty classes; None is
                the threshold of the class pathways.

        Raises:
            ValueError: every class is empty, or a threshold outside [0, 1].
        """
        if len(self.classes) == 0:
            raise ValueError("ClassPathways.agnostic: every class is empty")
        threshold = self.threshold if threshold is None else _checked_threshold(threshold)
        frequency = self.frequency[self.classes].mean(0, keepdim=True)
        mask = (frequency >= threshold) & (frequency > 0)
        return Pathway.from_mask(mask, self.sites, self.fingerprint)

    def to(self, device: torch.device | str) -> ClassPathways:
        """The same class pathways on another device."""
        return ClassPathways(
            self.members.to(device),
            self.counts.to(device),
            self.sites,
            self.fingerprint,
            self.threshold,
        )

    def save(self, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file; arguments and errors as :meth:`Pathway.save`."""
        _write(
            path,
            "class_pathways",
            {"members": self.members, "counts": self.counts, "words": self.pathway.words},
            self.sites,
            self.fingerprint,
            extra,
            threshold=repr(self.threshold),
        )

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], target: GatedTarget | str | None = None
    ) -> ClassPathways:
        """Read what :meth:`save` wrote; arguments and errors as :meth:`Pathway.load`."""
        tensors, sites, header = _read(path, "class_pathways", target)
        try:
            loaded = cls(
                tensors["members"],
                tensors["counts"],
                sites,
                header["fingerprint"],
                float(header["threshold"]),
            )
            consistent = torch.equal(loaded.pathway.words, tensors["words"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error})") from error
        if not consistent:
            raise ValueError(f"{path} is damaged (its pathways do not follow from its counts)")
        return loaded


def _differ(a: str, b: str) -> bool:
    """Whether two fingerprints contradict each other; an unknown one contradicts nothing."""
    return bool(a) and bool(b) and a != b


def _checked_threshold(threshold: float) -> float:
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"ClassPathways: threshold must be in [0, 1], got {threshold}")
    return float(threshold)


def _checked_classes(
    classes: Tensor, rows: int | None, num_classes: int | None, where: str
) -> Tensor:
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"{where}: predictions must be integers, got {classes.dtype}")
    if classes.dim() != 1 or (rows is not None and len(classes) != rows):
        wanted = "[N]" if rows is None else f"[{rows}]"
        raise ValueError(f"{where}: predictions must be {wanted}, got {tuple(classes.shape)}")
    if len(classes):
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or (num_classes is not None and high >= num_classes):
            limit = "" if num_classes is None else str(num_classes)
            raise ValueError(
                f"{where}: predictions must be in [0, {limit}), got {low if low < 0 else high}"
            )
    return classes.long()


def _write(
    path: str | os.PathLike[str],
    kind: str,
    tensors: Mapping[str, Tensor],
    sites: Sites,
    fingerprint: str,
    extra: Mapping[str, Any] | None,
    **header: str,
) -> None:
    description = {
        "sites": json.dumps(sites.to_json()),
        "granularity": sites.granularity,
        "fingerprint": fingerprint,
        "extra": json.dumps(dict(extra or {})),
        **header,
    }
    write_safetensors(path, tensors, kind=kind, version=FORMAT_VERSION, header=description)


def _read(
    path: str | os.PathLike[str], kind: str, target: GatedTarget | str | None
) -> tuple[dict[str, Tensor], Sites, dict[str, str]]:
    tensors, header = read_safetensors(path, kind=kind, version=FORMAT_VERSION)
    if target is not None:
        check_fingerprint(path, header.get("fingerprint", ""), target)
    try:
        sites = Sites.from_json(json.loads(header["sites"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return tensors, sites, header

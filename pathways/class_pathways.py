"""ClassPathways: what the pathways of a class's inputs share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pathways import ops
from pathways.packing import site_words, top_k_mask
from pathways.pathway import Pathway, read_pathways, write_pathways
from pathways.sites import Sites

if TYPE_CHECKING:
    from pathways.target import GatedTarget


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
        write_pathways(
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
        tensors, sites, header = read_pathways(path, "class_pathways", target)
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

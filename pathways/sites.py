"""Sites: the activations of a target model that can be gated, and the layout of their neurons."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import torch
from torch import Tensor

GRANULARITIES = ("channel", "unit")
WORD_BITS = 64

Selector = str | Iterable[str] | Callable[["Site"], bool] | None


@dataclass(frozen=True)
class Site:
    """One gated activation: a call of an activation function inside a module of the target.

    The call index is part of the identity because modules are reused: a ResNet block that owns one
    ReLU module and applies it twice has two sites.

    Args:
        name (str): dotted path of the innermost module that made the call; ``""`` is the target
            itself.
        call (int): which activation call inside that module, counted from 0 in execution order.
        activation (str): name of the activation function, for example ``"relu"``.
        shape (tuple of int): shape of one input's activation with the channels first, ``(C,
            *space)``.
        channel_dim (int): dimension of the activation tensor that holds the channels: 1, or -1 for
            tensors whose last dimension is the feature dimension (outputs of linear layers on
            tokens).

    Example:
        >>> Site("layer1.0.relu", 0, "relu", (16, 32, 32)).key
        'layer1.0.relu#0'
    """

    name: str
    call: int
    activation: str
    shape: tuple[int, ...]
    channel_dim: int = 1

    @property
    def key(self) -> str:
        """Unique readable name: module path and call index, ``"layer1.0.relu#0"``."""
        return f"{self.name}#{self.call}"

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.shape[0]

    @property
    def space(self) -> tuple[int, ...]:
        """Spatial shape, ``()`` for a linear site."""
        return self.shape[1:]


class Sites(Sequence[Site]):
    """The sites of a target in execution order, with the layout of their neurons.

    Two layouts are used everywhere. *Flat*: neurons of all sites side by side, ``[N, D]``.
    *Packed*: one bit per neuron in int64 words, ``[N, num_words]``, every site starting on a word
    boundary, so that a site is a slice of words.

    Args:
        sites (iterable of Site): sites in execution order.
        granularity (str): ``"channel"`` (a neuron is a channel) or ``"unit"`` (a neuron is one
            scalar).

    Raises:
        ValueError: unknown granularity, or two sites with the same key.

    Example:
        >>> sites = Sites([Site("a", 0, "relu", (3, 4, 4)), Site("b", 0, "relu", (5,))])
        >>> sites.sizes, sites.num_neurons, sites.word_offsets
        ([3, 5], 8, [0, 1, 2])
    """

    def __init__(self, sites: Iterable[Site], granularity: str = "channel") -> None:
        if granularity not in GRANULARITIES:
            raise ValueError(
                f"Sites: granularity must be one of {', '.join(GRANULARITIES)}, got {granularity!r}"
            )
        self._sites = tuple(sites)
        self.granularity = granularity
        keys = [site.key for site in self._sites]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(f"Sites: every site must have its own key, got {repeated[0]!r} twice")
        self.sizes: list[int] = [
            site.channels if granularity == "channel" else math.prod(site.shape)
            for site in self._sites
        ]
        self.offsets: list[int] = _cumulative(self.sizes)
        self.word_offsets: list[int] = _cumulative(-(-size // WORD_BITS) for size in self.sizes)

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Site, ...]: ...
    def __getitem__(self, index: int | slice) -> Site | tuple[Site, ...]:
        return self._sites[index]

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sites)
            and self._sites == other._sites
            and self.granularity == other.granularity
        )

    def __hash__(self) -> int:
        return hash((self._sites, self.granularity))

    def __repr__(self) -> str:
        return f"Sites({len(self)} sites, {self.num_neurons} {self.granularity} neurons)"

    @property
    def num_neurons(self) -> int:
        """Number of neurons of all sites, D."""
        return self.offsets[-1]

    def floors(self, min_keep: float) -> list[int]:
        """Least number of neurons of every site: this share, in [0, 1], and at least one."""
        # Rounded first, so that 7 % of 100 are 7 and not, through 7.000000000000001, 8.
        return [max(1, math.ceil(round(min_keep * size, 6))) for size in self.sizes]

    def portions(self, kept: float) -> list[int]:
        """Number of neurons of every site that make this share, in [0, 1], of all of them.

        Less than one neuron from the share at every site, so that the sum is the rounded share of
        all: what the sites' remainders leave goes to the largest of them, or the first.

        Raises:
            ValueError: a share outside [0, 1].
        """
        if not 0.0 <= kept <= 1.0:
            raise ValueError(f"Sites: kept must be in [0, 1], got {kept}")
        exact = [size * kept for size in self.sizes]
        counts = [int(share) for share in exact]
        left = round(sum(self.sizes) * kept) - sum(counts)
        order = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
        for i in order[:left]:
            counts[i] += 1
        return counts

    @property
    def num_words(self) -> int:
        """Number of int64 words of one packed pathway."""
        return self.word_offsets[-1]

    def index(self, value: Any, *args: Any) -> int:
        """Position of a site, given as a ``Site``, as its key, or as a module path used once.

        Raises:
            ValueError: no such site; the sentence lists the known keys.
        """
        for position, site in enumerate(self._sites):
            if value in (site, site.key):
                return position
        named = [position for position, site in enumerate(self._sites) if site.name == value]
        if len(named) == 1:
            return named[0]
        raise ValueError(f"Sites: {value!r} is not one of the sites {self._some_keys()}")

    def mask_shape(self, index: int) -> tuple[int, ...]:
        """Shape of one input's mask at a site: ``(C,)`` for channels, ``(C, *space)`` for units."""
        site = self._sites[index]
        return (site.channels,) if self.granularity == "channel" else site.shape

    def split(self, flat: Tensor) -> list[Tensor]:
        """Cut a flat tensor ``[..., D]`` into one view ``[..., size]`` per site.

        Raises:
            ValueError: the last dimension is not D.
        """
        if flat.dim() < 1 or flat.shape[-1] != self.num_neurons:
            raise ValueError(
                f"Sites.split: last dimension must be {self.num_neurons} neurons, "
                f"got shape {tuple(flat.shape)}"
            )
        return list(flat.split(self.sizes, dim=-1))

    def gates(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat tensor ``[N, D]`` in the shapes a gated run takes, one per site.

        Returns:
            list of Tensor: ``[N, C]`` for channel granularity, ``[N, C, *space]`` for units.
        """
        parts = self.split(flat)
        return [part.reshape(flat.shape[:-1] + self.mask_shape(i)) for i, part in enumerate(parts)]

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of :meth:`gates`: one tensor ``[N, *mask shape]`` per site to ``[N, D]``.

        Raises:
            ValueError: wrong number of parts or a part of the wrong shape.
        """
        if len(parts) != len(self):
            raise ValueError(f"Sites.flatten: expected {len(self)} parts, got {len(parts)}")
        for i, part in enumerate(parts):
            if tuple(part.shape[1:]) != self.mask_shape(i):
                raise ValueError(
                    f"Sites.flatten: part of site {self[i].key} must be "
                    f"[N, {', '.join(map(str, self.mask_shape(i)))}], got {tuple(part.shape)}"
                )
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def pack(self, mask: Tensor) -> Tensor:
        """Pack a 0/1 mask ``[N, D]`` of any dtype into int64 words ``[N, num_words]``."""
        from pathways import ops

        return torch.cat([ops.pack_bits(part) for part in self.split(mask)], dim=1)

    def unpack(self, words: Tensor) -> Tensor:
        """Unpack int64 words ``[N, num_words]`` into a bool mask ``[N, D]``.

        Raises:
            ValueError: wrong number of words.
        """
        from pathways import ops

        if words.dim() != 2 or words.shape[1] != self.num_words:
            raise ValueError(
                f"Sites.unpack: words must be [N, {self.num_words}], got {tuple(words.shape)}"
            )
        parts = [
            ops.unpack_bits(words[:, start:stop], size)
            for start, stop, size in zip(
                self.word_offsets[:-1], self.word_offsets[1:], self.sizes, strict=True
            )
        ]
        return torch.cat(parts, dim=1)

    def select(self, selector: Selector) -> Sites:
        """Narrow the sites.

        Args:
            selector (str, iterable of str, callable or None): a glob matched against the module
                path and against the key (``"layer3.*"``, ``"*#0"``), several of them, or a function
                ``Site -> bool``; None keeps everything.

        Raises:
            TypeError: something else than these.
            ValueError: nothing is left, or one of the globs matches no site.
        """
        if selector is None:
            return self
        if callable(selector):
            chosen = {site for site in self._sites if selector(site)}
            if not chosen:
                raise ValueError(
                    f"Sites.select: the selector function accepts none of the sites "
                    f"{self._some_keys()}"
                )
        else:
            patterns = [selector] if isinstance(selector, str) else selector
            patterns = list(patterns) if isinstance(patterns, Iterable) else [patterns]
            if not all(isinstance(pattern, str) for pattern in patterns):
                raise TypeError(
                    f"Sites.select: selector must be a glob, globs or a function, got {selector!r}"
                )
            chosen = set()
            for pattern in patterns:
                matched = [
                    site
                    for site in self._sites
                    if fnmatch.fnmatchcase(site.name, pattern)
                    or fnmatch.fnmatchcase(site.key, pattern)
                ]
                if not matched:
                    raise ValueError(
                        f"Sites.select: selector {pattern!r} matches none of the sites "
                        f"{self._some_keys()}"
                    )
                chosen.update(matched)
            if not chosen:
                raise ValueError("Sites.select: selector must name at least one site, got none")
        return Sites((site for site in self._sites if site in chosen), self.granularity)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able description, read back by :meth:`from_json`."""
        return {"granularity": self.granularity, "sites": [asdict(site) for site in self._sites]}

    @classmethod
    def from_json(cls, description: dict[str, Any]) -> Sites:
        """Build sites from :meth:`to_json`'s description.

        Raises:
            ValueError: the description lacks a field or holds something impossible.
        """
        try:
            sites = [
                Site(
                    name=str(entry["name"]),
                    call=int(entry["call"]),
                    activation=str(entry["activation"]),
                    shape=tuple(int(size) for size in entry["shape"]),
                    channel_dim=int(entry["channel_dim"]),
                )
                for entry in description["sites"]
            ]
            for site in sites:
                if min(site.shape, default=0) < 1 or site.channel_dim not in (1, -1):
                    raise ValueError(f"{site} is not a site")
            return cls(sites, description["granularity"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Sites.from_json: not a site table ({error!r})") from error

    def table(self) -> str:
        """The sites as a plain text table: index, key, activation, shape, neurons."""
        rows = [("#", "site", "activation", "shape", "neurons")]
        rows += [
            (str(i), site.key, site.activation, "x".join(map(str, site.shape)), str(size))
            for i, (site, size) in enumerate(zip(self._sites, self.sizes, strict=True))
        ]
        rows.append(("", "total", "", "", str(self.num_neurons)))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column in (0, 4) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )

    def _some_keys(self, limit: int = 12) -> str:
        keys = [site.key for site in self._sites]
        shown = ", ".join(keys[:limit])
        return shown + (f", ... ({len(keys)} in all)" if len(keys) > limit else "")


def _cumulative(sizes: Iterable[int]) -> list[int]:
    total, offsets = 0, [0]
    for size in sizes:
        total += size
        offsets.append(total)
    return offsets

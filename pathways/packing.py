"""Helpers on packed pathways: words of a site, counts, and the k best neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from pathways import ops
from pathways.sites import WORD_BITS, Sites

# Random numbers are drawn for this many rows at a time: a bound on memory, and fixed, because the
# stream of torch.rand depends on the shape of each draw.
_RANDOM_ROWS = 64


def top_k_mask(scores: Tensor, k: Tensor) -> Tensor:
    """The k highest scores of each row, exactly k of them.

    Args:
        scores (Tensor[N, D]): higher is taken first; ties go to the lower index; no NaN.
        k (Tensor[N], int64): how many, in [0, D].

    Returns:
        Tensor[N, D]: bool.

    Example:
        >>> top_k_mask(torch.tensor([[0.1, 0.9, 0.9]]), torch.tensor([2])).tolist()
        [[False, True, True]]
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    taken = torch.arange(scores.shape[1], device=scores.device) < k.unsqueeze(1)
    return torch.zeros_like(taken).scatter_(1, order, taken)


def site_words(sites: Sites, index: int) -> slice:
    """The words of one site in a packed pathway ``[N, num_words]``."""
    return slice(sites.word_offsets[index], sites.word_offsets[index + 1])


def full_words(sites: Sites, device: torch.device) -> Tensor:
    """Packed pathway of every neuron, ``[1, num_words]``."""
    words: list[int] = []
    for size in sites.sizes:
        whole, rest = divmod(size, WORD_BITS)
        words += [-1] * whole
        if rest:
            words.append((1 << rest) - 1)
    return torch.tensor([words], dtype=torch.int64, device=device).reshape(1, sites.num_words)


def popcounts(words: Tensor, sites: Sites, per_site: bool = False) -> Tensor:
    """Set bits per row: int64 ``[N]``, or ``[N, L]`` for each site."""
    full = full_words(sites, words.device)
    if not per_site:
        return ops.pairwise_intersection(words, full).squeeze(1).long()
    slices = [site_words(sites, i) for i in range(len(sites))]
    parts = [ops.pairwise_intersection(words[:, s], full[:, s]) for s in slices]
    return torch.cat(parts, dim=1).long()


def random_words(sizes: Tensor, sites: Sites, generator: torch.Generator) -> Tensor:
    """Uniformly random pathways with given numbers of neurons.

    Args:
        sizes (Tensor[N, L] or Tensor[N], int64): neurons per site, or over all sites.
        sites (Sites): the sites.
        generator (torch.Generator): on the CPU; rows are drawn in order, so that a result does not
            depend on batch sizes or devices.

    Returns:
        Tensor[N, num_words]: int64, on the device of ``sizes``.
    """
    parts = []
    for part in sizes.cpu().split(_RANDOM_ROWS):
        scores = torch.rand(len(part), sites.num_neurons, generator=generator)
        parts.append(sites.pack(scored_mask(scores, part, sites)))
    words = torch.cat(parts) if parts else torch.zeros(0, sites.num_words, dtype=torch.int64)
    return words.to(sizes.device)


def scored_mask(scores: Tensor, sizes: Tensor, sites: Sites) -> Tensor:
    """Mask of the neurons with the highest scores.

    Args:
        scores (Tensor[N, D]): flat in site order.
        sizes (Tensor[N, L] or Tensor[N], int64): how many per site, or over all sites.
        sites (Sites): the sites.

    Returns:
        Tensor[N, D]: bool.
    """
    if sizes.dim() == 1:
        return top_k_mask(scores, sizes)
    parts = sites.split(scores)
    return torch.cat([top_k_mask(part, sizes[:, i]) for i, part in enumerate(parts)], dim=1)

"""Recursive Feature Embedders: from the feature maps of every site to one code per site."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathways import ops


def as_map(feature: Tensor) -> Tensor:
    """View ``[N, C]``, ``[N, C, T]`` or ``[N, C, *space]`` as a map ``[N, C, H, W]``."""
    if feature.dim() == 4:
        return feature
    if feature.dim() == 2:
        return feature.unsqueeze(2).unsqueeze(3)
    return feature.flatten(2).unsqueeze(3)


def summarize(feature: Tensor, pool: int) -> Tensor:
    """What is read of one site's activation, as a map ``[N, C', h, w]``.

    With ``pool > 0`` at most ``pool x pool`` cells, each the mean and the maximum over its part of
    the map (C' = 2 C): a channel mask needs what is present, not where exactly. With ``pool == 0``
    the map itself.
    """
    feature = as_map(feature)
    if pool == 0:
        return feature
    height, width = min(pool, feature.size(2)), min(pool, feature.size(3))
    return ops.adaptive_avg_max_pool2d(feature, height, width)


class SiteAdapter(nn.Module):
    """Bring the summary of one site to the common width, ``[N, C', h, w] -> [N, d, h, w]``.

    Features of different sites differ by orders of magnitude, so each channel is standardised with
    running statistics first.

    Args:
        channels (int): C' of the summary.
        width (int): common width d.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.project = nn.Conv2d(channels, width, kernel_size=1)

    def forward(self, summary: Tensor) -> Tensor:
        summary = summary.to(self.project.weight.dtype)  # targets may be of another one
        projected: Tensor = self.project(self.norm(summary))
        return projected


class ReductionBlock(nn.Module):
    """Residual stride-2 block, ``[N, d, h, w]`` to ``[N, d, ceil(h/2), ceil(w/2)]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.reduce = nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1, groups=width)
        self.mix = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.avg_pool2d(x, 2, stride=2, ceil_mode=True, count_include_pad=False)
        return shortcut + self.mix(F.gelu(self.reduce(self.norm(x))))


class FeatureEmbedders(nn.Module):
    """One Recursive Feature Embedder per site, shallow to deep.

    Each summary passes its own adapter, then one shared residual stride-2 block again and again
    until it is a single cell (recursion inside a site); the result is joined with the code of the
    previous, shallower site (recursion over depth).

    Args:
        channels (list of int): C of every site, in execution order.
        width (int): d, width of the codes.
        pool (int): side of the summaries, see :func:`summarize`.

    Returns of ``forward(summaries)``:
        codes (Tensor[N, L, d]) and adapted maps (list of Tensor[N, d, h, w]).

    Source: arXiv:2309.09887 names the part and its purpose; the layers are our choice.

    Example:
        >>> embed = FeatureEmbedders([3, 5], width=8, pool=4)
        >>> features = [torch.randn(2, 3, 9, 9), torch.randn(2, 5)]
        >>> codes, maps = embed([summarize(feature, pool=4) for feature in features])
        >>> codes.shape
        torch.Size([2, 2, 8])
    """

    def __init__(self, channels: list[int], width: int, pool: int) -> None:
        super().__init__()
        parts = 2 if pool > 0 else 1
        self.adapters = nn.ModuleList([SiteAdapter(parts * c, width) for c in channels])
        self.block = ReductionBlock(width)
        self.carry = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, summaries: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        projected: list[Tensor] = []
        for i, adapter in enumerate(self.adapters):
            projected.append(adapter(summaries[i]))
        maps: list[Tensor] = []
        cells: list[Tensor] = []
        # Neighbours of one size pass the shared block together: on small maps a call costs more
        # than its arithmetic.
        start = 0
        while start < len(projected):
            batch, width, height, breadth = projected[start].shape
            stop = start + 1
            while stop < len(projected) and list(projected[stop].shape[2:]) == [height, breadth]:
                stop += 1
            joined = torch.cat(projected[start:stop])
            # Pooling and depthwise convolution of small maps are several times as fast so.
            adapted = F.gelu(joined.contiguous(memory_format=torch.channels_last))
            maps += adapted.view(stop - start, batch, width, height, breadth).unbind(0)
            while adapted.size(2) > 1 or adapted.size(3) > 1:
                adapted = self.block(adapted)
            cells.append(adapted.view(stop - start, batch, width))
            start = stop
        return self._carried(torch.cat(cells)), maps

    def _carried(self, cells: Tensor) -> Tensor:
        """Codes ``[N, L, d]`` of cells ``[L, N, d]``, each joined with the shallower code."""
        width = cells.size(2)
        own, carried = self.carry.weight.split(width, dim=1)
        joined = cells[1:] + F.linear(cells[1:], own, self.carry.bias)
        codes: list[Tensor] = [self.norm(cells[0])]
        for code in joined.unbind(0):
            codes.append(self.norm(torch.addmm(code, codes[-1], carried.t())))
        return torch.stack(codes, dim=1)

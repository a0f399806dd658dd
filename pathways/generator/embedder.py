"""Recursive Feature Embedders: from the feature maps of every site to one code per site."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def as_map(feature: Tensor) -> Tensor:
    """View ``[N, C]``, ``[N, C, T]`` or ``[N, C, *space]`` as a map ``[N, C, H, W]``."""
    if feature.dim() == 4:
        return feature
    if feature.dim() == 2:
        return feature.unsqueeze(2).unsqueeze(3)
    return feature.flatten(2).unsqueeze(3)


class SiteAdapter(nn.Module):
    """Bring one site's feature map to the common width.

    Features of different sites differ by orders of magnitude, so each channel is standardised with
    running statistics first. With ``pool > 0`` the map is reduced to at most ``pool x pool`` cells
    beforehand, by mean and by maximum: a channel mask needs what is present, not where exactly.

    Args:
        channels (int): C of the site.
        width (int): common width d.
        pool (int): largest side of the pooled map; 0 keeps the site's own resolution.
    """

    def __init__(self, channels: int, width: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        inputs = 2 * channels if pool > 0 else channels
        self.norm = nn.BatchNorm2d(inputs, affine=False)
        self.project = nn.Conv2d(inputs, width, kernel_size=1)

    def forward(self, feature: Tensor) -> Tensor:
        if self.pool > 0:
            height, width = min(self.pool, feature.size(2)), min(self.pool, feature.size(3))
            feature = torch.cat(
                [
                    F.adaptive_avg_pool2d(feature, (height, width)),
                    F.adaptive_max_pool2d(feature, (height, width)),
                ],
                dim=1,
            )
        return F.gelu(self.project(self.norm(feature)))


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

    Each feature map passes its own adapter, then one shared residual stride-2 block again and again
    until it is a single cell (recursion inside a site); the result is joined with the code of the
    previous, shallower site (recursion over depth).

    Args:
        channels (list of int): C of every site, in execution order.
        width (int): d, width of the codes.
        pool (int): see :class:`SiteAdapter`.

    Returns of ``forward(features)``:
        codes (Tensor[N, L, d]) and adapted maps (list of Tensor[N, d, h, w]).

    Source: arXiv:2309.09887 names the part and its purpose; the layers are our choice.

    Example:
        >>> embed = FeatureEmbedders([3, 5], width=8, pool=4)
        >>> codes, maps = embed([torch.randn(2, 3, 9, 9), torch.randn(2, 5)])
        >>> codes.shape
        torch.Size([2, 2, 8])
    """

    def __init__(self, channels: list[int], width: int, pool: int) -> None:
        super().__init__()
        self.adapters = nn.ModuleList([SiteAdapter(c, width, pool) for c in channels])
        self.block = ReductionBlock(width)
        self.carry = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        codes: list[Tensor] = []
        maps: list[Tensor] = []
        for i, adapter in enumerate(self.adapters):
            adapted = adapter(as_map(features[i]))
            maps.append(adapted)
            x = adapted
            while x.size(2) > 1 or x.size(3) > 1:
                x = self.block(x)
            code = x.flatten(1)
            if i > 0:
                code = code + self.carry(torch.cat([code, codes[i - 1]], dim=1))
            codes.append(self.norm(code))
        return torch.stack(codes, dim=1), maps

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
    """Bring the summaries of sites of one shape to the common width, in one call for all of them.

    Features of different sites differ by orders of magnitude, so each channel is standardised with
    running statistics first. Every site has a projection of its own. The standardised values are
    returned too: a code of a few numbers cannot say how active each of hundreds of neurons is.

    Args:
        sites (list of int): positions of the G sites in the list of summaries.
        channels (int): C' of their summaries.
        width (int): common width d.

    Returns of ``forward(summaries)``:
        projected (Tensor[G * N, d, h, w], site by site, channels innermost in memory) and
        standardised (Tensor[G, N, C', h * w]).
    """

    def __init__(self, sites: list[int], channels: int, width: int) -> None:
        super().__init__()
        self.sites = sites
        groups = len(sites)
        self.norm = nn.BatchNorm2d(groups * channels, affine=False)
        bound = channels**-0.5  # as nn.Linear and nn.Conv2d start
        self.weight = nn.Parameter(torch.empty(groups, width, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, 1, width).uniform_(-bound, bound))

    def forward(self, summaries: list[Tensor]) -> tuple[Tensor, Tensor]:
        own: list[Tensor] = []
        for site in self.sites:
            own.append(summaries[site])
            if summaries[site].shape != own[0].shape:
                raise ValueError(
                    f"GenCNP: sites {self.sites[0]} and {site} must have maps of one size, as they "
                    f"had when the generator was made, got {list(own[0].shape)[2:]} and "
                    f"{list(summaries[site].shape)[2:]}"
                )
        joined = torch.cat(own, dim=1).to(self.weight.dtype)  # the target's may be another
        batch, _, height, width = joined.shape
        channels, area = self.weight.size(2), height * width
        by_site = self.norm(joined).view(batch, len(own), channels, area).transpose(0, 1)
        cells = by_site.transpose(2, 3).reshape(len(own), batch * area, channels)
        projected = torch.baddbmm(self.bias, cells, self.weight.transpose(1, 2))
        # Channels innermost: pooling and depthwise convolution of small maps are several times as
        # fast so.
        cells_of_maps = projected.view(len(own) * batch, height, width, self.weight.size(1))
        return cells_of_maps.permute(0, 3, 1, 2), by_site


class ReductionBlock(nn.Module):
    """Residual stride-2 block, ``[N, d, h, w]`` to ``[N, d, ceil(h/2), ceil(w/2)]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.reduce = nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1, groups=width)
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.avg_pool2d(x, 2, stride=2, ceil_mode=True, count_include_pad=False)
        reduced = F.gelu(self.reduce(self.norm(x))).permute(0, 2, 3, 1)
        return shortcut + self.mix(reduced).permute(0, 3, 1, 2)


class FeatureEmbedders(nn.Module):
    """One Recursive Feature Embedder per site, shallow to deep.

    Each summary is brought to the common width, then passes one shared residual stride-2 block
    again and again until it is a single cell (recursion inside a site); the result is joined with
    the code of the previous, shallower site (recursion over depth).

    Args:
        shapes (list of tuple of int): (C, *space) of every site, in execution order.
        width (int): d, width of the codes.
        pool (int): side of the summaries, see :func:`summarize`.

    Returns of ``forward(summaries)``:
        codes (Tensor[N, L, d]); the activity of every site's neurons, the standardised summaries in
        [-3, 3] (list of Tensor[N, 2 C], means over the cells of each channel's means and of its
        maxima, or of Tensor[N, C, h, w] with ``pool == 0``); and, with ``pool == 0``, the adapted
        maps (list of Tensor[N, d, h, w], else empty).

    Source: arXiv:2309.09887 names the part and its purpose; the layers are our choice.

    Example:
        >>> embed = FeatureEmbedders([(3, 9, 9), (5,)], width=8, pool=4)
        >>> features = [torch.randn(2, 3, 9, 9), torch.randn(2, 5)]
        >>> codes, activity, _ = embed([summarize(feature, pool=4) for feature in features])
        >>> codes.shape, [tuple(own.shape) for own in activity]
        (torch.Size([2, 2, 8]), [(2, 6), (2, 10)])
    """

    def __init__(self, shapes: list[tuple[int, ...]], width: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        # A call on small maps costs more than its arithmetic: what is alike is computed together.
        alike: dict[tuple[int, ...], list[int]] = {}
        for site in sorted(range(len(shapes)), key=lambda site: shapes[site][1:], reverse=True):
            alike.setdefault(shapes[site], []).append(site)
        parts = 2 if pool > 0 else 1
        self.adapters = nn.ModuleList(
            [SiteAdapter(sites, parts * shape[0], width) for shape, sites in alike.items()]
        )
        order = [site for sites in alike.values() for site in sites]
        self.counts = [len(sites) for sites in alike.values()]
        self.places = [order.index(site) for site in range(len(shapes))]
        self.rows: Tensor
        self.register_buffer("rows", torch.tensor(self.places), persistent=False)
        self.block = ReductionBlock(width)
        self.carry = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, summaries: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        projected: list[Tensor] = []
        active: list[Tensor] = []
        for adapter in self.adapters:
            adapted, standardised = adapter(summaries)
            projected.append(adapted)
            if self.pool > 0:
                standardised = standardised.mean(3)
            # A neuron that hardly ever is active is tens of deviations from its mean when it is.
            active += standardised.clamp(-3.0, 3.0).unbind(0)
        batch = summaries[0].size(0)
        grouped: list[Tensor] = []
        cells: list[Tensor] = []
        start = 0
        while start < len(projected):  # neighbours of one size share the calls of the block
            stop, sites = start + 1, self.counts[start]
            _, width, height, breadth = projected[start].shape
            while stop < len(projected) and list(projected[stop].shape[2:]) == [height, breadth]:
                sites += self.counts[stop]
                stop += 1
            x = F.gelu(torch.cat(projected[start:stop]))
            if self.pool == 0:
                grouped += x.view(sites, batch, width, height, breadth).unbind(0)
            while x.size(2) > 1 or x.size(3) > 1:
                x = self.block(x)
            cells.append(x.view(sites, batch, width))
            start = stop
        codes = self._carried(torch.cat(cells).index_select(0, self.rows))
        activity: list[Tensor] = []
        maps: list[Tensor] = []
        for site, place in enumerate(self.places):
            own = active[place]
            if self.pool == 0:
                own = own.view(summaries[site].shape)
                maps.append(grouped[place])
            activity.append(own)
        return codes, activity, maps

    def _carried(self, cells: Tensor) -> Tensor:
        """Codes ``[N, L, d]`` of cells ``[L, N, d]``, each joined with the shallower code."""
        width = cells.size(2)
        own, carried = self.carry.weight.split(width, dim=1)
        joined = cells[1:] + F.linear(cells[1:], own, self.carry.bias)
        carried = carried.t()
        codes: list[Tensor] = [self.norm(cells[0])]
        for code in joined.unbind(0):
            codes.append(self.norm(torch.addmm(code, codes[-1], carried)))
        return torch.stack(codes, dim=1)

"""Stimuli of planted nets: glyphs that no template of another glyph answers to, and images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CELLS = 3  # a glyph is 3 x 3 cells
CELL = 2  # pixels per side of a cell; as wide as the pooling, so that pooling loses no position
GLYPH = CELLS * CELL
MARGIN = 2  # pixels around a glyph that its edges need
WINDOW = CELLS + 1  # side of a glyph's edges after pooling
SMALLEST = 18  # least side of an image with room for two glyphs, wherever the first one is
BACKGROUND, CONTRAST = 0.15, 0.8  # grey level of the ground, and how much brighter a glyph is
EDGE_THRESHOLD = 0.16
PART_THRESHOLD = 0.3
WHOLE_THRESHOLD = 0.6
# How far below its threshold every template must stay on the glyphs of others, as a share of the
# way from the threshold to the answer on its own.
_CLEARANCE = 0.15


def edge_kernels() -> Tensor:
    """Kernels ``[4, 1, 3, 3]`` of left, right, upper and lower edges of bright shapes."""
    rise = torch.tensor([-1.0, 0.0, 1.0]).expand(3, 3) / 3
    return torch.stack([rise, -rise, rise.T, -rise.T]).unsqueeze(1)


def edge_maps(images: Tensor) -> Tensor:
    """Pooled edges ``[N, 4, (H - 2) / 2, (W - 2) / 2]`` of images, as the net computes them."""
    return F.max_pool2d(F.relu(F.conv2d(images, edge_kernels()) - EDGE_THRESHOLD), CELL)


def pixels(glyphs: Tensor) -> Tensor:
    """Glyphs of cells ``[G, 3, 3]`` as pixels ``[G, 1, 6, 6]``, 0 or 1."""
    return glyphs.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2).unsqueeze(1)


def templates(glyphs: Tensor, parts: int) -> Tensor:
    """Matched filters on edge maps, each glyph's in so many horizontal parts.

    Edges where the glyph has them count for it, edges elsewhere in its window against it.

    Args:
        glyphs (Tensor[G, 3, 3]): cells, 0 or 1.
        parts (int): 1 to 4.

    Returns:
        Tensor[G, parts, 4, 4, 4]: every part answers 1 to its glyph at full contrast.
    """
    maps = edge_maps(F.pad(CONTRAST * pixels(glyphs), [MARGIN] * 4))
    weights = torch.where(maps > 0, maps, -maps.mean((1, 2, 3), keepdim=True))
    filters = []
    for rows in torch.arange(WINDOW).tensor_split(parts):
        part = torch.zeros_like(weights)
        part[:, :, rows] = weights[:, :, rows]
        filters.append(part / (part * maps).sum((1, 2, 3), keepdim=True))
    return torch.stack(filters, 1)


def all_glyphs() -> Tensor:
    """Every glyph of 4 to 6 cells that touches all sides of its box, ``[252, 3, 3]``."""
    cells = (torch.arange(2 ** (CELLS * CELLS)).unsqueeze(1) >> torch.arange(CELLS * CELLS)) & 1
    grids = cells.view(-1, CELLS, CELLS).float()
    count = grids.sum((1, 2))
    sides = (grids[:, 0], grids[:, -1], grids[:, :, 0], grids[:, :, -1])
    touching = torch.stack([side.sum(1) > 0 for side in sides]).all(0)
    return grids[touching & (count >= 4) & (count <= 6)]


def answers(images: Tensor, glyphs: Tensor, parts: int) -> Tensor:
    """How far every glyph's template is above its threshold, anywhere in an image.

    Args:
        images (Tensor[N, 1, H, W]): of even sides.
        glyphs (Tensor[G, 3, 3]): cells.
        parts (int): of a template, 1 to 4.

    Returns:
        Tensor[N, G]: about 1 for a glyph that is shown, at most 0 where the net sees none.
    """
    filters = templates(glyphs, parts).flatten(0, 1)
    found = F.conv2d(edge_maps(images), filters).unflatten(1, (len(glyphs), parts))
    part = F.relu((found - PART_THRESHOLD) / (1 - PART_THRESHOLD)).mean(2)
    return ((part - WHOLE_THRESHOLD) / (1 - WHOLE_THRESHOLD)).amax((2, 3))


def choose_glyphs(count: int, parts: int, seed: int) -> Tensor:
    """Glyphs ``[count, 3, 3]`` of which no template answers to another's glyph, at any offset.

    Raises:
        ValueError: so many are not found.
    """
    glyphs = all_glyphs()
    alone = F.pad(CONTRAST * pixels(glyphs), [GLYPH + MARGIN] * 4)
    seen = answers(alone, glyphs, parts)
    silent = (seen < -_CLEARANCE) & (seen.T < -_CLEARANCE)
    order = torch.randperm(len(glyphs), generator=torch.Generator().manual_seed(seed))
    chosen: list[int] = []
    for candidate in order.tolist():
        if bool(silent[candidate, chosen].all()):
            chosen.append(candidate)
        if len(chosen) == count:
            return glyphs[chosen]
    raise ValueError(
        f"planted: {count} glyphs are needed, two per class, and with seed {seed} only "
        f"{len(chosen)} can be told apart; use fewer classes or another seed"
    )


def draw_images(
    glyphs: Tensor,
    labels: Tensor,
    companions: Tensor,
    *,
    size: int,
    noise: float,
    jitter: float,
    generator: torch.Generator,
) -> Tensor:
    """Images of two glyphs each, at random places that do not meet, under noise.

    Args:
        glyphs (Tensor[G, 3, 3]): cells.
        labels (Tensor[N], int64): glyph of each image's class.
        companions (Tensor[N], int64): the other glyph.
        size (int): side in pixels, even, at least 18.
        noise (float): standard deviation of the noise of pixels, grey levels in [0, 1].
        jitter (float): contrast of a glyph is lowered by up to this share.
        generator (torch.Generator): of everything random.

    Returns:
        Tensor[N, 1, size, size]: float32 in [0, 1].
    """
    count, side = len(labels), (size - 2 * MARGIN - GLYPH) // CELL + 1
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    anchors = torch.stack([rows.flatten(), columns.flatten()], 1)
    # Windows of edges must not overlap, or a glyph would spoil the other's.
    apart = (anchors.unsqueeze(0) - anchors.unsqueeze(1)).abs().amax(2) >= WINDOW
    pairs = apart.nonzero()
    places = pairs[torch.randint(len(pairs), (count,), generator=generator)]
    planes = torch.zeros(count, len(glyphs), side * side)
    for glyph, place in ((labels, places[:, 0]), (companions, places[:, 1])):
        strength = 1 - jitter * torch.rand(count, generator=generator)
        planes[torch.arange(count), glyph, place] = strength * CONTRAST
    drawn = F.conv_transpose2d(planes.unflatten(2, (side, side)), pixels(glyphs), stride=CELL)
    images = BACKGROUND + F.pad(drawn, [MARGIN] * 4)
    return (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)

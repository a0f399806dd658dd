"""Inputs without content: those that training draws on too, and those that it never saw."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

UNSEEN = 24

# Away from the ends and the middle of the range, where black, the mean colour and white are.
_LEVELS = (0.125, 0.375, 0.625, 0.875)
# Sides of the squares of a checkerboard, as parts of the longest side.
_SQUARES = (2, 4, 8)
# Cells per side of the coarse grid that noise is drawn on: blobs, not texture.
_NOISE_GRID = 4
_INTERPOLATION = ("linear", "bilinear", "trilinear")


def default_blanks(images: Tensor) -> Tensor:
    """Constant inputs of the data's range: every channel at its minimum, its mean, its maximum.

    For inputs that are only standardised per channel these are black, the mean colour and white.

    Args:
        images (Tensor[N, C, ...]): model inputs, N >= 1.

    Returns:
        Tensor[3, C, ...]: same dtype and device.

    Raises:
        ValueError: no inputs.
    """
    if len(images) == 0:
        raise ValueError("default_blanks: at least one input is needed, got none")
    space = _space(images)
    mean = images.mean(dim=space, keepdim=True)
    levels = [images.amin(dim=space, keepdim=True), mean, images.amax(dim=space, keepdim=True)]
    shape = (1, *images.shape[1:])
    return torch.cat([level.expand(shape) for level in levels]).contiguous()


def unseen_blanks(images: Tensor, *, count: int = UNSEEN, seed: int = 0) -> Tensor:
    """Inputs without content of kinds that training never draws: colours between, ramps, boards,
    clouds.

    Training mixes black, the mean colour, white, pixel noise and shuffled pixels into its leak
    term, so that a generator may have learned to behave on just those. These are, in this order:
    four single colours at 1/8, 3/8, 5/8 and 7/8 of the range of every channel; linear ramps along
    each spatial dimension and along the diagonal, in both directions; checkerboards with squares of
    a half, a quarter and an eighth of the longest side, in both phases; and, for the rest, smooth
    noise, every channel of its own, interpolated from a grid of four cells a side. Inputs without
    spatial dimensions get ``count`` levels instead, all features at the same part of their range.

    Args:
        images (Tensor[N, C, *space]): model inputs, N >= 1, floating; their range per channel is
            not left. At most three spatial dimensions.
        count (int): inputs to make, at least 24.
        seed (int): of the noise.

    Returns:
        Tensor[count, C, *space]: same dtype and device. Deterministic for a seed.

    Raises:
        ValueError: no inputs, too few wanted, not floating, or more than three spatial dimensions.

    Source: our choice.

    Example:
        >>> blanks = unseen_blanks(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8))
        >>> blanks.shape, blanks[0].unique().item()
        (torch.Size([24, 3, 8, 8]), 0.125)
    """
    if len(images) == 0:
        raise ValueError("unseen_blanks: at least one input is needed, got none")
    if count < UNSEEN:
        raise ValueError(f"unseen_blanks: count must be at least {UNSEEN}, got {count}")
    space = tuple(images.shape[2:])
    if images.dim() < 2 or len(space) > len(_INTERPOLATION) or not images.is_floating_point():
        raise ValueError(
            "unseen_blanks: images must be floating [N, C] with at most "
            f"{len(_INTERPOLATION)} spatial dimensions, got {images.dtype} {tuple(images.shape)}"
        )
    if space:
        patterns = _patterns(space).unsqueeze(1).expand(-1, images.shape[1], *space)
        noise = _noise(count - len(patterns), images.shape[1], space, seed)
        fields = torch.cat([patterns, noise])
    else:
        fields = ((torch.arange(count) + 0.5) / count).unsqueeze(1)
    low = images.amin(dim=_space(images), keepdim=True)
    high = images.amax(dim=_space(images), keepdim=True)
    return torch.lerp(low, high, fields.to(images.device, images.dtype))


def _patterns(space: tuple[int, ...]) -> Tensor:
    """Single colours, ramps and checkerboards in [0, 1], ``[P, *space]``."""
    fields = [torch.full(space, level) for level in _LEVELS]
    axes = torch.meshgrid([torch.linspace(0, 1, size) for size in space], indexing="ij")
    ramps = list(axes) if len(space) == 1 else [*axes, torch.stack(axes).mean(0)]
    fields += itertools.chain.from_iterable((ramp, 1 - ramp) for ramp in ramps)
    cells = torch.meshgrid([torch.arange(size) for size in space], indexing="ij")
    for parts in _SQUARES:
        side = max(1, max(space) // parts)
        board = torch.stack([cell // side for cell in cells]).sum(0) % 2
        fields += [board.float(), 1 - board.float()]
    return torch.stack(fields)


def _noise(count: int, channels: int, space: tuple[int, ...], seed: int) -> Tensor:
    """Smooth noise in [0, 1], ``[count, channels, *space]``."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.rand(count, channels, *[_NOISE_GRID] * len(space), generator=generator)
    mode = _INTERPOLATION[len(space) - 1]
    return F.interpolate(grid, size=space, mode=mode, align_corners=True).clamp(0.0, 1.0)


def _space(images: Tensor) -> list[int]:
    """All dimensions but the channels."""
    return [dim for dim in range(images.dim()) if dim != 1]

"""Pixels in the order of their importance, and runs of inputs in which some were replaced."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pathways.target import GatedTarget


def check_maps(where: str, images: Tensor, maps: Tensor) -> None:
    """One finite map for every image.

    Raises:
        ValueError: images that are not ``[N, C, H, W]``, or maps that are not ``[N, H, W]`` of
            finite floating-point numbers.
    """
    if images.dim() != 4:
        raise ValueError(f"{where}: images must be [N, C, H, W], got {tuple(images.shape)}")
    wanted = (images.shape[0], *images.shape[2:])
    if tuple(maps.shape) != wanted:
        shape = ", ".join(map(str, wanted))
        raise ValueError(f"{where}: maps must be [{shape}], got {tuple(maps.shape)}")
    if not maps.is_floating_point() or not bool(maps.isfinite().all()):
        got = maps.dtype if not maps.is_floating_point() else "NaN or infinity"
        raise ValueError(f"{where}: maps must hold finite floating-point numbers, got {got}")


def pixel_ranks(maps: Tensor) -> Tensor:
    """Place of every pixel among those of its map: 0 is the most important.

    Args:
        maps (Tensor[N, H, W]): higher is more important. Equal pixels keep their order, row by row
            from the upper left, so that a constant map is the order of reading.

    Returns:
        Tensor[N, H, W]: int64, every number from 0 to H * W - 1 once per map.

    Example:
        >>> pixel_ranks(torch.tensor([[[0.1, 0.9], [0.5, 0.1]]])).tolist()
        [[[2, 0], [1, 3]]]
    """
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(maps.shape)


def gaussian_blur(images: Tensor, size: int = 11, sigma: float = 5.0) -> Tensor:
    """Images seen through a square Gaussian window; border pixels are repeated outwards.

    Args:
        images (Tensor[N, C, H, W]): floating point.
        size (int): pixels of a side of the window, odd.
        sigma (float): standard deviation in pixels.

    Returns:
        Tensor[N, C, H, W]: same dtype and device; constant images stay as they are.

    Raises:
        ValueError: a size that is not odd, or a sigma that is not positive.

    Source: insertion's start in Petsiuk et al., BMVC 2018 (arXiv:1806.07421); that the border is
    repeated is our choice, so that it does not fade to black.

    Example:
        >>> gaussian_blur(torch.eye(3).view(1, 1, 3, 3), size=3, sigma=100.0)[0, 0, 1, 1].item()
        0.3333...
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"gaussian_blur: size must be odd and at least 1, got {size}")
    if not sigma > 0:
        raise ValueError(f"gaussian_blur: sigma must be positive, got {sigma}")
    half = size // 2
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    window = (-0.5 * (offsets / sigma).square()).exp()
    window = (window / window.sum()).to(images.device, images.dtype)
    count, channels, height, width = images.shape
    planes = images.reshape(count * channels, 1, height, width)
    planes = F.pad(planes, (half, half, half, half), mode="replicate")
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return planes.view(count, channels, height, width)


@torch.no_grad()
def clean_logits(target: GatedTarget, images: Tensor, batch_size: int) -> Tensor:
    """Clean logits ``[N, K]`` on the CPU of inputs on any device."""
    parts = [target(batch.to(target.device)).cpu() for batch in images.split(batch_size)]
    return torch.cat(parts) if len(images) else torch.zeros(0, target.num_classes)


def checked_logits(
    where: str, target: GatedTarget, images: Tensor, logits: Tensor | None, batch_size: int
) -> Tensor:
    """Clean logits as given, on the CPU, or by a run.

    Raises:
        ValueError: another shape, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"{where}: batch_size must be at least 1, got {batch_size}")
    if logits is None:
        return clean_logits(target, images, batch_size)
    wanted = (len(images), target.num_classes)
    if tuple(logits.shape) != wanted:
        raise ValueError(f"{where}: logits must be {list(wanted)}, got {tuple(logits.shape)}")
    return logits.detach().cpu()


def class_probability(logits: Tensor, classes: Tensor) -> Tensor:
    """Softmax probability of one class per row, float64 ``[N]``."""
    return logits.double().softmax(1).gather(1, classes.unsqueeze(1)).squeeze(1)

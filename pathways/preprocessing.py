"""Preprocessing: from images in [0, 1] to a target's input, scripted or not."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Preprocessing(nn.Module):
    """Resize, reorder channels, scale and standardise images.

    Args:
        mean (sequence of float): per channel, in the units after ``scale``.
        std (sequence of float): per channel, positive.
        size (sequence of two int or None): height and width to resize to (bilinear, antialiased);
            None keeps the size.
        scale (float): factor on images in [0, 1] before standardising; 255 for targets that take
            bytes.
        channel_order (str): ``"rgb"`` (or grey) as given, ``"bgr"`` reversed.

    Raises:
        ValueError: lengths differ, a non-positive std, unknown order, images with other channels.

    Example:
        >>> p = Preprocessing(mean=[0.5], std=[0.25], size=(4, 4))
        >>> p(torch.ones(1, 1, 8, 8)).unique().tolist()
        [2.0]
    """

    mean: Tensor
    std: Tensor
    size: list[int]  # TorchScript cannot infer the type of an empty list

    def __init__(
        self,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        size: Sequence[int] | None = None,
        scale: float = 1.0,
        channel_order: str = "rgb",
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) == 0:
            raise ValueError(
                f"Preprocessing: mean and std must have one value per channel, "
                f"got {len(mean)} and {len(std)}"
            )
        if not (min(std) > 0 and scale > 0) or not all(map(math.isfinite, [*mean, *std, scale])):
            raise ValueError(
                f"Preprocessing: std and scale must be positive and all numbers finite, "
                f"got mean={list(mean)}, std={list(std)}, scale={scale}"
            )
        if channel_order not in ("rgb", "bgr"):
            raise ValueError(
                f"Preprocessing: channel_order must be rgb or bgr, got {channel_order!r}"
            )
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"Preprocessing: size must be (height, width), got {tuple(size)}")
        self.size = [int(side) for side in size] if size is not None else []
        self.scale = float(scale)
        self.reverse = channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return int(self.mean.numel())

    def forward(self, images: Tensor) -> Tensor:
        """Model input ``[N, C, H, W]`` of images ``[N, C, h, w]``, float in [0, 1]."""
        if images.dim() != 4 or images.size(1) != self.mean.numel():
            raise ValueError(
                f"Preprocessing: images must be [N, {self.mean.numel()}, H, W], got {images.shape}"
            )
        if not images.is_floating_point():
            raise ValueError("Preprocessing: images must be floating point in [0, 1]")
        if len(self.size) == 2 and (
            images.size(2) != self.size[0] or images.size(3) != self.size[1]
        ):
            images = F.interpolate(
                images, size=self.size, mode="bilinear", align_corners=False, antialias=True
            )
        if self.reverse:
            images = images.flip(1)
        return (images * self.scale - self.mean) / self.std

    def to_json(self) -> dict[str, Any]:
        """A JSON-able description; ``Preprocessing(**description)`` builds it again."""
        return {
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "size": self.size or None,
            "scale": self.scale,
            "channel_order": "bgr" if self.reverse else "rgb",
        }

    def blanks(self, height: int, width: int) -> Tensor:
        """Model inputs without content, ``[3, C, H, W]``: black, the mean colour, white."""
        mean = (self.mean / self.scale).clamp(0.0, 1.0)
        if self.reverse:  # the mean is that of reordered channels, the levels come before
            mean = mean.flip(1)
        levels = torch.cat([torch.zeros_like(mean), mean, torch.ones_like(mean)])
        blanks: Tensor = self(levels.expand(-1, -1, height, width).contiguous())
        return blanks

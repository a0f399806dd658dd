"""Insertion and deletion: does the class come and go with the pixels that a map points at?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pathways.evaluation.pixels import (
    check_maps,
    checked_logits,
    class_probability,
    gaussian_blur,
    pixel_ranks,
)
from pathways.target import GatedTarget


@dataclass(frozen=True)
class PixelCurve:
    """Result of :func:`insertion` or :func:`deletion`.

    Args:
        probabilities (Tensor[N, S + 1]): softmax probability of the clean top class after 0 to S
            steps, float64 in [0, 1].
        shares (Tensor[S + 1]): share of pixels replaced by then, float64 from 0 to 1.
    """

    probabilities: Tensor
    shares: Tensor

    @property
    def auc(self) -> Tensor:
        """Area under every input's curve, (sum - first / 2 - last / 2) / S, float64 ``[N]``."""
        ends = (self.probabilities[:, 0] + self.probabilities[:, -1]) / 2
        return (self.probabilities.sum(1) - ends) / (self.probabilities.shape[1] - 1)

    @property
    def mean(self) -> Tensor:
        """Mean curve over the inputs, float64 ``[S + 1]``; NaN without inputs."""
        return self.probabilities.mean(0)


def deletion(
    target: GatedTarget,
    images: Tensor,
    maps: Tensor,
    logits: Tensor | None = None,
    *,
    steps: int = 32,
    substrate: float | Tensor = 0.0,
    batch_size: int = 64,
) -> PixelCurve:
    """Probability of the clean top class while its most important pixels are taken away.

    Lower area is better, in [0, 1]: a map that finds what the class rests on loses it early. Costs
    ``steps`` runs per input, one more without ``logits``. Sensitive to the substrate, which is an
    input the target never saw; read it beside insertion, and beside the same of a random map.

    Args:
        target (GatedTarget): the target; it is run without gates.
        images (Tensor[N, C, H, W]): model inputs, on any device.
        maps (Tensor[N, H, W]): saliency, finite; higher is more important, so take magnitudes of
            gradients. Equal pixels go in the order of reading: a constant map is a valid one.
        logits (Tensor[N, K] or None): clean logits, if they are there already.
        steps (int): equal batches of pixels, at least 1; at most one per pixel.
        substrate (float or Tensor): what replaces a pixel, in model inputs; a number or what
            broadcasts to ``[C, H, W]``. 0 is the data's mean where inputs are standardised, as by
            this package's preprocessing, and black where they are not.
        batch_size (int): inputs per run; memory does not grow with ``steps``.

    Raises:
        ValueError: images, maps, logits, steps, substrate or a batch size that do not fit.

    Source: Petsiuk et al. (RISE), BMVC 2018 (arXiv:1806.07421); equal steps are our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2), torch.nn.ReLU())
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1., 0., 0., 0.], [0., 0., 0., 0.]]))
        >>> _ = net[1].bias.data.zero_()
        >>> target = GatedTarget(net, torch.zeros(1, 1, 2, 2))
        >>> found = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # the pixel that matters
        >>> images = torch.full((1, 1, 2, 2), 30.0)
        >>> curve = deletion(target, images, found, steps=4)
        >>> curve.probabilities.tolist(), curve.auc.tolist()
        ([[0.999..., 0.5, 0.5, 0.5, 0.5]], [0.562...])
    """
    _check("deletion", images, maps, steps)
    end = torch.as_tensor(substrate, dtype=images.dtype, device=images.device)
    try:
        end = end.expand(images.shape[1:]).expand_as(images)
    except RuntimeError as error:
        shape = tuple(images.shape[1:])
        raise ValueError(
            f"deletion: substrate must broadcast to {shape}, got {tuple(end.shape)}"
        ) from error
    logits = checked_logits("deletion", target, images, logits, batch_size)
    return _curve(target, images, end, maps, logits, steps, batch_size, clean_first=True)


def insertion(
    target: GatedTarget,
    images: Tensor,
    maps: Tensor,
    logits: Tensor | None = None,
    *,
    steps: int = 32,
    blur_size: int = 11,
    blur_sigma: float = 5.0,
    batch_size: int = 64,
) -> PixelCurve:
    """Probability of the clean top class while its most important pixels are put into a blur.

    Higher area is better, in [0, 1]: a map that finds what the class rests on brings it early.
    Costs ``steps`` runs per input, one more without ``logits``. Sensitive to the window: in images
    smaller than it, only a blot is left, in larger ones objects remain.

    Args:
        target (GatedTarget): the target; it is run without gates.
        images (Tensor[N, C, H, W]): model inputs, on any device.
        maps (Tensor[N, H, W]): as for :func:`deletion`.
        logits (Tensor[N, K] or None): clean logits, if they are there already.
        steps (int): equal batches of pixels, at least 1; at most one per pixel.
        blur_size (int): side of the Gaussian window in pixels, odd.
        blur_sigma (float): its standard deviation in pixels.
        batch_size (int): inputs per run; memory does not grow with ``steps``.

    Raises:
        ValueError: images, maps, logits, steps, window or a batch size that do not fit.

    Source: Petsiuk et al. (RISE), BMVC 2018 (arXiv:1806.07421); equal steps are our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(),
        ...                           torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> target = GatedTarget(net, torch.zeros(1, 1, 8, 8))
        >>> curve = insertion(target, torch.randn(3, 1, 8, 8), torch.rand(3, 8, 8), steps=5)
        >>> curve.probabilities.shape, curve.auc.shape, curve.mean.shape
        (torch.Size([3, 6]), torch.Size([3]), torch.Size([6]))
    """
    _check("insertion", images, maps, steps)
    start = gaussian_blur(images, blur_size, blur_sigma)
    logits = checked_logits("insertion", target, images, logits, batch_size)
    return _curve(target, start, images, maps, logits, steps, batch_size, clean_first=False)


def _check(where: str, images: Tensor, maps: Tensor, steps: int) -> None:
    check_maps(where, images, maps)
    if steps < 1:
        raise ValueError(f"{where}: steps must be at least 1, got {steps}")


@torch.no_grad()
def _curve(
    target: GatedTarget,
    start: Tensor,
    end: Tensor,
    maps: Tensor,
    logits: Tensor,
    steps: int,
    batch_size: int,
    clean_first: bool,
) -> PixelCurve:
    """From ``start`` to ``end`` pixel by pixel; one of the two is clean, with known logits."""
    count, pixels = len(start), start.shape[2] * start.shape[3]
    steps = min(steps, pixels)
    changed = torch.arange(steps + 1) * pixels // steps
    ranks = pixel_ranks(maps).to(start.device).unsqueeze(1)
    classes = logits.argmax(1)
    # Inputs and steps together fill the batches; the clean end costs no run.
    first = 1 if clean_first else 0
    found = []
    for pairs in torch.arange(count * steps).split(batch_size):
        rows, numbers = pairs // steps, pairs % steps + first
        at = rows.to(start.device)
        limit = changed[numbers].view(-1, 1, 1, 1).to(start.device)
        mixed = torch.where(ranks[at] < limit, end[at], start[at])
        found.append(class_probability(target(mixed.to(target.device)).cpu(), classes[rows]))
    inner = torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
    clean = class_probability(logits, classes).unsqueeze(1)
    parts = [clean, inner.view(count, steps)] if clean_first else [inner.view(count, steps), clean]
    return PixelCurve(torch.cat(parts, dim=1), changed.double() / pixels)

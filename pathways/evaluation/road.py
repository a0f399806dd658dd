"""ROAD: pixels removed by filling them in from their neighbours, most or least important first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathways.evaluation.pixels import check_maps, checked_logits, class_probability, pixel_ranks
from pathways.target import GatedTarget

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
# Looking whether all systems are solved stops an accelerator, so that it is done now and then.
_STEPS_BETWEEN_LOOKS = 8


@dataclass(frozen=True)
class Road:
    """Result of :func:`road`.

    Args:
        percentiles (tuple of float): shares of pixels removed, in percent.
        morf_confidence (Tensor[N, R]): softmax probability of the clean top class with the most
            important pixels removed, float64, by input and percentile.
        lerf_confidence (Tensor[N, R]): the same with the least important ones removed.
        morf_stays (Tensor[N, R]): bool, whether the prediction is still the clean one.
        lerf_stays (Tensor[N, R]): the same with the least important ones removed.
    """

    percentiles: tuple[float, ...]
    morf_confidence: Tensor
    lerf_confidence: Tensor
    morf_stays: Tensor
    lerf_stays: Tensor

    @property
    def confidence(self) -> Tensor:
        """(LeRF - MoRF) / 2 of the probability, mean over percentiles, float64 ``[N]``."""
        return (self.lerf_confidence - self.morf_confidence).mean(1) / 2

    @property
    def accuracy(self) -> Tensor:
        """(LeRF - MoRF) / 2 of whether the prediction stays, likewise, float64 ``[N]``."""
        return (self.lerf_stays.double() - self.morf_stays.double()).mean(1) / 2


@torch.no_grad()
def road(
    target: GatedTarget,
    images: Tensor,
    maps: Tensor,
    logits: Tensor | None = None,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    noise: float = 0.01,
    seed: int = 0,
    batch_size: int = 64,
) -> Road:
    """Remove the most and the least important pixels by imputation and see what is left.

    ``confidence`` and ``accuracy``: higher is better, in [-0.5, 0.5], about 0 for a random map,
    negative for an inverted one. Imputed pixels carry less of the mask's shape than a constant
    colour does. Costs two runs per input and percentile, one more without ``logits``, and the
    imputation (:func:`impute`), which on large images takes as long as the runs of a small network.
    Sensitive to how well neighbours foretell a pixel: smooth images lose little.

    Args:
        target (GatedTarget): the target; it is run without gates.
        images (Tensor[N, C, H, W]): model inputs, on any device.
        maps (Tensor[N, H, W]): saliency, finite; higher is more important. Among equal pixels,
            those above and left count as more important.
        logits (Tensor[N, K] or None): clean logits, if they are there already.
        percentiles (sequence of float): in (0, 100); p removes the integer part of p / 100 of the
            pixels.
        noise (float): of :func:`impute`.
        seed (int): of the noise.
        batch_size (int): inputs per run.

    Raises:
        ValueError: images, maps, logits, percentiles, noise or a batch size that do not fit.

    Source: Rong et al., ICML 2022 (arXiv:2202.00449), whose score is the accuracy; that it is
    against the clean prediction instead of a label, and the confidence, are our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(),
        ...                           torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> target = GatedTarget(net, torch.zeros(1, 1, 8, 8))
        >>> result = road(target, torch.randn(3, 1, 8, 8), torch.rand(3, 8, 8))
        >>> result.confidence.shape, result.morf_stays.shape
        (torch.Size([3]), torch.Size([3, 9]))
    """
    check_maps("road", images, maps)
    if not percentiles or not all(0 < p < 100 for p in percentiles):
        raise ValueError(f"road: percentiles must be in (0, 100), got {list(percentiles)}")
    logits = checked_logits("road", target, images, logits, batch_size)
    classes = logits.argmax(1)
    pixels = images.shape[2] * images.shape[3]
    removed = torch.tensor([int(pixels * p / 100) for p in percentiles])
    ranks = pixel_ranks(maps).to(images.device)
    # Inputs, the two orders and percentiles together fill the batches.
    each = len(percentiles)
    confidence, stays = [], []
    for numbers in torch.arange(len(images) * 2 * each).split(batch_size):
        rows, least = numbers // (2 * each), numbers // each % 2 == 1
        at = rows.to(images.device)
        places = ranks[at]
        least = least.view(-1, 1, 1).to(images.device)
        places = torch.where(least, pixels - 1 - places, places)
        missing = places < removed[numbers % each].view(-1, 1, 1).to(images.device)
        filled = impute(images[at], missing, noise=noise, seed=seed)
        found = target(filled.to(target.device)).cpu()
        confidence.append(class_probability(found, classes[rows]))
        stays.append(found.argmax(1) == classes[rows])
    shape = (len(images), 2, each)
    p = torch.cat(confidence).view(shape) if confidence else torch.zeros(shape).double()
    same = torch.cat(stays).view(shape) if stays else torch.zeros(shape).bool()
    return Road(tuple(percentiles), p[:, 0], p[:, 1], same[:, 0], same[:, 1])


@torch.no_grad()
def impute(
    images: Tensor,
    missing: Tensor,
    *,
    noise: float = 0.01,
    seed: int = 0,
    tolerance: float = 1e-5,
) -> Tensor:
    """Fill in missing pixels by the weighted mean of their eight neighbours, and noise.

    Every missing pixel is the mean of its neighbours, those beside it with weight 1/6, diagonal
    ones with 1/12; at the border the neighbours that there are share the weight. Missing
    neighbours are means likewise: one linear system for each image, symmetric and positive
    definite, solved by conjugate gradients for all images and channels at once. In float32 the
    default tolerance leaves an error of about 1e-5 (28 x 28) to 5e-4 (224 x 224) of the image's
    standard deviation, far below the noise. It takes 10 to 60 rounds for 28 x 28 pixels and up to
    400 for 224 x 224 where one region of most of the image is missing; a round is a few sums over
    the image, where a factorisation would need memory of its pixels squared.

    Args:
        images (Tensor[N, C, H, W]): floating point; float32 is used for shorter types.
        missing (Tensor[N, H, W]): bool; at least one pixel of every image is known.
        noise (float): standard deviation of the Gaussian noise that is added to imputed pixels, in
            units of the images, at least 0. It is the same field for all images, a function of
            ``seed`` and the size, so that an image does not depend on those beside it.
        seed (int): of the noise.
        tolerance (float): of the residual, relative to that of the known pixels' mean colour;
            positive.

    Returns:
        Tensor[N, C, H, W]: same dtype and device; known pixels as they were.

    Raises:
        ValueError: arguments that do not fit, or an image without a known pixel.

    Source: noisy linear imputation of Rong et al., ICML 2022 (arXiv:2202.00449); solver and shared
    noise are our choice.

    Example:
        >>> missing = torch.zeros(1, 3, 3, dtype=torch.bool)
        >>> missing[0, 1, 1] = True
        >>> ramp = torch.arange(9.0).view(1, 1, 3, 3)
        >>> impute(ramp, missing, noise=0.0)[0, 0, 1, 1].item()
        4.0
    """
    _check(images, missing, noise, tolerance)
    dtype = torch.promote_types(images.dtype, torch.float32)
    hole = missing.unsqueeze(1)
    values = images.to(dtype).masked_fill(hole, 0.0)
    level = values.sum((2, 3), keepdim=True) / (~hole).sum((2, 3), keepdim=True)
    # Against the mean colour, so that the tolerance does not depend on where zero is.
    filled = level + _solve((values - level).masked_fill_(hole, 0.0), hole, tolerance)
    if noise > 0:
        generator = torch.Generator().manual_seed(seed)
        field = torch.randn(images.shape[1:], generator=generator) * noise
        filled = filled + field.to(filled.device, dtype)
    return torch.where(hole, filled.to(images.dtype), images)


def _solve(known: Tensor, hole: Tensor, tolerance: float) -> Tensor:
    """Conjugate gradients for the missing pixels; known ones are in ``known``, zero elsewhere."""
    height, width = known.shape[2:]
    weight = _neighbours(torch.ones(1, 1, height, width, dtype=known.dtype, device=known.device))
    residual = _neighbours(known).masked_fill_(~hole, 0.0)
    direction = residual.clone()
    solution = torch.zeros_like(known)
    size = residual.square().sum((2, 3), keepdim=True)
    limit = size * tolerance**2
    # Twice a side is the most that was seen; the bound is for rounding that stands still.
    for step in range(10 * (height + width) + 100):
        active = size > limit
        if step % _STEPS_BETWEEN_LOOKS == 0 and not bool(active.any()):
            break
        image = (weight * direction - _neighbours(direction)).masked_fill_(~hole, 0.0)
        # What is solved stands still: its result does not depend on the images beside it.
        length = size / (direction * image).sum((2, 3), keepdim=True)
        length = torch.where(active, length, 0.0)
        solution.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        before, size = size, residual.square().sum((2, 3), keepdim=True)
        direction.mul_(torch.where(active, size / before, 0.0)).add_(residual)
    return solution


def _neighbours(x: Tensor) -> Tensor:
    """Weighted sum of the eight neighbours: (1, 2, 1) down and across, without the middle."""
    down = 2 * x
    down[:, :, 1:] += x[:, :, :-1]
    down[:, :, :-1] += x[:, :, 1:]
    both = 2 * down
    both[..., 1:] += down[..., :-1]
    both[..., :-1] += down[..., 1:]
    return both.sub_(x, alpha=4).div_(12)


def _check(images: Tensor, missing: Tensor, noise: float, tolerance: float) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            "impute: images must be floating point [N, C, H, W], "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    wanted = (images.shape[0], *images.shape[2:])
    if missing.dtype != torch.bool or tuple(missing.shape) != wanted:
        raise ValueError(
            f"impute: missing must be bool {list(wanted)}, "
            f"got {missing.dtype} {tuple(missing.shape)}"
        )
    if not noise >= 0 or not tolerance > 0:
        raise ValueError(
            "impute: noise must be at least 0 and tolerance positive, "
            f"got noise={noise} and tolerance={tolerance}"
        )
    full = missing.flatten(1).all(1)
    if bool(full.any()):
        raise ValueError(
            f"impute: every image must have a known pixel, image {int(full.nonzero()[0])} has none"
        )

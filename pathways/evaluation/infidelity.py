"""Infidelity and sensitivity: is an attribution the local slope, and does it hold still?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pathways.pathway import Pathway
from pathways.target import GatedTarget


@torch.no_grad()
def infidelity(
    target: GatedTarget,
    images: Tensor,
    attributions: Tensor,
    classes: Tensor,
    pathway: Pathway | None = None,
    *,
    samples: int = 10,
    sigma: float = 0.1,
    rescale: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """Mean squared difference between the change of a logit and what an attribution says of it.

    For Gaussian steps d from x, the mean of (d . a - (f(x) - f(x - d)))^2. Lower is better, at
    least 0, in squared logits; exactly 0 for the gradient of a linear f. With ``pathway`` f is the
    gated run, so that the infidelity of a pathway gradient tells how far from linear the pathway
    is. Costs ``samples`` + 1 runs per input. Sensitive to ``sigma`` and to the scale of the logits.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): model inputs, on any device.
        attributions (Tensor[N, ...]): signed, shaped like ``images``, for example
            :func:`pathways.maps.pathway_gradient`.
        classes (Tensor[N], int64): whose logit f is.
        pathway (Pathway or None): N rows or one; None is the target without gates.
        samples (int): steps per input, at least 1.
        sigma (float): their standard deviation in units of the inputs, positive.
        rescale (bool): multiply the attributions of each input by the factor that fits best.
        batch_size (int): inputs per run.
        seed (int): of the steps.

    Returns:
        Tensor[N]: float64.

    Raises:
        ValueError: attributions, classes or numbers that do not fit.

    Source: Yeh et al., NeurIPS 2019 (arXiv:1901.09392); Gaussian steps of the gated run are our
    choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> _ = net[0].bias.data.fill_(9.0)  # linear around the inputs
        >>> target, images = GatedTarget(net, torch.zeros(1, 3)), torch.rand(4, 3)
        >>> slope = net[0].weight[:1].detach().expand(4, 3)
        >>> bool((infidelity(target, images, slope, torch.zeros(4).long()) < 1e-9).all())
        True
    """
    if attributions.shape != images.shape:
        raise ValueError(
            f"infidelity: attributions must be {tuple(images.shape)} like images, "
            f"got {tuple(attributions.shape)}"
        )
    if classes.dtype != torch.int64 or classes.shape != (len(images),):
        raise ValueError(
            f"infidelity: classes must be int64 [{len(images)}], "
            f"got {classes.dtype} {tuple(classes.shape)}"
        )
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < target.num_classes:
        raise ValueError(
            f"infidelity: classes must be in [0, {target.num_classes}), "
            f"got {int(classes.min())}..{int(classes.max())}"
        )
    if pathway is not None and len(pathway) not in (1, len(images)):
        raise ValueError(
            f"infidelity: pathway must have {len(images)} rows or one, got {len(pathway)}"
        )
    _check("infidelity", samples, batch_size, "sigma", sigma)

    def logit(inputs: Tensor) -> Tensor:
        parts = []
        for start in range(0, len(inputs), batch_size):
            rows = slice(start, start + batch_size)
            batch = inputs[rows].to(target.device)
            if pathway is None:
                found = target(batch)
            else:
                own = pathway if len(pathway) == 1 else pathway[rows]
                found = target.gated(batch, own.to(batch.device).gates())
            parts.append(found.cpu().double().gather(1, classes[rows].cpu().unsqueeze(1)))
        return torch.cat(parts).squeeze(1) if parts else torch.zeros(0).double()

    generator = torch.Generator().manual_seed(seed)
    attributions = attributions.detach().cpu().double().flatten(1)
    clean = logit(images)
    said, changes = [], []
    for _ in range(samples):
        step = sigma * torch.randn(images.shape, generator=generator)
        said.append((attributions * step.double().flatten(1)).sum(1))
        changes.append(clean - logit(images - step.to(images.device, images.dtype)))
    foretold, change = torch.stack(said), torch.stack(changes)
    if rescale:
        size = foretold.square().sum(0)
        foretold *= torch.where(size > 0, (foretold * change).sum(0) / size, 0.0)
    return (foretold - change).square().mean(0)


def sensitivity_max(
    explain: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    samples: int = 10,
    radius: float = 0.02,
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """Largest relative change of a map under small changes of the input.

    max over steps d of |a(x + d) - a(x)| / |a(x)|, Euclidean norms, with every entry of d uniform
    in [-radius, radius]. Lower is better, at least 0; 0 for maps that ignore the input. Costs
    ``samples`` + 1 maps per input. Sensitive to ``radius``; more samples only raise it.

    Args:
        explain (callable): from inputs ``[B, ...]`` to maps or importance ``[B, ...]``, row by row
            its own; for a pathway method ``lambda x: method(x).importance``, or its pathway
            gradient.
        images (Tensor[N, ...]): model inputs.
        samples (int): steps per input, at least 1.
        radius (float): in units of the inputs, positive.
        batch_size (int): inputs per call.
        seed (int): of the steps.

    Returns:
        Tensor[N]: float64; NaN for inputs whose map is zero.

    Raises:
        ValueError: numbers that do not fit.

    Source: Yeh et al., NeurIPS 2019 (arXiv:1901.09392).

    Example:
        >>> sensitivity_max(torch.ones_like, torch.rand(4, 3)).tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    _check("sensitivity_max", samples, batch_size, "radius", radius)
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.float64)

    def maps(inputs: Tensor) -> Tensor:
        parts = [explain(batch).detach().cpu() for batch in inputs.split(batch_size)]
        return torch.cat(parts).double().flatten(1)

    generator = torch.Generator().manual_seed(seed)
    clean = maps(images)
    largest = torch.zeros(len(images), dtype=torch.float64)
    for _ in range(samples):
        step = radius * (2 * torch.rand(images.shape, generator=generator) - 1)
        moved = maps(images + step.to(images.device, images.dtype))
        largest = torch.maximum(largest, (moved - clean).norm(dim=1))
    size = clean.norm(dim=1)
    return torch.where(size > 0, largest / size, float("nan"))


def _check(where: str, samples: int, batch_size: int, name: str, size: float) -> None:
    if samples < 1 or batch_size < 1 or not size > 0:
        raise ValueError(
            f"{where}: samples and batch_size must be at least 1 and {name} positive, "
            f"got {samples}, {batch_size} and {size}"
        )

"""Where a pathway looks: maps of the input from gradients of gated runs, for any pathway."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pathways.pathway import Pathway
from pathways.sites import Sites
from pathways.target import GatedTarget


def picked_logits(logits: Tensor, classes: Tensor) -> Tensor:
    """Sum of the logits of ``classes`` (int64 ``[N]``), to take gradients of. Scriptable.

    Raises:
        ValueError: no gradient can be taken.
    """
    picked = logits.gather(1, classes.unsqueeze(1)).sum()
    if not picked.requires_grad:
        raise ValueError(
            "no gradient of the logits reaches the images: the model detaches what it computes"
        )
    return picked


def pathway_gradient(
    target: GatedTarget, images: Tensor, pathway: Pathway | Tensor, classes: Tensor | None = None
) -> Tensor:
    """Gradient of the class logit with respect to the input, with only the pathway left.

    One clean run where ``classes`` is None, one gated run and its gradient.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs.
        pathway (Pathway or Tensor[N, D]): N rows or one, of this target (sites are compared, not
            fingerprints); or gates in [0, 1], flat in site order, all ones for the whole network.
        classes (Tensor[N], int64, or None): classes; None is the target's prediction.

    Returns:
        Tensor[N, ...]: same shape as ``images``.

    Raises:
        TypeError, ValueError: classes or a pathway that do not fit; a model that detaches what it
            computes has no gradient.

    Source: Khakzar et al., CVPR 2021 (arXiv:2103.16886).

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> for p, v in zip(net.parameters(), [[[1.], [2.]], [0., 0.], [[3., -1.]], [0.]]):
        ...     p.data = torch.tensor(v)
        >>> target = GatedTarget(net, torch.zeros(1, 1))
        >>> both, first = torch.ones(1, 2), torch.tensor([[1.0, 0.0]])
        >>> [pathway_gradient(target, torch.ones(1, 1), mask).item() for mask in (both, first)]
        [1.0, 3.0]
    """
    # Tensors of inference mode take no part in a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        classes = _classes(target, images, classes)
        gates = _gates(target, pathway, images)
        images = images.detach().clone().requires_grad_(True)
        picked = picked_logits(target.gated(images, gates), classes)
        (gradient,) = torch.autograd.grad(picked, images)
    return gradient


def grad_cam(
    target: GatedTarget,
    images: Tensor,
    pathway: Pathway | Tensor,
    classes: Tensor | None = None,
    site: int | str | None = None,
) -> Tensor:
    """Grad-CAM of the gated run: where the pathway looks.

    One clean run where ``classes`` is None, one gated run and its gradient down to the site.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, Cin, H, W]): inputs.
        pathway (Pathway or Tensor[N, D]): as for :func:`pathway_gradient`.
        classes (Tensor[N], int64, or None): classes; None is the target's prediction.
        site (int, str or None): index, key or module path of a site with a 2-D map; None is the
            deepest one whose map is larger than one cell.

    Returns:
        Tensor[N, H, W]: in [0, 1], scaled to the input; all zero where no gradient is positive.

    Raises:
        TypeError, ValueError: no site with a 2-D map, or the named one has none; classes or a
            pathway that do not fit.

    Source: Selvaraju et al., ICCV 2017 (arXiv:1610.02391), on the gated target.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.ReLU(),
        ...                           torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> target = GatedTarget(net, torch.zeros(1, 1, 4, 4))
        >>> grad_cam(target, torch.randn(3, 1, 4, 4), torch.ones(1, 2)).shape
        torch.Size([3, 4, 4])
    """
    position = map_site(target.sites, site)
    kept: list[Tensor] = []

    def observe(index: int, output: Tensor) -> None:
        if index == position:
            kept.append(output)

    with torch.inference_mode(False), torch.enable_grad():
        classes = _classes(target, images, classes)
        gates = _gates(target, pathway, images)
        # A gradient path must exist although every parameter is frozen.
        inputs = images.detach().clone().requires_grad_(True)
        picked = picked_logits(target.gated(inputs, gates, observe=observe), classes)
        (gradient,) = torch.autograd.grad(picked, kept[0], materialize_grads=True)
    dim = target.sites[position].channel_dim
    activation = kept[0].detach().movedim(dim, 1)
    gradient = gradient.movedim(dim, 1)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    cam = (weights * activation).sum(1, keepdim=True).relu()
    cam = F.interpolate(cam, size=images.shape[-2:], mode="bilinear", align_corners=False)
    peak = cam.amax(dim=(2, 3), keepdim=True)
    return (cam / peak.clamp_min(torch.finfo(cam.dtype).tiny)).squeeze(1)


def map_site(sites: Sites, site: int | str | None = None) -> int:
    """Index of the site that :func:`grad_cam` looks at.

    Args:
        sites (Sites): the target's sites.
        site (int, str or None): as for :func:`grad_cam`.

    Raises:
        ValueError: no site with a 2-D map, or the named one has none.

    Example:
        >>> from pathways.sites import Site
        >>> map_site(Sites([Site("a", 0, "relu", (3, 4, 4)), Site("b", 0, "relu", (2,))]))
        0
    """
    maps = [i for i, s in enumerate(sites) if len(s.space) == 2]
    if site is None:
        large = [i for i in maps if max(sites[i].space) > 1]
        if not large:
            raise ValueError("grad_cam: the target must have a site with a 2-D map, got none")
        return large[-1]
    position = sites.index(site) if isinstance(site, str) else site
    if position not in maps:
        known = ", ".join(sites[i].key for i in maps)
        raise ValueError(f"grad_cam: site must be one with a 2-D map ({known}), got {site!r}")
    return position


def collapse_gradient(gradient: Tensor) -> Tensor:
    """One signed map per input from an input gradient: the channel entry of largest magnitude.

    Args:
        gradient (Tensor[N, C, H, W]): floating point.

    Returns:
        Tensor[N, H, W]: divided by its largest magnitude, in [-1, 1]; zero where all is zero.

    Raises:
        ValueError: another number of dimensions.

    Source: display convention of Khakzar et al. (arXiv:2103.16886).

    Example:
        >>> collapse_gradient(torch.tensor([1.0, -4.0, 2.0]).view(1, 3, 1, 1)).item()
        -1.0
    """
    if gradient.dim() != 4:
        raise ValueError(
            f"collapse_gradient: gradient must be [N, C, H, W], got {tuple(gradient.shape)}"
        )
    largest = gradient.abs().argmax(1, keepdim=True)
    signed = gradient.gather(1, largest).squeeze(1)
    peak = signed.abs().amax((1, 2), keepdim=True)
    return signed / peak.clamp_min(torch.finfo(signed.dtype).tiny)


def check_sites(pathway_sites: Sites, target: GatedTarget) -> None:
    """Refuse neurons of other sites: they would be taken for those of the same position.

    Raises:
        ValueError: other sites than the target's.
    """
    if pathway_sites != target.sites:
        raise ValueError(
            f"the pathway must have the target's sites {target.sites!r}, got {pathway_sites!r}"
        )


def _gates(target: GatedTarget, pathway: Pathway | Tensor, images: Tensor) -> list[Tensor] | Tensor:
    if isinstance(pathway, Pathway):
        check_sites(pathway.sites, target)
        return pathway.to(images.device).gates()
    return pathway.detach().to(images.device, copy=True)


def _classes(target: GatedTarget, images: Tensor, classes: Tensor | None) -> Tensor:
    """Classes as given, checked, or the target's predictions."""
    if classes is None:
        return target(images).argmax(1)
    if not isinstance(classes, Tensor) or classes.dtype != torch.int64:
        got = classes.dtype if isinstance(classes, Tensor) else type(classes).__name__
        raise TypeError(f"classes must be int64 of shape ({images.shape[0]},), got {got}")
    if classes.shape != (images.shape[0],):
        raise ValueError(
            f"classes must be int64 of shape ({images.shape[0]},), got {tuple(classes.shape)}"
        )
    low, high = (int(classes.min()), int(classes.max())) if len(classes) else (0, 0)
    if low < 0 or high >= target.num_classes:
        raise ValueError(
            f"classes must be in [0, {target.num_classes}), got {low if low < 0 else high}"
        )
    return classes.to(images.device, copy=True)

"""Sanity check: explanations of a target must change when its weights are randomised."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathways.evaluation.leak import random_like
from pathways.evaluation.pixels import gaussian_blur
from pathways.explainer import Explanation, PathwayMethod
from pathways.freezing import frozen
from pathways.maps import collapse_gradient, grad_cam, pathway_gradient
from pathways.pathway import Pathway
from pathways.target import GatedTarget

STAGES = 8
"""Stages of :func:`randomization` unless they are named."""

# Values that are ranked at a time, 8 bytes each in some copies: units are many.
_VALUES = 2**23


@dataclass(frozen=True)
class Randomization:
    """Result of :func:`randomization`: means over the inputs, one entry per stage, float64 ``[S]``.

    Every similarity is between the explanations of the target and those of the target with its top
    layers randomised; 1 is unchanged, and lower is better, down to ``iou_chance`` for ``iou`` and
    about 0 for the others. Inputs without an order (a constant map or constant importance) are left
    out of a rank correlation, which is NaN if none is left.

    Args:
        layers (tuple of str): layers from the top down, in the order they are randomised.
        stages (tuple of int): how many of them are randomised.
        agreement (Tensor[S]): share of inputs whose prediction is still the target's: what the
            randomisation left of the target itself.
        iou (Tensor[S]): intersection over union of the pathways, in [0, 1].
        iou_chance (Tensor[S]): the same for random pathways as large at every site.
        importance (Tensor[S]): rank correlation of the importance of neurons, in [-1, 1].
        gradient (Tensor[S]): rank correlation of the magnitudes of pathway gradients; NaN for
            inputs that are not images, like the next three.
        gradient_ssim (Tensor[S]): structural similarity of these maps, in [-1, 1].
        cam (Tensor[S]): rank correlation of Grad-CAM of the gated runs; NaN without a site with a
            map.
        cam_ssim (Tensor[S]): structural similarity of these maps.
    """

    layers: tuple[str, ...]
    stages: tuple[int, ...]
    agreement: Tensor
    iou: Tensor
    iou_chance: Tensor
    importance: Tensor
    gradient: Tensor
    gradient_ssim: Tensor
    cam: Tensor
    cam_ssim: Tensor


_FIGURES = (
    "agreement", "iou", "iou_chance", "importance", "gradient", "gradient_ssim", "cam", "cam_ssim",
)  # fmt: skip


def randomization(
    target: GatedTarget,
    make: Callable[[GatedTarget], PathwayMethod],
    images: Tensor,
    *,
    stages: Sequence[int] | None = None,
    max_images: int = 64,
    batch_size: int = 64,
    seed: int = 0,
) -> Randomization:
    """Randomise a target layer by layer from the top, and compare what a method says of it.

    A layer is randomised by shuffling the entries of each of its own parameters, which keeps their
    distribution, so that activations stay of their size; buffers and the baseline of the target
    stay as they are. Stage s has the first s layers of the cascade shuffled. All is done on copies.
    A method whose explanations survive describes the input, not the target; a generator that was
    trained for the target is applied to the features (and logits, where it reads them) that the
    randomised one has, so its masks may stay alike where the shuffled layers are above the sites
    that it reads most. Maps are of the class that the target itself predicts. Costs one explanation
    and two gated runs with gradient of every input for every stage, and one more for the target.

    Args:
        target (GatedTarget): the target; left as it is.
        make (callable): makes the method for a target, ``lambda t: Explainer(t, generator)`` or
            ``lambda t: NeuronMCT(t, kept=0.1)``; called for every stage.
        images (Tensor[N, ...]): model inputs, on any device, at least one.
        stages (sequence of int or None): numbers of layers, ascending from 0, at most all; None is
            8 evenly spaced ones up to all layers (all of fewer).
        max_images (int): use the first so many inputs, at least 1.
        batch_size (int): inputs per run.
        seed (int): of the shuffles and the random pathways.

    Raises:
        ValueError: no inputs, a target without parameters, stages or sizes that do not fit.

    Source: Adebayo et al., NeurIPS 2018 (arXiv:1810.03292), used by arXiv:2103.16886; shuffling,
    masks and importance are our choice.

    Example:
        >>> from pathways.baselines import NeuronMCT
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(),
        ...                           torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> target = GatedTarget(net, torch.zeros(1, 1, 8, 8))
        >>> result = randomization(
        ...     target, lambda t: NeuronMCT(t, kept=0.5), torch.randn(6, 1, 8, 8), stages=(0, 2))
        >>> result.layers, result.iou[0].item()
        (('3', '0'), 1.0)
    """
    if len(images) == 0 or max_images < 1 or batch_size < 1:
        raise ValueError(
            "randomization: images, max_images and batch_size must be at least 1, "
            f"got {len(images)}, {max_images} and {batch_size}"
        )
    images = images[:max_images]
    layers = _layers(target, images[:1])
    if stages is None:
        number = min(STAGES, len(layers))
        stages = [round(len(layers) * (i + 1) / number) for i in range(number)]
    known = range(len(layers) + 1)
    if not stages or list(stages) != sorted(set(stages)) or not all(s in known for s in stages):
        raise ValueError(
            f"randomization: stages must ascend within [0, {len(layers)}], got {list(stages)}"
        )
    method = make(target)
    clean = [_look(method, batch, None) for batch in images.split(batch_size)]
    with torch.inference_mode(False):  # copies made in it could take no part in a gradient
        model = copy.deepcopy(target.model)
    shuffled = _with_model(target, model)
    modules = dict(shuffled.model.named_modules())
    done, columns = 0, []
    for stage in stages:
        for number in range(done, stage):
            _shuffle(modules[layers[number]], seed, number)
        done = stage
        method = make(shuffled)
        rows = []
        for batch, seen in zip(images.split(batch_size), clean, strict=True):
            rows.append(_compare(seen, _look(method, batch, seen.explanation.predictions), seed))
        columns.append(torch.cat(rows, dim=1).nanmean(1))
    figures = dict(zip(_FIGURES, torch.stack(columns, dim=1), strict=True))
    return Randomization(tuple(layers), tuple(stages), **figures)


@dataclass(frozen=True)
class _Seen:
    """What a method says of a batch, on the CPU; maps are None where there are none."""

    explanation: Explanation
    gradient: Tensor | None
    cam: Tensor | None


def _look(method: PathwayMethod, batch: Tensor, classes: Tensor | None) -> _Seen:
    target = method.target
    batch = batch.to(target.device)
    e = method(batch)
    classes = e.predictions if classes is None else classes.to(batch.device)
    gradient = cam = None
    if batch.dim() == 4:
        gradient = collapse_gradient(pathway_gradient(target, batch, e.pathway, classes)).abs()
        if any(len(site.space) == 2 and max(site.space) > 1 for site in target.sites):
            cam = grad_cam(target, batch, e.pathway, classes)
    # Without the fingerprint: pathways of two targets are compared here on purpose.
    pathway = Pathway(e.pathway.words.cpu(), e.pathway.sites)
    logits, gated, importance = (
        part.detach().cpu() for part in (e.logits, e.gated_logits, e.importance)
    )
    return _Seen(
        Explanation(logits, gated, importance, pathway),
        None if gradient is None else gradient.cpu(),
        None if cam is None else cam.cpu(),
    )


def _compare(a: _Seen, b: _Seen, seed: int) -> Tensor:
    """The figures of every input, float64 ``[8, N]``, in the order of ``_FIGURES``."""
    one, other = a.explanation, b.explanation
    drawn = random_like(other.pathway, seed)
    values = [
        one.predictions == other.predictions,
        one.pathway.iou(other.pathway),
        one.pathway.iou(drawn),
        spearman(one.importance, other.importance),
    ]
    for before, after in ((a.gradient, b.gradient), (a.cam, b.cam)):
        if before is None or after is None:
            values += [torch.full((len(one),), float("nan"))] * 2
        else:
            values += [spearman(before.flatten(1), after.flatten(1)), ssim(before, after)]
    return torch.stack([value.double() for value in values])


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation row by row; equal values share their mean rank.

    Args:
        a, b (Tensor[N, D]): finite, of equal shape.

    Returns:
        Tensor[N]: float64 in [-1, 1]; NaN for rows of which one is constant.

    Raises:
        ValueError: other shapes.

    Example:
        >>> spearman(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1.0, 3.0, 2.0]])).item()
        0.5
    """
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(
            f"spearman: a and b must be [N, D], got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    rows = max(1, _VALUES // max(a.shape[1], 1))
    parts = zip(a.split(rows), b.split(rows), strict=True)
    return torch.cat([_correlation(_ranks(x), _ranks(y)) for x, y in parts])


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def _ranks(x: Tensor) -> Tensor:
    ordered, x = x.sort(dim=1).values, x.contiguous()
    first = torch.searchsorted(ordered, x)
    return (first + torch.searchsorted(ordered, x, right=True) - 1).double() / 2


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of maps in [0, 1], mean over all pixels.

    Args:
        a, b (Tensor[N, H, W]): maps of equal shape; the window is Gaussian, 11 x 11 of standard
            deviation 1.5, and border pixels are repeated outwards, so that any size will do.

    Returns:
        Tensor[N]: float64 in [-1, 1]; 1 for equal maps.

    Raises:
        ValueError: other shapes.

    Source: Wang et al., IEEE TIP 2004, with its constants 0.01 and 0.03; the border is our choice.

    Example:
        >>> ssim(torch.eye(12).view(1, 12, 12), torch.eye(12).view(1, 12, 12)).item()
        1.0
    """
    if a.dim() != 3 or a.shape != b.shape:
        raise ValueError(
            f"ssim: a and b must be [N, H, W], got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    a, b = a.double(), b.double()
    moments = torch.stack([a, b, a * a, b * b, a * b], dim=1)
    mean_a, mean_b, square_a, square_b, product = gaussian_blur(moments, 11, 1.5).unbind(1)
    small, smaller = 0.03**2, 0.01**2
    likeness = (2 * mean_a * mean_b + smaller) / (mean_a**2 + mean_b**2 + smaller)
    spread = square_a - mean_a**2 + square_b - mean_b**2 + small
    return (likeness * (2 * (product - mean_a * mean_b) + small) / spread).mean((1, 2))


def _layers(target: GatedTarget, image: Tensor) -> list[str]:
    """Modules with parameters of their own in the order of their last call, the latest first.

    One that is never called stands before the module around it: attention reads the weights of its
    output layer itself.
    """
    names = {
        module: name
        for name, module in target.model.named_modules()
        if any(parameter is not None for parameter in module._parameters.values())
    }
    called: list[str] = []

    def note(module: nn.Module, *_: object) -> None:
        called.append(names[module])

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with frozen(target.model), torch.no_grad():
            target.model(image.to(target.device).clone())
    finally:
        for handle in handles:
            handle.remove()
    layers = list(dict.fromkeys(reversed(called)))
    if not layers:
        raise ValueError("randomization: the target must call modules with parameters, got none")
    for name in names.values():
        around = [layer for layer in layers if name.startswith(f"{layer}.")]
        if name not in layers and around:
            layers.insert(layers.index(max(around, key=len)), name)
    return layers


def _with_model(target: GatedTarget, model: nn.Module) -> GatedTarget:
    """The same target around another model of the same architecture."""
    other = copy.copy(target)
    other.model = model
    return other


@torch.no_grad()
def _shuffle(module: nn.Module, seed: int, number: int) -> None:
    """Shuffle every own parameter; a function of seed and layer, whatever the stages are."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    for parameter in module._parameters.values():
        if parameter is not None:
            order = torch.randperm(parameter.numel(), generator=generator)
            flat = parameter.detach().reshape(-1)[order.to(parameter.device)]
            parameter.copy_(flat.view(parameter.shape))

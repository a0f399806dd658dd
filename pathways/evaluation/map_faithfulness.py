"""One call that measures where a pathway method looks: insertion, deletion and ROAD of its maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from pathways.evaluation.insertion_deletion import PixelCurve, deletion, insertion
from pathways.evaluation.road import Road, road
from pathways.explainer import Explanation, PathwayMethod
from pathways.maps import collapse_gradient, grad_cam, pathway_gradient

NAN = float("nan")


@dataclass(frozen=True)
class MapFaithfulness:
    """Result of :func:`map_faithfulness` for one kind of map; NaN where nothing can be measured.

    Args:
        insertion (float): mean area under the insertion curves, in [0, 1]; higher is better.
        deletion (float): mean area under the deletion curves, in [0, 1]; lower is better.
        road (float): mean combined ROAD score by confidence, in [-0.5, 0.5]; higher is better.
        road_accuracy (float): the same by whether the prediction stays.
        images (int): inputs measured.
        curves (tuple of PixelCurve and Road, or None): insertion, deletion and ROAD of every input.
    """

    insertion: float
    deletion: float
    road: float
    road_accuracy: float
    images: int
    curves: tuple[PixelCurve, PixelCurve, Road] | None

    @property
    def insertion_minus_deletion(self) -> float:
        """In [-1, 1]; higher is better, about 0 for a random map only where the two starts are
        equally bad inputs."""
        return self.insertion - self.deletion


def _gradient_maps(method: PathwayMethod, images: Tensor, e: Explanation) -> Tensor:
    gradient = pathway_gradient(method.target, images, e.pathway, e.predictions)
    return collapse_gradient(gradient).abs()


def _cam_maps(method: PathwayMethod, images: Tensor, e: Explanation) -> Tensor:
    return grad_cam(method.target, images, e.pathway, e.predictions)


_KINDS: Mapping[str, Callable[[PathwayMethod, Tensor, Explanation], Tensor]] = MappingProxyType(
    {"gradient": _gradient_maps, "grad_cam": _cam_maps}
)
KINDS = (*_KINDS, "random")
"""What :func:`map_faithfulness` measures; ``random`` is the control."""


def map_faithfulness(
    method: PathwayMethod,
    images: Tensor,
    *,
    kinds: Sequence[str] = ("gradient", "grad_cam"),
    max_images: int = 64,
    steps: int = 10,
    percentiles: Sequence[float] = (10, 30, 50, 70, 90),
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, MapFaithfulness]:
    """Insertion, deletion and ROAD of the maps of a pathway method.

    ``gradient`` is the pathway gradient, of every pixel the largest magnitude over the channels:
    a pixel that the class depends on either way is important. ``grad_cam`` is Grad-CAM of the gated
    run at the deepest site with a map. Both are of the clean prediction under the input's own
    pathway, and both are judged on the *ungated* target. ``random`` draws a map for every input
    with ``seed``: what no information gives, and what the others must be read against.

    Each kind costs 2 * ``steps`` + 2 * len(``percentiles``) runs of an input, 30 by default, on top
    of its explanation and a gated run with gradient. Coarse steps change an area by little: the
    same error for all maps.

    Args:
        method (PathwayMethod): explainer or baseline.
        images (Tensor[N, C, H, W]): model inputs, on any device. Inputs of another form have no
            pixels: every figure is NaN.
        kinds (sequence of str): among ``gradient``, ``grad_cam`` (NaN for a target without a site
            with a map) and ``random``.
        max_images (int): use the first so many inputs, at least 0; shuffle sorted data first.
        steps (int): of :func:`insertion` and :func:`deletion`.
        percentiles (sequence of float): of :func:`road`.
        batch_size (int): inputs per run.
        seed (int): of random maps and ROAD's noise.
        progress (callable or None): called with (kind, kinds done, kinds in all).

    Returns:
        dict of str to MapFaithfulness: by kind, in the order of ``kinds``.

    Raises:
        ValueError: an unknown kind, or arguments that do not fit; a model that detaches what it
            computes has no maps.

    Source: Petsiuk et al., BMVC 2018 (arXiv:1806.07421), Rong et al., ICML 2022 (arXiv:2202.00449);
    the maps are those of Khakzar et al., CVPR 2021 (arXiv:2103.16886), the settings our choice.

    Example:
        >>> from pathways.baselines import NeuronMCT
        >>> from pathways.target import GatedTarget
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(),
        ...                           torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> target = GatedTarget(net, torch.zeros(1, 1, 8, 8))
        >>> results = map_faithfulness(NeuronMCT(target, kept=0.5), torch.randn(6, 1, 8, 8))
        >>> sorted(results), results["gradient"].images, results["gradient"].insertion > 0
        (['grad_cam', 'gradient'], 6, True)
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"map_faithfulness: kinds must be among {KINDS}, got {kind!r}")
    if max_images < 0 or batch_size < 1:
        raise ValueError(
            "map_faithfulness: max_images must be at least 0 and batch_size at least 1, "
            f"got {max_images} and {batch_size}"
        )
    target = method.target
    images = images[:max_images] if images.dim() == 4 else images[:0]
    wanted = [k for k in kinds if k != "grad_cam" or _has_map(method)] if len(images) else []
    logits, maps = _maps(method, images, wanted, batch_size, seed) if wanted else (None, {})
    results = {}
    for done, kind in enumerate(kinds):
        if progress is not None:
            progress(kind, done, len(kinds))
        if kind not in maps:
            results[kind] = MapFaithfulness(NAN, NAN, NAN, NAN, 0, None)
            continue
        given = (target, images, maps[kind], logits)
        rising = insertion(*given, steps=steps, batch_size=batch_size)
        falling = deletion(*given, steps=steps, batch_size=batch_size)
        removed = road(*given, percentiles=percentiles, seed=seed, batch_size=batch_size)
        results[kind] = MapFaithfulness(
            float(rising.auc.mean()),
            float(falling.auc.mean()),
            float(removed.confidence.mean()),
            float(removed.accuracy.mean()),
            len(images),
            (rising, falling, removed),
        )
    return results


def _has_map(method: PathwayMethod) -> bool:
    return any(len(site.space) == 2 and max(site.space) > 1 for site in method.sites)


def _maps(
    method: PathwayMethod, images: Tensor, kinds: Sequence[str], batch_size: int, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clean logits ``[N, K]`` and one map ``[N, H, W]`` of every kind, on the CPU."""
    logits = []
    parts: dict[str, list[Tensor]] = {kind: [] for kind in kinds if kind in _KINDS}
    for batch in images.split(batch_size):
        batch = batch.to(method.target.device)
        explanation = method(batch)
        logits.append(explanation.logits.detach().cpu())
        for kind, found in parts.items():
            found.append(_KINDS[kind](method, batch, explanation).cpu())
    maps = {kind: torch.cat(found) for kind, found in parts.items()}
    if "random" in kinds:
        generator = torch.Generator().manual_seed(seed)
        maps["random"] = torch.rand(len(images), *images.shape[2:], generator=generator)
    return torch.cat(logits), maps

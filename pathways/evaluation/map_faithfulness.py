"""One call that measures where a pathway method looks: insertion, deletion and ROAD of its maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pathways.evaluation.insertion_deletion import PixelCurve, deletion, insertion
from pathways.evaluation.road import Road, road
from pathways.explainer import Explanation, PathwayMethod
from pathways.maps import collapse_gradient, grad_cam, pathway_gradient
from pathways.pathway import Pathway
from pathways.target import GatedTarget, NoGradientError

MAP_IMAGES = 64
"""Inputs that :func:`map_faithfulness` measures unless it is told how many."""

_NAN = float("nan")


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

    def to_json(self) -> dict[str, Any]:
        """Figures and mean curves, as JSON-able values but for NaN; without curves where nothing
        was measured."""
        values: dict[str, Any] = {
            "insertion": self.insertion,
            "deletion": self.deletion,
            "insertion_minus_deletion": self.insertion_minus_deletion,
            "road": self.road,
            "road_accuracy": self.road_accuracy,
            "images": self.images,
        }
        if self.curves is not None:
            rising, falling, removed = self.curves
            values["curves"] = {
                "shares": rising.shares.tolist(),
                "insertion": rising.mean.tolist(),
                "deletion": falling.mean.tolist(),
                "percentiles": list(removed.percentiles),
                "morf_confidence": removed.morf_confidence.mean(0).tolist(),
                "lerf_confidence": removed.lerf_confidence.mean(0).tolist(),
                "morf_stays": removed.morf_stays.double().mean(0).tolist(),
                "lerf_stays": removed.lerf_stays.double().mean(0).tolist(),
            }
        return values


def _gradient_maps(
    target: GatedTarget, images: Tensor, pathway: Pathway, classes: Tensor
) -> Tensor:
    return collapse_gradient(pathway_gradient(target, images, pathway, classes)).abs()


_KINDS: Mapping[str, Callable[[GatedTarget, Tensor, Pathway, Tensor], Tensor]] = MappingProxyType(
    {"gradient": _gradient_maps, "grad_cam": grad_cam}
)
KINDS = (*_KINDS, "random")
"""What :func:`map_faithfulness` measures; ``random`` is the control."""


def map_faithfulness(
    method: PathwayMethod,
    images: Tensor,
    explained: Explanation | None = None,
    *,
    kinds: Sequence[str] = ("gradient", "grad_cam"),
    max_images: int = MAP_IMAGES,
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
        images (Tensor[N, C, H, W]): model inputs, on any device. Inputs of another form, or that
            are not floating point, have no pixels: every figure is NaN.
        explained (Explanation or None): the method's explanation of ``images``, if it is there
            already, of which logits and pathway are used; on any device.
        kinds (sequence of str): among ``gradient`` (NaN for a target through which no gradient
            passes), ``grad_cam`` (NaN also without a site with a map) and ``random``.
        max_images (int): use the first so many inputs, at least 0; shuffle sorted data first.
        steps (int): of :func:`insertion` and :func:`deletion`.
        percentiles (sequence of float): of :func:`road`.
        batch_size (int): inputs per run.
        seed (int): of random maps and ROAD's noise.
        progress (callable or None): called with (kind, kinds done, kinds in all).

    Returns:
        dict of str to MapFaithfulness: by kind, in the order of ``kinds``.

    Raises:
        ValueError: an unknown kind, or arguments that do not fit.

    Source: Petsiuk et al., BMVC 2018 (arXiv:1806.07421), Rong et al., ICML 2022 (arXiv:2202.00449);
    the maps are those of Khakzar et al., CVPR 2021 (arXiv:2103.16886), the settings our choice.

    Example:
        >>> from pathways.baselines import NeuronMCT
        >>> from pathways.target import GatedTarget, NoGradientError
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
    if explained is not None and len(explained) != len(images):
        raise ValueError(
            f"map_faithfulness: explained must have {len(images)} rows, got {len(explained)}"
        )
    target = method.target
    has_pixels = images.dim() == 4 and images.is_floating_point()
    images = images[: max_images if has_pixels else 0]
    logits: Tensor | None = None
    maps: dict[str, Tensor] = {}
    if len(images) > 0:
        logits, maps = _maps(method, images, explained, kinds, batch_size, seed)
    results = {}
    for done, kind in enumerate(kinds):
        if progress is not None:
            progress(kind, done, len(kinds))
        if kind not in maps:
            results[kind] = MapFaithfulness(_NAN, _NAN, _NAN, _NAN, 0, None)
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


def _maps(
    method: PathwayMethod,
    images: Tensor,
    explained: Explanation | None,
    kinds: Sequence[str],
    batch_size: int,
    seed: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clean logits ``[N, K]`` and one map ``[N, H, W]`` of every kind there is, on the CPU."""
    target = method.target
    known = [kind for kind in _KINDS if kind in kinds]
    if known and not _differentiable(target, images[:1].to(target.device)):
        known = []
    if not any(len(site.space) == 2 and max(site.space) > 1 for site in target.sites):
        known = [kind for kind in known if kind != "grad_cam"]
    parts: dict[str, list[Tensor]] = {kind: [] for kind in known}
    logits = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, min(start + batch_size, len(images)))
        batch = images[rows].to(target.device)
        if explained is None:
            part = method(batch)
            found, pathway = part.logits, part.pathway
        else:
            found, pathway = explained.logits[rows], explained.pathway[rows]
        logits.append(found.detach().cpu())
        classes = found.argmax(1).to(batch.device)
        for kind, done in parts.items():
            done.append(_KINDS[kind](target, batch, pathway, classes).cpu())
    maps = {kind: torch.cat(done) for kind, done in parts.items()}
    if "random" in kinds:
        generator = torch.Generator().manual_seed(seed)
        maps["random"] = torch.rand(len(images), *images.shape[2:], generator=generator)
    return torch.cat(logits), maps


def _differentiable(target: GatedTarget, image: Tensor) -> bool:
    """Whether gradients of a gated run reach the input, by one run of one input."""
    with torch.inference_mode(False), torch.enable_grad():
        image = image.detach().clone().requires_grad_(True)
        gates = torch.ones(1, target.sites.num_neurons, device=image.device)
        try:
            return target.gated(image, gates).requires_grad
        except NoGradientError:
            return False

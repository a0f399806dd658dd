"""Wall time of explanations beside the target's own forward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathways.explainer import PathwayMethod

# One run to warm up caches, then the median of these.
_REPEATS = 5
_SECONDS = 5.0


@torch.no_grad()
def milliseconds_per_image(
    explainer: PathwayMethod, images: Tensor, batch_size: int = 64
) -> tuple[float, float]:
    """Median wall time per input of a target forward and of an explanation.

    The target forward is ``explainer.target(batch)``. The explanation is what it takes to get the
    mask: ``explainer.importance(batch)`` (clean forward that records features, then generator) and
    ``explainer.generator.masks`` (quantiser and floor); the gated run that checks the mask is left
    out. Of a :class:`pathways.baselines.ScoredMethod` it is ranking and selection; sizes that it
    takes from another method are found before. Any other method is timed by calling it, its gated
    run included. Up to five batches are timed after one warm-up, on data already on the device,
    fewer once they take more than some seconds; a GPU is waited for.

    Args:
        explainer (PathwayMethod): the method.
        images (Tensor[N, ...]): inputs, N >= 1; fewer than ``batch_size`` make one smaller batch.
        batch_size (int): inputs per batch.

    Returns:
        milliseconds per input of a target forward, and of an explanation.
    """
    batches = [batch for batch in images.split(batch_size) if len(batch) == batch_size]
    batches = batches or [images]
    device = explainer.target.device
    began = time.perf_counter()
    times: dict[str, list[float]] = {"forward": [], "explanation": []}
    for repeat in range(_REPEATS + 1):
        batch = batches[repeat % len(batches)].to(device)
        runs: list[tuple[str, Callable[[Tensor], Any]]] = [
            ("forward", explainer.target),
            ("explanation", _explanation(explainer, batch)),
        ]
        for name, run in runs:
            _wait(device)
            start = time.perf_counter()
            run(batch)
            _wait(device)
            if repeat > 0:
                times[name].append(1e3 * (time.perf_counter() - start) / len(batch))
        if repeat > 0 and time.perf_counter() - began > _SECONDS:
            break
    return statistics.median(times["forward"]), statistics.median(times["explanation"])


def _explanation(explainer: Any, batch: Tensor) -> Callable[[Tensor], Any]:
    importance = getattr(explainer, "importance", None)
    generator = getattr(explainer, "generator", None)
    if importance is not None and generator is not None:
        return lambda batch: generator.masks(importance(batch)[1])
    if hasattr(explainer, "rank") and hasattr(explainer, "select"):
        sizes = explainer.sizes(batch)
        return lambda batch: explainer.select(explainer.rank(batch, sizes)[1], sizes)
    return lambda batch: explainer(batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

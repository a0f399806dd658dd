"""Measuring pathway methods on the test images of a data set: one, several, or their sanity."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pathways.baselines.registry import (
    BaselineContext,
    check_baselines,
    make_baseline,
    make_sizes,
    mean_kept,
)
from pathways.baselines.scored import class_threshold
from pathways.evaluation import Evaluation, evaluate, randomization
from pathways.explainer import Explainer, PathwayMethod
from pathways.preprocessing import Preprocessing
from pathways.runs import preprocess
from pathways.target import GatedTarget
from pathways.training.data import Images

# Called with (what is being done, how much of it, how much in all). Details of a stage follow its
# name after two spaces.
Progress = Callable[[str, int, int], None]


def shuffled_test(images: Images, seed: int, limit: int | None = None) -> Tensor:
    """Rows of the test images to measure on, int64, at most ``limit``, in an order of the seed."""
    # Folders are sorted by class, and halves of them would hold different classes.
    order = torch.randperm(len(images.test), generator=torch.Generator().manual_seed(seed))
    return order[:limit]


def measure(
    method: PathwayMethod,
    preprocessing: Preprocessing,
    images: Images,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    threshold: float = 0.5,
    progress: Progress | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate a pathway method on the test images, shuffled: half of them support, half query.

    Class pathways are made at the method's own ``class_threshold`` where it has one.

    Args:
        method (PathwayMethod): explainer or baseline.
        preprocessing (Preprocessing): from images to model inputs.
        images (Images): the data; only the test part is used.
        limit (int or None): use at most so many test images.
        batch_size (int): images per batch.
        seed (int): of the shuffle and of every control.
        threshold (float): frequency threshold of class pathways, in [0, 1].
        progress (callable or None): called with (stage, done, total).
        settings: others of :func:`pathways.evaluation.evaluate`.

    Raises:
        ValueError: fewer than two test images.
    """
    rows = shuffled_test(images, seed, limit)
    return evaluate(
        method,
        preprocess(images.test[rows], preprocessing),
        images.test_labels[rows],
        blanks=preprocessing.blanks(*images.shape[1:]),
        threshold=class_threshold(method, threshold),
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        **settings,
    )


def evaluate_methods(
    explainer: Explainer,
    preprocessing: Preprocessing,
    images: Images,
    baselines: Sequence[str] = (),
    kept: Sequence[float] = (),
    *,
    skip: Container[str] = (),
    finished: Callable[[str, Evaluation], None] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Evaluation]:
    """Evaluate an explainer and baselines on the same test images.

    Args:
        explainer (Explainer): the run's.
        preprocessing (Preprocessing): from images to model inputs.
        images (Images): baselines that need fitting use the training part.
        baselines (sequence of str): names, see :mod:`pathways.baselines.registry`.
        kept (sequence of float): shares of neurons at which every method is measured besides, the
            explainer by its ranking; these rows have no times.
        skip (container of str): names that need not be measured; ``"generator"`` always is.
        finished (callable or None): called with each method's name and evaluation.
        seed, progress: as :func:`measure`.
        settings: others of :func:`measure` and of :func:`pathways.evaluation.evaluate`.

    Returns:
        dict of Evaluation: ``"generator"`` first, then by name, ``NAME@SIZE`` at the sizes; without
        those skipped.

    Raises:
        ValueError: an unknown baseline, or a share outside [0, 1].
    """
    check_baselines(list(baselines))
    for share in kept:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"kept must be in (0, 1], got {share:g}")
    settings |= {"seed": seed}
    evaluations: dict[str, Evaluation] = {}

    def add(name: str, method: PathwayMethod, report: Progress | None, timing: bool) -> None:
        evaluations[name] = measure(
            method, preprocessing, images, progress=report, timing=timing, **settings
        )
        if finished is not None:
            finished(name, evaluations[name])

    add("generator", explainer, progress, True)
    context: BaselineContext | None = None
    for name in ["generator", *baselines]:
        wanted = {n for n in method_names([name], kept) if n not in evaluations and n not in skip}
        if not wanted:
            continue
        if context is None:
            inputs = preprocess(images.train, preprocessing)
            context = BaselineContext(explainer, inputs, seed=seed, progress=progress)
        for full_name, method in make_sizes(name, context, kept).items():
            if full_name in wanted:
                add(full_name, method, _under(full_name, progress), full_name == name)
    return evaluations


def method_names(baselines: Sequence[str], kept: Sequence[float]) -> list[str]:
    """Names in the result of :func:`evaluate_methods`, those of every method at all sizes together.

    Example:
        >>> method_names(["generator", "mct"], [0.1, 0.3])
        ['generator', 'generator@0.1', 'generator@0.3', 'mct', 'mct@0.1', 'mct@0.3']
    """
    sizes = ["", *(f"@{share:g}" for share in kept)]
    return [name + size for name in baselines for size in sizes]


def method_report(evaluation: Evaluation) -> dict[str, Any]:
    """What ``evaluation.json`` has of one method; JSON-able."""
    return {"metrics": json_metrics(evaluation.metrics()), **evaluation.details()}


def metrics_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a :func:`method_report`, NaN where a figure could not be measured."""
    values = report["metrics"].items()
    return {name: math.nan if value is None else value for name, value in values}


def json_metrics(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has them: None where a figure could not be measured."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def check_randomization(
    explainer: Explainer,
    preprocessing: Preprocessing,
    images: Images,
    baselines: Sequence[str] = (),
    *,
    limit: int = 64,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Weight-randomisation check of an explainer and of baselines on test images.

    See :func:`pathways.evaluation.randomization`. Baselines have the explainer's mean size.

    Args:
        explainer (Explainer): the run's.
        preprocessing (Preprocessing): from images to model inputs.
        images (Images): baselines that need fitting use the training part, anew in every stage.
        baselines (sequence of str): names.
        limit (int): test images, the first of the order that :func:`measure` has.
        batch_size (int): images per batch.
        seed (int): of the shuffles, and of what else is random.
        progress (callable or None): called with (stage, done, total).

    Returns:
        dict: JSON-able: ``layers`` from the top, ``stages`` (how many of them are shuffled),
            ``images``, ``kept``, and ``methods``: by name the figures, one per stage.

    Raises:
        ValueError: an unknown baseline, or no test images.
    """
    check_baselines(list(baselines))
    inputs = preprocess(images.test[shuffled_test(images, seed, limit)], preprocessing)
    kept = mean_kept(explainer, inputs, batch_size)
    fit_on = preprocess(images.train, preprocessing) if baselines else inputs
    methods: dict[str, Any] = {}
    result: dict[str, Any] = {}
    for done, name in enumerate(["generator", *baselines]):
        if progress is not None:
            progress(f"randomizing: {name}", done, 1 + len(baselines))

        def make(target: GatedTarget, name: str = name) -> PathwayMethod:
            own = Explainer(target, explainer.generator)
            if name == "generator":
                return own
            context = BaselineContext(own, fit_on, seed=seed, kept=kept)
            return make_baseline(name, context)

        found = randomization(
            explainer.target, make, inputs, max_images=limit, batch_size=batch_size, seed=seed
        )
        figures = {key: value for key, value in vars(found).items() if isinstance(value, Tensor)}
        methods[name] = {
            key: [entry if math.isfinite(entry) else None for entry in value.tolist()]
            for key, value in figures.items()
        }
        result = {"layers": list(found.layers), "stages": list(found.stages)}
    if progress is not None:
        progress("randomizing: done", 1 + len(baselines), 1 + len(baselines))
    return {**result, "images": len(inputs), "kept": kept, "methods": methods}


def _under(name: str, progress: Progress | None) -> Progress | None:
    """Progress whose stages say which method they belong to."""
    if progress is None:
        return None
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)

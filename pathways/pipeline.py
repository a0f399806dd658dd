"""The whole job: train, evaluate, save class pathways, draw, export; and what its steps write."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathways.class_pathways import ClassPathways
from pathways.evaluation import Evaluation
from pathways.explainer import Explainer
from pathways.measuring import Progress, json_metrics, measure, method_report
from pathways.preprocessing import Preprocessing
from pathways.report import (
    explain_images,
    overlap_figure,
    save_figure,
    training_figure,
    transfer_figure,
)
from pathways.run_training import train
from pathways.runs import (
    CLASS_PATHWAYS,
    EVALUATION,
    EXPLAINER,
    GENERATOR,
    METRICS,
    RUN,
    Run,
    preprocess,
    write_json,
)
from pathways.target import GatedTarget
from pathways.training.config import TrainingConfig
from pathways.training.data import Images, as_float

LOG = "log/metrics.csv"
# What a run folder may hold, for people who look into it.
FILES = {
    METRICS: "the figures",
    EVALUATION: "everything behind them",
    RUN: "how the target is made",
    GENERATOR: "trained generator",
    CLASS_PATHWAYS: "pathway of every class",
    EXPLAINER: "scripted explainer: target, generator, preprocessing",
    "overlap.png": "overlap of pathways within and across classes",
    "transfer.png": "class pathways on other images, with controls",
    "training.png": "training curves",
    "images": "explanations of single images",
}


def save_evaluation(
    own: Evaluation,
    reports: Mapping[str, Any],
    classes: Sequence[str],
    out: str | os.PathLike[str],
) -> list[Path]:
    """Write what an evaluation found: ``evaluation.json``, class pathways, and figures.

    Args:
        own (Evaluation): of the run's own explainer, whose class pathways and figures are saved.
        reports (mapping): :func:`method_report` by method name.
        classes (sequence of str): class names.
        out (path): run folder.

    Returns:
        list of Path: the files written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / EVALUATION, {"classes": list(classes), "methods": dict(reports)})
    own.class_pathways.save(out / CLASS_PATHWAYS, extra={"classes": list(classes)})
    overlap = overlap_figure(own.class_overlap, own.class_pathways.pathway.pairwise_iou(), classes)
    files = [out / EVALUATION, out / CLASS_PATHWAYS, out / "overlap.png", out / "transfer.png"]
    save_figure(overlap, out / "overlap.png")
    save_figure(transfer_figure(own.transfer), out / "transfer.png")
    # A training that was too short to log, or evaluated elsewhere, has no curves.
    with suppress(FileNotFoundError, ValueError):
        save_figure(training_figure(out / LOG), out / "training.png")
        files.append(out / "training.png")
    return files


def save_explainer(
    explainer: Explainer,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    format: str = "torchscript",
    class_pathways: ClassPathways | None = None,
    image_shape: Sequence[int] | None = None,
    check: Tensor | None = None,
    progress: Progress | None = None,
) -> float | None:
    """Write the scripted explainer and compare the file, loaded back, with the eager explainer.

    Args:
        explainer (Explainer): generator and target.
        preprocessing (Preprocessing): becomes part of the file.
        classes (sequence of str): class names, likewise.
        path (path): file to write.
        format (str): one of ``pathways.export.WRITERS``.
        class_pathways (ClassPathways or None): becomes part of the file.
        image_shape (sequence of int or None): (C, H, W) of the images, likewise.
        check (Tensor[N, C, H, W] or None): images in [0, 1] to compare on.
        progress (callable or None): called with (stage, done, total) while compiling.

    Returns:
        float or None: largest absolute difference of logits, gated logits and importance.

    Raises:
        ValueError: unknown format, or a target that cannot be rewritten (the module is named).
        RuntimeError: the file does not give the eager explainer's values.
    """
    from pathways.export import export_explainer, load_scripted

    export_explainer(
        explainer,
        path,
        format=format,
        preprocessing=preprocessing,
        classes=classes,
        class_pathways=class_pathways,
        image_shape=image_shape,
        progress=progress,
    )
    if check is None:
        return None
    scripted = load_scripted(path)
    with torch.no_grad():
        logits, gated_logits, importance, words = scripted(check)
    eager = explainer(preprocessing(check))
    difference = max(
        float((a - b).abs().max())
        for a, b in (
            (logits, eager.logits),
            (gated_logits, eager.gated_logits),
            (importance, eager.importance),
        )
    )
    if not difference < 1e-3 or words.shape != eager.pathway.words.shape:
        raise RuntimeError(
            f"the scripted explainer {path} must equal the eager one, got values that differ by "
            f"{difference:.1e}"
        )
    return difference


def save_extracted(
    run: Run, label: int, path: str | os.PathLike[str], threshold: float | None = None
) -> dict[str, Any]:
    """Write the pathway of a class as a network of its own, see :mod:`pathways.extraction`.

    Args:
        run (Run): an evaluated run.
        label (int): the class.
        path (path): ``.pt2`` file to write; it takes images in [0, 1].
        threshold (float or None): frequency from which a channel belongs to the class; None is what
            the run's class pathways have.

    Returns:
        dict: JSON-able: ``class``, ``name``, ``threshold``, ``bytes``, ``largest_difference`` from
            the gated target, and the figures of :class:`pathways.extraction.Extraction`.

    Raises:
        FileNotFoundError: the run has no class pathways yet.
        ValueError: an empty class, units instead of channels, or a target that cannot be captured.
    """
    from pathways.extraction import extract, save_program

    if run.class_pathways is None:
        raise FileNotFoundError(
            f"run {run.path} has no class pathways yet; make them by: pathways evaluate {run.path}"
        )
    classes = run.class_pathways
    if threshold is not None:
        classes = classes.with_threshold(threshold)
    small = extract(run.target, classes[label])
    info = {
        "class": label,
        "name": run.classes[label],
        "classes": list(run.classes),
        "threshold": classes.threshold,
        "fingerprint": run.target.fingerprint,
    }
    difference = save_program(
        small,
        path,
        run.example_images().to(run.target.device),
        preprocessing=run.preprocessing,
        info=info,
    )
    result = small.extraction.to_json() | info | {"bytes": Path(path).stat().st_size}
    return result | {"largest_difference": max(difference, small.extraction.largest_difference)}


def run_pipeline(
    target: GatedTarget,
    preprocessing: Preprocessing,
    images: Images,
    out: str | os.PathLike[str],
    config: TrainingConfig,
    *,
    resume: bool = False,
    test_images: int | None = None,
    pictures: int = 10,
    started: float | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Everything from a frozen classifier to a scripted explainer, in one folder.

    Writes what :func:`train` and :func:`save_evaluation` write, pictures of single test images in
    ``images/``, ``explainer.pt`` and ``metrics.json``.

    Args:
        target (GatedTarget): the frozen classifier.
        preprocessing (Preprocessing): from images to model inputs.
        images (Images): training and test images.
        out (path): folder, made if absent.
        config (TrainingConfig): settings of the training.
        resume (bool): go on with a training in ``out``.
        test_images (int or None): measure on at most so many.
        pictures (int): test images to explain, of different predicted classes where possible.
        started (float or None): ``time.perf_counter()`` at which ``seconds_total`` begins; None is
            now.
        progress (callable or None): called with (stage, done, total).

    Returns:
        dict: contents of ``metrics.json``: fractions, ``ms_`` milliseconds, ``seconds_total``.

    Raises:
        ValueError, KeyboardInterrupt: as :func:`train`.
    """
    started = time.perf_counter() if started is None else started
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    explainer = train(target, preprocessing, images, out, config, resume=resume, progress=progress)
    evaluation = measure(
        explainer,
        preprocessing,
        images,
        limit=test_images,
        seed=config.seed,
        progress=progress,
    )
    reports = {"generator": method_report(evaluation)}
    save_evaluation(evaluation, reports, images.classes, out)
    rows = _one_per_class(explainer, preprocessing, images.test[:1000], pictures)
    explain_images(
        explainer,
        preprocessing,
        [images.test[row] for row in rows],
        [f"test_{row:04d}" for row in rows],
        images.classes,
        out / "images",
        progress=progress,
    )
    if progress is not None:
        progress("exporting", 0, 1)
    save_explainer(
        explainer,
        preprocessing,
        images.classes,
        out / EXPLAINER,
        class_pathways=evaluation.class_pathways,
        image_shape=images.shape,
        check=as_float(images.test[:8]),
    )
    if progress is not None:
        progress("exporting", 1, 1)
    metrics = evaluation.metrics() | {"seconds_total": time.perf_counter() - started}
    write_json(out / METRICS, json_metrics(metrics))
    return metrics


def _one_per_class(
    explainer: Explainer, preprocessing: Preprocessing, images: Tensor, count: int
) -> list[int]:
    """Rows of images: the first of every predicted class, then others until there are enough."""
    inputs = preprocess(images, preprocessing)
    predictions = torch.cat(
        [explainer.target(batch.to(explainer.target.device)) for batch in inputs.split(64)]
    ).argmax(1)
    first: dict[int, int] = {}
    for row, label in enumerate(predictions.tolist()):
        first.setdefault(label, row)
    rows = [first[label] for label in sorted(first)]
    rows += [row for row in range(len(images)) if row not in set(rows)]
    return rows[:count]

"""The whole job: train, evaluate, save class pathways, draw, export; and its steps one by one."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from pathways.class_pathways import ClassPathways
from pathways.evaluation import Evaluation
from pathways.explainer import Explainer
from pathways.generator.gen_cnp import GenCNP
from pathways.measuring import Progress, measure
from pathways.preprocessing import Preprocessing
from pathways.report import (
    explain_images,
    overlap_figure,
    save_figure,
    training_figure,
    transfer_figure,
)
from pathways.runs import (
    BASELINES,
    CHECKPOINT,
    CLASS_PATHWAYS,
    EVALUATION,
    GENERATOR,
    PARTIAL_EVALUATION,
    RUN,
    TRAINING,
    Run,
    preprocess,
    read_json,
    write_json,
)
from pathways.target import GatedTarget
from pathways.training.config import TrainingConfig
from pathways.training.data import Images, as_float, load_images
from pathways.training.fitting import fit

METRICS = "metrics.json"
MEAN_IMAGES = 2000  # the standard error of a mean activation is then about 2 % of its spread
EXPLAINER = "explainer.pt"
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


class TrainingProgress(lightning.Callback):
    """Passes the figures of the current step on."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        # Reading a figure of every step would wait for the device every time.
        if trainer.global_step % 10 == 0 or trainer.global_step == trainer.max_steps:
            figures = trainer.callback_metrics
            shown = [
                f"{name} {float(figures[name]):.3f}"
                for name in ("kl", "kept", "agreement", "flip")
                if name in figures
            ]
            stage = "  ".join(["training", *shown])
            self.progress(stage, trainer.global_step, int(trainer.max_steps))


def start_training(
    out: str | os.PathLike[str],
    config: TrainingConfig,
    *,
    target: str,
    data: str,
    preprocessing: Callable[[int], Preprocessing],
    weights: str | os.PathLike[str] | None = None,
    granularity: str = "channel",
    sites: Sequence[str] | None = None,
    baseline: str = "zero",
    side: int | None = None,
    train_images: int | None = None,
    overwrite: bool = False,
) -> tuple[Run, Images]:
    """Describe a new run in a folder, so that its training can start and be resumed.

    Args:
        out (path): folder, made if absent.
        config (TrainingConfig): settings; also the seed of the data's split.
        target (str): target specification.
        data (str): data specification.
        preprocessing (callable): makes the preprocessing for a number of channels.
        weights (path or None): weights file of the target.
        granularity (str): ``"channel"`` or ``"unit"``.
        sites (sequence of str or None): globs.
        baseline (str): what replaces gated-off activations: ``"zero"``, or ``"mean"``, their means
            over the first 2,000 training images.
        side (int or None): side of the square that images of a folder are cropped to.
        train_images (int or None): train on at most so many images.
        overwrite (bool): replace a run that is in the folder.

    Returns:
        Run and Images: the run with its target loaded, and the data.

    Raises:
        FileExistsError: the folder holds a run.
        FileNotFoundError, ValueError: target or data cannot be loaded, or do not fit together.
    """
    out = Path(out)
    if (out / RUN).is_file() and not overwrite:
        raise FileExistsError(
            f"{out} already holds a run; go on with --resume, replace it with --overwrite, or name "
            "another folder"
        )
    if baseline not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {baseline!r}")
    images = load_images(data, size=side, seed=config.seed).subset(train=train_images)
    run = Run.create(
        out,
        target=target,
        weights=weights,
        preprocessing=preprocessing(images.shape[0]),
        image_shape=images.shape,
        classes=images.classes,
        data=data,
        granularity=granularity,
        sites=sites,
        mean_over=images.train[:MEAN_IMAGES] if baseline == "mean" else None,
        train_images=train_images,
        seed=config.seed,
    )
    _remove_training(out)
    settings = {"fingerprint": run.description.fingerprint, **config.to_json()}
    write_json(out / TRAINING, settings)
    return run, images


def load_training(out: str | os.PathLike[str]) -> tuple[Run, TrainingConfig]:
    """A run that was started, and its settings.

    Raises:
        FileNotFoundError: no such run, or one whose training never started.
        ValueError: damaged files.
    """
    run = Run.open(out)
    file = run.path / TRAINING
    if not file.is_file():
        raise FileNotFoundError(f"run {out} has no training to go on with (no {TRAINING})")
    values = read_json(file)
    values.pop("fingerprint", None)
    return run, TrainingConfig.from_json(values)


def _remove_training(out: Path) -> None:
    """Remove what an earlier training left, so that nothing of it passes for the new one's."""
    names = (
        GENERATOR, CHECKPOINT, CLASS_PATHWAYS, EVALUATION, PARTIAL_EVALUATION, METRICS, EXPLAINER,
    )  # fmt: skip
    for file in (*(out / name for name in names), *(out / "log").glob("metrics*.csv")):
        file.unlink(missing_ok=True)


def train(
    target: GatedTarget,
    preprocessing: Preprocessing,
    images: Images,
    out: str | os.PathLike[str],
    config: TrainingConfig,
    *,
    resume: bool = False,
    validation: int = 256,
    progress: Progress | None = None,
) -> Explainer:
    """Train a generator on the training images; the test images are not touched.

    A tenth of the training images, at most ``validation``, is held out for the validation curves.
    Without ``resume``, what an earlier training left in ``out`` is removed first. With it, a
    finished training is loaded and an interrupted one goes on.

    Args:
        target (GatedTarget): the frozen classifier.
        preprocessing (Preprocessing): from images to model inputs.
        images (Images): the data.
        out (path): run folder.
        config (TrainingConfig): settings.
        resume (bool): go on with what is in ``out``.
        validation (int): most images held out.
        progress (callable or None): called with (stage, done, total).

    Returns:
        Explainer: generator and target.

    Raises:
        ValueError: too few images, or with ``resume`` a training with other settings or of another
            target.
        KeyboardInterrupt: after the training was saved so that it can be resumed.
    """
    out = Path(out)
    if resume:
        _check_same_training(out, target, config)
        if (out / GENERATOR).is_file():
            return Explainer(target, GenCNP.load(out / GENERATOR, target))
    else:
        _remove_training(out)
    held = min(validation, len(images.train) // 10)
    inputs = preprocess(images.train, preprocessing)
    generator = fit(
        target,
        inputs[: len(inputs) - held],
        out,
        config,
        validation=inputs[len(inputs) - held :] if held else None,
        blanks=preprocessing.blanks(*images.shape[1:]),
        resume=resume,
        progress=False,
        callbacks=[] if progress is None else [TrainingProgress(progress)],
    )
    return Explainer(target, generator)


def _check_same_training(out: Path, target: GatedTarget, config: TrainingConfig) -> None:
    if not (out / TRAINING).is_file():
        return
    recorded = read_json(out / TRAINING)
    found = recorded.pop("fingerprint", "")
    if found != target.fingerprint:
        raise ValueError(
            f"{out} holds a training for another target (there: {found}, "
            f"this target: {target.fingerprint})"
        )
    wanted = config.to_json()
    for name, value in TrainingConfig.from_json(recorded).to_json().items():
        if value != wanted[name]:
            raise ValueError(
                f"{out} holds a training with {name} = {value!r}, it cannot go on with "
                f"{wanted[name]!r}; start anew without resuming"
            )


def method_report(evaluation: Evaluation) -> dict[str, Any]:
    """What ``evaluation.json`` has of one method; JSON-able."""
    return {"metrics": json_metrics(evaluation.metrics()), **evaluation.details()}


def metrics_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a :func:`method_report`, NaN where a figure could not be measured."""
    values = report["metrics"].items()
    return {name: math.nan if value is None else value for name, value in values}


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


def json_metrics(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has them: None where a figure could not be measured."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


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

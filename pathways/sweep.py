"""Sweeps: generators of one target trained under several settings and seeds, measured alike."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pathways
from pathways.evaluation.quick import QUICK, quick_figures
from pathways.evaluation.runs import with_baseline
from pathways.generator.gen_cnp import FORMAT_VERSION as GENERATOR_FORMAT
from pathways.generator.gen_cnp import GenCNP
from pathways.loading import gate
from pathways.measuring import Progress, json_metrics, shuffled_test
from pathways.run_training import MEAN_IMAGES, train
from pathways.runs import (
    CHECKPOINT,
    GENERATOR,
    TRAINING,
    Run,
    preprocess,
    read_json,
    write_json,
)
from pathways.target import GatedTarget
from pathways.training.config import TrainingConfig
from pathways.training.data import Images
from pathways.variants import ABLATION, GRANULARITY, Variant, read_variants, sparsity_variants

__all__ = [
    "FIGURES",
    "Point",
    "Variant",
    "read_variants",
    "run_sweep",
    "sparsity_variants",
    "unfinished",
]

POINT = "point.json"
FORMAT_VERSION = 1
FIGURES = (*QUICK, "seconds")
# Of everything random in the measurement: the same for all points, so that they differ by their
# training alone.
MEASURING_SEED = 0


@dataclass(frozen=True)
class Point:
    """One trained and measured generator of a sweep.

    Args:
        variant (str): name of the variant.
        seed (int): of the training.
        settings (dict): all training settings.
        baseline (str): what replaced gated-off activations, ``"zero"`` or ``"mean"``.
        granularity (str): what a neuron was, ``"channel"`` or ``"unit"``.
        fingerprint (str): of the target, with both of these.
        figures (dict of float): by name, see ``FIGURES`` (and more where the generator reads the
            logits); fractions, ``kl`` in nats, ``seconds`` of training; NaN where a figure could
            not be measured (``seconds``: where the training was interrupted).
    """

    variant: str
    seed: int
    settings: dict[str, Any]
    baseline: str
    granularity: str
    fingerprint: str
    figures: dict[str, float]

    @property
    def plain(self) -> bool:
        """Whether it was trained without the leak term."""
        return bool(self.settings["specificity"] == 0)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {**vars(self), "figures": json_metrics(self.figures)}


@dataclass(frozen=True)
class _Task:
    """One point to make: what it is made of, and where it goes."""

    folder: Path
    target: GatedTarget
    config: TrainingConfig
    description: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.description['variant']} seed {self.config.seed}"

    def point(self, figures: Mapping[str, float | None]) -> Point:
        values = {name: math.nan if value is None else value for name, value in figures.items()}
        known = {name: self.description[name] for name in _POINT_FIELDS}
        return Point(**known, figures=values)


_POINT_FIELDS = ("variant", "seed", "settings", "baseline", "granularity", "fingerprint")


def run_sweep(
    run: Run,
    config: TrainingConfig,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    out: str | os.PathLike[str],
    *,
    images: Images,
    test_images: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Point]:
    """Train and measure a generator for every variant and seed.

    Writes ``OUT/VARIANT/seed_S/`` for each: ``generator.safetensors``, ``training.json``, the log,
    and ``point.json``, which describes the point from the start and gets its figures at the end. A
    sweep that was interrupted goes on where it was. All points are measured on the same test images
    in the same way (:func:`pathways.evaluation.quick.quick_figures`), as ``pathways evaluate`` does
    with its default seed. The run's own target, generator and files stay as they are.

    Args:
        run (Run): names target and preprocessing; it need not be trained.
        config (TrainingConfig): settings that the variants' are put over.
        variants (sequence of Variant): at least one, of different names.
        seeds (sequence of int): at least one, different, not negative.
        out (path): folder, made if absent.
        images (Images): the data.
        test_images (int or None): measure on at most so many test images.
        resume (bool): keep finished points with the same settings, and go on with interrupted ones.
        overwrite (bool): replace points that cannot be kept.
        progress (callable or None): called with (stage, done, total).

    Returns:
        list of Point: all seeds of the first variant, then of the next.

    Raises:
        ValueError: bad variants or seeds, too few images, or points in ``out`` of another target,
            other settings or other data; nothing was trained then.
        FileExistsError: points in ``out`` with neither ``resume`` nor ``overwrite``.
        KeyboardInterrupt: finished points and the training at hand were saved.
    """
    tasks = _tasks(run, config, variants, seeds, Path(out), images, test_images)
    for task in tasks:
        _check(task, resume, overwrite)
    rows = shuffled_test(images, MEASURING_SEED, test_images)
    inputs = preprocess(images.test[rows], run.preprocessing)
    if len(inputs) < 2:
        raise ValueError(f"a sweep needs at least two test images, got {len(inputs)}")
    points = []
    for done, task in enumerate(tasks):
        if progress is not None:
            progress(f"points  {task.label}", done, len(tasks))
        figures = _figures(task) if resume else None
        if figures is None:
            figures = _measured(task, run, images, inputs, resume, progress)
        points.append(task.point(figures))
    if progress is not None:
        progress("points", len(tasks), len(tasks))
    return points


def unfinished(
    run: Run,
    config: TrainingConfig,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    out: str | os.PathLike[str],
    *,
    images: Images,
    test_images: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
) -> list[tuple[Variant, int]]:
    """The points (variant and seed) that :func:`run_sweep` with these arguments has to train.

    Raises:
        ValueError, FileExistsError: as there.
    """
    tasks = _tasks(run, config, variants, seeds, Path(out), images, test_images)
    for task in tasks:
        _check(task, resume, overwrite)
    pairs = [(variant, seed) for variant in variants for seed in seeds]
    waiting = [not resume or _figures(task) is None for task in tasks]
    return [pair for pair, waits in zip(pairs, waiting, strict=True) if waits]


def _tasks(
    run: Run,
    config: TrainingConfig,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    out: Path,
    images: Images,
    test_images: int | None,
) -> list[_Task]:
    # Folders of some file systems do not tell case apart.
    names = [variant.name.casefold() for variant in variants]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"variants must be of different names, got {[v.name for v in variants]}")
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be different and not negative, got {list(seeds)}")
    own = (run.description.baseline, run.description.granularity)
    targets = {own: run.target}
    data = images.digest()
    tasks = []
    for variant in variants:
        baseline = variant.settings.get(ABLATION, own[0])
        kind = (baseline, variant.settings.get(GRANULARITY, own[1]))
        if kind not in targets:
            targets[kind] = _other_target(run, images, *kind)
        target = targets[kind]
        _check_generator(variant, variant.config(config, seeds[0]), target)
        for seed in seeds:
            settings = variant.config(config, seed)
            description = {
                "format_version": FORMAT_VERSION,
                "variant": variant.name,
                "seed": seed,
                "settings": settings.to_json(),
                "baseline": baseline,
                "granularity": kind[1],
                "generator_format": GENERATOR_FORMAT,
                "fingerprint": target.fingerprint,
                "data": data,
                "test_images": test_images,
                "version": pathways.__version__,
            }
            folder = out / variant.name / f"seed_{seed}"
            tasks.append(_Task(folder, target, settings, description))
    return tasks


def _check_generator(variant: Variant, config: TrainingConfig, target: GatedTarget) -> None:
    """Refuse settings that no generator can be made of before others are trained for hours."""
    try:
        with torch.random.fork_rng(devices=[]):
            GenCNP(target.sites, target.num_classes, **config.generator)
    except (TypeError, ValueError) as error:
        raise ValueError(f"variant {variant.name!r}: {error}") from error


def _other_target(run: Run, images: Images, baseline: str, granularity: str) -> GatedTarget:
    """The run's target with other ablation values or neurons; the run's own stays as it is."""
    target = run.target
    if granularity != run.description.granularity:
        description = run.description
        target = gate(
            target.model,
            run.preprocessing,
            description.image_shape,
            granularity=granularity,
            sites=description.sites,
        )
    if baseline == "zero":
        return with_baseline(target, None)
    inputs = preprocess(images.train[:MEAN_IMAGES], run.preprocessing)
    batches = (batch.to(target.device) for batch in inputs.split(256))
    return with_baseline(target, target.mean_baseline(batches))


def _check(task: _Task, resume: bool, overwrite: bool) -> None:
    """Refuse a point that is there and neither can be kept nor may be replaced."""
    file = task.folder / POINT
    if overwrite or not file.is_file():
        return
    if not resume:
        raise FileExistsError(
            f"{task.folder} already holds a point; go on with --resume, replace it with "
            "--overwrite, or name another folder"
        )
    difference = _difference(task, read_json(file))
    if difference:
        raise ValueError(
            f"{file} was made with {difference}; replace it with --overwrite, or name another "
            "folder"
        )


def _difference(task: _Task, found: Any) -> str:
    """What a recorded point was made with that this task is not; empty where nothing differs."""
    wanted = task.description
    if not isinstance(found, dict) or set(wanted) - set(found):
        return "other contents than a point has"
    kinds = (found["settings"], dict), (found.get("figures"), dict | None)
    if not all(isinstance(value, kind) for value, kind in kinds):
        return "other contents than a point has"
    for name in ("generator_format", ABLATION, GRANULARITY):
        if found[name] != wanted[name]:
            return f"{name} = {found[name]!r}, not {wanted[name]!r}"
    if found["fingerprint"] != wanted["fingerprint"]:
        return f"another target ({found['fingerprint']}, now {wanted['fingerprint']})"
    if found["data"] != wanted["data"]:
        return "other images"
    # Settings that later versions add are at their defaults.
    recorded = TrainingConfig.from_json(found["settings"]).to_json()
    for name, value in wanted["settings"].items():
        if recorded[name] != value:
            return f"{name} = {recorded[name]!r}, not {value!r}"
    if found["test_images"] != wanted["test_images"]:
        return f"test_images = {found['test_images']}, not {wanted['test_images']}"
    return ""


def _figures(task: _Task) -> dict[str, Any] | None:
    """Figures of a finished point with the settings of the task, None where there is none."""
    file = task.folder / POINT
    if not file.is_file():
        return None
    found = read_json(file)
    figures = None if _difference(task, found) else found.get("figures")
    # Generators that read the logits have more than these.
    return None if figures is None else dict.fromkeys(FIGURES) | figures


def _measured(
    task: _Task,
    run: Run,
    images: Images,
    inputs: Tensor,
    resume: bool,
    progress: Progress | None,
) -> dict[str, float]:
    """Train the point's generator, or go on with it, and measure it."""
    file = task.folder / POINT
    if not (resume and file.is_file() and not _difference(task, read_json(file))):
        _clear(task.folder)
        task.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {**task.description, "figures": None})
    interrupted = any((task.folder / name).is_file() for name in (GENERATOR, CHECKPOINT))
    started = time.perf_counter()
    explainer = train(
        task.target,
        run.preprocessing,
        images,
        task.folder,
        task.config,
        resume=True,
        progress=_of(task.label, progress),
    )
    seconds = math.nan if interrupted else time.perf_counter() - started
    figures = quick_figures(
        explainer,
        inputs,
        blanks=run.preprocessing.blanks(*images.shape[1:]),
        seed=MEASURING_SEED,
    )
    figures["seconds"] = seconds
    write_json(file, {**task.description, "figures": json_metrics(figures)})
    (task.folder / CHECKPOINT).unlink(missing_ok=True)  # nothing goes on from here
    return figures


def _clear(folder: Path) -> None:
    """Remove what an earlier point left; without the description, first of all, there is none."""
    names = (POINT, GENERATOR, CHECKPOINT, TRAINING)
    for file in (*(folder / name for name in names), *(folder / "log").glob("metrics*.csv")):
        file.unlink(missing_ok=True)


def _of(label: str, progress: Progress | None) -> Progress | None:
    """Progress whose details begin with the point that they belong to."""
    if progress is None:
        return None

    def report(stage: str, done: int, total: int) -> None:
        name, _, detail = stage.partition("  ")
        progress(f"{name}  {label}  {detail}".rstrip(), done, total)

    return report

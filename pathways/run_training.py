"""Training into a run folder: started, resumed, finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning

from pathways.explainer import Explainer
from pathways.generator.gen_cnp import GenCNP
from pathways.measuring import Progress
from pathways.preprocessing import Preprocessing
from pathways.runs import (
    BASELINES,
    CHECKPOINT,
    CLASS_PATHWAYS,
    EVALUATION,
    EXPLAINER,
    GENERATOR,
    METRICS,
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
from pathways.training.data import Images, load_images
from pathways.training.fitting import fit

MEAN_IMAGES = 2000  # the standard error of a mean activation is then about 2 % of its spread


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

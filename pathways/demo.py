"""The demo: scikit-learn's digits, a small classifier, and the whole job on them; no download."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pathways.loading import save_weights
from pathways.measuring import Progress
from pathways.models import digits_net
from pathways.pipeline import run_pipeline
from pathways.preprocessing import Preprocessing
from pathways.runs import RUN, Run
from pathways.training.classifier import train_classifier
from pathways.training.config import TrainingConfig
from pathways.training.data import Images, load_images

TARGET = "pathways.models:digits_net"
WEIGHTS = "target.safetensors"
# What the demo is expected to reach; tools/check_metrics.py checks the same limits.
NEEDED = {
    "target_accuracy": ">= 0.98",
    "agreement": ">= 0.95",
    "kept": "<= 0.55",
    "wrong_class_flip": "<= 0.10",
    "blank_hit": "<= 0.30",
    "transfer_agreement": ">= 0.90",
}


@dataclass(frozen=True)
class Demo:
    """Result of :func:`run_demo`.

    Args:
        run (Run): the run folder, usable like any other.
        metrics (dict): contents of its ``metrics.json``.
        needed (dict): limits by metric.
    """

    run: Run
    metrics: dict[str, float]
    needed: dict[str, str]


def run_demo(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Demo:
    """Train a classifier and a generator for the digits at 16x16, measure, draw and export.

    Args:
        out (path): folder, made if absent.
        seed (int): of everything random.
        steps (int or None): training steps of the generator; None is the demo's own number.
        resume (bool): go on with an interrupted demo.
        overwrite (bool): replace a run in ``out`` that is not a demo.
        progress (callable or None): called with (stage, done, total).

    Returns:
        Demo: run folder and metrics.

    Raises:
        ValueError: ``out`` holds another run, or with ``resume`` a demo with other settings.
        FileNotFoundError: scikit-learn is not installed.
    """
    started = time.perf_counter()
    out = Path(out)
    _check_folder(out, overwrite)
    settings: dict[str, Any] = {} if steps is None else {"steps": steps}
    config = TrainingConfig(
        **{
            "steps": 800,
            "sparsity": 3.0,
            "specificity": 5.0,
            "class_share": 0.5,
            "validation_every": 100,
            "seed": seed,
            **settings,
        }
    )
    images = load_images("digits", seed=seed)
    preprocessing = Preprocessing((0.5,), (0.5,))
    out.mkdir(parents=True, exist_ok=True)
    run = _open(out) if resume else None
    if run is None:
        run = _classifier(images, preprocessing, out, seed, progress)
    metrics = run_pipeline(
        run.target,
        preprocessing,
        images,
        out,
        config,
        resume=resume,
        started=started,
        progress=progress,
    )
    return Demo(run, metrics, NEEDED)


def _check_folder(out: Path, overwrite: bool) -> None:
    if overwrite or not (out / RUN).is_file():
        return
    found = Run.open(out).description.target
    if found != TARGET:
        raise ValueError(
            f"{out} holds a run for target {found}; name another folder, or replace it with "
            "--overwrite"
        )


def _open(out: Path) -> Run | None:
    """The run of an interrupted demo, if its classifier was finished."""
    return Run.open(out) if (out / RUN).is_file() and (out / WEIGHTS).is_file() else None


def _classifier(
    images: Images,
    preprocessing: Preprocessing,
    out: Path,
    seed: int,
    progress: Progress | None,
) -> Run:
    """Train the target and describe the run."""
    (out / RUN).unlink(missing_ok=True)
    torch.manual_seed(seed)
    model = digits_net()

    def report(step: int, steps: int, loss: float) -> None:
        if progress is not None and (step % 10 == 0 or step == steps):
            progress(f"training the target  loss {loss:.3f}", step, steps)

    train_classifier(
        model,
        images.train,
        images.train_labels,
        epochs=12,
        transform=preprocessing,
        shift=1,
        seed=seed,
        progress=report,
    )
    save_weights(model, out / WEIGHTS)
    # Through the file, so that what is explained is what a later command loads.
    return Run.create(
        out,
        target=TARGET,
        weights=out / WEIGHTS,
        preprocessing=preprocessing,
        image_shape=images.shape,
        classes=images.classes,
        data="digits",
        seed=seed,
    )

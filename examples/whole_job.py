"""What the examples have in common: everything from a described run to its figures."""

from __future__ import annotations

from pathways.console import Output
from pathways.pipeline import run_pipeline
from pathways.printing import show_metrics
from pathways.runs import Run
from pathways.training.config import TrainingConfig
from pathways.training.data import Images

# Larger than the default: these nets have several times the channels of the digits' one.
GENERATOR = {"min_keep": 0.05, "width": 128, "layers": 2}


def whole_job(
    output: Output,
    run: Run,
    images: Images,
    settings: TrainingConfig,
    *,
    steps: int,
    seed: int,
    resume: bool,
    test_images: int,
    started: float,
) -> None:
    """Train, measure, draw, export, and show the figures."""
    metrics = run_pipeline(
        run.target,
        run.preprocessing,
        images,
        run.path,
        TrainingConfig.from_json(settings.to_json() | {"steps": steps, "seed": seed}),
        resume=resume,
        test_images=test_images,
        started=started,
        progress=output.progress,
    )
    show_metrics(output, {"generator": metrics}, len(images.classes))

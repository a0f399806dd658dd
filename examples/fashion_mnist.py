"""The whole job on Fashion-MNIST: a small VGG, its pathways, their faithfulness and their leaks.

Needs the data as idx files: Debian's package dataset-fashion-mnist, or a folder named with --data.

    python examples/fashion_mnist.py --out out/fashion_mnist
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from whole_job import GENERATOR, whole_job

from pathways.console import command
from pathways.loading import save_weights
from pathways.models import vgg
from pathways.preprocessing import Preprocessing
from pathways.runs import Run
from pathways.training.classifier import train_classifier
from pathways.training.config import TrainingConfig
from pathways.training.data import load_images

SETTINGS = TrainingConfig(
    steps=2000,
    sparsity=2.25,
    specificity=6.0,
    class_share=0.5,
    larger_share=0.5,
    sharpness=1.5,
    target_bfloat16=True,
    generator=GENERATOR,
)


def main(
    data: Annotated[str, typer.Option(help="Folder of the idx files; default is Debian's.")] = "",
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("out/fashion_mnist"),
    steps: Annotated[int, typer.Option(help="Training steps of the generator.")] = SETTINGS.steps,
    epochs: Annotated[int, typer.Option(help="Epochs of the classifier.")] = 2,
    train_images: Annotated[int | None, typer.Option(help="Use only so many.")] = None,
    test_images: Annotated[int, typer.Option(help="Measure on so many.")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
) -> None:
    """Train, measure, draw and export; writes metrics.json into the run folder."""
    with command(as_json=False) as output:
        started = time.perf_counter()
        output.interrupted = f"interrupted; go on with --out {out} --resume"
        spec = f"fashion-mnist:{data}" if data else "fashion-mnist"
        images = load_images(spec).subset(train=train_images)
        preprocessing = Preprocessing((0.2860,), (0.3530,))
        weights = out / "target.safetensors"
        if not (resume and weights.is_file()):
            out.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(seed)
            model = vgg()
            train_classifier(
                model,
                images.train,
                images.train_labels,
                epochs=epochs,
                transform=preprocessing,
                seed=seed,
                progress=lambda step, total, loss: output.progress(
                    f"training the target  loss {loss:.3f}", step, total
                ),
            )
            save_weights(model, weights)
        run = Run.create(
            out,
            target="pathways.models:vgg",
            weights=weights,
            preprocessing=preprocessing,
            image_shape=images.shape,
            classes=images.classes,
            data=spec,
            train_images=train_images,
            seed=seed,
        )
        whole_job(
            output,
            run,
            images,
            SETTINGS,
            steps=steps,
            seed=seed,
            resume=resume,
            test_images=test_images,
            started=started,
        )


if __name__ == "__main__":
    typer.run(main)

"""The whole job on a ResNet-20 trained on CIFAR-10, with images from two npz files.

The npz files hold JPEG images (arrays jpeg, offsets, labels, classes); the weights are a state_dict
of akamaster/pytorch_resnet_cifar10 as safetensors.

    python examples/cifar_resnet20.py --weights W --train TRAIN.npz --test TEST.npz --out out/cifar
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import cifar10
import typer
from whole_job import GENERATOR, whole_job

from pathways.console import command
from pathways.preprocessing import Preprocessing
from pathways.run_training import MEAN_IMAGES
from pathways.runs import Run
from pathways.training.config import TrainingConfig

SETTINGS = TrainingConfig(
    steps=1500,
    sparsity=1.75,
    specificity=3.25,
    class_share=0.15,
    target_bfloat16=True,
    generator=GENERATOR,
)


def main(
    weights: Annotated[Path, typer.Option(help="Weights of the ResNet-20.")] = cifar10.SHARED
    / "cifar10_resnet20.safetensors",
    train: Annotated[Path, typer.Option(help="Training images.")] = cifar10.TRAIN,
    test: Annotated[Path, typer.Option(help="Test images.")] = cifar10.TEST,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("out/cifar_resnet20"),
    steps: Annotated[int, typer.Option(help="Training steps of the generator.")] = SETTINGS.steps,
    train_images: Annotated[int | None, typer.Option(help="Use only so many.")] = None,
    test_images: Annotated[int, typer.Option(help="Measure on so many.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
) -> None:
    """Train, measure, draw and export; writes metrics.json into the run folder."""
    with command(as_json=False) as output:
        started = time.perf_counter()
        output.interrupted = f"interrupted; go on with --out {out} --resume"
        images = cifar10.load(train, test).subset(train=train_images)
        preprocessing = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        run = Run.create(
            out,
            target="pathways.models:resnet20",
            weights=weights,
            preprocessing=preprocessing,
            image_shape=images.shape,
            classes=images.classes,
            # Later commands load the data again; they find only the files in their usual place.
            data=cifar10.SPEC if (train, test) == (cifar10.TRAIN, cifar10.TEST) else None,
            train_images=train_images,
            mean_over=images.train[:MEAN_IMAGES],
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

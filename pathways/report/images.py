"""Pictures and descriptions of single images, written to a folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pathways.explainer import Explainer
from pathways.maps import collapse_gradient
from pathways.pathway import Pathway
from pathways.preprocessing import Preprocessing
from pathways.report.describe import describe
from pathways.report.figures import explanation_figure, save_figure
from pathways.runs import write_json
from pathways.training.data import as_float, fit_square

Progress = Callable[[str, int, int], None]


def explain_images(
    explainer: Explainer,
    preprocessing: Preprocessing,
    images: Sequence[Tensor],
    names: Sequence[str],
    classes: Sequence[str],
    out: str | os.PathLike[str],
    *,
    about: int | None = None,
    top: int = 8,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Explain images one by one: a picture and a JSON file each, and one file with the pathways.

    Args:
        explainer (Explainer): generator and target.
        preprocessing (Preprocessing): from images to model inputs.
        images (sequence of Tensor[C, H, W]): uint8 or float in [0, 1].
        names (sequence of str): one per image; stems of the files.
        classes (sequence of str): class names.
        out (path): folder, made if absent.
        about (int or None): class that Grad-CAM and gradient are for; None is the predicted one.
        top (int): most important neurons to name.
        progress (callable or None): called with (stage, done, total).

    Returns:
        list of dict: :func:`pathways.report.describe` of every image, with ``image`` (its name) and
        ``files`` (``picture``, ``json``, ``pathways``).

    Raises:
        ValueError: another number of names, ``about`` outside the classes, or a picture that would
            overwrite one of the images.
    """
    if len(names) != len(images):
        raise ValueError(f"explain_images: names must be {len(images)}, got {len(names)}")
    if about is not None and not 0 <= about < len(classes):
        raise ValueError(f"class must be in [0, {len(classes)}), got {about}")
    out = Path(out)
    has_maps = any(len(site.space) == 2 and max(site.space) > 1 for site in explainer.sites)
    results, pathways = [], []
    stems = _unique([Path(name).stem for name in names])
    _check_inputs_stay([out / f"{stem}.png" for stem in stems], names)
    out.mkdir(parents=True, exist_ok=True)
    for position, (image, name, stem) in enumerate(zip(images, names, stems, strict=True)):
        inputs = preprocessing(as_float(image).unsqueeze(0)).to(explainer.target.device)
        explanation = explainer(inputs)
        pathways.append(explanation.pathway.to("cpu"))
        described = describe(explanation, classes, top=top)[0]
        label = described["predicted"]["class"] if about is None else about
        chosen = torch.tensor([label], device=inputs.device)
        heat = explainer.grad_cam(inputs, explanation.pathway, chosen)[0] if has_maps else None
        gradient = explainer.pathway_gradient(inputs, explanation.pathway, chosen)
        figure = explanation_figure(
            image,
            described,
            heat,
            collapse_gradient(gradient)[0],
            heat_class=None if about is None else classes[about],
            title=Path(name).name,
        )
        picture, text = out / f"{stem}.png", out / f"{stem}.json"
        save_figure(figure, picture)
        files = {
            "picture": str(picture),
            "json": str(text),
            "pathways": str(out / "pathways.safetensors"),
        }
        result = {"image": name, **described, "files": files}
        if about is not None:
            result["maps_for"] = {"class": about, "name": classes[about]}
        write_json(text, result)
        results.append(result)
        if progress is not None:
            progress("explaining images", position + 1, len(images))
    if pathways:
        extra = {
            "names": list(names),
            "predictions": [entry["predicted"]["class"] for entry in results],
        }
        Pathway.cat(pathways).save(out / "pathways.safetensors", extra=extra)
    return results


def _unique(stems: Sequence[str]) -> list[str]:
    """Stems with a number behind repeated ones, so that no picture overwrites another."""
    unique: list[str] = []
    for stem in stems:
        numbered = (f"{stem}-{number}" for number in itertools.count(2))
        free = (name for name in itertools.chain([stem], numbered) if name not in unique)
        unique.append(next(free))
    return unique


def _check_inputs_stay(paths: Sequence[Path], names: Sequence[str]) -> None:
    """Raises where a file to write is one of the images."""
    images = {os.path.realpath(name): name for name in names if os.path.isfile(name)}
    for path in paths:
        name = images.get(os.path.realpath(path))
        if name is not None:
            raise ValueError(
                f"explain_images: {path} would overwrite the image {name}; choose another folder"
            )


def fit_to_run(image: Tensor, shape: Sequence[int], preprocessing: Preprocessing) -> Tensor:
    """An image of any size in the shape of a run's images.

    Args:
        image (Tensor[C, h, w], uint8): as it was read.
        shape (sequence of int): (C, H, W) of the run's images.
        preprocessing (Preprocessing): when it resizes, the image is left to it unless the run's
            images are square (then the centre is cropped, as for training).

    Returns:
        Tensor[C, H, W]: uint8.
    """
    _, height, width = shape
    if tuple(image.shape[1:]) == (height, width):
        return image
    if height == width:
        return fit_square(image, height)
    if preprocessing.size:
        return image
    resized = F.interpolate(
        image.unsqueeze(0).float(), size=(height, width), mode="bicubic", antialias=True
    )
    return resized.squeeze(0).round().clamp(0, 255).to(torch.uint8)

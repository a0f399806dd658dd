"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pathways.preprocessing import Preprocessing
    from pathways.runs import Run
    from pathways.training.config import TrainingConfig

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
Weights = Annotated[
    Path | None,
    typer.Option(help="State_dict file of the target: .safetensors, .pt or .pth."),
]
Granularity = Annotated[
    str, typer.Option(help="What a neuron is: channel, or unit (one scalar of a map).")
]
SiteGlobs = Annotated[
    list[str] | None,
    typer.Option(help="Glob of module paths or keys (layer3.*, *#0); repeat for several."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]
DATA_HELP = (
    "digits, fashion-mnist[:DIR], imagefolder:DIR, torchvision:NAME[:DIR], npz:FILE, "
    "module:factory or file.py:factory."
)
OtherData = Annotated[str | None, typer.Option(help=f"Other data than the run's: {DATA_HELP}")]
TARGET_HELP = "file.py:factory, module:factory, torchvision:NAME, timm:NAME or FILE.pt2."


def numbers(option: str, text: str, channels: int) -> list[float]:
    """One number for every channel, or one per channel."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, channels):
        raise ValueError(f"{option} must be one number or {channels}, got {text!r}")
    return values * channels if len(values) == 1 else values


def integers(option: str, text: str, count: int | None = None) -> list[int]:
    """Positive integers separated by commas, ``count`` of them if given."""
    parts = text.split(",")
    good = all(part.strip().isdecimal() and int(part) > 0 for part in parts)
    if not good or count not in (None, len(parts)):
        many = "" if count is None else f"{count} "
        raise ValueError(f"{option} must be {many}positive integers like 3,32,32, got {text!r}")
    return [int(part) for part in parts]


def listed(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """Numbers separated by commas, any count of them but none.

    Raises:
        ValueError: something else.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        example = "0,1,2" if kind is int else "1,2.5,8"
        raise ValueError(f"{option} must be numbers like {example}, got {text!r}") from None


def preprocessing(
    target: str,
    channels: int,
    mean: str | None,
    std: str | None,
    size: str | None,
    scale: float | None,
    channel_order: str | None,
) -> Preprocessing:
    """What was given on the command line over what the target is known to expect."""
    from pathways.loading import default_preprocessing
    from pathways.preprocessing import Preprocessing

    values: dict[str, Any] = default_preprocessing(target, channels).to_json()
    if mean is not None:
        values["mean"] = numbers("--mean", mean, channels)
    if std is not None:
        values["std"] = numbers("--std", std, channels)
    if size is not None:
        values["size"] = parsed_size(size)
    if scale is not None:
        values["scale"] = scale
    if channel_order is not None:
        values["channel_order"] = channel_order
    return Preprocessing(**values)


def baseline_names(text: str) -> list[str]:
    """Known baselines, separated by commas; none for an empty text."""
    from pathways.baselines.registry import check_baselines

    names = [name.strip() for name in text.split(",") if name.strip()]
    check_baselines(names)
    return names


def shares(name: str, text: str) -> list[float]:
    """Numbers in (0, 1] separated by commas; none for an empty text."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [math.nan]
    if not all(0.0 < value <= 1.0 for value in values):
        raise ValueError(f"{name} must be shares in (0, 1], like 0.1,0.3; got {text!r}")
    return values


def writable(option: str, folder: Path) -> Path:
    """A folder in which results can be written when they are there; it need not exist yet.

    Raises:
        ValueError: something is in its place, or it cannot be written; found before long work.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "cannot be written" if place.is_dir() else "is no folder"
        raise ValueError(f"{option} must be a folder to write to, got {folder}: {place} {why}")
    return folder


def image_side(target: str, size: str | None) -> int | None:
    """Side of the square that images of a folder are cropped to; None leaves it to the data."""
    from pathways.loading import default_preprocessing

    sides = parsed_size(size) if size is not None else default_preprocessing(target, 3).size
    return sides[0] if len(set(sides)) == 1 else None


def parsed_size(size: str) -> list[int]:
    """Height and width of ``224`` or ``224x160``."""
    parts = size.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--size must be a side or height x width, got {size!r}")
    return [int(part) for part in parts] * (3 - len(parts))


def training_config(settings: list[str] | None, **named: Any) -> TrainingConfig:
    from pathways.training.config import TrainingConfig

    values = {name: value for name, value in named.items() if value is not None}
    return TrainingConfig.from_json(values | assignments(settings))


def assignments(settings: list[str] | None) -> dict[str, Any]:
    """Values of NAME=VALUE, where VALUE is JSON, or else text."""
    values: dict[str, Any] = {}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set must be NAME=VALUE, got {setting!r}")
        try:
            values[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            values[name.strip()] = text
    return values


def place(run: Run, device: str) -> None:
    """Move the run's target to a device."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: this torch sees no CUDA device; use --device cpu")
    if device != "cpu":
        run.target.model.to(device)

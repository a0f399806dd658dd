"""Run folders: everything needed to explain a target again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pathways
from pathways.class_pathways import ClassPathways
from pathways.explainer import Explainer
from pathways.files import read_safetensors, replace_file, write_safetensors
from pathways.generator.gen_cnp import GenCNP
from pathways.loading import gate, load_target
from pathways.preprocessing import Preprocessing
from pathways.target import GatedTarget
from pathways.training.data import Images, load_images

FORMAT_VERSION = 1
RUN = "run.json"
# Written by pathways.training.fit.
GENERATOR = "generator.safetensors"
CHECKPOINT = "last.ckpt"
TRAINING = "training.json"
CLASS_PATHWAYS = "class_pathways.safetensors"
METRICS = "metrics.json"
EVALUATION = "evaluation.json"
PARTIAL_EVALUATION = "evaluation.partial.json"
RANDOMIZATION = "randomization.json"
EXPLAINER = "explainer.pt"
BASELINE = "baseline.safetensors"
BASELINES = ("zero", "mean")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON, indented, in one step: an interrupted or failed write keeps the old file.

    Raises:
        ValueError: ``value`` holds NaN or infinity, which JSON does not have.
        OSError: the file cannot be written.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with replace_file(path) as temporary:
        temporary.write_text(text)


@dataclass(frozen=True)
class RunDescription:
    """What ``run.json`` holds.

    Args:
        target (str): how the target is made, one of the forms of
            :func:`pathways.loading.load_target`.
        weights (str or None): weights file; a relative path is relative to the run folder.
        data (str or None): data specification (:func:`pathways.training.data.load_images`).
        train_images (int or None): how many training images are used; None is all.
        seed (int): of the split of data that has none.
        preprocessing (dict): arguments of :class:`pathways.preprocessing.Preprocessing`.
        image_shape (tuple of int): (C, H, W) of the images before preprocessing.
        classes (tuple of str): K class names.
        granularity (str): ``"channel"`` or ``"unit"``.
        sites (tuple of str or None): globs that select the sites; None is all.
        baseline (str): what replaces gated-off activations: ``"zero"``, or ``"mean"``, the means in
            ``baseline.safetensors``.
        fingerprint (str): ``target.fingerprint``.
        version (str): version of pathways that wrote the file.
    """

    target: str
    weights: str | None
    data: str | None
    train_images: int | None
    seed: int
    preprocessing: dict[str, Any]
    image_shape: tuple[int, ...]
    classes: tuple[str, ...]
    granularity: str
    sites: tuple[str, ...] | None
    baseline: str
    fingerprint: str
    version: str


class Run:
    """A folder with a trained generator and what is needed to use it.

    The folder holds ``run.json`` (this description), what ``training.fit`` writes
    (``training.json``, ``last.ckpt``, ``log/``, ``generator.safetensors``) and what an evaluation
    writes. Parts are loaded when first used. The target is made by running the code that
    ``run.json`` names, so open only runs you trust as much as that code.

    Args:
        path (path): the folder.
        description (RunDescription): contents of ``run.json``.
    """

    def __init__(self, path: str | os.PathLike[str], description: RunDescription) -> None:
        self.path = Path(path)
        self.description = description

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.description.target!r})"

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        target: str,
        preprocessing: Preprocessing,
        image_shape: Sequence[int],
        classes: Sequence[str],
        weights: str | os.PathLike[str] | None = None,
        data: str | None = None,
        granularity: str = "channel",
        sites: Sequence[str] | None = None,
        mean_over: Tensor | None = None,
        train_images: int | None = None,
        seed: int = 0,
    ) -> Run:
        """Load a target and describe it in ``run.json`` in a folder, which is made if absent.

        Args:
            path (path): the folder.
            target (str): specification (:func:`pathways.loading.load_target`).
            preprocessing (Preprocessing): from images to model inputs.
            image_shape (sequence of int): (C, H, W) before preprocessing.
            classes (sequence of str): one name per class of the target.
            weights (path or None): weights file.
            data (str or None): data specification.
            granularity (str): ``"channel"`` or ``"unit"``.
            sites (sequence of str or None): globs that select the sites.
            mean_over (Tensor[N, C, H, W] or None): images whose mean activations replace gated-off
                ones; None replaces them by zero.
            train_images (int or None): how many training images are used.
            seed (int): of the split.

        Raises:
            FileNotFoundError, ValueError: the target cannot be made or gated, it is another one
                each time it is made, or it has another number of classes.
            OSError: the folder or the file cannot be written.
        """
        model = load_target(target, weights)
        gated = gate(model, preprocessing, image_shape, granularity=granularity, sites=sites)
        if len(classes) != gated.num_classes:
            raise ValueError(
                f"the data must have as many classes as the target ({gated.num_classes}), "
                f"got {len(classes)}"
            )
        # An untrained factory would make the run useless: no later command could load its target.
        if weights is None and _state_differs(model, load_target(target)):
            raise ValueError(
                f"target {target} must be the same each time it is made, but its weights differ; "
                "load trained weights in the factory, or name a file with --weights"
            )
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        if mean_over is not None:
            gated.baseline = gated.mean_baseline(preprocess(mean_over, preprocessing).split(256))
            means = {str(i): value for i, value in enumerate(gated.baseline or [])}
            write_safetensors(
                path / BASELINE, means, kind="baseline", version=FORMAT_VERSION, header={}
            )
        description = RunDescription(
            target=_portable(target, path, spec=True),
            weights=None if weights is None else _portable(os.fspath(weights), path),
            data=None if data is None else _portable(data, path, spec=True),
            train_images=train_images,
            seed=seed,
            preprocessing=preprocessing.to_json(),
            image_shape=tuple(image_shape),
            classes=tuple(classes),
            granularity=granularity,
            sites=None if sites is None else tuple(sites),
            baseline="zero" if mean_over is None else "mean",
            fingerprint=gated.fingerprint,
            version=pathways.__version__,
        )
        write_json(path / RUN, {"format_version": FORMAT_VERSION, **asdict(description)})
        run = cls(path, description)
        run.__dict__["target"] = gated  # what the property below would load
        return run

    def check_output(self, path: Path) -> None:
        """Refuse to write over a file that the run is made of.

        Raises:
            ValueError: ``path`` is one.
        """
        own = [RUN, GENERATOR, CHECKPOINT, TRAINING, CLASS_PATHWAYS, EVALUATION, BASELINE]
        if self.description.weights is not None:
            own.append(self.description.weights)
        if any(path.resolve() == (self.path / name).resolve() for name in own):
            raise ValueError(f"--out must not be a file of the run itself, got {str(path)!r}")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Read the description of a run folder; nothing else is loaded yet.

        Raises:
            FileNotFoundError: no such folder, or it is not a run.
            ValueError: ``run.json`` is damaged or newer than this version understands.
        """
        file = Path(path) / RUN
        if not Path(path).is_dir():
            raise FileNotFoundError(f"there is no run folder {path}; make one with `pathways fit`")
        if not file.is_file():
            raise FileNotFoundError(f"{path} is not a run folder (it has no {RUN})")
        values = read_json(file)
        version = values.pop("format_version", None) if isinstance(values, dict) else None
        if not isinstance(version, int):
            raise ValueError(f"{file} is damaged or not a run description (no format_version)")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{file} must be in format version {FORMAT_VERSION} or older, got {version}; "
                "upgrade pathways to read it"
            )
        missing = [entry.name for entry in fields(RunDescription) if entry.name not in values]
        if missing:
            raise ValueError(f"{file} is damaged (it lacks {', '.join(missing)})")
        known = {entry.name: values[entry.name] for entry in fields(RunDescription)}
        for name in ("image_shape", "classes", "sites"):
            known[name] = None if known[name] is None else tuple(known[name])
        return cls(path, RunDescription(**known))

    # ------------------------------------------------------------------ parts

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.description.classes

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """From images in [0, 1] to model inputs."""
        return Preprocessing(**self.description.preprocessing)

    @cached_property
    def target(self) -> GatedTarget:
        """The target, made from its specification and checked against the recorded fingerprint.

        Raises:
            ValueError: it cannot be made, or is another one by now (both fingerprints are named).
        """
        description = self.description
        spec = _resolved(description.target, self.path, spec=True)
        weights = description.weights
        model = load_target(spec, None if weights is None else _resolved(weights, self.path))
        gated = gate(
            model,
            self.preprocessing,
            description.image_shape,
            granularity=description.granularity,
            sites=description.sites,
        )
        if description.baseline == "mean":
            means, _ = read_safetensors(
                self.path / BASELINE, kind="baseline", version=FORMAT_VERSION
            )
            gated.baseline = [means[str(i)] for i in range(len(means))]
        found = gated.fingerprint
        if found != description.fingerprint:
            raise ValueError(
                f"the target of run {self.path} has changed since the run was made (recorded: "
                f"{description.fingerprint}, now: {found}); its code or weights must be put back"
            )
        return gated

    @cached_property
    def explainer(self) -> Explainer:
        """The trained generator with its target.

        Raises:
            FileNotFoundError: the training is not finished; the sentence says how to go on.
            ValueError: the generator belongs to another target.
        """
        file = self.path / GENERATOR
        if not file.is_file():
            how = "--resume" if (self.path / CHECKPOINT).is_file() else "--resume (from the start)"
            raise FileNotFoundError(
                f"run {self.path} has no trained generator yet; "
                f"go on with `pathways fit --out {self.path} {how.split()[0]}`"
            )
        return Explainer(self.target, GenCNP.load(file, self.target))

    @cached_property
    def images(self) -> Images:
        """The run's data.

        Raises:
            FileNotFoundError, ValueError: the data is not there or not readable.
        """
        if self.description.data is None:
            raise ValueError(f"run {self.path} records no data; name it with --data")
        images = self.load_images(_resolved(self.description.data, self.path, spec=True))
        return images.subset(train=self.description.train_images)

    def load_images(self, spec: str) -> Images:
        """Other data for the same target.

        Raises:
            ValueError: its images have another number of channels, or its classes another number.
        """
        _, height, width = self.description.image_shape
        images = load_images(
            spec, size=height if height == width else None, seed=self.description.seed
        )
        if images.shape[0] != self.description.image_shape[0]:
            raise ValueError(
                f"data {spec}: images must have {self.description.image_shape[0]} channels like "
                f"those of run {self.path}, got {images.shape[0]}"
            )
        if len(images.classes) != len(self.classes):
            raise ValueError(
                f"data {spec}: there must be {len(self.classes)} classes like in run {self.path}, "
                f"got {len(images.classes)}"
            )
        return images

    def example_images(self, count: int = 4) -> Tensor:
        """Seeded noise ``[count, C, H, W]`` in [0, 1] in the shape of the run's images.

        For checks that must not depend on the data being there.
        """
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, *self.description.image_shape, generator=generator)

    @cached_property
    def class_pathways(self) -> ClassPathways | None:
        """Class pathways that an evaluation saved, or None.

        Raises:
            ValueError: damaged, or of another target.
        """
        file = self.path / CLASS_PATHWAYS
        return ClassPathways.load(file, self.target) if file.is_file() else None


def class_index(name: str, classes: Sequence[str]) -> int:
    """The class of a name, or of a number where no class has that name.

    Raises:
        ValueError: neither; the names are listed.

    Example:
        >>> class_index("dog", ("cat", "dog")), class_index("0", ("cat", "dog"))
        (1, 0)
    """
    if name in classes:
        return list(classes).index(name)
    if name.isdigit() and int(name) < len(classes):
        return int(name)
    shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    raise ValueError(
        f"class must be a name ({shown}) or a number in [0, {len(classes)}), got {name!r}"
    )


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a JSON file ({error})") from error


def preprocess(images: Tensor, preprocessing: Preprocessing, batch_size: int = 256) -> Tensor:
    """Model inputs ``[N, C, H, W]`` of stored images (uint8, or float in [0, 1]), in batches."""
    from pathways.training.data import batches

    parts = list(batches(images, batch_size, preprocessing))
    return torch.cat(parts) if parts else preprocessing(images.float())


def _state_differs(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() != second.keys() or any(
        not torch.equal(value, second[name]) for name, value in first.items()
    )


# ---------------------------------------------------------------------- paths in run.json


def _portable(value: str, folder: Path, spec: bool = False) -> str:
    """A path as it is recorded: relative inside the run folder, else absolute.

    With ``spec`` the value is a specification, of which only the path in it is changed.
    """
    head, path, tail = _path_in(value) if spec else ("", value, "")
    if not path:
        return value
    absolute, root = Path(path).resolve(), folder.resolve()
    recorded = absolute.relative_to(root) if absolute.is_relative_to(root) else absolute
    return f"{head}{recorded}{tail}"


def _resolved(value: str, folder: Path, spec: bool = False) -> str:
    """Inverse of :func:`_portable`: relative paths are inside the run folder."""
    head, path, tail = _path_in(value) if spec else ("", value, "")
    return f"{head}{folder / path}{tail}" if path else value


def _path_in(spec: str) -> tuple[str, str, str]:
    """What stands before the path in a target or data specification, the path, and the rest."""
    form, _, rest = spec.partition(":")
    source, _, factory = spec.rpartition(":")
    if source.endswith(".py"):
        return "", source, f":{factory}"
    if form in ("npz", "imagefolder", "fashion-mnist"):
        return f"{form}:", rest, ""
    if form == "torchvision" and ":" in rest:
        name, _, directory = rest.partition(":")
        return f"{form}:{name}:", directory, ""
    return ("", spec, "") if spec.endswith(".pt2") else (spec, "", "")

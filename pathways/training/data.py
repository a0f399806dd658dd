"""Images to train and measure on: named data sets, files and folders, nothing downloaded."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.util
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FASHION_MNIST_DIRECTORY = "/usr/share/datasets/fashion-mnist"  # Debian: dataset-fashion-mnist
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DATA_FORMS = (
    "digits, fashion-mnist[:DIR], imagefolder:DIR, torchvision:NAME[:DIR], npz:FILE, module:factory"
)


@dataclass
class Images:
    """Labelled images in memory, split into a training and a test part.

    Args:
        train (Tensor[N, C, H, W]): uint8 (0..255) or float in [0, 1].
        train_labels (Tensor[N], int64): labels in [0, K).
        test (Tensor[M, C, H, W]): same kind as ``train``.
        test_labels (Tensor[M], int64).
        classes (tuple of str): K class names.

    Raises:
        ValueError: shapes, dtypes or labels that do not fit together.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for part, images, labels in (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            if images.dim() != 4 or labels.shape != (len(images),):
                raise ValueError(
                    f"Images: {part} must be [N, C, H, W] with N labels, "
                    f"got {tuple(images.shape)} and {tuple(labels.shape)}"
                )
            if not (images.is_floating_point() or images.dtype == torch.uint8):
                raise ValueError(f"Images: {part} must be uint8 or floating, got {images.dtype}")
            if images.is_floating_point() and images.numel():
                low, high = (value.item() for value in images.aminmax())
                # Resizing may overshoot a little; images in 0..255 are what this is to find.
                if not (low > -0.1 and high < 1.1):
                    raise ValueError(
                        f"Images: {part} must be uint8 or floating in [0, 1], "
                        f"got values from {low:g} to {high:g}"
                    )
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
                raise ValueError(
                    f"Images: {part} labels must be in [0, {len(self.classes)}), "
                    f"got {int(labels.min())}..{int(labels.max())}"
                )
        if self.train.shape[1:] != self.test.shape[1:]:
            raise ValueError(
                f"Images: train and test must be of one shape, "
                f"got {tuple(self.train.shape[1:])} and {tuple(self.test.shape[1:])}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    def digest(self) -> str:
        """SHA-256 of both parts' images: which images these are."""
        digest = hashlib.sha256()
        for value in (self.train, self.test):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def subset(self, train: int | None = None, test: int | None = None) -> Images:
        """The first ``train`` and ``test`` images; None keeps all."""
        return Images(
            self.train[:train],
            self.train_labels[:train],
            self.test[:test],
            self.test_labels[:test],
            self.classes,
        )


def as_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]; uint8 is divided by 255."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def batches(
    images: Tensor, batch_size: int, transform: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Tensor]:
    """Float batches of stored images, preprocessed by ``transform``, in order."""
    for part in images.split(batch_size):
        part = as_float(part)
        yield part if transform is None else transform(part)


def load_images(spec: str, *, size: int | None = None, seed: int = 0) -> Images:
    """Load the images a data specification names.

    Args:
        spec (str): ``digits`` (scikit-learn, at 16x16), ``fashion-mnist[:DIR]`` (idx files),
            ``imagefolder:DIR`` (``DIR/train/CLASS/*.png`` and ``DIR/test/...``, or
            ``DIR/CLASS/*.png``, then a fifth is held out), ``torchvision:NAME[:DIR]``, ``npz:FILE``
            (arrays ``images`` or ``jpeg`` + ``offsets``, ``labels``, optional ``classes`` and
            ``test_images``, ``test_labels``), or ``module:factory`` / ``file.py:factory`` returning
            :class:`Images`.
        size (int or None): side of the square the images of a folder are resized and cropped to.
        seed (int): of the split where the data has none.

    Raises:
        ValueError: unknown form or contents that do not fit.
        FileNotFoundError: the data is not there; the sentence says how to get it. Nothing is
            downloaded.

    Example:
        >>> load_images("digits").shape
        (1, 16, 16)
    """
    name, _, rest = spec.partition(":")
    if name == "digits" and not rest:
        return _digits(seed)
    if name == "fashion-mnist":
        return _fashion_mnist(Path(rest or FASHION_MNIST_DIRECTORY))
    if name == "imagefolder" and rest:
        return _image_folder(Path(rest), size, seed)
    if name == "torchvision" and rest:
        return _torchvision(rest, size)
    if name == "npz" and rest:
        return _npz(Path(rest), seed)
    if rest and name not in ("digits", "imagefolder", "torchvision", "npz"):
        images = load_factory(spec)()
        if not isinstance(images, Images):
            raise ValueError(f"data {spec}: must return Images, got {type(images).__name__}")
        return images
    raise ValueError(f"data must be one of {DATA_FORMS}; got {spec!r}")


def load_factory(spec: str) -> Callable[..., Any]:
    """The callable that ``module:name`` or ``file.py:name`` names. This runs the module's code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such module or name.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise ValueError(f"must be module:factory or file.py:factory, got {spec!r}")
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"{spec}: there is no file {source}")
        # Under a name of its own: the file may be called like a module in use.
        loader = importlib.util.spec_from_file_location(f"pathways_factory_{path.stem}", path)
        assert loader is not None and loader.loader is not None  # a .py file always has a loader
        module = importlib.util.module_from_spec(loader)
        # Dataclasses and pickle look a module up by its name.
        sys.modules[loader.name] = module
        loader.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(source)
        except (ModuleNotFoundError, TypeError) as error:  # TypeError: a relative name
            raise ValueError(f"{spec}: there is no module {source!r} ({error})") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ValueError(f"{spec}: {source} has no callable {name!r}")
    return factory


def _digits(seed: int) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            "data digits: scikit-learn carries the digits; pip install 'pathways[train]'"
        ) from error
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(
        images, size=(16, 16), mode="bilinear", align_corners=False
    )
    labels = torch.from_numpy(digits.target).long()
    return _held_out(images, labels, tuple(str(d) for d in range(10)), seed, share=1 / 3)


def _held_out(
    images: Tensor, labels: Tensor, classes: tuple[str, ...], seed: int, share: float = 0.2
) -> Images:
    Images(images, labels, images[:0], labels[:0], classes)  # checked before they are shuffled
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    cut = len(images) - max(1, round(share * len(images)))
    return Images(images[:cut], labels[:cut], images[cut:], labels[cut:], classes)


def _idx(directory: Path, stem: str) -> np.ndarray[Any, Any]:
    for path in (directory / stem, directory / f"{stem}.gz"):
        if path.is_file():
            raw = path.read_bytes()
            if path.suffix == ".gz":
                try:
                    raw = gzip.decompress(raw)
                except (OSError, EOFError, zlib.error) as error:
                    raise ValueError(f"data: {path} is damaged ({error})") from error
            dims = raw[3] if len(raw) > 3 else 0
            if raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * dims:
                raise ValueError(f"data: {path} is not an idx file of bytes")
            shape = struct.unpack_from(f">{dims}I", raw, 4)
            values = np.frombuffer(raw, np.uint8, offset=4 + 4 * dims)
            if values.size != int(np.prod(shape)):
                raise ValueError(
                    f"data: {path} must hold {int(np.prod(shape))} bytes, got {values.size}"
                )
            return values.reshape(shape)
    raise FileNotFoundError(
        f"data fashion-mnist: no {stem}[.gz] in {directory}; install Debian's "
        "dataset-fashion-mnist or name a folder with the four idx files: fashion-mnist:DIR"
    )


def _fashion_mnist(directory: Path) -> Images:
    parts = []
    for part in ("train", "t10k"):
        parts.append(torch.from_numpy(_idx(directory, f"{part}-images-idx3-ubyte").copy()))
        parts.append(torch.from_numpy(_idx(directory, f"{part}-labels-idx1-ubyte").copy()).long())
    return Images(
        parts[0].unsqueeze(1), parts[1], parts[2].unsqueeze(1), parts[3], FASHION_MNIST_CLASSES
    )


def read_image(source: str | os.PathLike[str] | bytes, channels: int = 3) -> Tensor:
    """Decode an image file (or its bytes) to uint8 ``[C, H, W]``, RGB or grey.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, or damaged.
    """
    from PIL import Image

    name = "image bytes" if isinstance(source, bytes) else os.fspath(source)
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise FileNotFoundError(f"there is no image file {name}")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode.startswith("I"):  # 16 bits of grey, which conversion would clip to 8
                grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
                image = Image.fromarray(grey.astype(np.uint8))
            array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # decoders of damaged files fail in many ways
        raise ValueError(f"{name} is not a readable image ({error})") from error
    pixels = torch.from_numpy(array.copy())
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def fit_square(image: Tensor, size: int) -> Tensor:
    """Resize the shorter side of uint8 ``[C, H, W]`` to ``size`` and crop the centre."""
    short = min(image.shape[1:])
    # A strip a thousand times longer than wide would be blown up a thousand times before the crop.
    top, left = ((side - min(side, 4 * short)) // 2 for side in image.shape[1:])
    image = image[:, top : top + 4 * short, left : left + 4 * short]
    height, width = image.shape[1:]
    shape = (max(size, round(height * size / short)), max(size, round(width * size / short)))
    if shape != (height, width):
        resized = torch.nn.functional.interpolate(
            image.unsqueeze(0).float(), size=shape, mode="bicubic", antialias=True
        )
        image = resized.squeeze(0).round().clamp(0, 255).to(torch.uint8)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return image[:, top : top + size, left : left + size]


def _image_folder(directory: Path, size: int | None, seed: int) -> Images:
    if not directory.is_dir():
        raise FileNotFoundError(f"data imagefolder: there is no folder {directory}")
    size = 224 if size is None else size
    split = (directory / "train").is_dir() and (directory / "test").is_dir()
    root = directory / "train" if split else directory
    classes = _folders(root)
    if not classes:
        raise ValueError(f"data imagefolder: {root} must hold one folder per class, got none")
    images, labels = _read_folder(root, classes, size)
    if not split:
        return _held_out(images, labels, classes, seed)
    unknown = sorted(set(_folders(directory / "test")) - set(classes))
    if unknown:
        raise ValueError(f"data imagefolder: class {unknown[0]!r} is in test but not in train")
    test, test_labels = _read_folder(directory / "test", classes, size)
    return Images(images, labels, test, test_labels, classes)


def _folders(root: Path) -> tuple[str, ...]:
    """Names of the class folders; hidden ones (``.ipynb_checkpoints``) are none."""
    return tuple(
        sorted(e.name for e in root.iterdir() if e.is_dir() and not e.name.startswith("."))
    )


def _read_folder(root: Path, classes: tuple[str, ...], size: int) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((root / name).glob("*")):
            if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".webp"):
                images.append(fit_square(read_image(path), size))
                labels.append(label)
    if not images:
        raise ValueError(f"data imagefolder: {root} must hold images, got none")
    return torch.stack(images), torch.tensor(labels)


def _torchvision(rest: str, size: int | None) -> Images:
    name, _, directory = rest.partition(":")
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            "data torchvision: torchvision is not installed; pip install 'pathways[models]'"
        ) from error
    factory = getattr(datasets, name, None)
    if not callable(factory):
        raise ValueError(f"data torchvision: there is no data set {name!r} in torchvision.datasets")
    parts: list[Tensor] = []
    root = directory or "data"
    for train in (True, False):
        try:
            dataset = factory(root, train=train, download=False)
        except TypeError as error:
            raise ValueError(
                f"data torchvision: {name} must be a data set with a train and a test part and "
                f"nothing else to choose ({error})"
            ) from error
        except RuntimeError as error:
            raise FileNotFoundError(
                f"data torchvision: {name} is not in {root}; download it there yourself with "
                f"torchvision.datasets.{name}({root!r}, download=True)"
            ) from error
        pixels = [torch.from_numpy(np.array(image)) for image, _ in dataset]
        pixels = [p.unsqueeze(0) if p.dim() == 2 else p.permute(2, 0, 1) for p in pixels]
        if size is not None:
            pixels = [fit_square(image, size) for image in pixels]
        stack = _stacked(pixels, f"torchvision: {name}")
        parts += [stack, torch.tensor([int(label) for _, label in dataset])]
    classes = getattr(dataset, "classes", None) or range(int(parts[1].max()) + 1)
    names = tuple(str(c) for c in classes)
    return Images(parts[0], parts[1], parts[2], parts[3], names)


def _npz(path: Path, seed: int) -> Images:
    if not path.is_file():
        raise FileNotFoundError(f"data npz: there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # archives fail in many ways; an npy file has no names
        raise ValueError(f"data npz: {path} is not a readable npz file ({error})") from error
    if "labels" not in arrays or not ({"images", "jpeg"} & set(arrays)):
        raise ValueError(
            f"data npz: {path} must hold labels and images (or jpeg and offsets), "
            f"got {', '.join(sorted(arrays)) or 'nothing'}"
        )
    for one, other in (("jpeg", "offsets"), ("test_images", "test_labels")):
        if one in arrays and other not in arrays:
            raise ValueError(f"data npz: {path} holds {one} and must hold {other} too")
    if arrays["labels"].dtype.kind not in "iu" or arrays["labels"].size == 0:
        raise ValueError(
            f"data npz: {path} must hold integer labels, got {arrays['labels'].size} of "
            f"{arrays['labels'].dtype}"
        )
    labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    if "jpeg" in arrays:
        images = decode_jpegs(arrays["jpeg"], arrays["offsets"])
    else:
        images = _channels_first(arrays["images"])
    names = arrays.get("classes")
    classes = tuple(
        str(name) for name in (names if names is not None else range(int(labels.max()) + 1))
    )
    if "test_images" not in arrays:
        return _held_out(images, labels, classes, seed)
    test = _channels_first(arrays["test_images"])
    test_labels = torch.from_numpy(arrays["test_labels"].astype(np.int64))
    return Images(images, labels, test, test_labels, classes)


def decode_jpegs(data: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> Tensor:
    """Decode concatenated JPEG files, ``data[offsets[i]:offsets[i + 1]]``, to uint8 RGB."""
    raw = data.tobytes()
    images = [
        read_image(raw[start:stop])
        for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
    return _stacked(images, "jpeg")


def _stacked(images: list[Tensor], where: str) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        got = " and ".join(map(str, sorted(shapes)[:2])) or "none"
        raise ValueError(f"data {where}: images must be of one shape, got {got}")
    return torch.stack(images)


def _channels_first(images: np.ndarray[Any, Any]) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    if pixels.dim() == 3:
        return pixels.unsqueeze(1)
    if pixels.dim() == 4 and pixels.shape[-1] in (1, 3) and pixels.shape[1] not in (1, 3):
        return pixels.permute(0, 3, 1, 2).contiguous()
    return pixels

"""Data: every form of specification, what is missing or damaged, and image files."""

import gzip
import io
import struct
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from pathways.training.data import (
    DATA_FORMS,
    FASHION_MNIST_CLASSES,
    Images,
    as_float,
    batches,
    decode_jpegs,
    fit_square,
    load_factory,
    load_images,
    read_image,
)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


# --------------------------------------------------------- Images


def make_images(**changes):
    values = {
        "train": torch.zeros(4, 1, 5, 6, dtype=torch.uint8),
        "train_labels": torch.tensor([0, 1, 2, 0]),
        "test": torch.zeros(2, 1, 5, 6, dtype=torch.uint8),
        "test_labels": torch.tensor([2, 1]),
        "classes": ("a", "b", "c"),
    }
    return Images(**{**values, **changes})


def test_images():
    images = make_images()
    assert images.shape == (1, 5, 6)
    part = images.subset(train=3, test=1)
    assert (len(part.train), len(part.train_labels), len(part.test)) == (3, 3, 1)
    assert len(images.subset().train) == 4
    make_images(test=torch.zeros(0, 1, 5, 6), test_labels=torch.zeros(0).long())


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"train": torch.zeros(4, 5, 6)},
            r"train must be \[N, C, H, W\] with N labels, got \(4, 5",
        ),
        (
            {"train_labels": torch.zeros(3).long()},
            r"train must be .* got \(4, 1, 5, 6\) and \(3,\)",
        ),
        (
            {"test": torch.zeros(2, 1, 5, 6).long()},
            "test must be uint8 or floating, got torch.int64",
        ),
        (
            {"train": torch.full((4, 1, 5, 6), 255.0)},
            r"floating in \[0, 1\], got values from 255 to",
        ),
        (
            {"train": torch.full((4, 1, 5, 6), torch.nan)},
            r"floating in \[0, 1\], got values from nan",
        ),
        ({"test_labels": torch.tensor([0, 3])}, r"test labels must be in \[0, 3\), got 0\.\.3"),
        ({"test_labels": torch.tensor([0, -1])}, r"test labels must be in \[0, 3\), got -1\.\.0"),
        ({"test": torch.zeros(2, 3, 5, 6)}, r"of one shape, got \(1, 5, 6\) and \(3, 5, 6\)"),
    ],
)
def test_images_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        make_images(**changes)


def test_float_images_may_overshoot_a_little():
    make_images(train=torch.full((4, 1, 5, 6), 1.004))


def test_as_float_and_batches():
    stored = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    assert as_float(stored).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert as_float(torch.ones(2, dtype=torch.float64)).dtype == torch.float32
    parts = list(batches(stored, 2, lambda x: x + 1))
    assert [len(part) for part in parts] == [2, 1]
    assert torch.cat(parts).flatten().tolist() == pytest.approx([1, 1.2, 2])
    assert torch.equal(torch.cat(list(batches(stored, 2))), as_float(stored))


# --------------------------------------------------------- names


def test_digits():
    images = load_images("digits")
    assert images.shape == (1, 16, 16)
    assert (len(images.train), len(images.test)) == (1198, 599)
    assert images.classes == tuple("0123456789")
    assert 0 <= images.train.min() <= images.train.max() <= 1
    again = load_images("digits")
    assert torch.equal(again.train, images.train)
    other = load_images("digits", seed=1)
    assert not torch.equal(other.train, images.train)
    assert len(torch.cat([images.train, images.test]).unique(dim=0)) > 1700  # no overlap


@pytest.mark.parametrize(
    "spec",
    ["", "mnist", "digits:x", "imagefolder", "imagefolder:", "npz:", "torchvision:", ":x", "x:"],
)
def test_unknown_forms(spec):
    with pytest.raises(ValueError) as error:
        load_images(spec)
    assert DATA_FORMS in str(error.value) or "module:factory" in str(error.value)


# --------------------------------------------------------- idx files


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + (
        array.tobytes()
    )  # fmt: skip


@pytest.fixture
def idx_folder(tmp_path):
    contents = {
        "train-images-idx3-ubyte": pixels(7, 4, 5),
        "train-labels-idx1-ubyte": np.arange(7, dtype=np.uint8),
        "t10k-images-idx3-ubyte": pixels(3, 4, 5, seed=1),
        "t10k-labels-idx1-ubyte": np.array([9, 8, 7], dtype=np.uint8),
    }
    for i, (name, array) in enumerate(contents.items()):
        if i % 2:
            (tmp_path / name).write_bytes(idx(array))
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path, contents


def test_fashion_mnist(idx_folder):
    folder, contents = idx_folder
    images = load_images(f"fashion-mnist:{folder}")
    assert images.shape == (1, 4, 5)
    assert np.array_equal(images.train[:, 0].numpy(), contents["train-images-idx3-ubyte"])
    assert np.array_equal(images.test[:, 0].numpy(), contents["t10k-images-idx3-ubyte"])
    assert images.train_labels.tolist() == list(range(7))
    assert images.test_labels.tolist() == [9, 8, 7]
    assert images.classes == FASHION_MNIST_CLASSES


def test_fashion_mnist_missing(tmp_path):
    message = r"no train-images-idx3-ubyte\[\.gz\] in .*; install Debian's dataset-fashion-mnist or"
    with pytest.raises(FileNotFoundError, match=message):
        load_images(f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("train-labels-idx1-ubyte", b"", "is not an idx file of bytes"),
        ("train-labels-idx1-ubyte", b"hello world", "is not an idx file of bytes"),
        ("train-labels-idx1-ubyte", b"\0\0\x0d\1\0\0\0\1x", "is not an idx file of bytes"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\3\0\0", "is not an idx file of bytes"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\1\0\0\0\7abc", "must hold 7 bytes, got 3"),
        ("train-images-idx3-ubyte.gz", b"no gzip", "is damaged"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"\0" * 999)[:-9], "is damaged"),
        ("train-labels-idx1-ubyte", idx(np.full(7, 10, np.uint8)), r"labels must be in \[0, 10\)"),
        (
            "train-labels-idx1-ubyte",
            idx(np.zeros(6, np.uint8)),
            r"with N labels, got .* and \(6,\)",
        ),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(pixels(3, 9, 9))), "must be of one shape"),
    ],
)
def test_damaged_idx_files(idx_folder, name, content, message):
    folder, _ = idx_folder
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_images(f"fashion-mnist:{folder}")


# --------------------------------------------------------- folders of images


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                array = np.full((12 + i, 10, 3), 100 * label + i, dtype=np.uint8)
                kind = ("png", "jpg", "bmp")[i]
                Image.fromarray(array).save(tmp_path / part / name / f"{i}.{kind}")
            (tmp_path / part / name / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    return tmp_path


def test_image_folder_with_two_parts(folder):
    images = load_images(f"imagefolder:{folder}", size=8)
    assert images.classes == ("cat", "dog")
    assert images.train.shape == (6, 3, 8, 8)
    assert images.train.dtype == torch.uint8
    assert images.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.test_labels.tolist() == [0, 1]
    assert images.train.flatten(1).float().mean(1).tolist() == pytest.approx(
        [0, 1, 2, 100, 101, 102], abs=1
    )


def test_image_folder_holds_a_fifth_out(folder):
    images = load_images(f"imagefolder:{folder / 'train'}", size=8)
    assert (len(images.train), len(images.test)) == (5, 1)
    again = load_images(f"imagefolder:{folder / 'train'}", size=8)
    assert torch.equal(images.test, again.test)
    assert load_images(f"imagefolder:{folder / 'train'}").shape == (3, 224, 224)


def test_image_folder_refusals(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_images(f"imagefolder:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="must hold one folder per class, got none"):
        load_images(f"imagefolder:{folder / 'train' / 'cat'}")
    (folder / "test" / "bird").mkdir()
    with pytest.raises(ValueError, match="class 'bird' is in test but not in train"):
        load_images(f"imagefolder:{folder}", size=8)
    (folder / "test" / "bird").rmdir()
    broken = folder / "train" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"0\.png is not a readable image"):
        load_images(f"imagefolder:{folder}", size=8)
    for path in folder.glob("train/*/*"):
        path.unlink()
    with pytest.raises(ValueError, match="train must hold images, got none"):
        load_images(f"imagefolder:{folder}", size=8)


# --------------------------------------------------------- npz files


def npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_npz(tmp_path):
    images, labels = pixels(10, 6, 6, 3), np.arange(10) % 3
    loaded = load_images(npz(tmp_path / "a.npz", images=images, labels=labels))
    assert loaded.shape == (3, 6, 6)
    assert loaded.classes == ("0", "1", "2")
    assert (len(loaded.train), len(loaded.test)) == (8, 2)
    names = np.array(["x", "y", "z"])
    loaded = load_images(
        npz(
            tmp_path / "b.npz", images=images, labels=labels, classes=names,
            test_images=images[:2], test_labels=labels[:2],
        )
    )  # fmt: skip
    assert loaded.classes == ("x", "y", "z")
    assert torch.equal(loaded.test, loaded.train[:2])
    assert np.array_equal(loaded.train.permute(0, 2, 3, 1).numpy(), images)
    grey = load_images(npz(tmp_path / "c.npz", images=images[..., 0] / 255.0, labels=labels))
    assert grey.shape == (1, 6, 6)
    first = load_images(npz(tmp_path / "d.npz", images=images.transpose(0, 3, 1, 2), labels=labels))
    assert first.shape == (3, 6, 6)


def test_npz_of_jpegs(tmp_path):
    files = [
        encoded(np.full((8, 8, 3), value, np.uint8), "JPEG") for value in (10, 200, 90, 30, 60)
    ]
    offsets = np.cumsum([0, *map(len, files)])
    data = np.frombuffer(b"".join(files), np.uint8)
    spec = npz(tmp_path / "a.npz", jpeg=data, offsets=offsets, labels=np.array([0, 1, 0, 1, 1]))
    images = load_images(spec)
    assert images.shape == (3, 8, 8)
    values = torch.cat([images.train, images.test]).float().mean((1, 2, 3)).sort()[0]
    assert values.tolist() == pytest.approx([10, 30, 60, 90, 200], abs=2)
    broken = data.copy()
    broken[offsets[1] : offsets[1] + 20] = 0
    with pytest.raises(ValueError, match="image bytes is not a readable image"):
        decode_jpegs(broken, offsets)
    other = np.frombuffer(files[0] + encoded(pixels(9, 8, 3), "JPEG"), np.uint8)
    with pytest.raises(ValueError, match=r"jpeg: images must be of one shape, got \(3, 8, 8\) and"):
        decode_jpegs(other, np.array([0, len(files[0]), len(other)]))


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({}, "must hold labels and images .* got nothing"),
        ({"labels": np.arange(3)}, "must hold labels and images .* got labels"),
        ({"images": pixels(3, 4, 4)}, "must hold labels and images .* got images"),
        ({"jpeg": pixels(9), "labels": np.arange(3)}, "holds jpeg and must hold offsets too"),
        (
            {"images": pixels(3, 4, 4), "labels": np.arange(3), "test_images": pixels(3, 4, 4)},
            "holds test_images and must hold test_labels too",
        ),
        ({"images": pixels(3, 4, 4), "labels": np.arange(2)}, "with N labels, got"),
        ({"images": pixels(0, 4, 4), "labels": np.arange(0)}, "must hold integer labels, got 0 of"),
        ({"images": pixels(2, 4, 4), "labels": np.array([0.5, 1])}, "got 2 of float64"),
        ({"images": pixels(2, 4, 4), "labels": np.array(["a", "b"])}, "must hold integer labels"),
        ({"images": pixels(3, 4, 4), "labels": np.array([0, 1, -1])}, "labels must be in"),
        (
            {"images": pixels(3, 4, 4), "labels": np.arange(3), "classes": np.array(["a"])},
            r"labels must be in \[0, 1\)",
        ),
        ({"images": pixels(3, 4, 4).astype(int), "labels": np.arange(3)}, "uint8 or floating, got"),
        (
            {"images": np.array([[1, "x"]], dtype=object), "labels": np.arange(3)},
            "is not a readable npz file",
        ),
    ],
)
def test_npz_refusals(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        load_images(npz(tmp_path / "a.npz", **arrays))


def test_damaged_npz(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError, match=r"data npz: there is no file .*a\.npz"):
        load_images(f"npz:{path}")
    npz(path, images=pixels(9, 4, 4), labels=np.arange(9))
    whole = path.read_bytes()
    np.save(tmp_path / "b.npy", pixels(3))
    damaged = [b"", b"no zip file", whole[:-30], whole[: len(whole) // 2]]
    damaged += [
        whole.replace(whole[60:64], b"\xff\xff\xff\xff", 1),
        (tmp_path / "b.npy").read_bytes(),
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a readable npz file"):
            load_images(f"npz:{path}")


# --------------------------------------------------------- torchvision


class FakeDataset:
    classes = ("a", "b")

    def __init__(self, root, train=True, download=False):
        assert not download
        if "missing" in root:
            raise RuntimeError("Dataset not found")
        self.items = [
            (Image.fromarray(pixels(8, 8, seed=i)), i % 2) for i in range(6 if train else 2)
        ]

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


class Colours(FakeDataset):
    classes = None

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.items = [(Image.fromarray(pixels(9, 12, 3, seed=i)), i) for i in range(3)]


class OtherPart:
    def __init__(self, root, split="train", download=False):
        pass


@pytest.fixture
def torchvision(monkeypatch):
    datasets = types.ModuleType("torchvision.datasets")
    datasets.Greys, datasets.Colours, datasets.OtherPart = FakeDataset, Colours, OtherPart
    datasets.utils = types.ModuleType("torchvision.datasets.utils")
    package = types.ModuleType("torchvision")
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def test_torchvision(torchvision, tmp_path):
    images = load_images(f"torchvision:Greys:{tmp_path}")
    assert images.shape == (1, 8, 8)
    assert (len(images.train), len(images.test)) == (6, 2)
    assert images.train_labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert images.classes == ("a", "b")
    colours = load_images(f"torchvision:Colours:{tmp_path}", size=6)
    assert colours.shape == (3, 6, 6)
    assert colours.classes == ("0", "1", "2")


def test_torchvision_refusals(torchvision, tmp_path):
    message = (
        r"Greys is not in missing; download it there yourself with torchvision\.datasets\.Greys"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_images("torchvision:Greys:missing")
    for name in ("Nothing", "utils"):
        with pytest.raises(ValueError, match=f"there is no data set '{name}' in torchvision"):
            load_images(f"torchvision:{name}")
    with pytest.raises(
        ValueError, match="OtherPart must be a data set with a train and a test part"
    ):
        load_images("torchvision:OtherPart")


def test_torchvision_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FileNotFoundError, match=r"not installed; pip install 'pathways\[models\]'"):
        load_images("torchvision:MNIST")


# --------------------------------------------------------- factories

FACTORY = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from pathways.training.data import Images

@dataclass
class Options:
    count: int = 4

def make():
    n = Options().count
    return Images(torch.zeros(n, 1, 2, 2), torch.zeros(n).long(), torch.zeros(1, 1, 2, 2),
                  torch.zeros(1).long(), ("only",))

def wrong():
    return [1, 2]

constant = 3
"""


def test_factories(tmp_path, monkeypatch):
    # Named like a module in use, which must not be replaced.
    file = tmp_path / "random.py"
    file.write_text(FACTORY)
    import random

    assert len(load_images(f"{file}:make").train) == 4
    assert sys.modules["random"] is random
    (tmp_path / "data_of_a_user.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_images("data_of_a_user:make").classes == ("only",)
    with pytest.raises(ValueError, match=r"wrong: must return Images, got list"):
        load_images(f"{file}:wrong")


@pytest.mark.parametrize(
    "spec, error, message",
    [
        (
            "no_such_module_anywhere:make",
            ValueError,
            "there is no module 'no_such_module_anywhere'",
        ),
        ("nowhere.py:make", FileNotFoundError, r"nowhere\.py:make: there is no file nowhere\.py"),
        (".relative:make", ValueError, r"there is no module '\.relative'"),
        ("pathways.models:nothing", ValueError, "pathways.models has no callable 'nothing'"),
        ("pathways.training.data:DATA_FORMS", ValueError, "has no callable 'DATA_FORMS'"),
        ("pathways.models:", ValueError, "must be module:factory or"),
    ],
)
def test_factories_that_are_not_there(spec, error, message):
    with pytest.raises(error, match=message):
        load_factory(spec)


# --------------------------------------------------------- image files


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_image_modes(tmp_path, kind, channels):
    grey = np.full((5, 7), 128, np.uint8)
    if kind == "I;16":
        image = Image.fromarray(np.full((5, 7), 128 * 257, np.uint16))
    elif kind == "1":
        image = Image.fromarray(np.full((5, 7), 255, np.uint8)).convert("1")
    else:
        image = Image.fromarray(grey).convert(kind)
    path = tmp_path / ("a.tif" if kind == "CMYK" else "a.png")
    image.save(path)
    tensor = read_image(path, channels)
    assert tensor.shape == (channels, 5, 7)
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    expected = 255 if kind == "1" else 128
    assert (tensor.int() - expected).abs().max() <= 1


def test_channels_are_rgb(tmp_path):
    array = np.zeros((2, 3, 3), np.uint8)
    array[..., 0], array[0, 1] = 255, (1, 2, 3)
    for source in (encoded(array), tmp_path / "a.png"):
        if not isinstance(source, bytes):
            source.write_bytes(encoded(array))
        tensor = read_image(source)
        assert tensor[:, 0, 0].tolist() == [255, 0, 0]
        assert tensor[:, 0, 1].tolist() == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no image file .*none\.png"):
        read_image(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path)  # a folder
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF"):
        whole = encoded(pixels(32, 32, 3), kind)
        for content in (b"", b"text", whole[:8], whole[: len(whole) // 2]):
            path = tmp_path / f"a.{kind.lower()}"
            path.write_bytes(content)
            with pytest.raises(ValueError, match=rf"a\.{kind.lower()} is not a readable image"):
                read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_scrambled_images_are_read_or_refused():
    """Whatever is in the file: an image or one ValueError, no other exception."""
    generator = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF"):
        whole = np.frombuffer(encoded(pixels(16, 16, 3), kind), np.uint8)
        for _ in range(60):
            broken = whole.copy()
            places = generator.integers(0, len(broken), generator.integers(1, 6))
            broken[places] = generator.integers(0, 256, len(places))
            try:
                assert read_image(broken.tobytes()).shape[0] == 3
            except ValueError as error:
                assert "is not a readable image" in str(error)


def test_decompression_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(pixels(30, 30)))
    with pytest.raises(ValueError, match=r"a\.png is not a readable image \(Image size \(900"):
        read_image(path)


@pytest.mark.parametrize(
    "shape", [(10, 10), (10, 25), (31, 10), (7, 8), (1, 1), (1, 3000), (900, 2)]
)
@pytest.mark.parametrize("size", [1, 8, 10])
def test_fit_square(shape, size):
    image = torch.from_numpy(pixels(3, *shape))
    fitted = fit_square(image, size)
    assert fitted.shape == (3, size, size)
    assert fitted.dtype == torch.uint8
    constant = torch.full((1, *shape), 77, dtype=torch.uint8)
    assert (fit_square(constant, size) == 77).all()


def test_fit_square_crops_the_centre():
    image = torch.zeros(1, 4, 10, dtype=torch.uint8)
    image[:, :, 3:7] = 200
    assert torch.equal(fit_square(image, 4), torch.full((1, 4, 4), 200, dtype=torch.uint8))
    strip = torch.zeros(1, 2, 1000, dtype=torch.uint8)
    strip[:, :, 499:501] = 200
    assert torch.equal(fit_square(strip, 2), torch.full((1, 2, 2), 200, dtype=torch.uint8))

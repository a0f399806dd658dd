"""CIFAR-10 from two npz files of JPEG images (arrays jpeg, offsets, labels, classes).

As a data specification for every command: ``--data examples/cifar10.py:images``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pathways.training.data import Images, decode_jpegs

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
TRAIN = SHARED / "cifar10_jpeg_train.npz"
TEST = SHARED / "cifar10_jpeg_test.npz"
SPEC = f"{Path(__file__).resolve()}:images"


def images() -> Images:
    """Both files where they are expected."""
    return load(TRAIN, TEST)


def load(train: Path, test: Path) -> Images:
    """Both files as uint8 images with labels.

    Raises:
        FileNotFoundError: a file that is not there.
    """
    parts = []
    for path in (train, test):
        if not path.is_file():
            raise FileNotFoundError(f"there is no data file {path}; name it with --train or --test")
        with np.load(path, allow_pickle=False) as arrays:
            parts.append(decode_jpegs(arrays["jpeg"], arrays["offsets"]))
            parts.append(torch.from_numpy(arrays["labels"].astype(np.int64)))
            classes = tuple(str(name) for name in arrays["classes"])
    return Images(*parts, classes=classes)

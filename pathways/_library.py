"""Finds and loads libpathways, the compiled op library; every op is registered by loading it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import torch

# The library is built for the stable ABI of this release and loads under every later one.
OLDEST_TORCH = (2, 11)


def library_path() -> Path:
    """Where the op library is expected: ``lib/libpathways.so`` in the package.

    The environment variable ``PATHWAYS_LIBRARY`` names another file, for example a build with a
    sanitizer.

    Returns:
        Path: the file, which may not exist.

    Example:
        >>> library_path().stem
        'libpathways'
    """
    override = os.environ.get("PATHWAYS_LIBRARY")
    if override:
        return Path(override)
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return Path(__file__).resolve().parent / "lib" / f"libpathways{suffix}"


def check_torch_version(version: str) -> None:
    """Refuse a torch that the op library cannot load under.

    Args:
        version (str): ``torch.__version__``.

    Raises:
        ImportError: naming both versions.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(f"pathways needs torch >= {oldest}, got torch {version}")


def load() -> Path:
    """Load the op library into this process; loading it again does nothing.

    Returns:
        Path: the file that was loaded.

    Raises:
        ImportError: torch is too old, the library is missing, or it cannot be loaded.
    """
    check_torch_version(torch.__version__)
    path = library_path()
    if not path.is_file():
        raise ImportError(
            f"pathways: the compiled op library {path} is missing; build it with "
            "`pip install --no-build-isolation .` (add -e to work in the source tree)"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"pathways: {path} does not load under torch {torch.__version__}: {error}"
        ) from error
    return path

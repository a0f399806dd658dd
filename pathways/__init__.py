"""Explain image classifiers by sparse neural pathways."""

from pathlib import Path

from . import _library

_library.load()

from . import ops  # noqa: E402
from ._C import __version__  # noqa: E402

cmake_prefix_path = str(Path(__file__).resolve().parent)

__all__ = ["__version__", "cmake_prefix_path", "ops"]

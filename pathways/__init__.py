"""Explain image classifiers by sparse neural pathways.

``GatedTarget`` wraps a frozen classifier, ``GenCNP`` predicts pathways from its feature maps,
``Explainer`` joins the two; ``Pathway`` and ``ClassPathways`` are packed sets of neurons.
Importing the package needs torch and numpy only; training, evaluation, report and the command line
live in their own modules and name the extra they need.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathways import _library

_library.load()  # before anything that uses torch.ops.pathways

from pathways import ops  # noqa: E402
from pathways._C import __version__  # noqa: E402
from pathways.class_pathways import ClassPathways  # noqa: E402
from pathways.explainer import Explainer, Explanation  # noqa: E402
from pathways.generator import GenCNP  # noqa: E402
from pathways.pathway import Pathway  # noqa: E402
from pathways.preprocessing import Preprocessing  # noqa: E402
from pathways.sites import Site, Sites  # noqa: E402
from pathways.target import GatedTarget  # noqa: E402

if TYPE_CHECKING:
    from pathways.extraction import ExtractionError, extract

cmake_prefix_path = str(Path(__file__).resolve().parent)
"""Folder to add to ``CMAKE_PREFIX_PATH`` so that ``find_package(Pathways)`` finds this package."""

__all__ = [
    "ClassPathways",
    "Explainer",
    "Explanation",
    "ExtractionError",
    "GatedTarget",
    "GenCNP",
    "Pathway",
    "Preprocessing",
    "Site",
    "Sites",
    "__version__",
    "cmake_prefix_path",
    "extract",
    "ops",
]


def __getattr__(name: str) -> Any:
    """What few programs use is imported when it is asked for."""
    if name in ("ExtractionError", "extract"):
        from pathways import extraction

        return getattr(extraction, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

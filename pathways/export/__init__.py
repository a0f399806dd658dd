"""Export: an explainer as one file that runs without Python and without the model's code.

A TorchScript file is code: load such files from sources you trust only.
"""

from pathways.export.capture import ExportError
from pathways.export.formats import (
    WRITERS,
    LoadedExplainer,
    export_explainer,
    export_torchscript,
    load_scripted,
    read_info,
)
from pathways.export.graph import GatedGraph
from pathways.export.rewrite import gated_graph
from pathways.export.scripted import ScriptedExplainer

__all__ = [
    "WRITERS",
    "ExportError",
    "GatedGraph",
    "LoadedExplainer",
    "ScriptedExplainer",
    "export_explainer",
    "export_torchscript",
    "gated_graph",
    "load_scripted",
    "read_info",
]

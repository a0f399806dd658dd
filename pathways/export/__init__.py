"""Export: an explainer as one file that runs without Python and without the model's code.

An exported file is code, TorchScript or native: load such files from sources you trust only.
"""

from pathways.export.capture import ExportError
from pathways.export.formats import (
    SUFFIXES,
    WRITERS,
    export_explainer,
    export_torchscript,
    load_compiled,
    load_scripted,
    load_torchscript,
    read_info,
)
from pathways.export.graph import GatedGraph
from pathways.export.loaded import CompiledExplainer, LoadedExplainer, TorchScriptExplainer
from pathways.export.rewrite import gated_graph
from pathways.export.scripted import ScriptedExplainer

__all__ = [
    "SUFFIXES",
    "WRITERS",
    "CompiledExplainer",
    "ExportError",
    "GatedGraph",
    "LoadedExplainer",
    "ScriptedExplainer",
    "TorchScriptExplainer",
    "export_explainer",
    "export_torchscript",
    "gated_graph",
    "load_compiled",
    "load_scripted",
    "load_torchscript",
    "read_info",
]

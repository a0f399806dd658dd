"""Extraction: a channel pathway as the smaller dense network that it is.

``analysis`` follows living and constant channels through a captured graph, ``operations``,
``layers`` and ``combining`` know what single operations do to them, ``building`` makes the smaller
graph, ``extracting`` checks it against the gated target, ``files`` writes it down.
"""

from pathways.extraction.extracting import ExtractionError, extract
from pathways.extraction.files import read_info, save_program
from pathways.extraction.network import ExtractedNetwork, Extraction, Layer

__all__ = [
    "ExtractedNetwork",
    "Extraction",
    "ExtractionError",
    "Layer",
    "extract",
    "read_info",
    "save_program",
]

"""Overlap of saved pathways, as a dictionary and as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pathways.class_pathways import ClassPathways
from pathways.pathway import Pathway
from pathways.report.figures import heatmap_figure, save_figure

# Rows of a pathway file that are compared pair by pair; more make matrices no one can look at.
MAX_ROWS = 1000


def describe_overlap(
    pathway: Pathway,
    names: Sequence[str],
    other: Pathway | None = None,
    other_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """How much the rows of a pathway overlap with each other, or with those of a second one.

    Args:
        pathway (Pathway): N rows; only the first 1,000 are compared.
        names (sequence of str): one per row.
        other (Pathway or None): M rows of the same sites and target; None is ``pathway`` itself.
        other_names (sequence of str or None): one per row of ``other``.

    Returns:
        dict: ``rows``, ``columns`` (names), ``kept`` per row (and ``kept_columns``), ``iou``
        (matrix N x M), ``same_name_iou`` (mean over pairs with equal names; None without ``other``
        or without such pairs), ``different_name_iou`` (mean over the other pairs; None without
        any) and ``sites``: the same two means at every site.

    Raises:
        ValueError: pathways of other sites or targets, or another number of names.
    """
    if len(names) != len(pathway) or (other is not None and len(other_names or ()) != len(other)):
        raise ValueError("describe_overlap: names must hold one name per row")
    rows, row_names = pathway[:MAX_ROWS], list(names[:MAX_ROWS])
    columns = rows if other is None else other[:MAX_ROWS]
    column_names = row_names if other is None else list((other_names or ())[:MAX_ROWS])
    if other is None:
        # A row with itself says nothing, and each pair counts once.
        same = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        different = torch.ones(len(rows), len(rows)).triu(1).bool()
    else:
        same = torch.tensor([[a == b for b in column_names] for a in row_names], dtype=torch.bool)
        same = same.reshape(len(rows), len(columns))
        different = ~same
    matrix = rows.pairwise_iou(columns)
    result: dict[str, Any] = {
        "rows": row_names,
        "columns": column_names,
        "kept": rows.kept().tolist(),
        "kept_columns": columns.kept().tolist(),
        "iou": matrix.tolist(),
        "same_name_iou": _mean(matrix, same),
        "different_name_iou": _mean(matrix, different),
        "sites": [],
    }
    for i, site in enumerate(pathway.sites):
        part = rows.pairwise_iou(columns, site=i)
        result["sites"].append(
            {
                "site": site.key,
                "same_name_iou": _mean(part, same),
                "different_name_iou": _mean(part, different),
            }
        )
    return result


def _mean(values: Tensor, chosen: Tensor) -> float | None:
    return float(values[chosen].double().mean()) if bool(chosen.any()) else None


def overlap_files(
    file: str | os.PathLike[str],
    other: str | os.PathLike[str] | None,
    picture: str | os.PathLike[str],
) -> dict[str, Any]:
    """Overlap statistics of saved pathways, and a heat map of them.

    Args:
        file (path): what :meth:`Pathway.save` or :meth:`ClassPathways.save` wrote. Of class
            pathways the rows are the classes that have one.
        other (path or None): a second file, of either kind and the same target.
        picture (path): PNG to write.

    Returns:
        dict: :func:`describe_overlap`, with ``files``, ``kind`` (per file) and ``picture``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged or foreign file, no rows, or files of different targets (both named).
    """
    files = [file] if other is None else [file, other]
    loaded = [_load(path) for path in files]
    if other is not None and loaded[0][0].fingerprint != loaded[1][0].fingerprint:
        raise ValueError(
            f"both files must be of one target, got {file} of {loaded[0][0].fingerprint} and "
            f"{other} of {loaded[1][0].fingerprint}"
        )
    pathway, names, _ = loaded[0]
    second = loaded[1] if other is not None else None
    if second is None:
        described = describe_overlap(pathway, names)
    else:
        described = describe_overlap(pathway, names, second[0], second[1])
    figure = heatmap_figure(
        {"IoU of all sites": described["iou"]}, described["rows"], described["columns"]
    )
    save_figure(figure, picture)
    return {
        "files": [os.fspath(path) for path in files],
        "kind": [kind for _, _, kind in loaded],
        **described,
        "picture": os.fspath(picture),
    }


def _load(path: str | os.PathLike[str]) -> tuple[Pathway, list[str], str]:
    """The rows of a file, their names, and the kind of file."""
    from safetensors import SafetensorError, safe_open

    header: dict[str, str] = {}
    if os.path.isfile(path):
        # What is not safetensors at all is refused by the loader below, in its own words.
        with suppress(SafetensorError), safe_open(path, framework="pt") as opened:
            header = dict(opened.metadata() or {})
    kind = header.get("kind", "pathway")
    extra = json.loads(header.get("extra", "{}"))
    if kind == "class_pathways":
        classes = ClassPathways.load(path)
        chosen = classes.classes
        pathway = classes.pathway[chosen]
        known = extra.get("classes", [])
        names = known if len(known) == len(classes) else [str(i) for i in range(len(classes))]
        names = [str(names[i]) for i in chosen.tolist()]
    else:
        kind = "pathway"
        pathway = Pathway.load(path)
        known = extra.get("names", [])
        names = known if len(known) == len(pathway) else list(range(len(pathway)))
        names = [str(name) for name in names]
    if len(pathway) == 0:
        raise ValueError(f"{os.fspath(path)} must hold at least one pathway, got none")
    return pathway, names, kind

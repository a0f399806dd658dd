"""An extracted network as a file of ``torch.export``, which needs neither this package nor code."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pathways.extraction.network import ExtractedNetwork
from pathways.files import replace_file

INFO = "pathways.json"  # the name of the description inside the file


def save_program(
    network: ExtractedNetwork,
    path: str | os.PathLike[str],
    images: Tensor,
    *,
    preprocessing: nn.Module | None = None,
    info: Mapping[str, Any] | None = None,
) -> float:
    """Write an extracted network as a ``.pt2`` file with a free batch size, and read it back.

    ``torch.export.load(path).module()(images)`` runs it; the file holds no code.

    Args:
        network (ExtractedNetwork): what :func:`pathways.extract` gave.
        path (path): file to write, in one step.
        images (Tensor[N, ...]): at least two images, as the file will take them; their size
            becomes the size that the file is for.
        preprocessing (nn.Module or None): becomes the first step of the file, which then takes what
            the preprocessing takes.
        info (mapping or None): JSON-able notes; a part of the file's ``pathways.json``.

    Returns:
        float: largest absolute difference between the logits of the file and of the network.

    Raises:
        RuntimeError: ``torch.export`` does not take the network, or the file differs from it.
        OSError: the file cannot be written; an old file is left as it was.
    """
    steps: Sequence[nn.Module] = [network] if preprocessing is None else [preprocessing, network]
    whole = nn.Sequential(*steps).eval()
    with torch.no_grad():
        wanted = whole(images)
        try:
            program = torch.export.export(
                whole, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
        except Exception as error:  # torch.export raises many kinds
            reason = str(error).splitlines()[0]
            raise RuntimeError(f"torch.export does not take the network: {reason}") from error
    description = {**network.extraction.to_json(), **(info or {})}
    written = io.BytesIO()
    torch.export.save(program, written, extra_files={INFO: json.dumps(description)})
    written.seek(0)
    with torch.no_grad():
        # One image less: the batch must really be free.
        found = torch.export.load(written).module()(images[1:])
    difference = float((found - wanted[1:]).abs().max())
    if not difference <= 1e-3 * max(1.0, float(wanted.abs().max())):
        raise RuntimeError(
            f"the file {path} must give the logits of the network, got values that differ by "
            f"{difference:.1e}"
        )
    with replace_file(path) as temporary:
        temporary.write_bytes(written.getvalue())
    return difference


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :func:`save_program` noted in a file."""
    extra = {INFO: ""}
    torch.export.load(path, extra_files=extra)
    description: dict[str, Any] = json.loads(extra[INFO])
    return description

"""Files of a scripted explainer: writing by format, describing and loading in Python."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pathways.class_pathways import ClassPathways
from pathways.explainer import Explainer
from pathways.export.aoti import INFO_FILE, Progress, open_aoti, write_aoti
from pathways.export.capture import first_line
from pathways.export.loaded import CompiledExplainer, LoadedExplainer, TorchScriptExplainer
from pathways.export.scripted import FORMAT_VERSION, ScriptedExplainer
from pathways.files import replace_file

TORCHSCRIPT, AOTI = "torchscript", "aoti"


def _torchscript(module: ScriptedExplainer, progress: Progress | None = None) -> bytes:
    scripted = torch.jit.script(module)
    # The description lies beside the code as well, so that it can be read without running any.
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer, _extra_files={INFO_FILE: module.info})
    return buffer.getvalue()


# Format name -> function that serialises the module. Further formats are entered here.
WRITERS: dict[str, Callable[[ScriptedExplainer, Progress | None], bytes]] = {
    TORCHSCRIPT: _torchscript,
    AOTI: write_aoti,
}
SUFFIXES = {TORCHSCRIPT: ".pt", AOTI: ".pt2"}


def export_explainer(
    explainer: Explainer,
    path: str | os.PathLike[str],
    *,
    format: str = TORCHSCRIPT,
    preprocessing: nn.Module | None = None,
    classes: Sequence[str] | None = None,
    class_pathways: ClassPathways | None = None,
    image_shape: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write target, generator and preprocessing as one file that explains without their code.

    Args:
        explainer (Explainer): left as it was found.
        path (path): file to write, replaced in one step.
        format (str): one of :data:`WRITERS`: ``"torchscript"``, or ``"aoti"``, which compiles for
            tens of seconds with a C++ compiler and gives native code for this kind of machine.
        preprocessing (nn.Module or None): scriptable, from images to model inputs; None when images
            are model inputs already.
        classes (sequence of str or None): K class names.
        class_pathways (ClassPathways or None): pathways for ``transfer``.
        image_shape (sequence of int or None): (C, H, W) of the images, for programs that read image
            files; None where that is open.
        progress (callable or None): called with (stage, done, total) while compiling.

    Raises:
        ExportError: the target cannot be rewritten (the sentence names the module and the line) or
            compiled.
        ValueError: unknown format, or names or class pathways that do not fit.
        OSError: the file cannot be written; an old file is left as it was.

    Example:
        >>> import tempfile
        >>> from pathways.generator import GenCNP
        >>> from pathways.target import GatedTarget
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> target = GatedTarget(net, torch.zeros(1, 4))
        >>> explainer = Explainer(target, GenCNP(target.sites, num_classes=3, width=8))
        >>> path = os.path.join(tempfile.mkdtemp(), "explainer.pt")
        >>> export_explainer(explainer, path, classes=["cat", "dog", "owl"])
        >>> scripted = load_scripted(path)
        >>> logits, gated_logits, importance, words = scripted(torch.randn(2, 4))
        >>> logits.shape, scripted.classes
        (torch.Size([2, 3]), ['cat', 'dog', 'owl'])
    """
    if format not in WRITERS:
        raise ValueError(f"export: format must be one of {', '.join(WRITERS)}, got {format!r}")
    module = ScriptedExplainer(explainer, preprocessing, classes, class_pathways, image_shape)
    # Opened first, so that a folder that is not there is told before minutes of compiling; made in
    # memory, because torch's own writer reports a full disk as a RuntimeError.
    with replace_file(path) as temporary:
        temporary.write_bytes(WRITERS[format](module, progress))


def export_torchscript(
    explainer: Explainer,
    path: str | os.PathLike[str],
    *,
    preprocessing: nn.Module | None = None,
    classes: Sequence[str] | None = None,
    class_pathways: ClassPathways | None = None,
) -> None:
    """:func:`export_explainer` in TorchScript, which ``libtorch`` loads in C++ and Python."""
    export_explainer(
        explainer,
        path,
        format=TORCHSCRIPT,
        preprocessing=preprocessing,
        classes=classes,
        class_pathways=class_pathways,
    )


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Description of an exported explainer, without running anything in the file.

    Args:
        path (path): file written by :func:`export_explainer`, in any format.

    Returns:
        dict: see :meth:`pathways.export.ScriptedExplainer.describe`; an AOTInductor file has more,
        see docs/formats.md.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, foreign or newer file.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(
            errno.ENOENT, "expected a scripted explainer, found none", str(path)
        )
    if os.path.isdir(path):
        raise ValueError(f"{path} must be a scripted explainer, got a directory")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"extra/{INFO_FILE}")]
            damaged = archive.testzip()
            info = json.loads(archive.read(names[0])) if names and damaged is None else None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or not a scripted explainer (not an archive: {error})"
        ) from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged ({damaged} does not match its checksum)")
    if not isinstance(info, dict) or info.get("kind") != "explainer":
        raise ValueError(
            f"{path} must be a scripted explainer, got an archive that pathways did not write"
        )
    version = info.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{path} must be in format version {FORMAT_VERSION} or older, got {version}; "
            "upgrade pathways to read it"
        )
    if format_of(info) not in (TORCHSCRIPT, AOTI):
        raise ValueError(
            f"{path} is in the format {format_of(info)}, expected {TORCHSCRIPT} or {AOTI}; "
            "upgrade pathways to read it"
        )
    return info


def load_scripted(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> LoadedExplainer:
    """Load an explainer written by :func:`export_explainer`, whatever its format.

    **Both formats are code**, AOTInductor's even native code. Loading checks that the file is whole
    and says what it is, not that it is harmless: load files from sources you trust only.

    Args:
        path (path): the file; one in AOTInductor's format must stay there.
        device (device): where to put it; one in AOTInductor's format is for one kind of device.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, foreign or newer file, or one that this torch or machine cannot run.
    """
    return _load(path, None, device)


def load_torchscript(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> TorchScriptExplainer:
    """:func:`load_scripted` for a TorchScript file; any other is refused before it is loaded."""
    explainer = _load(path, TORCHSCRIPT, device)
    assert isinstance(explainer, TorchScriptExplainer)
    return explainer


def load_compiled(path: str | os.PathLike[str]) -> CompiledExplainer:
    """:func:`load_scripted` for an AOTInductor file; any other is refused before it is loaded."""
    explainer = _load(path, AOTI, "cpu")
    assert isinstance(explainer, CompiledExplainer)
    return explainer


def format_of(info: dict[str, Any]) -> str:
    """Format of a file by its description; TorchScript files do not name theirs."""
    return str(info.get("format", TORCHSCRIPT))


def _load(
    path: str | os.PathLike[str], wanted: str | None, device: torch.device | str
) -> LoadedExplainer:
    from pathways import _library

    info = read_info(path)
    if wanted is not None and format_of(info) != wanted:
        raise ValueError(
            f"{path} must be an explainer in the format {wanted}, got {format_of(info)}"
        )
    _library.load()  # the archive names the ops, it does not hold them
    if format_of(info) == AOTI:
        return open_aoti(os.fspath(path), info).to(device)
    try:
        module = torch.jit.load(os.fspath(path), map_location=device)
    except RuntimeError as error:
        raise ValueError(
            f"{path} was written with torch {info.get('torch')} and pathways "
            f"{info.get('pathways')} and does not load with torch {torch.__version__}: "
            f"{first_line(error)}"
        ) from error
    return TorchScriptExplainer(module, info)

"""Files of a scripted explainer: writing by format, and loading TorchScript files in Python."""

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
from torch import Tensor, nn

from pathways.class_pathways import ClassPathways
from pathways.explainer import Explainer, Explanation
from pathways.export.scripted import FORMAT_VERSION, ScriptedExplainer
from pathways.files import replace_file
from pathways.pathway import Pathway
from pathways.sites import Sites

INFO_FILE = "pathways.json"


def _torchscript(module: ScriptedExplainer) -> bytes:
    scripted = torch.jit.script(module)
    # The description lies beside the code as well, so that it can be read without running any.
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer, _extra_files={INFO_FILE: module.info})
    return buffer.getvalue()


# Format name -> function that serialises the module. Further formats are entered here.
WRITERS: dict[str, Callable[[ScriptedExplainer], bytes]] = {"torchscript": _torchscript}


def export_explainer(
    explainer: Explainer,
    path: str | os.PathLike[str],
    *,
    format: str = "torchscript",
    preprocessing: nn.Module | None = None,
    classes: Sequence[str] | None = None,
    class_pathways: ClassPathways | None = None,
    image_shape: Sequence[int] | None = None,
) -> None:
    """Write target, generator and preprocessing as one file that explains without their code.

    Args:
        explainer (Explainer): left as it was found.
        path (path): file to write, replaced in one step.
        format (str): one of :data:`WRITERS`.
        preprocessing (nn.Module or None): scriptable, from images to model inputs; None when images
            are model inputs already.
        classes (sequence of str or None): K class names.
        class_pathways (ClassPathways or None): pathways for ``transfer``.
        image_shape (sequence of int or None): (C, H, W) of the images, for programs that read image
            files; None where that is open.

    Raises:
        ExportError: the target cannot be rewritten; the sentence names the module and the line.
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
    # Serialised in memory: torch's own writer reports a full disk as a RuntimeError.
    data = WRITERS[format](module)
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


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
        format="torchscript",
        preprocessing=preprocessing,
        classes=classes,
        class_pathways=class_pathways,
    )


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Description of an exported TorchScript explainer, without running anything in the file.

    Args:
        path (path): file written by :func:`export_torchscript`.

    Returns:
        dict: see :meth:`pathways.export.ScriptedExplainer.describe`.

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
            f"{path} is damaged or not a scripted explainer (not a TorchScript archive: {error})"
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
    return info


class LoadedExplainer:
    """A scripted explainer loaded into Python; see :class:`pathways.export.ScriptedExplainer`.

    The methods run without TorchScript's optimiser: it gains nothing here (the time is spent inside
    convolutions), and it compiles for seconds in the first two calls of every method. Wrong
    arguments raise a ``ValueError`` with one sentence.

    Args:
        module (torch.jit.ScriptModule): the loaded module; its attributes and buffers are there.
        info (dict): its description.
    """

    def __init__(self, module: torch.jit.ScriptModule, info: dict[str, Any]) -> None:
        self.module = module
        self.info = info
        self.sites = Sites.from_json(info)

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.module.classes)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the target inside."""
        return str(self.module.fingerprint)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, gated logits, importance and words of a batch of images."""
        return self._run("forward", images)

    def explain(self, images: Tensor) -> Explanation:
        """The same as the explanation that an eager explainer returns."""
        logits, gated_logits, importance, words = self(images)
        return Explanation(
            logits, gated_logits, importance, Pathway(words, self.sites, self.fingerprint)
        )

    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits and importance, without the gated run."""
        return self._run("importance", images)

    def transfer(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """Gated logits under the class pathways in the file."""
        return self._run("transfer", images, classes)

    def pathway_gradient(
        self, images: Tensor, classes: Tensor | None = None, words: Tensor | None = None
    ) -> Tensor:
        """Gradient of the class logit with respect to the model input under the pathway."""
        return self._run("pathway_gradient", images, classes, words)

    def grad_cam(
        self,
        images: Tensor,
        classes: Tensor | None = None,
        words: Tensor | None = None,
        site: int = -1,
    ) -> Tensor:
        """Grad-CAM of the gated run."""
        return self._run("grad_cam", images, classes, words, site)

    def to(self, device: torch.device | str) -> LoadedExplainer:
        """Move to a device, in place."""
        self.module.to(device)
        return self

    def _run(self, method: str, *args: Any) -> Any:
        try:
            with torch.jit.optimized_execution(False):
                return getattr(self.module, method)(*args)
        except torch.jit.Error as error:
            # Raised by the module's own checks: the sentence follows TorchScript's traceback.
            raise ValueError(str(error).strip().rpartition("builtins.ValueError: ")[2]) from None


def load_scripted(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> LoadedExplainer:
    """Load an explainer written by :func:`export_torchscript`.

    **A TorchScript file is code.** Loading checks that the file is whole and says what it is, not
    that it is harmless: load files from sources you trust only.

    Args:
        path (path): the file.
        device (device): where to put it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, foreign or newer file, or one that this torch cannot run.
    """
    from pathways import _library

    info = read_info(path)
    _library.load()  # the archive names the ops, it does not hold them
    try:
        module = torch.jit.load(os.fspath(path), map_location=device)
    except RuntimeError as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "?")
        raise ValueError(
            f"{path} was written with torch {info.get('torch')} and pathways "
            f"{info.get('pathways')} and does not load with torch {torch.__version__}: {reason}"
        ) from error
    return LoadedExplainer(module, info)

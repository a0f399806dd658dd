"""AOTInductor: a scripted explainer as native code in one ``.pt2`` archive.

The archive is torch's own, with one model per program of :mod:`pathways.export.programs`, so that
torch's loaders in C++ and Python run it. What the models share, the constants, lies beside them and
is stored once.
"""

from __future__ import annotations

import io
import json
import logging
import platform
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathways import _C
from pathways.export.capture import ExportError, first_line
from pathways.export.loaded import CompiledExplainer
from pathways.export.programs import Program, trace_programs
from pathways.export.scripted import ScriptedExplainer

Progress = Callable[[str, int, int], None]

INFO_FILE = "pathways.json"
CONSTANTS_FILE = "constants.safetensors"
# Where every machine of a kind is to run the file: convolutions and matrix products choose their
# instructions when they run, and what is left is bound by memory.
_PORTABLE = {"x86_64": ("avx2", "x86-64-v3", 256)}


def write_aoti(module: ScriptedExplainer, progress: Progress | None = None) -> bytes:
    """Compile an explainer: about ten seconds for every model, more for targets with many sites.

    Intermediate files go to a temporary folder, and torch's compiler cache is where
    ``TORCHINDUCTOR_CACHE_DIR`` says.

    Args:
        module (ScriptedExplainer): what to compile; it cannot be scripted afterwards.
        progress (callable or None): called with (stage, done, total).

    Returns:
        bytes: the archive.

    Raises:
        ExportError: no C++ compiler, a method that cannot be compiled, or compiled code that gives
            other results.
    """
    _check_compiler()
    report: Progress = progress if progress is not None else lambda stage, done, total: None
    report("compiling  tracing", 0, 1)
    programs = trace_programs(module)
    capability, options = _target_machine()
    info = json.loads(module.info) | _description(module, programs, capability)
    constants = {
        name: value for program in programs.values() for name, value in program.constants.items()
    }
    constants["class_words"] = module.class_words
    constants["class_counts"] = module.class_counts
    with tempfile.TemporaryDirectory(prefix="pathways-aoti-") as name:
        folder = Path(name)
        files = {}
        for done, (method, program) in enumerate(programs.items()):
            report(f"compiling  {method}", done, len(programs))
            files[method] = _compile(method, program, folder / method, options)
        data = _package(files, info, constants)
        archive = folder / "explainer.pt2"
        archive.write_bytes(data)
        _check(programs, open_aoti(str(archive), info))
    report("compiling  done", len(programs), len(programs))
    return data


def open_aoti(path: str, info: dict[str, Any]) -> CompiledExplainer:
    """Make an explainer of a file, whose models are loaded when they are first needed.

    Args:
        path (str): file written by :func:`write_aoti`.
        info (dict): its description.

    Raises:
        ValueError: the file was compiled for another kind of machine.
    """
    machine = f"{sys.platform} on {platform.machine()}"
    wanted = f"{info['platform']} on {info['machine']}"
    if machine != wanted:
        raise ValueError(f"{path} was compiled for {wanted}, this is {machine}; export it anew")
    found = _C.cpu_capability_found()
    if info["cpu_capability"] == "avx2" and found not in ("avx2", "avx512"):
        raise ValueError(f"{path} needs a processor with AVX2, this one has {found}")
    from safetensors.torch import load

    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(f"extra/{CONSTANTS_FILE}")]
        constants = load(archive.read(name))
    # Compiled code expects the alignment of torch's own memory.
    return CompiledExplainer(path, info, {key: value.clone() for key, value in constants.items()})


def _description(
    module: ScriptedExplainer, programs: dict[str, Program], capability: str
) -> dict[str, Any]:
    """What ``info`` holds in addition, see docs/formats.md."""
    return {
        "format": "aoti",
        "device": "cpu",
        "platform": sys.platform,
        "machine": platform.machine(),
        "cpu_capability": capability,
        "input_shape": programs["importance"].inputs[0].shape[1:],
        "num_classes": module.num_classes,
        "sizes": module.sizes,
        "word_offsets": module.word_offsets,
        "cam_site": module.cam_site,
        "constants": CONSTANTS_FILE,
        "models": {
            name: {
                "inputs": [argument.to_json() for argument in program.inputs],
                "outputs": [argument.to_json() for argument in program.outputs],
            }
            for name, program in programs.items()
        },
    }


# ---------------------------------------------------------------------- compiling


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # torch raises different kinds
        raise ExportError(
            "export: format aoti needs a C++ compiler (g++, or the one that CXX names), found "
            "none; install one, or take the format torchscript"
        ) from error


def _target_machine() -> tuple[str, dict[str, Any]]:
    """CPU capability that the file will need, and the options that say so to the compiler."""
    capability, march, width = _PORTABLE.get(platform.machine(), ("native", "native", 0))
    if capability == "native" or _C.cpu_capability_found() not in ("avx2", "avx512"):
        return "native", {}
    return capability, {"cpp.march": march, "cpp.simdlen": width}


def _compile(method: str, program: Program, folder: Path, machine: dict[str, Any]) -> list[Path]:
    from torch._inductor import aot_compile, config

    options = {
        "aot_inductor.package": True,
        "aot_inductor.package_constants_in_so": False,
        "aot_inductor.output_path": str(folder),
        # As many threads as the process that runs it has, not as the one that compiles.
        "cpp.dynamic_threads": True,
        # Batches of one are welcome, though not what the code was traced with.
        "aot_inductor.check_lowerbound": False,
        # Three quarters of the size otherwise.
        "aot_inductor.enable_line_tables": False,
        "aot_inductor.enable_frame_pointer": False,
        "compile_threads": 1,
        **machine,
    }
    known = config.get_config_copy()
    files: Any
    try:
        with _quiet(), _scatters_by_torch():
            files = aot_compile(
                program.graph,
                program.example,
                options={name: value for name, value in options.items() if name in known},
            )
    except Exception as error:  # torch and the compiler raise many kinds
        raise ExportError(
            f"export: AOTInductor cannot compile {method}: {first_line(error)}"
        ) from error
    return [Path(file) for file in files if isinstance(file, str)]


@contextmanager
def _scatters_by_torch() -> Iterator[None]:
    """Keep the compiler from atomic additions of its own, which gradients of resizing are made of.

    What torch 2.13 generates for them writes past the end of the result where it transposes a tile
    on the way. For deterministic results it calls torch's kernel instead.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks on its own code, and on a GPU that is not there, from the user."""
    loggers = [
        logging.getLogger(f"torch.{name}") for name in ("_inductor.ir", "utils.cpp_extension")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec", category=FutureWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _package(
    files: dict[str, list[Path]], info: dict[str, Any], constants: dict[str, Tensor]
) -> bytes:
    from safetensors.torch import save
    from torch.export.pt2_archive._package import PT2ArchiveWriter
    from torch.export.pt2_archive.constants import AOTINDUCTOR_DIR, EXTRA_DIR

    stored = {name: value.detach().contiguous().clone() for name, value in constants.items()}
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for method, paths in files.items():
            for path in paths:
                # Torch's loader finds the others by the name of the source, and reads none of it.
                data = b"" if path.suffix == ".cpp" else path.read_bytes()
                writer.write_bytes(f"{AOTINDUCTOR_DIR}{method}/{path.name}", data)
        writer.write_bytes(f"{EXTRA_DIR}{CONSTANTS_FILE}", save(stored))
        writer.write_string(f"{EXTRA_DIR}{INFO_FILE}", json.dumps(info))
    return buffer.getvalue()


# ---------------------------------------------------------------------- checks


def _check(programs: dict[str, Program], compiled: CompiledExplainer) -> None:
    """Believe the compiler only what it proves on batches that it was not given."""
    random = torch.Generator().manual_seed(0)
    num_classes = len(compiled.classes)
    for count in (3, 1):
        inputs = programs["importance"].inputs[0]
        x = torch.rand([count, *(side or 1 for side in inputs.shape[1:])], generator=random)
        x = x.to(inputs.dtype)
        words = programs["importance"].reference(x)[2]
        values = {"inputs": x, "words": words, "classes": torch.arange(count) % num_classes}
        if "preprocess" in programs:
            images = programs["preprocess"].inputs[0]
            sides = [37 + 16 * i if side is None else side for i, side in enumerate(images.shape)]
            values["images"] = torch.rand([count, *sides[1:]], generator=random).to(images.dtype)
        for method, program in programs.items():
            arguments = [values[argument.name] for argument in program.inputs]
            with torch.no_grad():
                wanted = program.reference(*arguments)
            found = compiled._run(method, *arguments)
            for argument, one, other in zip(
                program.outputs,
                found,
                wanted if isinstance(wanted, tuple) else (wanted,),
                strict=True,
            ):
                # A score on the edge may fall to either side: words need not be the same.
                if argument.name == "words":
                    continue
                if not _alike(one, other, argument.name in ("gradient", "map")):
                    worst = (one - other).abs().max().item()
                    raise ExportError(
                        f"export: compiled {method} gives another {argument.name} than the "
                        f"explainer (largest difference {worst:.3g})"
                    )


def _alike(one: Tensor, other: Tensor, slope: bool) -> bool:
    """Whether results agree but for rounding, which decides on which side of zero a ReLU is.

    Where it falls to the other side, a gradient differs by more than rounding, but in few places.
    """
    if torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True):
        return True
    difference = torch.nan_to_num(one - other).norm()
    return slope and bool(difference < 0.1 * torch.nan_to_num(other).norm())

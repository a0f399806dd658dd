"""Building and running programs against the trees that `make cpp-test` makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
TREES = {"install": "PATHWAYS_CPP_PREFIX", "wheel": "PATHWAYS_CPP_WHEEL"}


def tree(name: str) -> Path:
    """Directory with lib/cmake/Pathways in it; skips where `make cpp-test` has not made it."""
    variable = TREES[name]
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set: run make cpp-test")
    return Path(os.environ[variable])


def run(
    *command: object, code: int | None = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program; ``code`` is the exit status it must have."""
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | environment)
    assert code is None or done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


def cmake(*arguments: object, code: int = 0) -> str:
    """Run CMake; gives what it printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = run(shutil.which("cmake", path=path), *arguments, code=code, PATH=path)
    return done.stdout + done.stderr


TORCH = Path(torch.__file__).parent


def configure(
    source: Path,
    build: Path,
    prefix: Path,
    *options: str,
    torch_dir: Path | None = TORCH,
    code: int = 0,
) -> str:
    """Configure a project on a tree and a torch, without looking for Python."""
    search = [prefix] if torch_dir is None else [prefix, torch_dir]
    return cmake(
        *("-S", source, "-B", build, "-G", "Ninja"),
        f"-DCMAKE_PREFIX_PATH={';'.join(map(str, search))}",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_DISABLE_FIND_PACKAGE_Python=ON",
        *options,
        code=code,
    )


def rewrite(source: Path, path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Copy an exported file with other entries: ``change(name, data)`` gives what is written."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))

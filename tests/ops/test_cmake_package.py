"""find_package(Pathways) on the package directory, for programs without Python."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import pathways

PROJECT = Path(__file__).parent / "cmake_package"


@pytest.mark.slow
def test_program_that_links_the_library(tmp_path):
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    # A copy elsewhere: the CMake package must not remember where it was built.
    prefix = tmp_path / "moved" / "pathways"
    for folder in ("include", "lib"):
        shutil.copytree(Path(pathways.cmake_prefix_path) / folder, prefix / folder)
    build = tmp_path / "build"
    configure = [cmake, "-S", str(PROJECT), "-B", str(build), f"-DCMAKE_PREFIX_PATH={prefix}"]
    configure.append(f"-DTORCH_DIR={Path(torch.__file__).parent}")
    for command in (configure, [cmake, "--build", str(build)]):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    result = subprocess.run([str(build / "pack")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "7\n"

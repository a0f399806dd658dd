"""Builds the compiled parts by driving CMakeLists.txt; everything else is in pyproject.toml.

Environment: PATHWAYS_CUDA=auto|on|off (FORCE_CUDA=1 means on), TORCH_CUDA_ARCH_LIST, CUDA_HOME,
MAX_JOBS, DEBUG=1.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_torch() -> Path:
    """Directory of the installed torch package, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "pathways: torch is needed to build; install torch >= 2.11 first, then run "
            "`pip install --no-build-isolation .`"
        )
    return Path(spec.submodule_search_locations[0])


def run_step(step: str, command: list[str]) -> None:
    """Run one step of CMake; its own message is the last thing the user reads."""
    sys.stdout.flush()
    if subprocess.run(command).returncode != 0:
        raise SystemExit(f"pathways: the {step} step of CMake failed, see its message above")


class BuildWithCMake(build_ext):
    """Configures, builds and installs with CMake, the package directory being the prefix."""

    def run(self) -> None:
        package = ROOT / "pathways" if self.inplace else Path(self.build_lib) / "pathways"
        cmake = shutil.which("cmake")
        if cmake is None:
            raise SystemExit(
                "pathways: cmake >= 3.22 is needed to build; install it, for example by "
                "`pip install cmake`"
            )
        torch = find_torch()
        ninja = shutil.which("ninja")
        build_type = "Debug" if os.environ.get("DEBUG", "0") not in ("", "0") else "Release"
        # An isolated build has its tools in a directory that is gone afterwards: it gets a build
        # tree of its own, and a tree whose tools have changed is started anew.
        isolated = "pip-build-env" in str(torch)
        build = ROOT / "build" / ("cmake-isolated" if isolated else "cmake")
        choices = "\n".join([sys.executable, str(torch), str(cmake), str(ninja), build_type])
        choices += "\n".join(
            f"{name}={os.environ.get(name)}" for name in ("CXX", "CXXFLAGS", "CUDACXX", "CUDA_HOME")
        )
        key = hashlib.sha256(choices.encode()).hexdigest()
        stamp = build / "choices.sha256"
        if build.exists() and (not stamp.exists() or stamp.read_text() != key):
            shutil.rmtree(build)
        build.mkdir(parents=True, exist_ok=True)
        stamp.write_text(key)
        cuda = os.environ.get("PATHWAYS_CUDA") or (
            "on" if os.environ.get("FORCE_CUDA") == "1" else "auto"
        )
        configure = [
            cmake,
            *("-S", str(ROOT), "-B", str(build)),
            *("-G", "Ninja" if ninja else "Unix Makefiles"),
            f"-DCMAKE_BUILD_TYPE={build_type}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPATHWAYS_TORCH_DIR={torch}",
            f"-DPATHWAYS_CUDA={cuda}",
        ]
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        run_step("configure", configure)
        run_step("build", [cmake, "--build", str(build), "--parallel", jobs])
        run_step("install", [cmake, "--install", str(build), "--prefix", str(package.resolve())])

    def get_source_files(self) -> list[str]:
        files = [ROOT / "CMakeLists.txt", ROOT / "version.txt"]
        for folder in ("cmake", "csrc"):
            files += [path for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
        return [str(path.relative_to(ROOT)) for path in files]


setup(ext_modules=[Extension("pathways._C", sources=[])], cmdclass={"build_ext": BuildWithCMake})

"""Every CUDA kernel on the CPU under ASan + UBSan and under TSan, and proof that they would notice.

The driver is a program without Python and torch: neither is instrumented. For TSan only barriers
order memory, so a missing one is a race even where the order of the threads hides it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from host_library import REPOSITORY, SOURCES, compile_sources, compiler

pytestmark = pytest.mark.slow

CHECKS = "alignment,bounds,float-cast-overflow,integer-divide-by-zero,shift,signed-integer-overflow"
SANITIZERS = {
    "address": (f"-fsanitize=address,{CHECKS}", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
ENVIRONMENT = {
    **os.environ,
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1",
}
PROGRAM = "#include <thread>\nint main() { std::thread([] {}).join(); }\n"


@dataclass(frozen=True)
class Driver:
    """The compiled driver and what a changed kernel is linked with."""

    program: Path
    flags: tuple[str, ...]
    objects: dict[str, Path]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(self.program, *arguments)


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments], env=ENVIRONMENT, capture_output=True, text=True
    )


def lines_of(program: Path, report: str) -> str:
    """Where the two accesses of a race are: the runtime itself does not find lines of templates."""
    addresses = re.findall(r"#0 .*\+(0x[0-9a-f]+)\)", report)[:2]
    command = ["addr2line", "-i", "-e", str(program), *addresses]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def build_driver(kind: str, directory: Path) -> Driver:
    """Compile all files apart, so that a changed one can be linked with the others."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
    flags = (*SANITIZERS[kind], "-g1", "-fno-omit-frame-pointer")
    trial = directory / "trial.cpp"
    trial.write_text(PROGRAM)
    command = [str(compiler()), *flags, str(trial), "-o", str(directory / "trial")]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode != 0:
        pytest.skip(f"no {kind} sanitizer: {built.stderr.strip().splitlines()[-1]}")
    tried = run(directory / "trial")
    if tried.returncode != 0:
        pytest.skip(f"the {kind} sanitizer does not run here: {tried.stderr.strip()}")
    objects = {}
    for name in (*SOURCES, "driver.cpp"):
        objects[name] = directory / f"{name}.o"
        compile_sources([name], objects[name], (*flags, "-c"))
    compile_sources([], directory / "driver", flags, objects=objects.values())
    return Driver(directory / "driver", flags, objects)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return build_driver("address", tmp_path_factory.mktemp("address"))


@pytest.fixture(scope="module")
def thread(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return build_driver("thread", tmp_path_factory.mktemp("thread"))


@pytest.mark.parametrize("seed", ["0", "3"], ids=["ascending", "shuffled"])
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_are_clean(sanitizer: str, seed: str, request: pytest.FixtureRequest) -> None:
    result = request.getfixturevalue(sanitizer).run("all", seed)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "nothing noticed\n" and result.stderr == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shared_overflow", ("AddressSanitizer: use-after-poison", "shared_overflow_kernel")),
        ("global_overflow", ("AddressSanitizer: heap-buffer-overflow", "global_overflow_kernel")),
        ("wide_shift", ("planted.cpp", "shift exponent 32 is too large")),
        ("unaligned_load", ("common.cuh", "misaligned address", "requires 16 byte alignment")),
        ("divergent_barrier", ("threads wait at a barrier that others of the block never reach",)),
        ("excluded_lane", ("a lane called a warp collective whose mask leaves it out",)),
        ("foreign_lane", ("a lane read from a lane outside the mask of the shuffle",)),
    ],
)
def test_address_notices(address: Driver, name: str, words: tuple[str, ...]) -> None:
    result = address.run("planted", name)
    assert result.returncode != 0
    assert all(word in result.stderr for word in words), result.stderr


def test_thread_notices_a_missing_barrier(thread: Driver) -> None:
    result = thread.run("planted", "missing_barrier")
    assert result.returncode != 0
    source = (REPOSITORY / "tests" / "host_cuda" / "planted.cpp").read_text().splitlines()
    (line,) = (k for k, text in enumerate(source, 1) if "shared[63 - threadIdx.x]" in text)
    assert "ThreadSanitizer: data race" in result.stderr
    assert f"missing_barrier_kernel {REPOSITORY}/tests/host_cuda/planted.cpp:{line}" in (
        result.stderr
    )


# A kernel with one mistake: part of the driver, file, text, what takes its place, what is said.
RACE = "ThreadSanitizer: data race"
CHANGES = {
    "no barrier before a stage is filled": (
        "products",
        "mma_tile.cuh",
        "      __syncthreads();\n",
        "",
        RACE,
    ),
    "no barrier after a tile is read": (
        "products",
        "bit_tile.cuh",
        "right[j]);\n      }\n      __syncthreads();\n",
        "right[j]);\n      }\n",
        RACE,
    ),
    "no barrier before counts are read": (
        "classes",
        "class_frequency_kernel.cuh",
        "lane], count);\n      }\n    }\n    __syncthreads();\n",
        "lane], count);\n      }\n    }\n",
        RACE,
    ),
    "a stage is multiplied before it has landed": (
        "products",
        "mma_tile.cuh",
        "wait_for_copies<kStages - 2>",
        "wait_for_copies<kStages - 1>",
        "a thread ends before its asynchronous copies have landed",
    ),
    "rows and k of a fragment exchanged": (
        "products",
        "mma_tile.cuh",
        "{low.value[half], high.value[half], low.value[half + 1],",
        "{low.value[half], low.value[half + 1], high.value[half],",
        "pairwise_intersection counts wrongly",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_kernel_is_noticed(thread: Driver, name: str, tmp_path: Path) -> None:
    part, file, text, instead, words = CHANGES[name]
    for folder in ("csrc/core", "csrc/ops/cuda", "tests/host_cuda"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    kernel = tmp_path / "csrc" / "ops" / "cuda" / file
    source = kernel.read_text()
    assert source.count(text) == 1, f"{file} has changed: choose another line"
    kernel.write_text(source.replace(text, instead))
    others = [path for name, path in thread.objects.items() if name != "bit_kernels.cpp"]
    program = tmp_path / "driver"
    compile_sources(["bit_kernels.cpp"], program, thread.flags, tmp_path, others)
    result = run(program, part, "0")
    assert result.returncode != 0
    assert words in result.stderr, result.stderr
    if words == RACE:
        assert f"/csrc/ops/cuda/{file}:" in lines_of(program, result.stderr)

"""The inner loops give the same bits on this machine and on an emulated one with NEON.

driver.cpp runs all of them without torch, at every level of this machine and, compiled for aarch64,
under qemu. What it prints must be equal line by line.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import pytest
from levels import LEVELS, ROOT, cmake_list, compile_loops

pytestmark = pytest.mark.slow

LOOPS = cmake_list("PATHWAYS_CPU_LOOPS")
# Those that variant.h declares, by the name of the processor.
VARIANTS = {"x86_64": ("scalar", "avx2", "avx512"), "aarch64": ("scalar", "neon")}
NEON_LEVELS = VARIANTS["aarch64"]


@dataclass
class Driver:
    """A compiler, what it makes of the driver, and what runs that."""

    compiler: str
    variants: tuple[str, ...]
    directory: Path
    flags: tuple[str, ...] = ()
    emulator: tuple[str, ...] = ()
    lines: dict[str, list[str]] = field(default_factory=dict)

    def object(self, source: str, variant: str) -> Path:
        return self.directory / f"{Path(source).stem}.{variant}.o"

    def compile_driver(self, target: Path) -> None:
        source = ROOT / "tests" / "host_neon" / "driver.cpp"
        flags = ("-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
        subprocess.run([self.compiler, *flags, "-c", source, "-o", target], check=True)

    def link(self, program: Path, replaced: dict[Path, Path] | None = None) -> None:
        """Link all objects, or others in the place of some."""
        objects = [self.object(source, v) for source in LOOPS for v in self.variants]
        objects.append(self.directory / "driver.o")
        objects = [(replaced or {}).get(path, path) for path in objects]
        subprocess.run([self.compiler, *self.flags, *objects, "-o", program], check=True)

    def run(self, program: Path, level: str, prefix: str = "") -> list[str]:
        """The lines of the cases whose name begins with ``prefix``."""
        result = subprocess.run(
            [*self.emulator, program, prefix],
            env={**os.environ, "PATHWAYS_CPU_CAPABILITY": level},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        first, *lines = result.stdout.splitlines()
        assert first == f"level: {level}"
        return lines

    def build_and_run(self, levels: tuple[str, ...]) -> Driver:
        program = self.directory / "driver"
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = [pool.submit(self.compile_driver, self.directory / "driver.o")]
            for variant in self.variants:
                for source in LOOPS:
                    target = self.object(source, variant)
                    compiled.append(
                        pool.submit(compile_loops, self.compiler, source, variant, target)
                    )
            for task in compiled:
                task.result()
            self.link(program)
            results = pool.map(lambda level: self.run(program, level), levels)
            self.lines = dict(zip(levels, results, strict=True))
        return self


def difference(expected: list[str], actual: list[str]) -> str | None:
    """The first case in which two runs differ, and how many there are; None when they do not."""
    pairs = [(a, b) for a, b in zip_longest(expected, actual, fillvalue="nothing") if a != b]
    if not pairs:
        return None
    return f"'{pairs[0][0]}' became '{pairs[0][1]}', first of {len(pairs)} cases that differ"


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    variants = VARIANTS.get(platform.machine(), ("scalar",))
    driver = Driver(compiler, variants, tmp_path_factory.mktemp("native"))
    return driver.build_and_run(tuple(LEVELS))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    if "neon" in LEVELS:
        pytest.skip("this machine has NEON itself")
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("aarch64-linux-gnu-g++ is not installed (package g++-aarch64-linux-gnu)")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("qemu-aarch64 is not installed (package qemu-user-static)")
    directory = tmp_path_factory.mktemp("aarch64")
    # Static: the emulator needs no libraries of the other machine then.
    driver = Driver(compiler, NEON_LEVELS, directory, ("-static",), (emulator,))
    return driver.build_and_run(NEON_LEVELS)


def test_difference_names_the_first_case() -> None:
    assert difference(["a: 1", "b: 2"], ["a: 1", "b: 2"]) is None
    message = "'b: 2' became 'b: 3', first of 2 cases that differ"
    assert difference(["a: 1", "b: 2"], ["a: 1", "b: 3", "c: 4"]) == message


@pytest.mark.parametrize("level", LEVELS[1:])
def test_same_bits_at_every_level(level: str, native: Driver) -> None:
    message = difference(native.lines["scalar"], native.lines[level])
    assert message is None, message


@pytest.mark.parametrize("level", NEON_LEVELS)
def test_same_bits_on_aarch64(level: str, native: Driver, emulated: Driver) -> None:
    message = difference(native.lines["scalar"], emulated.lines[level])
    assert message is None, message


# A header, what it says for NEON, a mistake in that place, the loops that show it, and the case
# that names it.
MISTAKES = [
    ("bit_words.h", "vcntq_u8(", "vclzq_u8(", "bit_tile", "bit_tile 1 1 1 whole"),
    # The count in a byte runs over: 16 steps of two words.
    ("bit_product.h", "kMaxParts / 2;", "kMaxParts;", "bit_tile", "bit_tile 3 5 32 whole"),
    ("narrow_lanes.h", "vcvt_f32_f16(", "-vcvt_f32_f16(", "binarize", "binarize half 1 backward"),
    ("lanes.h", "mask.part[p] ? a", "mask.part[p] ? -a", "binarize", "binarize float"),
]


@pytest.mark.parametrize(
    ("header", "right", "wrong", "loops", "case"), MISTAKES, ids=[m[0] for m in MISTAKES]
)
def test_mistake_is_named(
    header: str,
    right: str,
    wrong: str,
    loops: str,
    case: str,
    emulated: Driver,
    tmp_path: Path,
) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    path = tmp_path / "csrc" / "ops" / "cpu" / header
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    source = f"csrc/ops/cpu/{loops}_loops.cpp"
    compile_loops(emulated.compiler, tmp_path / source, "neon", tmp_path / "wrong.o")
    program = tmp_path / "driver"
    emulated.link(program, {emulated.object(source, "neon"): tmp_path / "wrong.o"})
    prefix = case.split()[0]
    expected = [line for line in emulated.lines["neon"] if line.startswith(prefix)]
    message = difference(expected, emulated.run(program, "neon", prefix))
    assert message is not None and message.startswith(f"'{case}"), message

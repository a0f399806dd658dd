"""Compiles and calls register_loop.cpp."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from pathways import _C

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = {
    "avx512": ("-mavx512f", "-mavx512vpopcntdq"),
    "avx2": ("-mpopcnt",),
    "scalar": (),
    "neon": (),
}


class RegisterLoop:
    """and + popcount + add on registers: the ceiling of bit counting at a capability.

    Args:
        folder (Path): where the compiled library goes.
        capability (str): name of a level; by default the one the ops use. Levels below AVX-512
            count 64 bits at a time, by the popcnt instruction where the level has it.

    Raises:
        RuntimeError: no C++ compiler, or it fails.
    """

    def __init__(self, folder: Path, capability: str | None = None) -> None:
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            raise RuntimeError("there is no C++ compiler (g++) for the register loop")
        self.capability = capability or _C.cpu_capability()
        library = folder / f"register_loop_{self.capability}.so"
        flags = ("-O3", "-std=c++20", "-shared", "-fPIC", *FLAGS[self.capability])
        result = subprocess.run(
            [compiler, *flags, str(SOURCE), "-o", str(library)], capture_output=True, text=True
        )
        if result.returncode:
            raise RuntimeError(f"the register loop does not compile: {result.stderr}")
        functions = ctypes.CDLL(str(library))
        functions.register_loop.argtypes = [ctypes.c_int64]
        functions.register_loop.restype = ctypes.c_uint64
        functions.bits_per_step.restype = ctypes.c_int64
        self._loop = functions.register_loop
        self.bits_per_step: int = functions.bits_per_step()
        if self._loop(3) != 3 * self.bits_per_step // 4:
            raise RuntimeError("the register loop counts wrongly")

    def run(self, bits: int) -> Callable[[], int]:
        """A call that counts so many bits, to the next step."""
        steps = -(-bits // self.bits_per_step)
        return lambda: self._loop(steps)

"""The CUDA kernels compiled for the CPU by tests/host_cuda, and guarded memory to run them on."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("bit_kernels.cpp", "element_kernels.cpp", "planted.cpp")
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool)
ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu")


def compiler() -> str | None:
    """The host compiler, or None when there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def compile_sources(
    names: Iterable[str],
    result: Path,
    flags: Iterable[str],
    repository: Path = REPOSITORY,
    objects: Iterable[Path] = (),
) -> None:
    """Compile files of tests/host_cuda, with the shim in nvcc's place.

    Args:
        names (Iterable[str]): the files.
        result (Path): what the compiler writes.
        flags (Iterable[str]): beyond those for language and warnings.
        repository (Path): another tree with tests/host_cuda and csrc.
        objects (Iterable[Path]): compiled files to link with.
    """
    include = Path(torch.__file__).parent / "include"
    command = [
        str(compiler()),
        *("-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror"),
        "-Wno-unknown-pragmas",  # unrolling
        *("-isystem", str(include)),
        *flags,
        *(str(repository / "tests" / "host_cuda" / name) for name in names),
        *(str(path) for path in objects),
        *("-o", str(result)),
    ]
    subprocess.run(command, check=True)


def build(directory: Path) -> Path:
    """Compile the kernels and return the library."""
    library = directory / "libhost_cuda.so"
    compile_sources(SOURCES, library, ("-fPIC", "-shared"))
    return library


class Memory:
    """A copy of a tensor between two zones that must stay as they are.

    Args:
        values (Tensor): what to copy, in memory order.
        offset (int): elements between a 64-byte boundary and the copy; 0 is aligned.
    """

    ZONE = 256
    PATTERN = 0xA5

    def __init__(self, values: Tensor, offset: int = 0) -> None:
        self.shape, self.dtype = values.shape, values.dtype
        data = values.contiguous().reshape(-1).view(torch.uint8)
        skip = offset * values.element_size()
        self.bytes = torch.full((2 * self.ZONE + data.numel() + skip + 64,), self.PATTERN).to(
            torch.uint8
        )
        self.first = self.ZONE + (-(self.bytes.data_ptr() + self.ZONE)) % 64 + skip
        self.last = self.first + data.numel()
        self.bytes[self.first : self.last] = data
        self.pointer = ctypes.c_void_p(self.bytes.data_ptr() + self.first)

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> Memory:
        """Room for a result, filled with a pattern that no kernel writes by chance."""
        size = torch.empty((), dtype=dtype).element_size()
        count = torch.Size(shape).numel() * size
        raw = torch.full((count,), 0x7B, dtype=torch.uint8)
        return cls(raw.view(dtype).reshape(shape), offset)

    def tensor(self) -> Tensor:
        """The values, after a check that nothing around them has changed."""
        outside = torch.cat([self.bytes[: self.first], self.bytes[self.last :]])
        assert (outside == self.PATTERN).all(), "a kernel wrote outside its result"
        data = self.bytes[self.first : self.last].clone()
        return data.view(self.dtype).reshape(self.shape)


class HostLibrary:
    """Calls of the compiled kernels; an error of the shim becomes a RuntimeError."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def set_order(self, seed: int) -> None:
        """0: threads in ascending order; otherwise shuffled at every barrier."""
        self._library.host_cuda_set_order(ctypes.c_uint(seed))

    def call(self, name: str, *arguments: object) -> None:
        """Call ``host_cuda_<name>``; int becomes int64, tensors must be wrapped in Memory."""
        function = getattr(self._library, f"host_cuda_{name}")
        function.restype = ctypes.c_char_p
        message = function(*(self._convert(argument) for argument in arguments))
        if message is not None:
            raise RuntimeError(message.decode())

    def value(self, name: str, *arguments: object) -> int:
        """What ``host_cuda_<name>`` returns, for functions that cannot fail."""
        function = getattr(self._library, f"host_cuda_{name}")
        function.restype = ctypes.c_int64
        return int(function(*(self._convert(argument) for argument in arguments)))

    @staticmethod
    def _convert(argument: object) -> object:
        if isinstance(argument, Memory):
            return argument.pointer
        if isinstance(argument, bool):
            return ctypes.c_bool(argument)
        if isinstance(argument, int):
            return ctypes.c_int64(argument)
        if isinstance(argument, float):
            return ctypes.c_double(argument)
        if isinstance(argument, str):
            return ctypes.c_char_p(argument.encode())
        if isinstance(argument, tuple) and all(isinstance(item, bool) for item in argument):
            return (ctypes.c_bool * len(argument))(*argument)
        if isinstance(argument, tuple):
            return (ctypes.c_int64 * len(argument))(*argument)
        return argument

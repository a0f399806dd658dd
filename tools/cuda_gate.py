"""Compile every CUDA kernel for every supported architecture and check what ptxas made of it.

No GPU is needed. The gate fails when a kernel uses local memory (spilled registers, a stack frame),
or more registers than ``cuda_budget.json`` records for it; a kernel that is missing there, or there
and no longer in the sources, fails too. Registers are compared only under the nvcc release that the
budget was recorded with: another one allocates differently.

With ``cuobjdump`` and ``nvdisasm`` at hand (PyPI ``nvidia-cuda-cuobjdump``,
``nvidia-cuda-nvdisasm``, or the CUDA toolkit) it also reads the machine code: kernels that stream
must use 128-bit loads and stores, kernels for tensor cores must use the binary matrix instruction
on exactly the architectures where the rule in ``bit_product.h`` may choose them, and none may touch
local memory. Without nvcc there is nothing to check: a notice, and exit code 0.

    python tools/cuda_gate.py             # check
    python tools/cuda_gate.py --update    # record the registers of today as the budget
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = REPOSITORY / "csrc" / "ops" / "cuda"
BUDGET = Path(__file__).with_name("cuda_budget.json")
ARCHITECTURES = ("80", "90", "100", "120")
# Kernels that move each byte once, or write a result larger than what they read: their accesses
# must be the widest there are. Of packing only one side is as wide as that.
WIDE_LOADS = ("binarize", "gated_forward", "gated_backward", "pack_bits_kernel")
WIDE_STORES = ("binarize", "gated_forward", "gated_backward", "unpack_bits_kernel", "pairwise")
# What mma.m16n8k256 with .and.popc becomes where tensor cores have a binary mode.
MATRIX_INSTRUCTION = "BMMA.168256.AND.POPC"


class MachineCode(NamedTuple):
    """Instructions of one kernel; -1 is unknown."""

    wide_loads: int = -1  # 128 bits from global memory
    wide_stores: int = -1  # 128 bits to global memory
    matrix: int = -1
    local: int = -1  # accesses to local memory


UNKNOWN = MachineCode()


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel on one architecture; counts of -1 are unknown."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    code: MachineCode = UNKNOWN


def kernel_name(symbol: str) -> str:
    """The name without return type, parameters and our namespace.

    Args:
        symbol (str): a demangled entry function.

    Returns:
        str: for example ``binarize_kernel<float>``.

    Example:
        >>> kernel_name("void pathways::cuda::binarize_kernel<c10::Half>(c10::Half const*, long)")
        'binarize_kernel<Half>'
    """
    name = symbol.removeprefix("void ").replace("pathways::cuda::", "").replace("c10::", "")
    depth = 0
    for position, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        # A cast such as (GateMode)1 is inside the template arguments.
        if character == "(" and depth == 0:
            return name[:position]
    return name


def demangle(symbols: Iterable[str]) -> dict[str, str]:
    """Mangled to demangled names, by the c++filt of the compiler tools."""
    mangled = sorted(set(symbols))
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if not mangled or tool is None:
        return {name: name for name in mangled}
    text = subprocess.run(
        [tool], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout
    return dict(zip(mangled, text.splitlines(), strict=True))


def parse_ptxas(log: str) -> Iterator[Kernel]:
    """The kernels in the output of ``nvcc -Xptxas -v``.

    Args:
        log (str): standard error of nvcc.

    Yields:
        Kernel: with mangled names.
    """
    entry = re.compile(r"Compiling entry function '([^']+)' for 'sm_(\w+)'")
    frame = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill load")
    used = re.compile(r"Used (\d+) registers")
    shared = re.compile(r"(\d+) bytes smem")
    symbol = architecture = ""
    stack = spills = 0
    for line in log.splitlines():
        if match := entry.search(line):
            symbol, architecture = match[1], match[2]
            stack = spills = 0
        elif match := frame.search(line):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        elif match := used.search(line):
            bytes_shared = shared.search(line)
            yield Kernel(
                symbol,
                architecture,
                int(match[1]),
                stack,
                spills,
                int(bytes_shared[1]) if bytes_shared else 0,
            )


def parse_sass(text: str) -> dict[str, MachineCode]:
    """What the gate looks for in every function.

    Args:
        text (str): output of ``cuobjdump -sass`` for one architecture.

    Returns:
        dict[str, MachineCode]: by mangled name.
    """
    # LDGSTS copies from global to shared memory.
    patterns = (
        re.compile(r"\bLDG(STS)?\.\S*\b128\b"),
        re.compile(r"\bSTG\.\S*\b128\b"),
        re.compile(rf"\b{re.escape(MATRIX_INSTRUCTION)}\b"),
        re.compile(r"\b(LDL|STL)\b"),
    )
    counts: dict[str, list[int]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            name = match[1]
            counts[name] = [0] * len(patterns)
        elif name:
            for kind, pattern in enumerate(patterns):
                counts[name][kind] += bool(pattern.search(line))
    return {name: MachineCode(*numbers) for name, numbers in counts.items()}


def check(
    kernels: Iterable[Kernel], budget: dict[str, dict[str, int]], same_release: bool = True
) -> list[str]:
    """What is wrong with the kernels, in sentences.

    Args:
        kernels (Iterable[Kernel]): all that were compiled.
        budget (dict[str, dict[str, int]]): registers by kernel and architecture.
        same_release (bool): the budget was recorded with this nvcc.

    Returns:
        list[str]: empty when all is well.
    """
    problems = []
    seen = set()
    for kernel in kernels:
        where = f"{kernel.name} on sm_{kernel.architecture}"
        seen.add((kernel.name, kernel.architecture))
        if kernel.spill_bytes or kernel.stack_bytes or kernel.code.local > 0:
            problems.append(
                f"{where} uses local memory ({kernel.stack_bytes} bytes of stack, "
                f"{kernel.spill_bytes} bytes of spills)"
            )
        limit = budget.get(kernel.name, {}).get(kernel.architecture)
        if limit is None:
            problems.append(f"{where} has no register budget; record one with --update")
        elif same_release and kernel.registers > limit:
            problems.append(f"{where} uses {kernel.registers} registers, the budget is {limit}")
        if kernel.code.wide_loads == 0 and kernel.name.startswith(WIDE_LOADS) and is_wide(kernel):
            problems.append(f"{where} has no 128-bit load")
        if kernel.code.wide_stores == 0 and kernel.name.startswith(WIDE_STORES) and is_wide(kernel):
            problems.append(f"{where} has no 128-bit store")
        if kernel.code.matrix == 0 and has_matrix_instruction(kernel):
            problems.append(f"{where} has no {MATRIX_INSTRUCTION}")
        elif kernel.code.matrix > 0 and not has_matrix_instruction(kernel):
            problems.append(f"{where} has {MATRIX_INSTRUCTION}; bit_product.h knows nothing of it")
    for name, limits in budget.items():
        for architecture in limits:
            if (name, architecture) not in seen:
                problems.append(f"{name} on sm_{architecture} has a budget but was not compiled")
    return problems


def is_wide(kernel: Kernel) -> bool:
    """False for the variants that exist for data no vector fits: one element at a time."""
    return not re.search(r"channel_kernel<.*, 1>$", kernel.name)


def has_matrix_instruction(kernel: Kernel) -> bool:
    """Kernels for tensor cores, from sm_80 up to where ``bit_product.h`` ends the rule."""
    text = (SOURCES / "bit_product.h").read_text()
    limits = [
        int(value) for value in re.findall(r"constexpr int kFirst\w*BinaryMma = (\d+);", text)
    ]
    if len(limits) != 2:
        raise ValueError(f"{SOURCES / 'bit_product.h'} has no two limits of the binary mma")
    return "MmaTile<" in kernel.name and limits[0] <= int(kernel.architecture) < limits[1]


def nvcc_release(nvcc: str) -> str:
    """For example ``13.0``."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    return match[1] if match else "unknown"


def kernel_sources() -> list[Path]:
    """The .cu files named in sources.cmake."""
    text = (SOURCES / "sources.cmake").read_text()
    match = re.search(r"set\(PATHWAYS_CUDA_KERNELS([^)]*)\)", text)
    if match is None:
        raise ValueError(f"{SOURCES / 'sources.cmake'} names no PATHWAYS_CUDA_KERNELS")
    return [SOURCES / name for name in match[1].split()]


def torch_include() -> Path:
    """Headers of the installed torch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("torch is not installed: its headers are needed")
    return Path(next(iter(spec.submodule_search_locations))) / "include"


def find_cuobjdump(nvcc: str) -> str | None:
    """On the path, beside nvcc, or where the PyPI package puts it."""
    candidates = [shutil.which("cuobjdump"), str(Path(nvcc).resolve().parent / "cuobjdump")]
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        candidates += [str(path) for path in sorted(Path(root).glob("**/bin/cuobjdump"))]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    return None


def compile_kernels(
    nvcc: str, source: Path, directory: Path, cuobjdump: str | None
) -> list[Kernel]:
    """Compile one file for all architectures and read what came out.

    Raises:
        RuntimeError: nvcc refused the file; the message is its output.
    """
    built = directory / f"{source.stem}.o"
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = [nvcc, "-std=c++20", "-O3", "-DNDEBUG", *targets, "-Xptxas=-v", "-Xcompiler=-fPIC"]
    command += ["-isystem", str(torch_include()), "-c", str(source), "-o", str(built)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"nvcc failed on {source}:\n{run.stdout}{run.stderr}")
    kernels = list(parse_ptxas(run.stderr))
    if cuobjdump is not None:
        machine_code = {}
        for architecture in ARCHITECTURES:
            dump = [cuobjdump, "-sass", "-arch", f"sm_{architecture}", str(built)]
            text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
            machine_code[architecture] = parse_sass(text)
        kernels = [
            replace(
                kernel,
                code=machine_code[kernel.architecture].get(kernel.name, UNKNOWN),
            )
            for kernel in kernels
        ]
    names = demangle(kernel.name for kernel in kernels)
    return [replace(kernel, name=kernel_name(names[kernel.name])) for kernel in kernels]


def table(kernels: Iterable[Kernel]) -> str:
    """Registers by architecture and machine code, one line per kernel.

    Of the wide accesses the fewest on any architecture are shown, of matrix instructions the most.
    """
    by_name: dict[str, dict[str, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, {})[kernel.architecture] = kernel
    lines = [
        f"{'kernel':<52}"
        + "".join(f"{'sm_' + a:>8}" for a in ARCHITECTURES)
        + f"{'shared':>8}{'spills':>8}{'LDG.128':>9}{'STG.128':>9}{'BMMA':>6}"
    ]
    for name, row in sorted(by_name.items()):
        registers = "".join(f"{row[a].registers if a in row else '-':>8}" for a in ARCHITECTURES)
        shared = max(kernel.shared_bytes for kernel in row.values())
        spills = max(kernel.spill_bytes + kernel.stack_bytes for kernel in row.values())
        code = [kernel.code for kernel in row.values()]
        loads, stores = min(c.wide_loads for c in code), min(c.wide_stores for c in code)
        seen = [
            "-" if count < 0 else str(count)
            for count in (loads, stores, max(c.matrix for c in code))
        ]
        lines.append(
            f"{name:<52}{registers}{shared:>8}{spills:>8}{seen[0]:>9}{seen[1]:>9}{seen[2]:>6}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the gate; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="record the registers as the budget")
    parser.add_argument("--nvcc", default=None, help="the compiler; found on the path by default")
    options = parser.parse_args(arguments)
    home = os.environ.get("CUDA_HOME")
    nvcc = options.nvcc or shutil.which("nvcc") or (home and shutil.which(f"{home}/bin/nvcc"))
    if not nvcc:
        print("cuda gate skipped: no nvcc on the path or in CUDA_HOME")
        return 0
    release = nvcc_release(nvcc)
    cuobjdump = find_cuobjdump(nvcc)
    if cuobjdump is None:
        print(
            "no cuobjdump: machine code is not checked "
            "(pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)"
        )
    kernels: list[Kernel] = []
    with tempfile.TemporaryDirectory() as directory:
        for source in kernel_sources():
            kernels += compile_kernels(nvcc, source, Path(directory), cuobjdump)
    print(table(kernels))
    if options.update:
        recorded: dict[str, dict[str, int]] = {}
        for kernel in sorted(kernels, key=lambda k: (k.name, int(k.architecture))):
            recorded.setdefault(kernel.name, {})[kernel.architecture] = kernel.registers
        content = {"nvcc": release, "registers": recorded}
        BUDGET.write_text(json.dumps(content, indent=1) + "\n")
        print(f"wrote {BUDGET.relative_to(REPOSITORY)}")
    budget: dict[str, Any] = {"nvcc": "", "registers": {}}
    if BUDGET.exists():
        budget = json.loads(BUDGET.read_text())
    same_release = budget["nvcc"] == release
    if not same_release:
        print(f"nvcc {release}, budget of nvcc {budget['nvcc']}: registers are not compared")
    problems = check(kernels, budget["registers"], same_release)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    kinds = len({kernel.name for kernel in kernels})
    print(f"{kinds} kernels, {len(ARCHITECTURES)} architectures, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

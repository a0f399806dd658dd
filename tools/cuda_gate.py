"""Compile every CUDA kernel for every supported architecture and check what ptxas made of it.

No GPU is needed. The gate fails when a kernel uses local memory (spilled registers, a stack frame),
or more registers than ``cuda_budget.json`` records for it; a kernel that is missing there, or there
and no longer in the sources, fails too. Registers are compared only under the nvcc release that the
budget was recorded with: another one allocates differently. With ``cuobjdump`` at hand (PyPI
``nvidia-cuda-cuobjdump``, or the CUDA toolkit) it also reads the machine code: kernels that stream
must use 128-bit loads, and none may touch local memory. Without nvcc there is nothing to check: a
notice, and exit code 0.

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
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = REPOSITORY / "csrc" / "ops" / "cuda"
BUDGET = Path(__file__).with_name("cuda_budget.json")
ARCHITECTURES = ("80", "90", "100", "120")
# Kernels that move each byte once: their loads must be the widest there are.
STREAMING = ("binarize", "gated_forward", "gated_backward", "pack_bits_kernel")


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel on one architecture; counts of -1 are unknown."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    wide_loads: int = -1
    local_accesses: int = -1


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


def parse_sass(text: str) -> dict[str, tuple[int, int]]:
    """128-bit loads from global memory and accesses to local memory of every function.

    Args:
        text (str): output of ``cuobjdump -sass`` for one architecture.

    Returns:
        dict[str, tuple[int, int]]: by mangled name.
    """
    counts: dict[str, tuple[int, int]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            name = match[1]
            counts[name] = (0, 0)
        elif name:
            wide, local = counts[name]
            wide += bool(re.search(r"\bLDG\.\S*\b128\b", line))
            local += bool(re.search(r"\b(LDL|STL)\b", line))
            counts[name] = (wide, local)
    return counts


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
        if kernel.spill_bytes or kernel.stack_bytes or kernel.local_accesses > 0:
            problems.append(
                f"{where} uses local memory ({kernel.stack_bytes} bytes of stack, "
                f"{kernel.spill_bytes} bytes of spills)"
            )
        limit = budget.get(kernel.name, {}).get(kernel.architecture)
        if limit is None:
            problems.append(f"{where} has no register budget; record one with --update")
        elif same_release and kernel.registers > limit:
            problems.append(f"{where} uses {kernel.registers} registers, the budget is {limit}")
        if kernel.wide_loads == 0 and kernel.name.startswith(STREAMING) and is_wide(kernel.name):
            problems.append(f"{where} has no 128-bit load")
    for name, limits in budget.items():
        for architecture in limits:
            if (name, architecture) not in seen:
                problems.append(f"{name} on sm_{architecture} has a budget but was not compiled")
    return problems


def is_wide(name: str) -> bool:
    """False for the variants that exist for data no vector fits: one element at a time."""
    return not re.search(r"channel_kernel<.*, 1>$", name)


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
            replace(kernel, wide_loads=counts[0], local_accesses=counts[1])
            for kernel in kernels
            for counts in [machine_code[kernel.architecture].get(kernel.name, (-1, -1))]
        ]
    names = demangle(kernel.name for kernel in kernels)
    return [replace(kernel, name=kernel_name(names[kernel.name])) for kernel in kernels]


def table(kernels: Iterable[Kernel]) -> str:
    """Registers by architecture, one line per kernel."""
    by_name: dict[str, dict[str, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, {})[kernel.architecture] = kernel
    lines = [
        f"{'kernel':<52}"
        + "".join(f"{'sm_' + a:>8}" for a in ARCHITECTURES)
        + f"{'shared':>8}{'spills':>8}{'LDG.128':>9}"
    ]
    for name, row in sorted(by_name.items()):
        registers = "".join(f"{row[a].registers if a in row else '-':>8}" for a in ARCHITECTURES)
        shared = max(kernel.shared_bytes for kernel in row.values())
        spills = max(kernel.spill_bytes + kernel.stack_bytes for kernel in row.values())
        wide = min(kernel.wide_loads for kernel in row.values())
        lines.append(f"{name:<52}{registers}{shared:>8}{spills:>8}{wide if wide >= 0 else '-':>9}")
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
        print("no cuobjdump: machine code is not checked (pip install nvidia-cuda-cuobjdump)")
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

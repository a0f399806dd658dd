"""Every CPU level of this machine, how its loops are compiled, and the results of all samples.

A process chooses its level once, so every level takes a process of its own: ``python levels.py
FILE`` saves the results of all ops at the level that PATHWAYS_CPU_CAPABILITY names.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import bit_samples
import torch
from samples import DTYPES, FLOATING_OPS, OPS, Sample, pool_samples, sample_inputs

from pathways import _C

ROOT = Path(__file__).resolve().parents[2]
BETTER = {"avx2": ["avx2"], "avx512": ["avx2", "avx512"], "neon": ["neon"]}
LEVELS = ["scalar", *BETTER.get(_C.cpu_capability_found(), [])]


def run_python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def cmake_list(name: str) -> list[str]:
    """The words of ``set(NAME ...)`` in CMakeLists.txt, with variables put in."""
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.search(rf"^\s*set\(\s*{name}\s([^)]*)\)", text, re.MULTILINE)
    words = found[1].split() if found else []
    values = [re.fullmatch(r"\$\{(\w+)\}", word) for word in words]
    return [
        item
        for word, variable in zip(words, values, strict=True)
        for item in (cmake_list(variable[1]) if variable else [word])
    ]


def compile_loops(compiler: str, source: str | Path, level: str, target: Path) -> None:
    """Compile a file of inner loops for one level, as CMakeLists.txt does."""
    flags = ["-std=c++20", "-O3", "-fPIC", "-ffp-contract=off", f"-DPATHWAYS_VARIANT={level}"]
    flags_of_level = cmake_list(f"PATHWAYS_FLAGS_{level}")
    assert flags_of_level or level in ("scalar", "neon")
    command = [compiler, *flags, *flags_of_level, "-c", ROOT / source, "-o", target]
    subprocess.run(command, check=True)


def samples_of(op: str) -> list[Sample]:
    """All samples of ``op``, the same in every process."""
    torch.manual_seed(0)
    dtypes = DTYPES if op in FLOATING_OPS else DTYPES[:1]
    samples = [s for dtype in dtypes for s in sample_inputs(op, dtype)]
    if op == "adaptive_avg_max_pool2d":
        samples += [s for dtype in dtypes for s in pool_samples(dtype, special=True)]
    return [*samples, *bit_samples.SAMPLES.get(op, list)()]


def results_of(op: str) -> list[list[torch.Tensor]]:
    """The results of every sample, as a list of tensors each."""
    results = []
    for sample in samples_of(op):
        args = list(sample.args)
        if op.endswith("_"):
            args[0] = args[0].clone()
        result = getattr(torch.ops.pathways, op)(*args, **sample.kwargs)
        if result is None:
            result = args[0]
        results.append(list(result) if isinstance(result, tuple) else [result])
    return results


def main() -> None:
    torch.set_num_threads(1)
    torch.save({op: results_of(op) for op in OPS}, sys.argv[1])
    print(_C.cpu_capability())


if __name__ == "__main__":
    main()

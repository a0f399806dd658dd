"""Facts that a figure depends on."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

import pathways
from pathways import _C

# glibc's limit for the adaptive threshold from which a block is mapped anew at every allocation,
# and the mallopt names of that threshold and of the one for giving memory back.
MAPPED_FROM = 32 << 20
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1


def steady_malloc() -> str:
    """Bring malloc into one state for all contestants; says which.

    glibc moves its thresholds with what was freed before, so that a fresh output costs page faults
    or not depending on the contests before it. Fixed where a process ends that has run for a while:
    blocks from 32 MB on are mapped anew every time, smaller ones reuse memory.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return "as it is"
    libc.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    return "glibc; blocks from 32 MB are mapped anew, smaller ones reuse memory"


def pages() -> str:
    """What to add to the name of a work whose fresh memory is on huge pages for every contestant.

    Some of our ops ask for huge pages for outputs from 32 MB on. Torch's allocator does so for all
    tensors when THP_MEM_ALLOC_ENABLE=1; only then does a ratio of fresh outputs compare the
    arithmetic and not the page faults.
    """
    return ", huge pages for all" if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1" else ""


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def field(text: str, name: str) -> str:
    """The value of ``name : value`` in a /proc file; empty where there is none."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def facts() -> dict[str, Any]:
    """The machine and the versions, for the head of a report."""
    cpu = read("/proc/cpuinfo")
    flags = set(field(cpu, "flags").split())
    wanted = ("avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_vpopcntdq")
    pages = read("/sys/kernel/mm/transparent_hugepage/enabled")
    memory = field(read("/proc/meminfo"), "MemTotal").split()
    build = _C.build_info()
    return {
        "cpu": field(cpu, "model name") or platform.processor() or platform.machine(),
        "family": f"family {field(cpu, 'cpu family')} model {field(cpu, 'model')}",
        "flags": " ".join(flag for flag in wanted if flag in flags),
        "capability": f"{_C.cpu_capability()} used, {_C.cpu_capability_found()} found",
        "cores": os.cpu_count(),
        "hypervisor": "hypervisor" in flags,
        "memory_gb": round(int(memory[0]) / 2**20, 1) if memory else None,
        "transparent_huge_pages": pages[pages.find("[") + 1 : pages.find("]")] or "unknown",
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "pathways": f"{pathways.__version__}, {build['compiler']}, {build['build_type']}",
        "torch": torch.__version__,
        **{name: version(name) for name in ("numpy", "numkong", "scipy")},
        "load_at_start": round(os.getloadavg()[0], 2),
    }

"""Print the bytes that class_overlap needs beyond its input: overlap_memory.py N BITS CLASSES."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_class_overlap import Case, pathways_of
from machine import field, read

from pathways import ops


def resident(name: str) -> int:
    """VmRSS (now) or VmHWM (peak). Not ru_maxrss, which starts at the size of the parent."""
    return 1024 * int(field(read("/proc/self/status"), name).split()[0])


def peak_beyond(run: Callable[[], Any]) -> int:
    """Bytes by which the process grows while ``run`` runs, at its peak."""
    # The peak starts again from here; imports have left one behind that is higher.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return max(0, resident("VmHWM") - before)


def main() -> None:
    case = Case(*map(int, sys.argv[1:]))
    torch.set_num_threads(1)
    words, labels = pathways_of(case)
    # What the first call of an op costs once (code, dispatcher tables) belongs to no call.
    ops.class_overlap(words[:10], labels[:10], case.classes)
    print(peak_beyond(lambda: ops.class_overlap(words, labels, case.classes)))


if __name__ == "__main__":
    main()

"""Run the benches and write the figures; a whole run writes docs/performance/cpu.json."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathways import _C

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
DOCUMENTED = ROOT / "docs" / "performance" / "cpu.json"
FRESH = ("bench_gated_forward.py", "bench_gated_backward.py", "bench_limits.py")
LEVELS = ("scalar", "avx2", "avx512", "neon")


def levels_of_this_machine() -> list[str]:
    found = _C.cpu_capability_found()
    return ["scalar", "neon"] if found == "neon" else list(LEVELS[: LEVELS.index(found) + 1])


def bench(
    arguments: argparse.Namespace,
    size: str,
    files: Sequence[Path],
    *options: str,
    only: str = "",
    **environment: str,
) -> dict[str, Any]:
    """The results of some bench files, run in a process of their own."""
    command = shlex.split(arguments.prefix)
    command += [sys.executable, "-m", "pytest", *map(str, files), "-q", "-p", "no:cacheprovider"]
    command += ["--size", size, "--benchmark-columns=median,iqr,rounds", *options]
    chosen = [f"({part})" for part in (arguments.chosen, only) if part]
    if chosen:
        command += ["-k", " and ".join(chosen)]
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        code = subprocess.run(
            [*command, "--results", str(results)], cwd=ROOT, env=os.environ | environment
        ).returncode
        # 5: nothing in these files was chosen.
        if code not in (0, 5):
            sys.exit(f"bench: pytest failed with exit code {code}; no figures were written")
        return json.loads(results.read_text())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", dest="size", action="store_const", const="quick", help="under a minute"
    )
    size.add_argument(
        "--tiny", dest="size", action="store_const", const="tiny", help="only whether it works"
    )
    parser.set_defaults(size="full")
    parser.add_argument(
        "--levels",
        nargs="*",
        choices=LEVELS,
        help="values of PATHWAYS_CPU_CAPABILITY to time the ops at, on the quick shapes (default: "
        "all of this machine in a whole run, else none)",
    )
    parser.add_argument("-k", dest="chosen", help="only benches that match, as in pytest")
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file (default: docs/performance/cpu.json for a whole run, from which the tables "
        "are then written; else out/bench/SIZE.json)",
    )
    parser.add_argument(
        "--prefix", default="", help="command to run every process with, such as 'taskset -c 2,3'"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    whole = arguments.size == "full" and not arguments.chosen
    scratch = ROOT / "out" / "bench" / f"{arguments.size}.json"
    out = arguments.out or (DOCUMENTED if whole else scratch)
    levels = arguments.levels
    if levels is None:
        levels = levels_of_this_machine() if whole else []

    files = sorted(BENCH.glob("bench_*.py"))
    if arguments.size == "tiny":  # it builds a C++ program; make cpp-test runs it
        files.remove(BENCH / "bench_explainer.py")
    # One process a file: no file finds the heap or the compiled code of another. In the smaller
    # runs the starts would take longer than the benches.
    groups = [[file] for file in files] if arguments.size == "full" else [files]
    parts = [bench(arguments, arguments.size, group) for group in groups]
    if arguments.size == "full":
        # Fresh outputs from 32 MB on once more, with huge pages for every contestant.
        for name in FRESH:
            file, only = BENCH / name, "(112 or 102.8) and not in_place"
            parts.append(bench(arguments, "full", [file], only=only, THP_MEM_ALLOC_ENABLE="1"))
    results = {"size": arguments.size, "machine": parts[0]["machine"]}
    for kind in ("rows", "figures"):
        results[kind] = [entry for part in parts for entry in part[kind]]

    whole_nets = ("bench_explainer.py", "bench_extract.py", "bench_gated_model.py")
    ops = [file for file in files if file.name not in whole_nets]
    small = "tiny" if arguments.size == "tiny" else "quick"
    options = ("--alone", "--benchmark-only")
    results["levels"] = {
        level: bench(arguments, small, ops, *options, PATHWAYS_CPU_CAPABILITY=level)["rows"]
        for level in levels
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {os.path.relpath(out)}")
    if out == DOCUMENTED:
        subprocess.run([sys.executable, str(ROOT / "tools" / "performance_table.py")], check=True)


if __name__ == "__main__":
    main()

"""The bench that times the C++ explainer runs; its figures come from make bench."""

import json
import subprocess
import sys
from pathlib import Path

from cpp_build import tree

ROOT = Path(__file__).resolve().parents[2]


def test_bench_of_the_explainer_runs(tmp_path):
    tree("install")  # else nothing to build with is at hand
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "bench/bench_explainer.py"]
    options = ["--size", "tiny", "--results", str(tmp_path / "results.json")]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["op"] for row in rows] == ["explanation in C++, .pt", "importance in C++, .pt"]

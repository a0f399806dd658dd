"""The limits that CI holds the demo to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pathways.evaluation import METRICS

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "check_metrics.py"
GOOD = dict.fromkeys(METRICS, 0.5) | {"agreement": 0.98, "seconds_total": 3.0}


def run(tmp_path, metrics, *arguments):
    file = tmp_path / "metrics.json"
    file.write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
    command = [sys.executable, str(SCRIPT), str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_limits_that_are_kept(tmp_path):
    result = run(tmp_path, GOOD, "--keys", "agreement>=0.95", "kept<=0.6*agreement", "kl<agreement")
    assert result.returncode == 0, result.stderr
    assert "3 limits kept" in result.stdout


@pytest.mark.parametrize(
    ("metrics", "arguments", "sentence"),
    [
        (GOOD, ["agreement>=0.99"], "agreement must be >= 0.99, got 0.98"),
        (GOOD, ["kept<=0.5*agreement"], "kept must be <= 0.49, got 0.5"),
        (GOOD | {"kl": None}, ["kl<1"], "kl was not measured"),
        (GOOD, ["better"], "'better' is not a limit like agreement>=0.95"),
        (GOOD | {"speed": 1.0}, ["--keys"], "speed is not a known figure"),
        ({"kl": 0.0}, ["--keys"], "agreement is missing"),
        ("{", [], "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, metrics, arguments, sentence):
    result = run(tmp_path, metrics, *arguments)
    assert result.returncode == 1
    assert sentence in result.stderr

"""Tables of a comparison with planted truth."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def printed(file):
    script = ROOT / "tools" / "planted_table.py"
    done = subprocess.run([sys.executable, script, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_by_hand(tmp_path):
    names = ("recall", "precision", "ranked", "agreement", "kept", "flip", "blank_hit", "transfer")
    mean = dict.fromkeys(names, 0.5) | {"transfer": None, "dead": 0.25}
    spread = dict.fromkeys(mean, 0.0) | {"recall": 0.125}
    values = {"mean": mean, "std": spread, "seeds": [{"roles": {"dead": 0.25}}]}
    file = tmp_path / "planted.json"
    file.write_text(json.dumps({"methods": {"truth": values}}))
    rows = [line for line in printed(file).splitlines() if line.startswith("| `truth`")]
    assert rows == [
        "| `truth` | 0.50 ± 0.12 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | - |",
        "| `truth` | 0.25 |",
    ]

"""The table of differences between compiled and eager explainers."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "parity_table.py"


def test_one_row_for_each_line(tmp_path):
    file = tmp_path / "parity.json"
    figures = {"logits": 3e-8, "gated_logits": 0.0, "importance": 2e-6, "gradient": 1.26e-7}
    figures["gradient, eager one digit apart"] = 2e-7
    rows = [
        {"name": "mlp", "granularity": "channel", "torch": "2.13.0+cpu", **figures},
        {"name": "vgg", "granularity": "unit", "torch": "2.14.1", **figures, "grad_cam": 1e-7},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run([sys.executable, SCRIPT, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == [
        "| `mlp` | 2.13.0 | 3e-08 | 0e+00 | 2e-06 | 1e-07 | 2e-07 |  |",
        "| `vgg` by unit | 2.14.1 | 3e-08 | 0e+00 | 2e-06 | 1e-07 | 2e-07 | 1e-07 |",
    ]

"""The table of metrics files: files of different age side by side."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "metrics_table.py"


def test_older_files_lack_newer_figures(tmp_path):
    files = tmp_path / "old.metrics.json", tmp_path / "new.metrics.json"
    files[0].write_text(json.dumps({"agreement": 0.5, "kl": None}))
    files[1].write_text(json.dumps({"agreement": 0.75, "kl": 0.25, "cpr": 0.625}))
    command = [sys.executable, str(SCRIPT), *map(str, files)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith("| figure | old | new |")
    rows = {line.split("`")[1]: line.split("|")[2:4] for line in lines if "`" in line}
    cells = {name: [cell.strip() for cell in row] for name, row in rows.items()}
    assert cells == {"agreement": ["0.500", "0.750"], "kl": ["-", "0.250"], "cpr": ["-", "0.625"]}

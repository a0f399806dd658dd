"""Print what `make aoti-parity` measured as a Markdown table, for docs/formats.md.

python tools/parity_table.py out/aoti-parity.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

FIGURES = {
    "logits": "logits",
    "gated_logits": "gated logits",
    "importance": "importance",
    "gradient": "gradient",
    "gradient, eager one digit apart": "eager, one digit apart",
    "grad_cam": "Grad-CAM",
}


def table(rows: list[dict[str, str | float]]) -> str:
    """One row per architecture and torch release, one column per figure."""
    lines = [
        f"| architecture | torch | {' | '.join(FIGURES.values())} |",
        f"| --- | --- |{' ---: |' * len(FIGURES)}",
    ]
    for row in rows:
        unit = " by unit" if row["granularity"] == "unit" else ""
        release = str(row["torch"]).partition("+")[0]
        cells = [f"{row[key]:.0e}" if key in row else "" for key in FIGURES]
        lines.append(f"| `{row['name']}`{unit} | {release} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    lines = parser.parse_args().file.read_text().splitlines()
    print(table([json.loads(line) for line in lines]))

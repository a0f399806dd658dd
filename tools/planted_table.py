"""Print a comparison with planted truth as Markdown tables, for docs/planted.md.

python tools/planted_table.py docs/results/planted.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FIGURES = ("recall", "precision", "ranked", "agreement", "kept", "flip", "blank_hit", "transfer")


def tables(result: dict[str, Any]) -> str:
    """One row per method: figures with their spread over seeds, then shares of roles."""
    methods = result["methods"]
    roles = list(methods["truth"]["seeds"][0]["roles"])
    parts = []
    for columns in (FIGURES, roles):
        lines = [
            f"| method | {' | '.join(f'`{name}`' for name in columns)} |",
            f"| --- |{' ---: |' * len(columns)}",
        ]
        for name, values in methods.items():
            spread = values["std"] if columns is FIGURES else {}
            cells = [cell(values["mean"][key], spread.get(key)) for key in columns]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def cell(mean: float | None, deviation: float | None) -> str:
    """Two digits, with the deviation where it is not nought."""
    if mean is None:
        return "-"
    if deviation is None or deviation < 0.005:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    print(tables(json.loads(parser.parse_args().file.read_text())))

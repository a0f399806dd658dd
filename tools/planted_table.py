"""Print a comparison with planted truth as Markdown tables, for docs/planted.md.

python tools/planted_table.py docs/results/planted.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIGURES = ("recall", "precision", "ranked", "agreement", "kept", "flip", "blank_hit", "transfer")


def figures_table(result: dict[str, Any]) -> str:
    """One row per method: figures with their spread over seeds."""
    return _table(result["methods"], FIGURES, spread=True)


def roles_table(result: dict[str, Any]) -> str:
    """One row per method: share that is kept of the channels of every role."""
    methods = result["methods"]
    return _table(methods, list(methods["truth"]["seeds"][0]["roles"]), spread=False)


def _table(methods: dict[str, Any], columns: Sequence[str], *, spread: bool) -> str:
    lines = [
        f"| method | {' | '.join(f'`{name}`' for name in columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for name, values in methods.items():
        deviations = values["std"] if spread else {}
        cells = [cell(values["mean"][key], deviations.get(key)) for key in columns]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


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
    found = json.loads(parser.parse_args().file.read_text())
    print(figures_table(found), roles_table(found), sep="\n\n")

"""Print metrics files side by side as a Markdown table, for docs/results.md.

python tools/metrics_table.py docs/results/fashion_mnist.metrics.json out/demo/metrics.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pathways.report import metric_rows


def table(paths: list[Path], num_classes: int) -> str:
    """One row per figure, one column per file, leak controls among them."""
    metrics = [json.loads(path.read_text()) for path in paths]
    # Older files lack newer figures: every file gets a row for what any of them has.
    every = {name: None for values in metrics for name in values}
    metrics = [every | values for values in metrics]
    names = [
        path.parent.name if path.stem == "metrics" else path.name.split(".")[0] for path in paths
    ]
    lines = [
        f"| figure | {' | '.join(names)} | better | meaning |",
        f"| --- |{' ---: |' * len(names)} --- | --- |",
    ]
    group = ""
    for rows in zip(*(metric_rows(values, num_classes) for values in metrics), strict=True):
        if rows[0].group != group:
            group = rows[0].group
            lines.append(f"| **{group}** |{' |' * len(names)} | |")
        cells = " | ".join(row.text for row in rows)
        lines.append(f"| `{rows[0].name}` | {cells} | {rows[0].direction} | {rows[0].meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--classes", type=int, default=10, help="classes of the targets")
    arguments = parser.parse_args()
    print(table(arguments.files, arguments.classes))

"""Write the tables of docs/performance.md from docs/performance/cpu.json.

python tools/performance_table.py           writes them between their markers
python tools/performance_table.py --check   exits with 1 where page and figures differ
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Entry = dict[str, Any]
SIGNS = {"speed": "≥", "time": "≤"}


def grid(head: list[str], rows: list[list[str]], numbers: int = 0) -> str:
    """A Markdown table; the last ``numbers`` columns are aligned to the right."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def bound(peer: Entry) -> str:
    """The limit of a peer in words; empty where it has none."""
    sign = SIGNS[peer["measure"]]
    parts = [f"{name} {sign} {peer[name]:g}" for name in ("needed", "goal") if name in peer]
    return f"{peer['measure']}: {', '.join(parts)}" if parts else ""


def verdict(row: Entry, kind: str) -> str:
    """yes, or the peers beside which the limit is not kept or not measured."""
    judged = [peer for peer in row["beside"] if kind in peer]
    broken = [peer["name"] for peer in judged if peer.get(f"{kind}_met") is False]
    unknown = [peer["name"] for peer in judged if "missing" in peer]
    words = [f"**no**: {', '.join(broken)}"] if broken else []
    words += [f"not measured: {', '.join(unknown)}"] if unknown else []
    return "; ".join(words) or ("yes" if judged else "")


def spread(peer: Entry) -> str:
    """Median and quartiles of the ratio."""
    return f"{peer['ratio']:.3g} ({peer['low']:.3g} to {peer['high']:.3g})"


def ratio(peer: Entry) -> str:
    """The cell of a peer."""
    if "missing" in peer:
        return peer["missing"]
    return (
        f"{peer['ratio']:.3g} ({peer['low']:.3g} to {peer['high']:.3g}); {peer['median_ms']:.3g} ms"
    )


def groups(rows: list[Entry]) -> Iterator[list[Entry]]:
    """Rows of the same op beside the same peers under the same limits: one table each."""
    found: dict[tuple[str, ...], list[Entry]] = {}
    for row in rows:
        key = (row["op"], *(f"{peer['name']} {bound(peer)}" for peer in row["beside"]))
        found.setdefault(key, []).append(row)
    yield from found.values()


def contest_tables(results: Entry) -> str:
    parts = []
    previous = ""
    for rows in groups(results["rows"]):
        first = rows[0]
        if first["op"] != previous:
            previous = first["op"]
            parts.append(f"### {previous}")
        peers = [f"{peer['name']}<br>{bound(peer) or peer['measure']}" for peer in first["beside"]]
        judged = [
            kind for kind in ("needed", "goal") if any(kind in peer for peer in first["beside"])
        ]
        body = [
            [
                f"{row['work']}, {row['dtype']}",
                str(row["threads"]),
                f"{row['ours']['median_ms']:.3g} (IQR {row['ours']['iqr_ms']:.2g})",
                *(ratio(peer) for peer in row["beside"]),
                *(verdict(row, kind) for kind in judged),
            ]
            for row in rows
        ]
        parts.append(grid(["work", "threads", "ms", *peers, *judged], body))
    return "\n\n".join(parts)


def misses(results: Entry) -> Iterator[list[str]]:
    """A row of the table for every limit that is needed and not kept; the op comes first."""
    for row in results["rows"]:
        for peer in row["beside"]:
            if peer.get("needed_met") is False:
                needed = f"{peer['measure']} {SIGNS[peer['measure']]} {peer['needed']:g}"
                work = f"{row['work']}, {row['dtype']}"
                yield [row["op"], work, str(row["threads"]), peer["name"], needed, spread(peer)]
    for figure in results["figures"]:
        if figure.get("needed_met") is False:
            unit = figure["unit"]
            needed, measured = f"< {figure['needed']:g} {unit}", f"{figure['value']:g} {unit}"
            yield [figure["op"], figure["what"], "", "", needed, measured]


def summary_table(results: Entry) -> str:
    """How many limits are kept, and which needed ones are not."""
    judged = [peer for row in results["rows"] for peer in row["beside"]] + results["figures"]
    lines = []
    for kind, word in (("needed", "needed limits"), ("goal", "goals")):
        verdicts = [entry[f"{kind}_met"] for entry in judged if f"{kind}_met" in entry]
        unknown = sum(kind in entry and "missing" in entry for entry in judged)
        text = f"{sum(verdicts)} of {len(verdicts)} {word} are kept"
        lines.append(text + (f", {unknown} could not be measured." if unknown else "."))
    missed = list(misses(results))
    if missed:
        head = ["op", "work", "threads", "beside", "needed", "measured"]
        lines += ["", grid(head, missed, numbers=1)]
    return "\n".join(lines)


def machine_table(results: Entry) -> str:
    facts = [[name.replace("_", " "), str(value)] for name, value in results["machine"].items()]
    return grid(["fact", "value"], facts)


def limit_table(results: Entry) -> str:
    """What the machine can do."""
    body = [
        [figure["what"], f"{figure['value']:.4g}", figure["unit"]]
        for figure in results["figures"]
        if figure["op"] == "machine"
    ]
    return grid(["what", "value", "unit"], body)


def figure_table(results: Entry) -> str:
    """Figures of ops that are not ratios."""
    body = []
    for figure in results["figures"]:
        if figure["op"] != "machine":
            needed = kept = ""
            if "needed" in figure:
                needed = f"< {figure['needed']:g}"
                kept = "yes" if figure["needed_met"] else "**no**"
            cells = [figure["op"], figure["what"], f"{figure['value']:.4g}", figure["unit"]]
            body.append([*cells, needed, kept])
    return grid(["op", "what", "value", "unit", "limit", "needed"], body)


def level_table(results: Entry) -> str:
    levels = results["levels"]
    if not levels:
        return "Not measured."
    names = list(levels)
    body = []
    for rows in zip(*levels.values(), strict=True):
        medians = [row["ours"]["median_ms"] for row in rows]
        work = f"{rows[0]['work']}, {rows[0]['dtype']}"
        cells = [f"{median:.3g}" for median in medians]
        body.append([rows[0]["op"], work, *cells, f"{medians[0] / medians[-1]:.3g}"])
    head = ["op", "work", *(f"{name}, ms" for name in names), f"speed of {names[-1]}"]
    return grid(head, body, numbers=len(names) + 1)


TABLES = {
    "machine": machine_table,
    "summary": summary_table,
    "limits": limit_table,
    "contests": contest_tables,
    "figures": figure_table,
    "levels": level_table,
}


def filled(page: str, results: Entry) -> str:
    """The page with every table between its markers written anew.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in TABLES.items():
        start, end = f"<!-- table {name} -->", "<!-- end -->"
        if start not in page or end not in page.split(start)[1]:
            raise ValueError(f"the page must have the markers {start} and {end}")
        before, _, rest = page.partition(start)
        after = rest.partition(end)[2]
        page = f"{before}{start}\n\n{table(results)}\n\n{end}{after}"
    return page


def sections(page: str, results: Entry) -> list[str]:
    """What is wrong with the sections that explain the ops' misses: one each, no other."""
    explained = set(re.findall(r"^### Miss: `(.+)`$", page, flags=re.MULTILINE))
    missed = {op for op, *_ in misses(results)}
    absent = [f"the miss of {op} has no section '### Miss: `{op}`'" for op in missed - explained]
    stale = [f"{op} has a section '### Miss: `{op}`' and no miss" for op in explained - missed]
    return sorted(absent) + sorted(stale)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if due")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "performance" / "cpu.json")
    arguments = parser.parse_args()
    results = json.loads(arguments.figures.read_text())
    page = arguments.page.read_text()
    try:
        new = filled(page, results)
    except ValueError as error:
        print(f"{arguments.page}: {error}", file=sys.stderr)
        return 1
    wrong = sections(page, results)
    if not arguments.check:
        arguments.page.write_text(new)
    elif new != page:
        wrong.append("the tables are not those of the figures; run tools/performance_table.py")
    for sentence in wrong:
        print(f"{arguments.page}: {sentence}", file=sys.stderr)
    return 1 if wrong and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())

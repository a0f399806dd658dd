"""Collect what `make results` made into docs/results and write its tables into the pages of docs.

python tools/results_page.py out/results    (--page: only the tables, from docs/results as it is)
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

from metrics_table import table
from planted_table import figures_table, roles_table

from pathways.report.tables import RANDOMIZED

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
PLANTED_PAGE = ROOT / "docs" / "planted.md"
KEPT = ROOT / "docs" / "results"
IMAGES = ROOT / "docs" / "images"
NETS = ("digits", "fashion_mnist", "cifar_resnet20", "cifar_cnn")
# Those with a control of their maps, and whose pathways these are made with.
MAPS = ("digits", "fashion_mnist")
OWNERS = {"own": "its own", "classmate": "same class", "other": "another class"}
# Columns of the comparison: figure and heading.
COMPARED = {
    "kept": "kept",
    "agreement": "agree",
    "mic": "mIC",
    "mdc": "mDC",
    "necessity": "without",
    "transfer_agreement": "transfer",
    "aciou_corrected": "acIOU",
    "between_class_iou": "between",
    "insertion_minus_deletion": "ins - del",
    "road": "ROAD",
    "grad_cam_insertion_minus_deletion": "CAM ins - del",
    "grad_cam_road": "CAM ROAD",
    "wrong_class_flip": "flip",
    "mask_swap_flip": "swap",
    "blank_hit": "blank",
    "blank_hit_unseen": "unseen",
    "mask_probe_accuracy": "probe",
    "ms_per_explanation": "ms",
}
SWEPT = {
    "kept": "kept",
    "agreement": "agreement",
    "wrong_class_flip": "flip",
    "blank_hit": "blank",
    "blank_hit_unseen": "unseen",
    "told_flip": "told",
    "told_runner_up_flip": "told second",
    "told_blank_hit": "told blank",
    "transfer_agreement": "transfer",
    "mdc": "mDC",
}

# Sweeps with a table, and those whose picture the page shows.
SWEEPS = ("frontier", "ablations", "logits")
DRAWN = ("frontier", "ablations")

# Comparisons on nets with known circuits; the first has the picture and a table of roles.
PLANTED = ("planted", "planted_quarter", "planted_long", "planted_defaults")

# Nets with a generator of units, and from which frequency on a unit belongs to a class pathway.
UNITS = ("fashion_mnist", "cifar_cnn")
FREQUENCIES = ("0.5", "0.2")
UNIT_FIGURES = {
    "kept": "kept",
    "agreement": "agreement",
    "mdc": "mDC",
    "mask_swap_flip": "swap",
    "random_agreement": "random",
    "transfer_kept": "class kept",
    "transfer_agreement": "transfer",
    "wrong_class_flip": "flip",
    "blank_hit": "blank",
    "blank_hit_unseen": "unseen",
    "insertion_minus_deletion": "ins - del",
}

# Whose pathways are applied: key in a point of the transfer curve and words.
KINDS = {
    "own": "own class",
    "wrong_class": "another class",
    "random": "random",
    "agnostic": "one for all",
}


def collect(results: Path) -> None:
    """Copy the figures, without what is long, and the pictures."""
    for net in NETS:
        shutil.copyfile(results / net / "metrics.json", KEPT / f"{net}.metrics.json")
        full = json.loads((results / net / "evaluation.json").read_text())["methods"]["generator"]
        compared = json.loads((results / net / "compare" / "evaluation.json").read_text())
        methods = compared["methods"]
        first = next(iter(methods.values()))["settings"]
        short = {
            "settings": {key: first[key] for key in ("images", "seed", "threads", "torch")},
            "transfer": [
                {"shots": point["shots"]} | {kind: point[kind]["agreement"] for kind in KINDS}
                for point in full["transfer"]
            ],
            "methods": {name: rounded(value["metrics"]) for name, value in methods.items()},
        }
        write(KEPT / f"{net}.compare.json", short)
    for net in MAPS:
        write(
            KEPT / f"{net}.maps.json",
            rounded(json.loads((results / net / "maps.json").read_text())),
        )
    close = json.loads((results / "cifar_cnn" / "close_calls.json").read_text())
    write(KEPT / "cifar_cnn.close_calls.json", rounded(close))
    units: dict[str, dict[str, Any]] = {net: {} for net in UNITS}
    for net in UNITS:
        for frequency in FREQUENCIES:
            file = results / f"{net}_units" / frequency / "evaluation.json"
            report = json.loads(file.read_text())
            units[net][frequency] = rounded(report["methods"]["generator"]["metrics"])
    write(KEPT / "units.json", units)
    found = json.loads((results / "digits" / "randomization.json").read_text())
    write(KEPT / "digits.randomization.json", rounded(found))
    for name in SWEEPS:
        sweep = json.loads((results / name / "frontier.json").read_text())
        write(KEPT / f"{name}.json", {key: sweep[key] for key in ("seeds", "variants")})
        if name in DRAWN:
            shutil.copyfile(results / name / "frontier.png", IMAGES / f"{name}.png")
    for name in PLANTED:
        shutil.copyfile(results / name / "planted.json", KEPT / f"{name}.json")
    shutil.copyfile(results / PLANTED[0] / "planted.png", IMAGES / "planted.png")


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return round(value, 5) if isinstance(value, float) else value


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def compare_table(methods: dict[str, dict[str, float | None]]) -> str:
    """One row per method, those of equal size together."""
    lines = [
        f"| method | {' | '.join(COMPARED.values())} |",
        f"| --- |{' ---: |' * len(COMPARED)}",
    ]
    sizes = dict.fromkeys(name.partition("@")[2] for name in methods)
    for size in sizes:
        title = f"{float(size):.0%} kept" if size else "size of the generator's own"
        lines.append(f"| **{title}** |{' |' * len(COMPARED)}")
        for name, values in methods.items():
            if name.partition("@")[2] == size:
                cells = [text(values.get(figure), figure) for figure in COMPARED]
                lines.append(f"| `{name.partition('@')[0]}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def text(value: float | None, figure: str) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3g}" if figure.startswith("ms_") else f"{value:.2f}"


def transfer_table(nets: dict[str, dict[str, Any]]) -> str:
    """Agreement of class pathways of j images per class, each with its controls."""
    found = {point["shots"] for values in nets.values() for point in values["transfer"]}
    shots = [*sorted(found - {None}), None]
    heads = ["all" if count is None else str(count) for count in shots]
    lines = [f"| net | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for net, values in nets.items():
        for kind, words in KINDS.items():
            curve = {point["shots"]: point[kind] for point in values["transfer"]}
            cells = [f"{curve[count]:.3f}" if count in curve else "-" for count in shots]
            lines.append(f"| {net}, {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def maps_table(nets: dict[str, dict[str, Any]]) -> str:
    """Insertion - deletion by the owner of the pathway."""
    kinds = {"gradient": "ins - del", "grad_cam": "CAM ins - del"}
    heads = [f"{head}, {words}" for head in kinds.values() for words in OWNERS.values()]
    lines = [f"| net | method | {' | '.join(heads)} |", f"| --- | --- |{' ---: |' * len(heads)}"]
    for net, found in nets.items():
        for name, figures in found["methods"].items():
            cells = [text(figures[owner][kind], kind) for kind in kinds for owner in OWNERS]
            lines.append(f"| {net} | `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def close_table(found: dict[str, Any]) -> str:
    """Agreement where the two first classes are close, and elsewhere."""
    share = found["close_share"]
    lines = [
        f"| method | all {found['images']:,} images | the {share:.1%} close ones | the others |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, figures in found["methods"].items():
        cells = [spread(figures[part], None) for part in ("agreement", "close", "clear")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def units_table(
    channels: dict[str, dict[str, float | None]],
    units: dict[str, dict[str, dict[str, float | None]]],
) -> str:
    """Channels and units of the same nets."""
    lines = [
        f"| net | neurons | {' | '.join(UNIT_FIGURES.values())} |",
        f"| --- | --- |{' ---: |' * len(UNIT_FIGURES)}",
    ]
    for net, measured in units.items():
        rows = {"channels": channels[net]}
        rows |= {f"units, from {frequency}": measured[frequency] for frequency in FREQUENCIES}
        for words, values in rows.items():
            cells = [spread(values[figure], None) for figure in UNIT_FIGURES]
            lines.append(f"| {net} | {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def randomization_table(found: dict[str, Any]) -> str:
    """Similarities after the first and after the last stage."""
    lines = [
        f"| method | shuffled layers | {' | '.join(RANDOMIZED.values())} |",
        f"| --- | --- |{' ---: |' * len(RANDOMIZED)}",
    ]
    for name, figures in found["methods"].items():
        for index in (0, len(found["stages"]) // 2, len(found["stages"]) - 1):
            cells = [text(figures[key][index], key) for key in RANDOMIZED]
            shuffled = f"{found['stages'][index]} of {len(found['layers'])}"
            lines.append(f"| `{name}` | {shuffled} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sweep_table(variants: list[dict[str, Any]], compared: bool) -> str:
    """Mean and standard deviation over seeds; with ``compared`` less the first variant below."""
    # Generators that read the logits have a figure that others do not have.
    columns = {
        figure: head
        for figure, head in SWEPT.items()
        if any(figure in variant["figures"] for variant in variants)
    }
    lines = [
        f"| settings | {' | '.join(columns.values())} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for index, variant in enumerate(variants):
        cells = []
        for figure in columns:
            if figure not in variant["figures"]:
                cells.append("-")
                continue
            found = variant["figures"][figure]
            cell = spread(found["mean"], found["std"])
            if compared and index > 0 and found["difference"] is not None:
                cell += f" ({found['difference']:+.3f})"
            cells.append(cell)
        lines.append(f"| {variant['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def blocks() -> dict[str, str]:
    """The tables of the results by the name of their place in the page."""
    nets = {net: json.loads((KEPT / f"{net}.compare.json").read_text()) for net in NETS}
    found = {
        "metrics": table([KEPT / f"{net}.metrics.json" for net in NETS], 10),
        "transfer": transfer_table(nets),
    }
    for net, values in nets.items():
        found[f"compare {net}"] = compare_table(values["methods"])
    maps = {net: json.loads((KEPT / f"{net}.maps.json").read_text()) for net in MAPS}
    found["maps"] = maps_table(maps)
    found["close"] = close_table(json.loads((KEPT / "cifar_cnn.close_calls.json").read_text()))
    channels = {net: json.loads((KEPT / f"{net}.metrics.json").read_text()) for net in UNITS}
    found["units"] = units_table(channels, json.loads((KEPT / "units.json").read_text()))
    found["randomization"] = randomization_table(
        json.loads((KEPT / "digits.randomization.json").read_text())
    )
    for name in SWEEPS:
        variants = json.loads((KEPT / f"{name}.json").read_text())["variants"]
        found[name] = sweep_table(variants, compared=name != "frontier")
    return found


def planted_blocks() -> dict[str, str]:
    """The same of the page about nets with known circuits."""
    found = {name: json.loads((KEPT / f"{name}.json").read_text()) for name in PLANTED}
    roles = {"planted roles": roles_table(found[PLANTED[0]])}
    return {name: figures_table(result) for name, result in found.items()} | roles


def with_tables(page: str, tables: dict[str, str]) -> str:
    """A page with the lines between ``<!-- NAME -->`` and ``<!-- end -->`` replaced."""
    for name, lines in tables.items():
        pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"the page must have a place <!-- {name} --> ... <!-- end -->")
        page = pattern.sub(lambda match, lines=lines: match[1] + lines + "\n" + match[2], page)
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, help="folder that `make results` filled")
    parser.add_argument("--page", action="store_true", help="only rewrite the tables")
    arguments = parser.parse_args()
    if not arguments.page:
        if arguments.results is None:
            parser.error("name the folder of the results, or give --page")
        collect(arguments.results)
    for page, tables in ((PAGE, blocks()), (PLANTED_PAGE, planted_blocks())):
        page.write_text(with_tables(page.read_text(), tables))

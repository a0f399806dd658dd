"""What commands print for people: tables of figures, explanations and overlaps."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from rich.table import Table

from pathways.console import Output
from pathways.pipeline import FILES
from pathways.report import metric_rows
from pathways.report.tables import RANDOMIZED

_MOST_COLUMNS = 4
# What is shown of many methods: figure and heading.
_MAIN_FIGURES = {
    "kept": "kept",
    "agreement": "agree",
    "transfer_agreement": "transfer",
    "wrong_class_flip": "flip",
    "mask_swap_flip": "swap",
    "blank_hit": "blank",
    "blank_hit_unseen": "unseen",
    "aciou_corrected": "acIOU corr.",
    "mdc": "mDC",
    "cpr": "CPR",
    "insertion_minus_deletion": "ins - del",
    "road": "ROAD",
}


def show_metrics(
    output: Output,
    metrics: dict[str, dict[str, float]],
    num_classes: int,
    needed: dict[str, str] | None = None,
) -> None:
    """One row per figure, one column per method, leak controls among them.

    Of many methods only the main figures are shown, one row per method.
    """
    if len(metrics) > _MOST_COLUMNS:
        _show_methods(output, metrics)
        return
    table = Table(title="pathways of this target, on images it was not trained on")
    table.add_column("figure", no_wrap=True)
    table.add_column("meaning")
    for name in metrics:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("better", no_wrap=True)
    table.add_column("compare with")
    columns = [metric_rows(values, num_classes, needed) for values in metrics.values()]
    group = ""
    for rows in zip(*columns, strict=True):
        if all(math.isnan(row.value) for row in rows):
            continue  # not of these methods, or not of these data
        if rows[0].group != group:
            group = rows[0].group
            table.add_section()
            table.add_row(f"[bold]{group}[/bold]")
        cells = [row.text for row in rows]
        table.add_row(
            f"  {rows[0].name}", rows[0].meaning, *cells, rows[0].direction, rows[0].reference
        )
    output.show(table)


def _show_methods(output: Output, metrics: dict[str, dict[str, float]]) -> None:
    table = Table(title="pathway methods, on images the target was not trained on")
    table.add_column("method", no_wrap=True)
    for heading in _MAIN_FIGURES.values():
        table.add_column(heading, justify="right")
    size = ""
    for name, values in metrics.items():
        if name.partition("@")[2] != size and "@" not in name:
            table.add_section()
        size = name.partition("@")[2]
        cells = [values.get(figure, math.nan) for figure in _MAIN_FIGURES]
        table.add_row(name, *["-" if math.isnan(cell) else f"{cell:.3f}" for cell in cells])
    output.show(table)
    output.show("flip, swap, blank: lower is better, 1 where the mask decides; all figures: --json")


def show_files(output: Output, folder: Path) -> None:
    output.show(f"In {folder}:")
    for name, meaning in FILES.items():
        if (folder / name).exists():
            output.show(f"  {name:<28} {meaning}")


def show_explanations(output: Output, results: list[dict[str, Any]]) -> None:
    table = Table()
    for name in ("image", "predicted", "pathway alone", "kept", "most important"):
        table.add_column(name, overflow="fold")
    for result in results:
        predicted, gated = result["predicted"], result["gated"]
        table.add_row(
            Path(result["image"]).name,
            f"{predicted['name']} {predicted['probability']:.3f}",
            f"{gated['name']} {gated['probability']:.3f}",
            f"{result['kept']:.3f}",
            ", ".join(f"{entry['site']}:{entry['channel']}" for entry in result["top"][:3]),
        )
    output.show(table)
    folders = sorted({str(Path(result["files"]["picture"]).parent) for result in results})
    output.show(f"Pictures, JSON and pathways are in {', '.join(folders)}.")


def show_overlap(output: Output, result: dict[str, Any]) -> None:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    two = len(result["files"]) == 2
    table = Table(title="mean overlap (IoU)")
    table.add_column("site")
    if two:
        table.add_column("same name", justify="right")
    table.add_column("different names" if two else "different rows", justify="right")
    every = {"site": "all", **{key: result[key] for key in ("same_name_iou", "different_name_iou")}}
    for row in [every, *result["sites"]]:
        cells = [number(row["same_name_iou"])] if two else []
        table.add_row(row["site"], *cells, number(row["different_name_iou"]))
    output.show(table)
    output.show(f"{len(result['rows'])} x {len(result['columns'])} pathways; {result['picture']}")


def show_extraction(output: Output, result: dict[str, Any], file: Path) -> None:
    """What was removed, layer by layer, and in all."""
    table = Table(title=f"pathway of class {result['class']} ({result['name']}) as a network")
    table.add_column("layer", no_wrap=True)
    for name in ("inputs", "outputs", "multiplications"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in result["layers"]:
        table.add_row(
            layer["name"],
            f"{layer['inputs']} of {layer['inputs_before']}",
            f"{layer['outputs']} of {layer['outputs_before']}",
            f"{layer['multiplications']:,} of {layer['multiplications_before']:,}",
        )
    output.show(table)
    for what in ("channels", "parameters", "multiplications"):
        now, before = result[what], result[f"{what}_before"]
        output.show(f"{what}: {now:,} of {before:,} ({now / max(before, 1):.1%})")
    output.show(
        f"Wrote {file} ({result['bytes'] / 1e6:.2f} MB); its logits equal those of the gated "
        f"target to {result['largest_difference']:.1e}."
    )


# Columns of a sweep's table: figure, heading.
_SWEEP = {
    "kept": "kept",
    "agreement": "agreement",
    "wrong_class_flip": "flip",
    "blank_hit": "blank hit",
    "blank_hit_unseen": "unseen blanks",
    "told_flip": "told",
    "transfer_agreement": "transfer",
}


def show_randomization(output: Output, result: dict[str, Any]) -> None:
    """One row per method and number of shuffled layers: what is left of its explanations."""
    table = Table(title="similarity to the explanations of the target as it is")
    table.add_column("method", no_wrap=True)
    table.add_column("shuffled", no_wrap=True)
    for heading in RANDOMIZED.values():
        table.add_column(heading, justify="right")
    for name, figures in result["methods"].items():
        table.add_section()
        for index, stage in enumerate(result["stages"]):
            top = result["layers"][stage - 1] if stage else "-"
            cells = [figures[key][index] for key in RANDOMIZED]
            table.add_row(
                name if index == 0 else "",
                f"{stage}, down to {top}" if stage else "none",
                *["-" if cell is None else f"{cell:.3f}" for cell in cells],
            )
    output.show(table)
    output.show("1 is unchanged; lower is better: what stays describes the image, not the target.")


def show_sweep(output: Output, result: dict[str, Any]) -> None:
    """One row per variant: mean and standard deviation over seeds; ablations beside the first."""
    variants = result["variants"]
    ablation = result["kind"] == "variants"
    seeds = len(result["seeds"])
    table = Table(
        title="mean ± standard deviation over seeds" if seeds > 1 else "one seed",
        caption=f"below: difference from {variants[0]['name']}, seed by seed" if ablation else None,
        show_lines=ablation,
    )
    table.add_column("variant", overflow="fold", min_width=16)
    # Only generators that read the logits are told something.
    columns = [name for name in _SWEEP if any(name in entry["figures"] for entry in variants)]
    for name in columns:
        table.add_column(_SWEEP[name], justify="right", no_wrap=True)
    for row, entry in enumerate(variants):
        if row and entry["plain"] and not variants[row - 1]["plain"]:
            table.add_section()
        cells = []
        for name in columns:
            if name not in entry["figures"]:
                cells.append("-")
                continue
            figure = entry["figures"][name]
            cell = _spread(figure["mean"], figure["std"], "")
            if ablation and row:
                cell += "\n" + _spread(figure["difference"], figure["difference_std"], "+")
            cells.append(cell)
        table.add_row(entry["name"], *cells)
    output.show(table)


def _spread(mean: float | None, std: float | None, sign: str) -> str:
    if mean is None:
        return "-"
    # Without the zero before the point the table fits into a terminal.
    return re.sub(r"\b0\.", ".", f"{mean:{sign}.3f}" + ("" if std is None else f" ± {std:.3f}"))

"""``pathways planted``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pathways import options
from pathways.console import Output, command
from pathways.options import Json, Seed
from pathways.planted.comparing import DEFAULT_METHODS, METHODS, STEPS, check_methods

if TYPE_CHECKING:
    from rich.table import Table


def planted(
    methods: Annotated[
        str, typer.Option(help=f"Methods, separated by commas: {', '.join(METHODS)}.")
    ] = ",".join(DEFAULT_METHODS),
    classes: Annotated[int, typer.Option(help="Classes of the net, at least 2.")] = 4,
    chain: Annotated[int, typer.Option(help="Channels per class and site, 1 to 4.")] = 2,
    depth: Annotated[int, typer.Option(help="Sites of the net, at least 4.")] = 4,
    dead: Annotated[int, typer.Option(help="Dead channels per site.")] = 2,
    backup: Annotated[
        bool, typer.Option("--backup", help="Give every class a second chain that takes over.")
    ] = False,
    noise: Annotated[float, typer.Option(help="Noise of pixels, 0 to 0.05.")] = 0.03,
    companionship: Annotated[
        float,
        typer.Option(help="Share of images with the class's own distractor rather than any."),
    ] = 0.75,
    kept: Annotated[
        float | None,
        typer.Option(help="Share of channels that baselines keep; default: the circuit's size."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each generator.")] = STEPS,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other training setting, NAME=VALUE; VALUE is JSON."),
    ] = None,
    seed: Seed = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="Nets to average over, of this seed and the next.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for planted.json and planted.png; default: none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure methods on nets whose circuits are known: recall, precision, and leaks.

    Weights are written by hand, so that the circuit of every class is a fact. Baselines keep as
    many channels as it has.
    """
    with command(as_json) as output:
        from pathways.planted.results import compare_seeds, save_comparison

        names = [name.strip() for name in methods.split(",") if name.strip()]
        check_methods(names)
        if out is not None:
            options.writable("--out", out)
        output.interrupted = "interrupted; nothing was written"
        scores, result = compare_seeds(
            names,
            options={
                "num_classes": classes,
                "chain": chain,
                "depth": depth,
                "dead": dead,
                "backup": backup,
                "noise": noise,
                "companionship": companionship,
            },
            seeds=range(seed, seed + seeds),
            steps=steps,
            kept=kept,
            settings=options.assignments(settings),
            progress=output.progress,
        )
        files = [] if out is None else save_comparison(scores, result, out)
        _show(output, result)
        if files:
            output.show("Written:", *[str(file) for file in files])
        output.result(result | {"files": [str(file) for file in files]})


_COLUMNS = (
    ("recall", "recall"),
    ("precision", "precision"),
    ("ranked", "ranked"),
    ("agreement", "agreement"),
    ("kept", "kept"),
    ("flip", "flip"),
    ("blank_hit", "blank hit"),
    ("transfer", "transfer j=1"),
)


def _show(output: Output, result: dict[str, Any]) -> None:
    """What each method finds and leaks, and which channels it keeps."""
    methods = result["methods"]
    nets = "one net" if len(result["seeds"]) == 1 else f"{len(result['seeds'])} nets"
    title = (
        f"planted circuits: {nets}, {result['classes']} classes, "
        f"{result['circuit']} of {result['channels']} channels each"
    )
    output.show(_table(title, dict(_COLUMNS), methods, deviations=True))
    output.show(
        "recall, precision: of the planted circuit. ranked: recall of the most important, at the "
        "circuit's size. flip: a wrong class's pathway decides. blank hit: a blank image is seen "
        "as the pathway's class. Both should be 0."
    )
    roles = list(methods["truth"]["seeds"][0]["roles"])
    title = "share of the channels of every role that is kept (own class; foreign: others)"
    output.show(_table(title, {name: name for name in roles}, methods, deviations=False))


def _table(
    title: str, columns: dict[str, str], methods: dict[str, dict[str, Any]], deviations: bool
) -> Table:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("method", no_wrap=True)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for name, values in methods.items():
        spread = values["std"] if deviations else {}
        cells = [_cell(values["mean"][key], spread.get(key)) for key in columns]
        table.add_row(name, *cells)
        if name == "truth":
            table.add_section()
    return table


def _cell(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "-"
    # Without leading zeros, eight columns with deviations fit into 120 characters.
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ±{deviation:.2f}".replace("0.", ".")

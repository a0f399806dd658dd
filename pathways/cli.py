"""The command line: parses, calls, prints. Every command takes ``--json``."""

from __future__ import annotations

from typing import Annotated

import typer

from pathways.commands.measuring import evaluate, frontier, randomize
from pathways.commands.planted import planted
from pathways.commands.training import demo, fit, sites
from pathways.commands.using import explain, export, extract, overlap

app = typer.Typer(
    name="pathways",
    help="Explain image classifiers by neural pathways: the neurons that carry a prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the ``pathways`` program."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        import pathways

        typer.echo(f"pathways {pathways.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


for function in (
    demo, sites, fit, evaluate, frontier, randomize, explain, export, extract, overlap, planted,
):  # fmt: skip
    app.command()(function)


if __name__ == "__main__":
    main()

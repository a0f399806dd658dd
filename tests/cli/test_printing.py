"""Tables for people."""

import math

from pathways.console import Output
from pathways.printing import show_metrics


def test_figures_that_no_method_has_have_no_row(capsys):
    known = {"agreement": 0.5, "told_flip": math.nan}
    show_metrics(Output(as_json=False), {"mct": known, "random": known}, 10)
    shown = capsys.readouterr().out
    assert "agreement" in shown and "told_flip" not in shown and "leak controls" not in shown
    reads = {"agreement": 0.5, "told_flip": 0.25}
    show_metrics(Output(as_json=False), {"generator": reads, "random": known}, 10)
    row = next(line for line in capsys.readouterr().out.splitlines() if "told_flip" in line)
    assert "0.250" in row and " - " in row

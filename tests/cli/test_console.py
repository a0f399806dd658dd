"""Progress on a terminal and in a log, and the state a command leaves behind."""

import io
import logging
import signal
import sys

import pytest
import typer
from rich.console import Console

from pathways.console import Output, command


@pytest.fixture
def terminal():
    output = Output(as_json=False)
    output.notes = Console(file=io.StringIO(), force_terminal=True, width=120)
    return output


def test_a_bar_per_stage_on_a_terminal(terminal):
    terminal.progress("training  kl 0.5", 10, 20)
    terminal.progress("training  kl 0.25", 20, 20)
    terminal.progress("explaining", 3, 7)
    terminal.close()
    text = terminal.notes.file.getvalue()
    for part in ("training", "kl 0.25", "explaining", "3/7"):
        assert part in text
    terminal.close()  # again is harmless


def test_results_stop_the_bar(terminal, capsys):
    terminal.progress("training", 1, 2)
    terminal.show("done")
    assert terminal._bar is None
    assert capsys.readouterr().out == "done\n"


def test_lines_now_and_then_in_a_log(capsys, monkeypatch):
    import pathways.console as console

    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    output = Output(as_json=False)
    for done in range(1, 6):
        now[0] += 4.0
        output.progress(f"training  kl {done}", done, 5)
    lines = capsys.readouterr().err.splitlines()
    # The first, one after ten seconds, and the last.
    assert lines == ["training 1/5  kl 1", "training 4/5  kl 4", "training 5/5  kl 5"]


def test_json_keeps_standard_output_to_itself(capsys):
    with command(as_json=True) as output:
        print("a library talks")
        output.show("for people")
        output.result({"a": 1})
    captured = capsys.readouterr()
    assert captured.out == '{\n  "a": 1\n}\n'
    assert captured.err == "a library talks\n"


def test_exit_codes_and_state():
    before = logging.root.manager.disable
    for error, code in ((ValueError("no"), 1), (KeyboardInterrupt(), 130), (typer.Exit(3), 3)):
        with pytest.raises(typer.Exit) as caught, command(as_json=False):
            logging.getLogger("lightning").info("chatter")
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise error
        assert caught.value.exit_code == code
        assert logging.root.manager.disable == before
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.stdout.writable()

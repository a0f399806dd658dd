"""What every command shares: progress, results as text or JSON, errors as one sentence."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

INTERRUPTED = 130  # 128 + SIGINT, what shells expect
TRACEBACK = "PATHWAYS_TRACEBACK"
# Seconds between lines of progress where there is no terminal to draw a bar on.
_QUIET_SECONDS = 10.0


class Output:
    """Where a command's results and progress go.

    Args:
        as_json (bool): print one JSON value on standard output and nothing else there.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.interrupted = "interrupted; nothing was changed"
        # Without a terminal there is no width to keep to, and 80 columns break every table.
        width = None if sys.stdout.isatty() else 120
        self.screen = Console(soft_wrap=False, highlight=False, width=width)
        self.notes = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0
        self._stdout = sys.stdout

    def show(self, *content: Any) -> None:
        """Print results for a person; nothing with ``--json``."""
        if not self.as_json:
            self._stop_bar()
            self.screen.print(*content)

    def result(self, value: Any) -> None:
        """Print results for a machine; nothing without ``--json``."""
        if self.as_json:
            self._stop_bar()
            print(json.dumps(value, indent=2, allow_nan=False), file=self._stdout, flush=True)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Report progress on standard error: a bar on a terminal, else a line now and then."""
        name, _, detail = stage.partition("  ")
        if not self.notes.is_terminal:
            now = time.monotonic()
            if done >= total or now - self._last_line >= _QUIET_SECONDS:
                self._last_line = now
                self.notes.print(f"{name} {done}/{total}  {detail}".rstrip())
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.fields[name]:<22}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:>6.0f}/{task.total:<6.0f}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[detail]}"),
                console=self.notes,
            )
            self._bar.start()
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total, name=name, detail=detail)
        self._bar.update(self._tasks[name], completed=done, total=total, detail=detail)

    def fail(self, message: str, code: int) -> None:
        """End the command with one sentence on standard error."""
        self._stop_bar()
        if self.as_json and code != INTERRUPTED:
            print(json.dumps({"error": message}), file=self._stdout, flush=True)
        label = "" if code == INTERRUPTED else "error: "
        self.notes.print(f"{label}{message}", markup=False, soft_wrap=True)
        raise typer.Exit(code)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._tasks = {}


@contextmanager
def command(as_json: bool) -> Iterator[Output]:
    """Run a command's body: its failures become one sentence and an exit code.

    1 for an error, 130 for ctrl-C. ``PATHWAYS_TRACEBACK=1`` shows where an error came from.
    """
    output = Output(as_json)
    found = signal.getsignal(signal.SIGINT)
    with ExitStack() as stack:
        stack.callback(output.close)
        stack.callback(logging.disable, logging.root.manager.disable)
        stack.enter_context(warnings.catch_warnings())
        _silence()
        if as_json:
            # Libraries print where they like; standard output is for the result alone.
            stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield output
        except KeyboardInterrupt:
            output.fail(output.interrupted, INTERRUPTED)
        except (typer.Exit, typer.BadParameter):  # usage errors are typer's to print
            raise
        except Exception as error:
            if os.environ.get(TRACEBACK):
                traceback.print_exc()
            output.fail(sentence(error), 1)
        finally:
            # Lightning leaves SIGINT ignored after ctrl-C.
            if signal.getsignal(signal.SIGINT) is not found:
                signal.signal(signal.SIGINT, found)


def _silence() -> None:
    """Keep Lightning's advice on hardware and data loaders out of the way of our own output."""
    # Not by level of its loggers: importing Lightning sets those anew.
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=FutureWarning)


def sentence(error: BaseException) -> str:
    """An exception as one sentence for a person."""
    if isinstance(error, ModuleNotFoundError) and error.name and "pip install" not in str(error):
        return f"{error.name} is not installed; pip install 'pathways[train,report]'"
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f": {error.filename}"
        return f"{error.strerror}{where}"
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    expected = (ValueError, TypeError, OSError, RuntimeError, IndexError, ModuleNotFoundError)
    if isinstance(error, expected):
        return text
    return f"unexpected {type(error).__name__}: {text} ({TRACEBACK}=1 shows where)"

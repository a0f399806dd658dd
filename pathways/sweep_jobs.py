"""Several points of a sweep at a time, each in a process of its own with one thread."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pathways.console import sentence
from pathways.measuring import Progress
from pathways.runs import Run
from pathways.sweep import run_sweep
from pathways.training.config import TrainingConfig
from pathways.variants import Variant


def train_in_processes(
    run: Run,
    config: TrainingConfig,
    points: Sequence[tuple[Variant, int]],
    out: str | os.PathLike[str],
    *,
    jobs: int,
    data: str | None = None,
    test_images: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Make points of a sweep (:func:`pathways.sweep.unfinished`), ``jobs`` of them at a time.

    Every process opens the run's folder and loads the images itself. Processes are spawned: call it
    from a script under ``if __name__ == "__main__"``. When one fails, or at ctrl-C, the others save
    their trainings and end; so they do when the calling process is gone.

    Args:
        run (Run): a run folder.
        config (TrainingConfig): settings that the variants' are put over.
        points (sequence of (Variant, int)): variants and seeds.
        out (path): folder of the sweep.
        jobs (int): processes at a time, at least 1.
        data (str or None): data specification; None is the run's own.
        test_images, resume, overwrite: as :func:`pathways.sweep.run_sweep`.
        progress (callable or None): called with (stage, points done, points in all).

    Raises:
        ValueError: ``jobs`` below 1.
        RuntimeError: a point failed; the sentence says which and why.
        KeyboardInterrupt: passed on when the processes have ended.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    context = multiprocessing.get_context("spawn")
    settings = {"test_images": test_images, "resume": resume, "overwrite": overwrite}
    place = (Path(run.path), str(run.target.device), data, config, Path(out), settings)
    waiting, running = list(points), dict[int, tuple[Any, Connection, str]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                variant, seed = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(sender, *place, variant, seed))
                # Ctrl-C waits until the process is ready for it.
                with _held(signal.SIGINT):
                    process.start()
                    running[process.sentinel] = (process, receiver, f"{variant.name} seed {seed}")
                sender.close()
            done = len(points) - len(waiting) - len(running)
            if progress is not None:
                progress(f"points  {len(running)} at a time", done, len(points))
            ready = multiprocessing.connection.wait(list(running))
            for sentinel in [number for number in running if number in ready]:
                process, receiver, label = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    raise RuntimeError(f"{label}: {_reason(receiver, process.exitcode)}")
    finally:
        for process, _, _ in running.values():
            os.kill(process.pid, signal.SIGINT)
        for process, _, _ in running.values():
            process.join()


def _reason(receiver: Connection, code: int) -> str:
    try:
        return str(receiver.recv()) if receiver.poll() else f"its process ended with {code}"
    except EOFError:
        return f"its process ended with {code}"


@contextmanager
def _held(number: signal.Signals) -> Iterator[None]:
    """Deliver a signal to this thread, and to processes started meanwhile, later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    sender: Connection,
    folder: Path,
    device: str,
    data: str | None,
    config: TrainingConfig,
    out: Path,
    settings: dict[str, Any],
    variant: Variant,
    seed: int,
) -> None:
    """Make one point; the body of a process."""
    # The terminal's ctrl-C goes to the process that started this one, which passes it on once.
    os.setsid()
    sys.stdout = sys.stderr  # standard output is for the result alone
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        run = Run.open(folder)
        run.target.model.to(device)
        images = run.images if data is None else run.load_images(data)
        run_sweep(run, config, [variant], [seed], out, images=images, progress=_alive, **settings)
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception as error:
        sender.send(sentence(error))
        sys.exit(1)


def _alive(stage: str, done: int, total: int) -> None:
    """Stop when nobody waits for the result any more."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise KeyboardInterrupt

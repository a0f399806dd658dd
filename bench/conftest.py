"""Options and fixtures of the bench files; see docs/performance.md."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import pytest
import torch
from contest import SIZES, Contest, rounded
from register_loop import RegisterLoop

RESULTS = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser):
    group = parser.getgroup("pathways")
    group.addoption("--size", choices=SIZES, default="full", help="how much to measure")
    group.addoption("--alone", action="store_true", help="time the ops without their peers")
    group.addoption("--results", type=Path, help="write rows and machine facts to this JSON file")


def pytest_configure(config):
    # malloc first: it counts for everything that is allocated from now on.
    malloc = machine.steady_malloc()
    config.stash[RESULTS] = {
        "size": config.getoption("--size"),
        "machine": machine.facts() | {"malloc": malloc},
        "rows": [],
        "figures": [],
    }


def pytest_report_header(config):
    return [f"{name}: {value}" for name, value in config.stash[RESULTS]["machine"].items()]


def pytest_generate_tests(metafunc):
    """``case`` takes the values of the file's CASES for the chosen size."""
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.CASES[metafunc.config.getoption("--size")]
        names = ["-".join(map(str, case)).replace(" ", "") for case in cases]
        metafunc.parametrize("case", cases, ids=names)


def pytest_sessionfinish(session):
    path = session.config.getoption("--results")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(session.config.stash[RESULTS], indent=1) + "\n")


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    terminalreporter.section("ratios")
    for row in results["rows"]:
        head = f"{row['op']}, {row['work']}, {row['dtype']}, {row['threads']} thread(s)"
        spread = f"{row['ours']['median_ms']} ms, IQR {row['ours']['iqr_ms']}"
        terminalreporter.write_line(f"{head}: {spread}, {row['rounds']} rounds")
        for peer in row["beside"]:
            terminalreporter.write_line(f"    {sentence(peer)}")
    for figure in results["figures"]:
        text = f"{figure['op']}, {figure['what']}: {figure['value']} {figure['unit']}"
        if "needed" in figure:
            text += f", needed < {figure['needed']}: {'yes' if figure['needed_met'] else 'NO'}"
        terminalreporter.write_line(text)


def sentence(peer: dict[str, Any]) -> str:
    if "missing" in peer:
        return f"{peer['name']}: not measured, {peer['missing']}"
    text = f"{peer['name']}: {peer['median_ms']} ms, IQR {peer['iqr_ms']}; "
    text += f"{peer['measure']} {peer['ratio']} ({peer['low']} to {peer['high']})"
    for bound in ("needed", "goal"):
        if bound in peer:
            text += f", {bound} {peer[bound]}: {'yes' if peer[f'{bound}_met'] else 'NO'}"
    return text


@pytest.fixture(autouse=True)
def threads(request):
    """Torch gets the threads of the case, one where it names none."""
    callspec = getattr(request.node, "callspec", None)
    case = callspec.params.get("case") if callspec else None
    count = getattr(case, "threads", 1)
    if count > (os.cpu_count() or 1):
        pytest.skip(f"{count} threads need as many cores, this machine has {os.cpu_count()}")
    torch.set_num_threads(count)
    torch.manual_seed(0)
    return count


@pytest.fixture
def size(request):
    return SIZES[request.config.getoption("--size")]


@pytest.fixture
def contest(benchmark, request, size):
    results = request.config.stash[RESULTS]
    return Contest(benchmark, size, request.config.getoption("--alone"), results["rows"])


@pytest.fixture
def figure(request):
    """``figure(op, what, value, unit, most)`` keeps a figure that is to stay below ``most``."""
    figures = request.config.stash[RESULTS]["figures"]

    def keep(op: str, what: str, value: float, unit: str, most: float | None = None) -> None:
        entry: dict[str, Any] = {"op": op, "what": what, "value": rounded(value), "unit": unit}
        if most is not None:
            entry |= {"needed": most, "needed_met": value < most}
        figures.append(entry)

    return keep


@pytest.fixture
def compiled(request) -> Callable[[Callable[..., Any]], Callable[..., Any] | None]:
    """``torch.compile`` with its best settings for one shape and the threads of the test.

    Gives None where there is no C++ compiler. A tiny run, which only shows that the bench works,
    does without one.
    """

    def compile_(function: Callable[..., Any]) -> Callable[..., Any] | None:
        import torch._functorch.config
        import torch._inductor.config

        tiny = request.config.getoption("--size") == "tiny"
        if not tiny and shutil.which("g++") is None:
            return None
        torch._dynamo.reset()
        torch._inductor.config.cpp.threads = torch.get_num_threads()
        # A backward pass that is run again must not write into what the forward pass saved.
        torch._functorch.config.donated_buffer = False
        backend = "aot_eager" if tiny else "inductor"
        return torch.compile(function, backend=backend, dynamic=False)

    return compile_


@pytest.fixture(scope="session")
def register_loop(tmp_path_factory) -> RegisterLoop | None:
    if shutil.which("g++") is None and shutil.which("c++") is None:
        return None
    return RegisterLoop(tmp_path_factory.mktemp("register_loop"))

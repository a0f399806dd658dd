"""tools/gpu_check.py as far as it goes without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "gpu_check.py"
MACHINE = {
    "gpu": "A GPU",
    "capability": "9.0",
    "multiprocessors": 132,
    "memory": 80 << 30,
    "driver": "580.1",
    "nvcc": "13.0",
    "nvcc_path": "/toolkit/bin/nvcc",
    "torch": "2.14.1",
    "commit": "abc",
}
TIMES = {
    "device": "cuda",
    "rates": {"copy": 2e12, "popc": 1e14, "mma": 0.0},
    "rows": [
        {
            "op": "pairwise_iou (popc)",
            "shape": "8 x 8 rows of 64",
            "dtype": "bits",
            "unit": "bit pair",
            "amount": 4e10,
            "seconds": 1e-3,
            "low": 0.9e-3,
            "high": 1.1e-3,
            "rate": 4e13,
            "share": 0.4,
            "plain": None,
        }
    ],
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 1
    expected = "has no CUDA" if torch.version.cuda is None else "no GPU"
    assert expected in capsys.readouterr().err


def test_without_nvcc_it_says_so(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tool, "find_tool", lambda name: None)
    assert tool.main([]) == 1
    assert "no nvcc on the path or in CUDA_HOME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "time,speed"], "parts must be among build, tests, sanitize, time, got speed"),
        (["--device", "cpu", "--parts", "tests"], "--device cpu runs part time only"),
    ],
)
def test_refuses(
    tool: ModuleType, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert words in capsys.readouterr().err


def test_smoke_run_on_the_cpu(tool: ModuleType, tmp_path: Path) -> None:
    """The whole timing code, labelled as what it is."""
    assert tool.main(["--device", "cpu", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "gpu-check.md").read_text()
    assert page.startswith("# Smoke run of gpu_check.py on a CPU")
    assert "No GPU was used: these are not figures of the CUDA ops." in page
    result = json.loads((tmp_path / "time.json").read_text())["result"]
    assert result["device"] == "cpu"
    timed = {row["op"].split()[0] for row in result["rows"]}
    assert timed == {
        *("gated_forward", "gated_forward_", "_gated_backward"),
        *("binarize", "_binarize_backward", "pack_bits", "unpack_bits"),
        "adaptive_avg_max_pool2d",
        *("pairwise_iou", "class_overlap", "class_frequency"),
    }
    for row in result["rows"]:
        assert 0 < row["low"] <= row["seconds"] <= row["high"]
        assert row["rate"] == pytest.approx(row["amount"] / row["seconds"])
        assert f"| `{row['op']}` | {row['shape']} |" in page


@pytest.fixture
def parts(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts that only say that they were done, on a machine with a GPU."""
    done: list[str] = []

    def part(name: str, result: dict[str, Any]) -> Callable[..., dict[str, Any]]:
        def run(about: dict[str, Any], out: Path) -> dict[str, Any]:
            assert about == MACHINE and out.is_dir()
            done.append(name)
            return result

        return run

    results = {
        "build": {},
        "tests": {"passed": 3, "failed": [], "skipped": {"needs two GPUs": 1}},
        "sanitize": {"memcheck": "ERROR SUMMARY: 0 errors"},
        "time": TIMES,
    }
    monkeypatch.setattr(tool, "machine", lambda: dict(MACHINE))
    monkeypatch.setattr(tool, "PARTS", {name: part(name, r) for name, r in results.items()})
    return done


def test_goes_on_where_it_stopped(tool: ModuleType, parts: list[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    assert tool.main([*out, "--parts", "tests,build"]) == 0
    assert parts == ["build", "tests"]
    assert "Not done yet: sanitize, time." in (tmp_path / "gpu-check.md").read_text()
    assert tool.main(out) == 0
    assert parts == ["build", "tests", "sanitize", "time"]
    assert tool.main([*out, "--parts", "time", "--again"]) == 0
    assert parts == ["build", "tests", "sanitize", "time", "time"]
    page = (tmp_path / "gpu-check.md").read_text()
    for line in (
        "A GPU (compute capability 9.0, 132 multiprocessors, 80 GiB), driver 580.1, nvcc 13.0, "
        "torch 2.14.1, commit abc.",
        "Tests: 3 passed; 1 skipped (needs two GPUs).",
        "compute-sanitizer memcheck: ERROR SUMMARY: 0 errors",
        "Measured limits: copy 2 TB/s, popc 100 Tbit pairs/s.",
        "| `pairwise_iou (popc)` | 8 x 8 rows of 64 | bits | 1.000 | 0.900 - 1.100 | "
        "40 Tbit pairs/s | 40 % | - |",
    ):
        assert line in page.splitlines()


def test_results_of_another_machine_do_not_count(
    tool: ModuleType, parts: list[str], tmp_path: Path
) -> None:
    stored = {"machine": MACHINE | {"gpu": "Another"}, "result": {}}
    (tmp_path / "build.json").write_text(json.dumps(stored))
    assert tool.main(["--out", str(tmp_path), "--parts", "build"]) == 0
    assert parts == ["build"]


def test_a_part_that_fails_is_not_stored(
    tool: ModuleType,
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(about: dict[str, Any], out: Path) -> dict[str, Any]:
        raise tool.CheckError("tests failed: some")

    monkeypatch.setitem(tool.PARTS, "tests", fail)
    assert tool.main(["--out", str(tmp_path)]) == 1
    assert "gpu check: tests failed: some" in capsys.readouterr().err
    assert (tmp_path / "build.json").exists() and not (tmp_path / "tests.json").exists()


class Runs:
    """In the place of gpu_check.run: keeps the commands, and does what a test wants."""

    def __init__(self, action: Callable[[list[str]], int] = lambda command: 0) -> None:
        self.action = action
        self.calls: list[tuple[list[str], dict[str, str]]] = []

    def __call__(
        self, command: Sequence[Any], quiet: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        self.calls.append((words, environment))
        return subprocess.CompletedProcess(words, self.action(words), "", "")


def test_builds_for_this_gpu(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs()
    monkeypatch.setattr(tool, "run", runs)
    assert tool.build(MACHINE, tmp_path)["architecture"] == "9.0"
    (configure, settings), _, (rates, _) = runs.calls
    assert "-DPATHWAYS_CUDA=on" in configure and settings["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert rates[0] == MACHINE["nvcc_path"] and "-gencode=arch=compute_90,code=sm_90" in rates
    monkeypatch.setattr(tool, "run", Runs(lambda command: 2))
    with pytest.raises(tool.CheckError, match="cmake failed with exit code 2"):
        tool.build(MACHINE, tmp_path)


JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="one"/>
<testcase classname="a" name="two"><skipped message="needs two GPUs"/></testcase>
{more}
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("", None),
        ('<testcase classname="a" name="three"><failure/></testcase>', "tests failed: a::three"),
        (
            '<testcase classname="a" name="four"><skipped message="no GPU"/></testcase>',
            "the GPU tests were skipped: torch sees no GPU",
        ),
    ],
)
def test_reads_the_results_of_tests(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, words: str | None
) -> None:
    def pytest_run(command: list[str]) -> int:
        (path,) = (word.split("=")[1] for word in command if word.startswith("--junitxml="))
        Path(path).write_text(JUNIT.format(more=more))
        return 0

    runs = Runs(pytest_run)
    monkeypatch.setattr(tool, "run", runs)
    if words is None:
        found = tool.tests(MACHINE, tmp_path)
        assert found == {"passed": 1, "failed": [], "skipped": {"needs two GPUs": 1}}
        assert runs.calls[0][1]["PATHWAYS_LIBRARY"] == str(tool.LIBRARY)
    else:
        with pytest.raises(tool.CheckError, match=words):
            tool.tests(MACHINE, tmp_path)


@pytest.mark.parametrize("code", [0, 99])
def test_runs_compute_sanitizer(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def sanitizer(command: list[str]) -> int:
        log = Path(command[command.index("--log-file") + 1])
        log.write_text("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n")
        return code

    runs = Runs(sanitizer)
    monkeypatch.setattr(tool, "run", runs)
    monkeypatch.setattr(tool, "find_tool", lambda name: f"/toolkit/{name}")
    if code:
        with pytest.raises(tool.CheckError, match=r"compute-sanitizer memcheck .* exit code 99"):
            tool.sanitize(MACHINE, tmp_path)
        return
    found = tool.sanitize(MACHINE, tmp_path)
    assert found == dict.fromkeys(("memcheck", "racecheck", "synccheck"), "ERROR SUMMARY: 0 errors")
    assert all(call[0][:2] == ["/toolkit/compute-sanitizer", "--tool"] for call in runs.calls)


def test_compute_sanitizer_may_be_absent(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "find_tool", lambda name: None)
    assert tool.sanitize(MACHINE, tmp_path)["not run"].startswith("no compute-sanitizer")


def test_sanitized_tests_exist(tool: ModuleType) -> None:
    source = (REPOSITORY / "tests" / "cuda" / "test_cuda_ops.py").read_text()
    for name in tool.SANITIZED.split(" or "):
        assert f"def {name}" in source


def test_finds_tools(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "some-tool"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert tool.find_tool("some-tool") is None
    program.chmod(0o755)
    assert tool.find_tool("some-tool") == str(program)


@pytest.mark.slow
def test_peak_rates_count_with_the_instruction(tmp_path: Path) -> None:
    """The program of the peak rates compiles, and the compiler has left the loops in it."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (home and shutil.which(f"{home}/bin/nvcc"))
    if not nvcc:
        pytest.skip("no nvcc on the path or in CUDA_HOME")
    program = tmp_path / "peak_rates"
    command = [
        nvcc,
        "-std=c++20",
        "-O3",
        "-gencode=arch=compute_90,code=sm_90",
        "-Werror=all-warnings",
    ]
    source = REPOSITORY / "tests" / "cuda" / "peak_rates.cu"
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    spec = importlib.util.spec_from_file_location("cuda_gate", TOOL.with_name("cuda_gate.py"))
    assert spec is not None and spec.loader is not None
    gate = importlib.util.module_from_spec(spec)
    sys.modules["cuda_gate"] = gate
    spec.loader.exec_module(gate)
    cuobjdump = gate.find_cuobjdump(nvcc)
    if cuobjdump is None:
        pytest.skip("no cuobjdump")
    dump = [cuobjdump, "-sass", str(program)]
    text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    assert text.count(gate.MATRIX_INSTRUCTION) >= 8 and text.count(" POPC R") >= 8

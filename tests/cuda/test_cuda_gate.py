"""The compile gate: what it reads from ptxas and cuobjdump, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "cuda_gate.py"


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_gate", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_gate"] = module
    spec.loader.exec_module(module)
    return module


PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3fooPf' for 'sm_90'
ptxas info    : Function properties for _Z3fooPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers, used 1 barriers, 8192 bytes smem
ptxas info    : Compile time = 4.7 ms
ptxas info    : Compiling entry function '_Z3barPf' for 'sm_80'
ptxas info    : Function properties for _Z3barPf
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 16 bytes cumulative stack size
"""

SASS = """\
	code for sm_90
		Function : _Z3fooPf
        /*0050*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0060*/                   LDG.E R4, [R2.64] ;
        /*0070*/                   LDG.E.128 R8, [R2.64] ;
        /*0080*/              @!P0 LDGSTS.E.BYPASS.128.ZFILL [R21], desc[UR8][R12.64], P2 ;
        /*0090*/                   LDGSTS.E.64 [R21], desc[UR8][R12.64] ;
        /*00a0*/                   STG.E.128 desc[UR6][R16.64], R52 ;
        /*00b0*/                   STG.E.64 desc[UR6][R16.64], R52 ;
        /*00c0*/                   BMMA.168256.AND.POPC R40, R56.ROW, R16.COL, R40 ;
        /*00d0*/                   BMMA.88128.AND.POPC R2, R4.ROW, R6.COL, R8 ;
		Function : _Z3barPf
        /*0050*/                   STL.64 [R1], R4 ;
        /*0060*/                   LDL R4, [R1] ;
        /*0070*/                   LDS.128 R4, [R1] ;
"""


def test_reads_ptxas(gate: ModuleType) -> None:
    foo, bar = gate.parse_ptxas(PTXAS)
    assert foo == gate.Kernel("_Z3fooPf", "90", 31, 0, 0, 8192)
    assert bar == gate.Kernel("_Z3barPf", "80", 64, 16, 20, 0)


def test_reads_sass(gate: ModuleType) -> None:
    assert gate.parse_sass(SASS) == {
        "_Z3fooPf": gate.MachineCode(wide_loads=3, wide_stores=1, matrix=1, local=0),
        "_Z3barPf": gate.MachineCode(wide_loads=0, wide_stores=0, matrix=0, local=2),
    }


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("pathways::cuda::row_count_kernel(unsigned long const*, long)", "row_count_kernel"),
        (
            "void pathways::cuda::f_kernel<c10::Half, (pathways::cuda::GateMode)1>(int)",
            "f_kernel<Half, (GateMode)1>",
        ),
    ],
)
def test_names_kernels(gate: ModuleType, symbol: str, name: str) -> None:
    assert gate.kernel_name(symbol) == name


def test_accepts_what_keeps_the_budget(gate: ModuleType) -> None:
    kernel = gate.Kernel("binarize_kernel<float>", "90", 18, 0, 0, 0, gate.MachineCode(1, 1, 0, 0))
    assert gate.check([kernel], {"binarize_kernel<float>": {"90": 18}}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spill_bytes": 4}, "binarize_kernel<float> on sm_90 uses local memory"),
        ({"stack_bytes": 8}, "uses local memory (8 bytes of stack, 0 bytes of spills)"),
        ({"code": (1, 1, 0, 1)}, "uses local memory"),
        ({"registers": 19}, "uses 19 registers, the budget is 18"),
        ({"code": (0, 1, 0, 0)}, "has no 128-bit load"),
        ({"code": (1, 0, 0, 0)}, "has no 128-bit store"),
        ({"code": (1, 1, 1, 0)}, "on sm_90 has BMMA.168256.AND.POPC; bit_product.h knows nothing"),
        ({"architecture": "80"}, "on sm_80 has no register budget; record one with --update"),
        ({"name": "other"}, "binarize_kernel<float> on sm_90 has a budget but was not compiled"),
    ],
)
def test_refuses(gate: ModuleType, change: dict[str, object], words: str) -> None:
    if "code" in change:
        change = {"code": gate.MachineCode(*change["code"])}
    kernel = gate.Kernel("binarize_kernel<float>", "90", 18, 0, 0, 0, gate.MachineCode(1, 1, 0, 0))
    problems = gate.check([replace(kernel, **change)], {"binarize_kernel<float>": {"90": 18}})
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("architecture", "matrix", "words"),
    [
        ("80", 0, "pairwise_kernel<MmaTile<64> > on sm_80 has no BMMA.168256.AND.POPC"),
        ("90", 0, "on sm_90 has no BMMA.168256.AND.POPC"),
        ("90", 8, None),
        ("100", 0, None),
        ("120", 0, None),
        ("100", 8, "on sm_100 has BMMA.168256.AND.POPC; bit_product.h knows nothing of it"),
    ],
)
def test_tensor_cores_where_the_rule_says_so(
    gate: ModuleType, architecture: str, matrix: int, words: str | None
) -> None:
    name = "pairwise_kernel<MmaTile<64> >"
    code = gate.MachineCode(4, 4, matrix, 0)
    kernel = gate.Kernel(name, architecture, 80, 0, 0, 0, code)
    problems = gate.check([kernel], {name: {architecture: 80}})
    assert (words in problems[0]) if words else not problems


def test_another_nvcc_may_use_other_registers(gate: ModuleType) -> None:
    kernel = gate.Kernel("k", "90", 30, 0, 0, 0)
    assert gate.check([kernel], {"k": {"90": 18}}, same_release=False) == []


def test_without_nvcc_there_is_a_notice(
    gate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert gate.main([]) == 0
    assert "cuda gate skipped: no nvcc" in capsys.readouterr().out


def test_every_kernel_source_is_listed(gate: ModuleType) -> None:
    listed = gate.kernel_sources()
    assert sorted(listed) == sorted(gate.SOURCES.glob("*.cu"))


def test_the_budget_covers_all_architectures(gate: ModuleType) -> None:
    budget = json.loads(gate.BUDGET.read_text())["registers"]
    assert budget
    for limits in budget.values():
        assert tuple(limits) == gate.ARCHITECTURES

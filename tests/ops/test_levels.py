"""Every CPU level gives the same bits, and its code stays in a namespace of its own."""

import shutil
import subprocess

import pytest
import torch
from levels import LEVELS, ROOT, cmake_list, compile_loops, run_python, samples_of
from samples import OPS

from pathways.ops import reference

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(tensor):
    """The tensor as integers, so that NaN and the sign of zero count too."""
    return tensor.contiguous().view(INTEGERS[tensor.element_size()])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    loaded = {}
    for level in LEVELS:
        path = folder / f"{level}.pt"
        script = ROOT / "tests" / "ops" / "levels.py"
        run = run_python(script, path, PATHWAYS_CPU_CAPABILITY=level)
        assert run.stdout.strip() == level, run.stderr
        loaded[level] = torch.load(path)
    return loaded


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("op", OPS)
def test_same_bits_at_every_level(op, level, results):
    samples, scalar, other = samples_of(op), results["scalar"][op], results[level][op]
    assert len(samples) == len(scalar) == len(other)
    for sample, expected, actual in zip(samples, scalar, other, strict=True):
        assert len(expected) == len(actual)
        for a, b in zip(expected, actual, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype, sample.name
            assert torch.equal(bits_of(a), bits_of(b)), sample.name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "op",
    [
        "pack_bits",
        "unpack_bits",
        "pairwise_intersection",
        "pairwise_iou",
        "class_overlap",
        "class_frequency",
    ],
)
def test_bit_ops_against_reference(op, level, results):
    for sample, actual in zip(samples_of(op), results[level][op], strict=True):
        expected = getattr(reference, op)(*sample.args)
        if op == "class_overlap":
            torch.testing.assert_close(actual[0], expected[0], rtol=1e-12, atol=1e-12)
            actual, expected = actual[1:], expected[1]
        assert actual[0].dtype == expected.dtype, sample.name
        assert torch.equal(actual[0], expected), sample.name


# --------------------------------------------------------------------------- namespaces


@pytest.mark.parametrize(
    "level",
    [pytest.param(v, marks=pytest.mark.slow) if v != LEVELS[-1] else v for v in LEVELS],
)
def test_loops_define_nothing_outside_their_namespace(level, tmp_path):
    """A weak function could be merged with the copy of another level, and run where it must not."""
    compiler, nm = shutil.which("g++"), shutil.which("nm")
    if compiler is None or nm is None:
        pytest.skip("g++ or nm is not installed")
    loops = cmake_list("PATHWAYS_CPU_LOOPS")
    assert len(loops) > 1
    assert sorted(ROOT.glob("csrc/ops/cpu/*_loops.cpp")) == sorted(ROOT / name for name in loops)
    for source in loops:
        name = source.removeprefix("csrc/ops/cpu/").removesuffix(".cpp")
        target = tmp_path / f"{name}.o"
        compile_loops(compiler, source, level, target)
        listing = subprocess.run(
            [nm, "--extern-only", "--defined-only", "--demangle", target],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        symbols = [line.split(maxsplit=2)[2] for line in listing.splitlines()]
        assert symbols == [f"pathways::{level}::{name}"], source

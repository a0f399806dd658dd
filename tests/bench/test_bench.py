"""The benches run, and what they say follows from what they measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import overlap_memory
import pytest
import torch
from contest import INFORMATION, Contest, Peer, Size, absent, at_least, at_most, compare
from gating import Case
from register_loop import RegisterLoop

ROOT = Path(__file__).resolve().parents[2]


def test_every_bench_runs(tmp_path):
    """Tiny shapes, two rounds, one level beside the native one; the documented figures stay."""
    documented = ROOT / "docs" / "performance" / "cpu.json"
    before = documented.read_bytes()
    out = tmp_path / "tiny.json"
    command = [sys.executable, str(ROOT / "bench" / "run.py"), "--tiny", "--levels", "scalar"]
    result = subprocess.run(
        [*command, "--out", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert documented.read_bytes() == before
    figures = json.loads(out.read_text())
    ops = {row["op"] for row in figures["rows"]}
    assert ops >= {
        "adaptive_avg_max_pool2d",
        "binarize",
        "class_frequency",
        "class_overlap",
        "extracted network",
        "gated_backward",
        "gated_forward",
        "gated_forward_",
        "gated model",
        "pack_bits",
        "pairwise_intersection",
        "pairwise_iou",
    }
    for row in figures["rows"]:
        assert row["rounds"] == 2 and row["ours"]["median_ms"] > 0
        for peer in row["beside"]:
            assert "missing" in peer or 0 < peer["low"] <= peer["ratio"] <= peer["high"]
    at_level = {row["op"] for row in figures["levels"]["scalar"]}
    assert at_level == ops - {"gated model", "extracted network"}
    assert all(row["beside"] == [] for row in figures["levels"]["scalar"])


def test_a_ratio_is_the_median_of_rounds():
    ours, theirs = [1.0, 2.0, 4.0], [3.0, 4.0, 4.0]
    entry = compare(ours, theirs, Peer("p", print, at_least(2.0, 2.5)))
    assert (entry["ratio"], entry["low"], entry["high"]) == (2.0, 1.5, 2.5)
    assert entry["needed_met"] and not entry["goal_met"]
    assert entry["median_ms"] == 4000.0

    entry = compare(ours, theirs, Peer("p", print, at_most(0.4, 0.5)))
    assert entry["ratio"] == 0.5
    assert not entry["needed_met"] and entry["goal_met"]


def test_a_share_of_the_work_is_scaled():
    entry = compare([1.0, 1.0], [1.0, 1.0], Peer("p", print, INFORMATION, share=0.25))
    assert entry["ratio"] == 4.0 and entry["median_ms"] == 4000.0
    assert "needed" not in entry


def test_a_missing_peer_keeps_its_limit_without_a_verdict():
    entry = absent(Peer("p", None, at_least(2.0), missing="p is not installed"))
    assert entry == {
        "name": "p",
        "missing": "p is not installed",
        "measure": "speed",
        "needed": 2.0,
    }


def test_contestants_take_turns(benchmark):
    """One round of ours, then one of every peer; the missing one takes none."""
    turns = []
    wait = torch.rand(400, 400)

    def run(name):
        def call():
            turns.append(name)
            return wait @ wait @ wait @ wait  # long enough for one call a round

        return call

    peers = [Peer("a", run("a")), Peer("gone", None, missing="gone"), Peer("b", run("b"))]
    rows = []
    held = Contest(benchmark, Size(0.0, 3, 3), False, rows)
    row = held("op", "work", run("ours"), lambda: peers, dtype="float32")
    assert rows == [row] and row["rounds"] == 3
    assert [peer["name"] for peer in row["beside"]] == ["a", "gone", "b"]
    if turns.count("a") == turns.count("b") == turns.count("ours"):  # one call a round
        assert "".join(name[0] for name in turns[-9:]) == "oabobaoab"


def test_register_loop_counts(tmp_path):
    """It checks itself when it is made; asked for more bits it counts more ones."""
    loop = RegisterLoop(tmp_path)
    assert loop.run(10 * loop.bits_per_step)() == 10 * loop.bits_per_step // 4
    assert loop.run(1)() == loop.bits_per_step // 4


def test_peak_memory_sees_what_is_freed_again():
    size = 200 << 20
    peak = overlap_memory.peak_beyond(lambda: torch.ones(size, dtype=torch.uint8))
    # Linux counts the pages of a process in batches.
    assert 0.99 * size <= peak < 1.1 * size
    assert overlap_memory.peak_beyond(lambda: None) < 1 << 20


@pytest.mark.parametrize(("kept", "ones"), [(100, 512), (25, 128)])
def test_gates_keep_the_share_they_name(kept, ones):
    gate = Case((8, 512, 14, 14), "contiguous", kept, 1).gate()
    assert gate.shape == (8, 512)
    assert (gate.sum(1) == ones).all() and ((gate == 0) | (gate == 1)).all()

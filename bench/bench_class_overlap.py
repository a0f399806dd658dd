"""class_overlap beside pairwise_iou over the same triangle of pairs, and its peak memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from contest import Peer, at_most

from pathways import ops

# Rows and columns of the tiles of the peer: both sides and the result stay in the caches.
TILE = 1024


class Case(NamedTuple):
    count: int
    bits: int
    classes: int

    @property
    def work(self) -> str:
        return f"{self.count:,} x {self.bits:,} bit, {self.classes} classes"


CASES = {
    "full": [Case(50_000, 4096, 10)],
    "quick": [Case(4_000, 4096, 10)],
    "tiny": [Case(300, 130, 3)],
}


def pathways_of(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    words = torch.randint(-(2**63), 2**63 - 1, (case.count, -(-case.bits // 64)))
    return words, torch.randint(case.classes, (case.count,))


def test_class_overlap(contest, case):
    words, labels = pathways_of(case)
    some = slice(0, 2_000)
    expected = ops.reference.class_overlap(words[some], labels[some], case.classes)
    got = ops.class_overlap(words[some], labels[some], case.classes)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0)
    assert torch.equal(got[1], expected[1])

    def peers() -> list[Peer]:
        blocks = words.split(TILE)
        tiles = [(rows, columns) for i, rows in enumerate(blocks) for columns in blocks[i:]]
        # The tiles on the diagonal hold pairs twice: the time is scaled to the pairs needed.
        computed = sum(len(rows) * len(columns) for rows, columns in tiles)
        pairs = case.count * (case.count - 1) // 2

        def triangle() -> None:
            for rows, columns in tiles:
                ops.pairwise_iou(rows, columns)

        name = "pairwise_iou, same triangle"
        return [Peer(name, triangle, at_most(1.2, 1.1), share=computed / pairs)]

    run = lambda: ops.class_overlap(words, labels, case.classes)  # noqa: E731
    contest("class_overlap", case.work, run, peers, dtype="int64 words", least=3)


def test_peak_memory(figure, case):
    """In a process of its own: the peak of a process never comes down again."""
    command = [sys.executable, str(Path(__file__).with_name("overlap_memory.py"))]
    command += [str(value) for value in case]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    beyond = int(result.stdout) / 1e6
    figure("class_overlap", f"{case.work}, peak memory beyond the input", beyond, "MB", most=200)

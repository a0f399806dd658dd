"""adaptive_avg_max_pool2d to 4 x 4 beside torch's two poolings: ResNet-20, and 224-pixel nets."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from contest import Peer, at_least, compiled_peer

from pathways import ops


class Case(NamedTuple):
    shape: tuple[int, int, int, int]
    layout: str
    threads: int


LAYOUTS = ("contiguous", "channels_last")
MAPS = ((16, 32), (32, 16), (64, 8), (64, 112), (64, 56), (128, 28), (256, 14), (512, 7))
CASES = {
    "full": [
        *(
            Case((batch, channels, side, side), layout, 1)
            for batch, (channels, side), layout in itertools.product((1, 32), MAPS, LAYOUTS)
        ),
        *(Case((32, 64, 56, 56), layout, 2) for layout in LAYOUTS),
    ],
    "quick": [Case((32, 32, 16, 16), layout, 1) for layout in LAYOUTS],
    "tiny": [Case((2, 3, 5, 5), layout, 1) for layout in LAYOUTS],
}
SIDE = 4


def two_poolings(x: torch.Tensor) -> torch.Tensor:
    size = (SIDE, SIDE)
    return torch.cat([F.adaptive_avg_pool2d(x, size), F.adaptive_max_pool2d(x, size)], dim=1)


def test_adaptive_avg_max_pool2d(contest, case, compiled):
    layout = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    x = torch.randn(case.shape).contiguous(memory_format=layout)
    result = ops.adaptive_avg_max_pool2d(x, SIDE, SIDE)
    expected = ops.reference.adaptive_avg_max_pool2d(x, SIDE, SIDE)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)

    def peers() -> list[Peer]:
        fast = compiled(two_poolings)
        for peer in filter(None, (two_poolings, fast)):
            torch.testing.assert_close(result, peer(x), rtol=1e-5, atol=1e-5)
        return [
            Peer("two poolings", lambda: two_poolings(x), at_least(2.0)),
            compiled_peer("two poolings, torch.compile", fast and (lambda: fast(x))),
        ]

    work = f"{case.shape} {case.layout} to {SIDE} x {SIDE}"
    run = lambda: ops.adaptive_avg_max_pool2d(x, SIDE, SIDE)  # noqa: E731
    contest("adaptive_avg_max_pool2d", work, run, peers, dtype="float32", threads=case.threads)

"""What the machine can do: bit counting in registers, reading, copying, and fresh memory."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from contest import calibrate, quartiles, sample
from machine import pages


class Case(NamedTuple):
    megabytes: float
    threads: int


CASES = {
    "full": [Case(mb, threads) for mb in (102.8, 25.7, 3.2, 0.8) for threads in (1, 2)],
    "quick": [Case(102.8, 1), Case(0.8, 1)],
    "tiny": [Case(0.1, 1)],
}
PAGE = 4096


@pytest.fixture
def seconds_of(size):
    """Median seconds of a call."""

    def measure(run) -> float:
        calls, seconds = calibrate(run)
        rounds = min(size.most, max(size.least, int(size.seconds / 3 / seconds)))
        return quartiles([sample(run, calls) for _ in range(rounds)])[1]

    return measure


def test_register_loop(figure, seconds_of, register_loop):
    if register_loop is None:
        pytest.skip("there is no C++ compiler")
    bits = 10**10
    rate = bits / seconds_of(register_loop.run(bits)) / 1e12
    what = f"and + popcount + add in registers ({register_loop.capability}), 1 thread"
    figure("machine", what, rate, "Tbit/s")


def test_memory(figure, seconds_of, case):
    """Rates count every byte read or written once."""
    count = int(case.megabytes * 1e6 / 4)
    x, y = torch.ones(count), torch.ones(count)
    moved = 4 * count / 1e9
    where = f"{case.megabytes} MB, {case.threads} thread{'s' if case.threads > 1 else ''}{pages()}"

    def keep(what: str, seconds: float, unit: str) -> None:
        figure("machine", f"{what}, {where}", moved / seconds, unit)

    keep("sum", seconds_of(x.sum), "GB/s read")
    keep("copy_, warm", seconds_of(lambda: y.copy_(x)), "GB/s copied")
    warm = seconds_of(lambda: y.fill_(2.0))
    keep("fill_, warm", warm, "GB/s written")
    fresh = seconds_of(lambda: torch.empty(count).fill_(2.0))
    keep("fill_ of a fresh tensor", fresh, "GB/s written")
    if case.megabytes > 32:
        # Smaller tensors reuse memory; see machine.steady_malloc.
        cost = 1e9 * (fresh - warm) / (4 * count / PAGE)
        figure("machine", f"first touch of a page of {PAGE} bytes, {where}", cost, "ns")

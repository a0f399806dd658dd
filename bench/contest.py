"""Times an op and its peers in alternate rounds and says whether the limits are kept.

The machine is shared: its speed changes from second to second, so that two medians taken one after
the other say little. All contestants therefore take turns, and the ratio that counts is the median
of the ratios of single rounds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Run = Callable[[], Any]

# A sample of a short call is the mean of so many calls that the clock does not matter.
SAMPLE_SECONDS = 0.002


@dataclass(frozen=True)
class Size:
    """How much is measured: seconds for the rounds of one contest, and the number of rounds."""

    seconds: float
    least: int
    most: int


SIZES = {"full": Size(1.2, 7, 51), "quick": Size(0.4, 5, 21), "tiny": Size(0.0, 2, 2)}


@dataclass(frozen=True)
class Limit:
    """What a ratio must keep, and what would be better still.

    ``speed`` is the time of the peer over ours, at least so much; ``time`` is our time over that of
    the peer, at most so much.
    """

    measure: str
    needed: float | None = None
    goal: float | None = None

    def keeps(self, ratio: float, bound: float) -> bool:
        return ratio >= bound if self.measure == "speed" else ratio <= bound

    def bounds(self) -> dict[str, float]:
        pairs = (("needed", self.needed), ("goal", self.goal))
        return {name: bound for name, bound in pairs if bound is not None}


INFORMATION = Limit("speed")


def at_least(needed: float | None, goal: float | None = None) -> Limit:
    """Times the speed of the peer."""
    return Limit("speed", needed, goal)


def at_most(needed: float | None, goal: float | None = None) -> Limit:
    """Times the time of the peer."""
    return Limit("time", needed, goal)


@dataclass(frozen=True)
class Peer:
    """What an op is measured beside.

    Args:
        name (str): what it is, for the table.
        run (callable or None): does the work once; None where the peer is missing.
        limit (Limit): what must be kept beside it; nothing by default.
        share (float): how much of the work ``run`` does; its time is divided by this.
        missing (str): why it cannot run.
    """

    name: str
    run: Run | None
    limit: Limit = INFORMATION
    share: float = 1.0
    missing: str = ""


def compiled_peer(name: str, run: Run | None, limit: Limit = INFORMATION) -> Peer:
    """A peer made by torch.compile; ``run`` is None where that cannot compile."""
    return Peer(name, run, limit, missing="torch.compile needs a C++ compiler")


def sample(run: Run, calls: int) -> float:
    """Seconds per call, mean of ``calls``."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def calibrate(run: Run, least: float = SAMPLE_SECONDS) -> tuple[int, float]:
    """Calls per sample of at least so many seconds, and its seconds; warms up."""
    once = sample(run, 1)
    if once < 0.1:
        once = min(sample(run, 1) for _ in range(3))
    calls = max(1, math.ceil(least / once))
    return calls, calls * once


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def times(seconds: Sequence[float]) -> dict[str, float]:
    low, middle, high = quartiles(seconds)
    return {"median_ms": rounded(1e3 * middle), "iqr_ms": rounded(1e3 * (high - low))}


def compare(ours: Sequence[float], theirs: Sequence[float], peer: Peer) -> dict[str, Any]:
    """One peer's part of a row: its time, the ratio with quartiles, and the verdicts."""
    scaled = [seconds / peer.share for seconds in theirs]
    limit = peer.limit
    pairs = list(zip(scaled, ours, strict=True))
    ratios = [them / us if limit.measure == "speed" else us / them for them, us in pairs]
    low, middle, high = quartiles(ratios)
    entry: dict[str, Any] = {"name": peer.name, **times(scaled), "measure": limit.measure}
    entry |= {"ratio": rounded(middle), "low": rounded(low), "high": rounded(high)}
    for name, bound in limit.bounds().items():
        entry |= {name: bound, f"{name}_met": limit.keeps(middle, bound)}
    return entry


def absent(peer: Peer) -> dict[str, Any]:
    """The part of a row of a peer that is missing: its limits are neither kept nor broken."""
    entry = {"name": peer.name, "missing": peer.missing, "measure": peer.limit.measure}
    return entry | peer.limit.bounds()


def hold(
    benchmark: Any,
    size: Size,
    ours: Run,
    peers: Sequence[Peer],
    least: int | None,
    sample_seconds: float = SAMPLE_SECONDS,
) -> tuple[list[float], list[list[float]]]:
    """Seconds per call, round by round: ours, and those of every peer.

    pytest-benchmark times ours; the peers run in its teardown, which comes after every round.
    """
    ready = [calibrate(peer.run, sample_seconds) for peer in peers if peer.run is not None]
    runs = [peer.run for peer in peers if peer.run is not None]
    calls, seconds = calibrate(ours, sample_seconds)
    total = seconds + sum(seconds for _, seconds in ready)
    rounds = min(size.most, max(size.least if least is None else least, int(size.seconds / total)))
    theirs: list[list[float]] = [[] for _ in runs]

    def take_turns() -> None:
        # Every other round backwards, so that nobody always follows the same neighbour.
        order = range(len(runs)) if len(theirs[0]) % 2 == 0 else reversed(range(len(runs)))
        for i in order:
            theirs[i].append(sample(runs[i], ready[i][0]))

    benchmark.pedantic(ours, rounds=rounds, iterations=calls, teardown=take_turns if runs else None)
    # With more than one call a round, pytest-benchmark ends with one call outside of the rounds.
    return list(benchmark.stats.stats.data), [seconds[:rounds] for seconds in theirs]


class Contest:
    """Fixture of the bench files: holds a contest and keeps the row."""

    def __init__(self, benchmark: Any, size: Size, alone: bool, rows: list[dict[str, Any]]):
        self.benchmark = benchmark
        self.size = size
        self.alone = alone
        self.rows = rows

    def __call__(
        self,
        op: str,
        work: str,
        ours: Run,
        beside: Callable[[], Sequence[Peer]],
        *,
        dtype: str,
        threads: int = 1,
        least: int | None = None,
        sample_seconds: float = SAMPLE_SECONDS,
    ) -> dict[str, Any]:
        """Hold the contest.

        Args:
            op (str): what is measured, the group of the row in the tables.
            work (str): shape and whatever else tells the row from others.
            ours (callable): does the work once.
            beside (callable): makes the peers, and checks their results; not called for a run
                without peers, whose inputs can be large.
            dtype (str): of the data.
            threads (int): that torch was set to; for the table.
            least (int, optional): rounds at least, where those of the size do not fit: fewer for
                work that takes seconds, more for small differences.
            sample_seconds (float): a round takes at least so long; longer where contestants live in
                processes of their own, which find the caches cold when their turn comes.

        Returns:
            dict: the row.
        """
        peers = [] if self.alone else beside()
        seconds, theirs = hold(self.benchmark, self.size, ours, peers, least, sample_seconds)
        turns = iter(theirs)
        row: dict[str, Any] = {"op": op, "work": work, "dtype": dtype, "threads": threads}
        row |= {"rounds": len(seconds), "ours": times(seconds), "beside": []}
        for peer in peers:
            there = peer.run is not None
            row["beside"].append(compare(seconds, next(turns), peer) if there else absent(peer))
        self.benchmark.group = f"{op}, {work}, threads {threads}"
        self.benchmark.extra_info.update(row)
        self.rows.append(row)
        return row

"""pairwise_iou and pairwise_intersection beside bit-set libraries and an int8 matrix product."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from contest import INFORMATION, Limit, Peer, at_least
from register_loop import RegisterLoop

from pathways import ops


class Case(NamedTuple):
    rows: int
    columns: int
    bits: int

    @property
    def work(self) -> str:
        return f"{self.rows:,} x {self.columns:,} x {self.bits:,} bit"


CASES = {
    "full": [Case(1024, 1024, 4096), Case(1024, 1024, 26624)],
    "quick": [Case(1024, 1024, 4096)],
    "tiny": [Case(24, 40, 200)],
}
DTYPE = "int64 words"


@pytest.fixture
def masks(case) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(case.rows, case.bits) < 0.5, torch.rand(case.columns, case.bits) < 0.5


def check(result, a, b, reference) -> None:
    """Rows at both ends against the reference, which is slow."""
    for rows in (slice(None, 64), slice(-64, None)):
        torch.testing.assert_close(result[rows], reference(a[rows], b))


def loop_peer(loop: RegisterLoop | None, case: Case, limit: Limit = INFORMATION) -> Peer:
    """The same number of bits in registers."""
    name = "register loop"
    if loop is None:
        return Peer(name, None, limit, missing="there is no C++ compiler")
    return Peer(name, loop.run(case.rows * case.columns * case.bits), limit)


def numkong_peer(function: str, words: tuple[torch.Tensor, ...], expected: torch.Tensor) -> Peer:
    """Jaccard distances 1 - IoU of bits packed in bytes, output allocated beforehand.

    ``jaccards_packed`` gets its second matrix packed beforehand; ``jaccards_symmetric`` fills the
    upper triangle only. Both run in the calling thread.
    """
    name, limit = f"NumKong {function}", at_least(1.1, 1.25)
    try:
        import numkong
    except ImportError:
        return Peer(name, None, limit, missing="numkong is not installed")
    first, *second = (each.numpy().view(np.uint8) for each in words)
    if second:
        packed = numkong.hammings_pack(second[0])
        out = numkong.jaccards_packed(first, packed)
        peer = Peer(name, lambda: numkong.jaccards_packed(first, packed, out=out), limit)
    else:
        out = numkong.jaccards_symmetric(first, dtype="uint1")
        peer = Peer(name, lambda: numkong.jaccards_symmetric(first, dtype="uint1", out=out), limit)
    # The lower triangle of a symmetric result is whatever was there.
    rows, columns = np.triu_indices(len(expected), 1, expected.shape[1])
    np.testing.assert_allclose(
        1 - np.asarray(out)[rows, columns], expected.numpy()[rows, columns], atol=1e-6
    )
    return peer


def scipy_peer(masks: tuple[torch.Tensor, torch.Tensor], expected: torch.Tensor) -> Peer:
    """Slow, therefore on some of the rows; boolean arrays are what it takes."""
    try:
        from scipy.spatial.distance import cdist
    except ImportError:
        return Peer("scipy cdist", None, missing="scipy is not installed")
    a, b = (mask.numpy() for mask in masks)
    rows = min(16, len(a))
    np.testing.assert_allclose(1 - cdist(a[:rows], b, "jaccard"), expected[:rows], atol=1e-6)
    name = f"scipy cdist, {rows} of the rows"
    return Peer(name, lambda: cdist(a[:rows], b, "jaccard"), share=rows / len(a))


def test_pairwise_iou(contest, case, masks, register_loop):
    a, b = map(ops.pack_bits, masks)
    result = ops.pairwise_iou(a, b)
    check(result, a, b, ops.reference.pairwise_iou)

    def peers() -> list[Peer]:
        return [
            numkong_peer("jaccards_packed", (a, b), result),
            loop_peer(register_loop, case, at_least(0.75, 0.85)),
            scipy_peer(masks, result),
        ]

    contest("pairwise_iou", case.work, lambda: ops.pairwise_iou(a, b), peers, dtype=DTYPE)


def test_pairwise_iou_of_one_set(contest, case, masks, register_loop):
    """Every pair of one set of pathways; ours fills both triangles."""
    a = ops.pack_bits(masks[0])
    case = case._replace(columns=case.rows)
    result = ops.pairwise_iou(a, a)
    check(result, a, a, ops.reference.pairwise_iou)

    def peers() -> list[Peer]:
        return [numkong_peer("jaccards_symmetric", (a,), result), loop_peer(register_loop, case)]

    work = f"{case.work}, a is b"
    contest("pairwise_iou", work, lambda: ops.pairwise_iou(a, a), peers, dtype=DTYPE)


def test_pairwise_intersection(contest, case, masks, register_loop):
    a, b = map(ops.pack_bits, masks)
    result = ops.pairwise_intersection(a, b)
    check(result, a, b, ops.reference.pairwise_intersection)

    def peers() -> list[Peer]:
        # The second operand in the order that is faster here, output allocated beforehand.
        left, right = masks[0].to(torch.int8), masks[1].to(torch.int8).t().contiguous()
        out = torch._int_mm(left, right)
        assert torch.equal(out, result)
        return [
            Peer("torch._int_mm", lambda: torch._int_mm(left, right, out=out), at_least(2.0)),
            loop_peer(register_loop, case),
        ]

    run = lambda: ops.pairwise_intersection(a, b)  # noqa: E731
    contest("pairwise_intersection", case.work, run, peers, dtype=DTYPE)

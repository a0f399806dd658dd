"""pack_bits beside numpy.packbits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from contest import INFORMATION, Peer, at_least

from pathways import ops


class Case(NamedTuple):
    rows: int
    bits: int
    dtype: str


CASES = {
    "full": [
        Case(4096, 4096, "bool"),
        Case(1024, 26624, "bool"),
        Case(256, 4096, "bool"),
        Case(4096, 4096, "float32"),
    ],
    "quick": [Case(4096, 4096, "bool")],
    "tiny": [Case(5, 128, "bool")],
}


def test_pack_bits(contest, case):
    mask = (torch.rand(case.rows, case.bits) < 0.5).to(getattr(torch, case.dtype))
    result = ops.pack_bits(mask)
    assert torch.equal(result, ops.reference.pack_bits(mask))

    def peers() -> list[Peer]:
        array = mask.numpy()

        # It takes bool and integers only. All sizes here are whole words, so nothing is left to do.
        def packbits() -> np.ndarray:
            bits = array if array.dtype == np.bool_ else array != 0
            return np.packbits(bits, axis=1, bitorder="little").view(np.int64)

        assert np.array_equal(result.numpy(), packbits())
        limit = at_least(1.5, 3.0) if case.dtype == "bool" else INFORMATION
        return [Peer("numpy.packbits", packbits, limit)]

    work = f"{case.rows:,} x {case.bits:,} bit"
    contest("pack_bits", work, lambda: ops.pack_bits(mask), peers, dtype=case.dtype)

"""class_frequency beside torch and numpy on unpacked masks, and beside a copy of its words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from contest import Peer, at_least, at_most

from pathways import ops


class Case(NamedTuple):
    count: int
    bits: int
    classes: int


CASES = {
    "full": [Case(100_000, 4096, 10)],
    "quick": [Case(20_000, 4096, 10)],
    "tiny": [Case(300, 128, 3)],
}


def test_class_frequency(contest, case):
    count, bits, classes = case
    words = torch.randint(-(2**63), 2**63 - 1, (count, bits // 64))
    labels = torch.randint(classes, (count,))
    result = ops.class_frequency(words, labels, classes, bits)
    some = slice(0, 2_000)
    assert torch.equal(
        ops.class_frequency(words[some], labels[some], classes, bits),
        ops.reference.class_frequency(words[some], labels[some], classes, bits),
    )

    def peers() -> list[Peer]:
        # Masks are unpacked beforehand, each in the dtype in which the peer is fastest.
        mask = ops.unpack_bits(words, bits)
        floats, totals = mask.to(torch.float32), torch.zeros(classes, bits)
        one_hot = torch.nn.functional.one_hot(labels, classes).t().to(torch.int8).contiguous()
        array, classes_of = mask.numpy(), labels.numpy()
        narrow = np.uint16 if labels.bincount().max() < 2**16 else np.uint32
        copy = torch.empty_like(words)

        def index_add() -> torch.Tensor:
            return totals.zero_().index_add_(0, labels, floats)

        def int_mm() -> torch.Tensor:
            return torch._int_mm(one_hot, mask.view(torch.int8))

        def numpy_sum() -> np.ndarray:
            return np.stack([array[classes_of == k].sum(0, dtype=narrow) for k in range(classes)])

        for counts in (index_add(), int_mm(), torch.from_numpy(numpy_sum().astype(np.int64))):
            assert torch.equal(counts.long(), result)
        return [
            Peer("torch index_add_, float32 mask", index_add, at_least(10.0)),
            Peer("torch._int_mm of one-hot labels and int8 mask", int_mm, at_least(10.0)),
            Peer("numpy sum by class, bool mask", numpy_sum, at_least(10.0)),
            Peer("copy_ of the words", lambda: copy.copy_(words), at_most(None, 1.0)),
        ]

    run = lambda: ops.class_frequency(words, labels, classes, bits)  # noqa: E731
    work = f"{count:,} x {bits:,} bit, {classes} classes"
    contest("class_frequency", work, run, peers, dtype="int64 words")

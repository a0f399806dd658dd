"""gated_forward and gated_forward_ with relu beside eager torch, torch.compile and a copy."""

from __future__ import annotations

import itertools

import torch
from contest import Peer, at_least, at_most, compiled_peer
from gating import LAYOUTS, SHAPES, Case, gated_relu, gated_relu_

from pathways import ops

CASES = {
    "full": [Case(*values) for values in itertools.product(SHAPES, LAYOUTS, (100, 25), (1, 2))],
    "quick": [Case((32, 256, 28, 28), layout, 25, 1) for layout in LAYOUTS],
    "tiny": [Case((2, 8, 5, 5), layout, 25, 1) for layout in LAYOUTS],
}


def test_gated_forward(contest, case, compiled):
    """A fresh output."""
    x, gate = case.input(), case.gate()
    result = ops.gated_forward(x, gate, activation="relu")
    assert torch.equal(result, gated_relu(x, gate))
    assert result.stride() == x.stride()

    def peers() -> list[Peer]:
        fast, copy = compiled(gated_relu), torch.empty_like(x)
        if fast:
            assert torch.equal(result, fast(x, gate))
        return [
            Peer("eager", lambda: gated_relu(x, gate), at_least(1.8)),
            compiled_peer("torch.compile", fast and (lambda: fast(x, gate)), at_least(1.0)),
            Peer("copy_", lambda: copy.copy_(x)),
        ]

    run = lambda: ops.gated_forward(x, gate, activation="relu")  # noqa: E731
    contest("gated_forward", case.work, run, peers, dtype="float32", threads=case.threads)


@torch.inference_mode()
def test_gated_forward_in_place(contest, case):
    """Again and again on the same values: a gate of 0 or 1 leaves them what they are.

    In inference mode, for which the op is made; its peers are faster there too.
    """
    x, gate = case.input(), case.gate()
    expected = gated_relu(x, gate)
    own = x.clone()
    ops.gated_forward_(own, gate, activation="relu")
    assert torch.equal(own, expected)

    def peers() -> list[Peer]:
        theirs, copy = x.clone(), torch.zeros_like(x)
        assert torch.equal(gated_relu_(theirs, gate), expected)
        limit = at_most(1.1, 1.0) if case.kept == 100 else at_most(0.8, 0.7)
        return [
            Peer("eager in place", lambda: gated_relu_(theirs, gate)),
            Peer("copy_", lambda: copy.copy_(x), limit),
        ]

    run = lambda: ops.gated_forward_(own, gate, activation="relu")  # noqa: E731
    contest("gated_forward_", case.work, run, peers, dtype="float32", threads=case.threads)

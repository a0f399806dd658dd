"""The backward pass of gated_forward with relu beside that of eager torch and torch.compile."""

from __future__ import annotations

import itertools

import torch
from contest import Peer, at_least, compiled_peer
from gating import LAYOUTS, SHAPES, Case, gated_relu

from pathways import ops

# A gradient of the gate needs every value of x whatever the gate is, so one share of kept channels
# is enough.
CASES = {
    "full": [Case(*values) for values in itertools.product(SHAPES, LAYOUTS, (100,), (1, 2))],
    "quick": [Case((32, 256, 28, 28), layout, 100, 1) for layout in LAYOUTS],
    "tiny": [Case((2, 8, 5, 5), layout, 100, 1) for layout in LAYOUTS],
}


def test_gated_backward(contest, case, compiled):
    """Gradients of x and of the gate from a graph that is kept; the forward pass is not timed."""
    x, gate = case.input().requires_grad_(), case.gate().requires_grad_()
    grad = torch.randn_like(x.detach())

    def backward(function):
        out = function(x, gate)
        return lambda: torch.autograd.grad(out, (x, gate), grad, retain_graph=True)

    run = backward(lambda x, gate: ops.gated_forward(x, gate, activation="relu"))
    eager = backward(gated_relu)
    expected, result = eager(), run()
    torch.testing.assert_close(result[0], expected[0])
    # Sums over space: float32 errors grow with the root of their length.
    torch.testing.assert_close(result[1], expected[1], rtol=1e-4, atol=1e-3)

    def peers() -> list[Peer]:
        fast = compiled(gated_relu)
        fast = fast and backward(fast)
        if fast:
            torch.testing.assert_close(fast()[1], expected[1], rtol=1e-4, atol=1e-3)
        return [
            Peer("eager", eager, at_least(1.8, 2.5)),
            compiled_peer("torch.compile", fast, at_least(1.0)),
        ]

    contest("gated_backward", case.work, run, peers, dtype="float32", threads=case.threads)

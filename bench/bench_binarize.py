"""binarize, forward and backward, beside the softmax form that it replaces."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from contest import Peer, at_least, compiled_peer

from pathways import ops


class Case(NamedTuple):
    count: int
    threads: int


CASES = {
    "full": [Case(1_000_000, 1), Case(1_000_000, 2)],
    "quick": [Case(1_000_000, 1)],
    "tiny": [Case(1_000, 1)],
}
SIGMA, GAMMA = 1.0, 2.0
KAPPA = math.exp(-1 / SIGMA**2)
DELTA = 1 / (math.exp(GAMMA) - 1)


def scores(importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Temperature and scores of both levels for importance in (0, 1)."""
    x = importance.clamp(0, 1)
    d0, d1 = torch.exp(-x), torch.exp(x - 1)
    upper = x.detach() > 0.5
    s0, s1 = torch.where(upper, KAPPA * d0, d0), torch.where(upper, d1, KAPPA * d1)
    return (GAMMA / (s0 - s1).abs()).detach(), s0, s1


def softmax_form(importance: torch.Tensor) -> torch.Tensor:
    """Distance-aware quantization to one bit as published, with softmax over the two levels."""
    beta, s0, s1 = scores(importance)
    weights = torch.softmax(beta * torch.stack((s0, s1)), dim=0)
    return (1 + DELTA) * weights[1] - DELTA * weights[0]


def sigmoid_form(importance: torch.Tensor) -> torch.Tensor:
    """The same with the softmax of two written as a sigmoid, which torch runs faster."""
    beta, s0, s1 = scores(importance)
    upper = torch.sigmoid(beta * (s1 - s0))
    return (1 + 2 * DELTA) * upper - DELTA


def test_binarize(contest, case, compiled):
    importance = torch.rand(case.count).clamp_(1e-4, 1 - 1e-4).requires_grad_()
    grad = torch.randn(case.count)

    def both_ways(form):
        def run():
            out = form(importance)
            return out, *torch.autograd.grad(out, importance, grad)

        return run

    run = both_ways(ops.binarize)
    out, gradient = run()
    expected = both_ways(ops.reference.binarize)()
    assert torch.equal(out, expected[0])
    torch.testing.assert_close(gradient, expected[1], rtol=1e-4, atol=1e-5)

    def peers() -> list[Peer]:
        limit = at_least(5.0, 10.0)
        fast = compiled(sigmoid_form)
        forms = [
            Peer("softmax form", both_ways(softmax_form), limit),
            Peer("softmax form by sigmoid", both_ways(sigmoid_form), limit),
            compiled_peer("softmax form by sigmoid, torch.compile", fast and both_ways(fast)),
        ]
        for peer in forms:
            if peer.run is not None:
                theirs, their_gradient = peer.run()
                torch.testing.assert_close(out, theirs, rtol=0, atol=1e-5)
                torch.testing.assert_close(gradient, their_gradient, rtol=1e-4, atol=1e-5)
        return forms

    work = f"{case.count:,}, forward and backward"
    contest("binarize", work, run, peers, dtype="float32", threads=case.threads)

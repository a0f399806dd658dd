"""A gated run of a whole classifier beside the same classifier without gates."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from contest import INFORMATION, Limit, Peer, at_most

import pathways
from pathways import ops
from pathways.models import resnet20

WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10_resnet20.safetensors"


class Case(NamedTuple):
    batch: int
    kept: int
    threads: int


CASES = {
    "full": [Case(64, kept, threads) for kept in (100, 50) for threads in (1, 2)],
    "quick": [Case(64, 50, 1)],
    "tiny": [Case(2, 50, 1)],
}


@pytest.fixture(scope="module")
def model() -> tuple[torch.nn.Module, str]:
    """ResNet-20 in eval mode, and which."""
    net = resnet20().eval()
    if not WEIGHTS.is_file():
        return net, "ResNet-20, random weights"
    from safetensors.torch import load_file

    net.load_state_dict(load_file(WEIGHTS))
    return net, "ResNet-20, trained weights"


def contestants(net, batch: int, kept: int, limit: Limit):
    """A gated run, its peers, and the number of sites."""
    images = torch.randn(batch, 3, 32, 32)
    target = pathways.GatedTarget(net, images)
    # Whole gates, one per site, as a pathway gives them; the same count in every site.
    gates = []
    for site in target.sites:
        order = torch.rand(batch, site.shape[0]).argsort(1).argsort(1)
        gates.append((order < site.shape[0] * kept // 100).to(torch.float32))
    plain = net(images)
    assert torch.equal(target.gated(images, [torch.ones_like(gate) for gate in gates]), plain)
    assert torch.equal(target(images), plain)
    peers = [
        Peer("the model itself", lambda: net(images), limit),
        Peer("GatedTarget without gates", lambda: target(images), limit),
    ]
    return lambda: target.gated(images, gates), peers, len(target.sites)


@torch.no_grad()
def test_gated_model(contest, case, model):
    net, name = model
    run, peers, sites = contestants(net, case.batch, case.kept, at_most(1.05, 1.02))
    work = f"{name}, batch {case.batch}, {sites} sites, kept {case.kept} %"
    # A few percent are looked for.
    contest(
        "gated model", work, run, lambda: peers, dtype="float32", threads=case.threads, least=21
    )


@torch.no_grad()
def test_cost_of_a_call(contest, figure, model):
    """One small image, so that what a site costs beside its arithmetic is seen."""
    net, name = model
    run, peers, sites = contestants(net, 1, 100, INFORMATION)
    row = contest(
        "gated model", f"{name}, batch 1, {sites} sites", run, lambda: peers, dtype="float32"
    )
    for peer in row["beside"]:
        extra = (row["ours"]["median_ms"] - peer["median_ms"]) / sites
        what = f"batch 1, extra time a site beside {peer['name']}"
        figure("gated model", what, 1e3 * extra, "us")


@torch.inference_mode()
def test_cost_of_a_cold_call(figure, size):
    """The call of an op on four numbers, after arithmetic on so much memory: Python gets cold."""
    x, gate = torch.ones(1, 4), torch.ones(1, 4)
    rounds = max(size.least, 2 * size.most)
    for megabytes in (0, 4, 16, 64):
        streamed = torch.zeros(megabytes * 250_000)
        seconds = []
        for _ in range(rounds):
            streamed.add_(1).mul_(2)
            start = time.perf_counter()
            ops.gated_forward(x, gate, activation="relu")
            seconds.append(time.perf_counter() - start)
        what = f"one call on 4 numbers after arithmetic on {megabytes} MB"
        figure("gated model", what, 1e6 * statistics.median(seconds), "us")

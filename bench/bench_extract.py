"""A class pathway as a network of its own beside the whole target, and beside its gated run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from contest import Peer, at_least

import pathways
from pathways.models import resnet20, vgg

WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10_resnet20.safetensors"
# For pathways of 30 % and less, the same share of every site, batches, and zeros for what is off.
# One image at a time the calls cost more than the arithmetic; other baselines have to be added.
NEEDED = at_least(3.0)


class Case(NamedTuple):
    net: str
    batch: int
    kept: int
    baseline: str


CASES = {
    "full": [
        Case(net, 64, kept, "zero") for net in ("VGG", "ResNet-20") for kept in (100, 50, 30, 10)
    ]
    + [Case(net, 64, 30, "mean") for net in ("VGG", "ResNet-20")]
    + [Case(net, 1, 30, "zero") for net in ("VGG", "ResNet-20")],
    "quick": [Case("VGG", 64, 30, "zero"), Case("ResNet-20", 64, 30, "zero")],
    "tiny": [Case("VGG", 2, 30, "zero")],
}


@pytest.fixture(scope="module")
def nets() -> dict[str, tuple[torch.nn.Module, str]]:
    """Both nets in eval mode, and their names for the table."""
    torch.manual_seed(0)
    residual, name = resnet20().eval(), "ResNet-20, random weights"
    if WEIGHTS.is_file():
        from safetensors.torch import load_file

        residual.load_state_dict(load_file(WEIGHTS))
        name = "ResNet-20, trained weights"
    return {"VGG": (vgg(3, 10).eval(), "VGG, six layers"), "ResNet-20": (residual, name)}


def random_pathway(target: pathways.GatedTarget, kept: int) -> list[torch.Tensor]:
    """The same share of every site."""
    masks = []
    for site in target.sites:
        order = torch.rand(site.channels).argsort().argsort()
        masks.append(order < round(site.channels * kept / 100))
    return masks


@torch.no_grad()
def test_extracted(contest, figure, case, nets):
    net, name = nets[case.net]
    images = torch.randn(case.batch, 3, 32, 32)
    target = pathways.GatedTarget(net, images)
    if case.baseline == "mean":
        target.baseline = target.mean_baseline([images])
    masks = random_pathway(target, case.kept)
    small = pathways.extract(target, masks)
    gates = [mask[None].float() for mask in masks]
    torch.testing.assert_close(small(images), target.gated(images, gates), rtol=1e-5, atol=1e-5)
    if case.kept == 100:
        assert torch.equal(small(images), net(images))
    promised = case.kept <= 30 and case.batch > 1 and case.baseline == "zero"
    peers = [
        Peer("the whole target", lambda: net(images), NEEDED if promised else at_least(None)),
        Peer("its gated run", lambda: target.gated(images, gates)),
    ]
    work = f"{name}, batch {case.batch}, kept {case.kept} %, baseline {case.baseline}"
    contest("extracted network", work, lambda: small(images), lambda: peers, dtype="float32")
    extraction = small.extraction
    if case.batch > 1 and case.baseline == "zero":
        share = 100 * extraction.multiplications / extraction.multiplications_before
        what = f"{case.net}, kept {case.kept} %, multiplications left"
        figure("extracted network", what, share, "%")

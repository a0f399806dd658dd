"""A target whose class circuits are known by construction."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pathways import GatedTarget

CLASSES, GROUP, DISTRACTORS = 3, 3, 6
WIDTH = CLASSES * GROUP + DISTRACTORS


@dataclass
class Planted:
    """Class c is decided by neurons c * GROUP ... of both layers and by nothing else.

    The last DISTRACTORS neurons are as active as the others but lead nowhere. Every neuron of a
    circuit is needed: without one of them the background class, which needs none, takes over.
    """

    target: GatedTarget
    circuit: Tensor  # bool [CLASSES, D]

    @staticmethod
    def images(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(CLASSES, (rows,), generator=generator)
        x = torch.randn(rows, WIDTH, generator=generator) * 0.05
        features = labels[:, None] * GROUP + torch.arange(GROUP)
        x[torch.arange(rows)[:, None], features] += 1
        x[:, CLASSES * GROUP :] = 2 * torch.rand(rows, DISTRACTORS, generator=generator)
        return x, labels


def make_planted() -> Planted:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, CLASSES + 1),
    )  # fmt: skip
    circuit = torch.zeros(CLASSES, 2 * WIDTH, dtype=torch.bool)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net[0].weight.copy_(torch.eye(WIDTH))
        net[2].weight[CLASSES * GROUP :] = torch.randn(DISTRACTORS, WIDTH, generator=generator)
        for c in range(CLASSES):
            group = slice(c * GROUP, (c + 1) * GROUP)
            net[2].weight[group, group] = 1 / GROUP
            net[4].weight[c, group] = 4.0
            net[4].bias[c] = -10.0
            circuit[c, :WIDTH][group] = True
            circuit[c, WIDTH:][group] = True
    return Planted(GatedTarget(net, torch.zeros(2, WIDTH)), circuit)


@pytest.fixture
def planted() -> Planted:
    return make_planted()

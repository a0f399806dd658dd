"""What tools open as a run, without a folder."""

from types import SimpleNamespace

import pytest
import torch

from pathways import GatedTarget, GenCNP
from pathways.explainer import Explainer
from pathways.preprocessing import Preprocessing
from pathways.training.data import Images


@pytest.fixture
def run():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(216, 3)
    )
    images = torch.rand(30, 1, 8, 8)
    labels = torch.zeros(30, dtype=torch.long)
    target = GatedTarget(net, images[:2])
    generator = GenCNP(target.sites, 3, width=8)
    with torch.no_grad():  # pathways that differ by input
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter))

    return SimpleNamespace(
        preprocessing=Preprocessing((0.0,), (1.0,)),
        images=Images(images, labels, images, labels, ("a", "b", "c")),
        explainer=Explainer(target, generator.eval()),
    )

"""A target with known circuits, and explainers that leak, that explain, and that do nothing."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pathways.explainer import Explanation
from pathways.pathway import Pathway
from pathways.target import GatedTarget

CLASSES = 4


class Circuits(nn.Module):
    """Class c is fed by an evidence neuron, relu(x_c), and a constant neuron, relu(5).

    With every constant neuron on, the constants cancel and the image decides; with a single one on,
    that class wins whatever the image shows.
    """

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.hidden = nn.Linear(classes, 2 * classes)
        self.relu = nn.ReLU()
        self.head = nn.Linear(2 * classes, classes, bias=False)
        eye = torch.eye(classes)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.cat([eye, torch.zeros(classes, classes)]))
            self.hidden.bias.copy_(torch.tensor([0.0] * classes + [5.0] * classes))
            self.head.weight.copy_(torch.cat([eye, eye], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.hidden(x)))


@dataclass
class Planted:
    """An explainer whose mask is a function of the predicted class."""

    target: GatedTarget
    mask: Callable[[Tensor], Tensor]

    @property
    def sites(self):
        return self.target.sites

    def __call__(self, images: Tensor) -> Explanation:
        logits = self.target(images)
        mask = self.mask(logits.argmax(1)).float()
        gated = self.target.gated(images, mask)
        return Explanation(logits, gated, mask, Pathway.from_mask(mask, self.sites, "circuits"))


def one_hot(predictions: Tensor) -> Tensor:
    return nn.functional.one_hot(predictions, CLASSES).bool()


def leaking_mask(predictions: Tensor) -> Tensor:
    """All evidence, and of the constants only the predicted class's: the mask writes the class."""
    own = one_hot(predictions)
    return torch.cat([torch.ones_like(own), own], dim=1)


def explaining_mask(predictions: Tensor) -> Tensor:
    """The predicted class's evidence and every constant: without the evidence nothing is won."""
    own = one_hot(predictions)
    return torch.cat([own, torch.ones_like(own)], dim=1)


def full_mask(predictions: Tensor) -> Tensor:
    return torch.ones(len(predictions), 2 * CLASSES, dtype=torch.bool)


@pytest.fixture
def target() -> GatedTarget:
    return GatedTarget(Circuits(), torch.zeros(1, CLASSES))


@pytest.fixture
def leaking(target) -> Planted:
    return Planted(target, leaking_mask)


@pytest.fixture
def explaining(target) -> Planted:
    return Planted(target, explaining_mask)


@pytest.fixture
def doing_nothing(target) -> Planted:
    return Planted(target, full_mask)


@pytest.fixture
def images() -> Tensor:
    """80 inputs, classes in turn: evidence in (1, 2) for the class, none for the others."""
    labels = torch.arange(80) % CLASSES
    strength = 1 + torch.rand(80, 1, generator=torch.Generator().manual_seed(0))
    return one_hot(labels).float() * strength


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(80) % CLASSES


@pytest.fixture
def blanks() -> Tensor:
    return torch.tensor([[0.0], [0.5], [2.0]]).expand(3, CLASSES).contiguous()

"""ClassAgnosticMask: finds the neurons that matter to all inputs, and only those."""

import pytest
import torch
from torch import nn

from pathways.baselines import ClassAgnosticMask
from pathways.target import GatedTarget


class HalfUsed(nn.Module):
    """The first four of eight neurons carry the output; the others have no outgoing weight."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 8, bias=False)
        self.head = nn.Linear(8, 4, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.cat([torch.eye(4), torch.eye(4)]))
            self.head.weight.copy_(5 * torch.cat([torch.eye(4), torch.zeros(4, 4)], dim=1))

    def forward(self, x):
        return self.head(self.hidden(x).relu())


@pytest.fixture
def target() -> GatedTarget:
    return GatedTarget(HalfUsed(), torch.zeros(1, 4))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(64, 4, generator=torch.Generator().manual_seed(0))


def test_keeps_what_is_used_and_drops_what_is_not(target, images):
    steps = []
    method = ClassAgnosticMask(target)
    fitted = method.fit(
        images, steps=150, sparsity=0.5, batch_size=32, progress=lambda *step: steps.append(step)
    )
    assert fitted is method
    assert steps[-1] == (150, 150)
    e = method(images)
    assert e.pathway[0].mask()[0].tolist() == [True] * 4 + [False] * 4
    assert torch.equal(e.predictions, e.gated_predictions)
    assert torch.equal(e.gated_logits, e.logits)
    assert e.pathway.fingerprint == target.fingerprint


def test_every_input_gets_the_same_row(target, images):
    e = ClassAgnosticMask(target).fit(images, steps=3)(images)
    assert len(e.pathway) == 64
    assert e.importance.shape == (64, 8)
    assert (e.importance > 0).all()
    assert (e.importance < 1).all()
    assert all(row == e.pathway[0] for row in e.pathway)
    assert len(ClassAgnosticMask(target).fit(images, steps=1)(images[:0]).pathway) == 0


def test_starts_with_every_neuron_on(target, images):
    e = ClassAgnosticMask(target).fit(images, steps=1)(images)
    assert e.pathway.sizes().tolist() == [8] * 64
    assert torch.equal(e.gated_logits, e.logits)
    assert len(e.importance[0].unique()) == 8


@pytest.mark.parametrize(("min_keep", "kept"), [(0.3, 3), (0.01, 1), (0.0, 1)])
def test_floor_holds_against_any_sparsity(target, images, min_keep, kept):
    method = ClassAgnosticMask(target, min_keep=min_keep)
    e = method.fit(images, steps=100, sparsity=100.0, learning_rate=0.2)(images[:2])
    assert e.pathway.sizes().tolist() == [kept] * 2


def test_seed_decides_everything(target, images):
    fits = [
        ClassAgnosticMask(target).fit(images, steps=10, batch_size=8, seed=seed).score
        for seed in (1, 1, 2)
    ]
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_unit_granularity_and_small_data():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    target = GatedTarget(net, torch.zeros(1, 1, 6, 6), granularity="unit")
    e = ClassAgnosticMask(target).fit(torch.randn(5, 1, 6, 6), steps=2)(torch.randn(2, 1, 6, 6))
    assert e.importance.shape == (2, 48)


def test_target_keeps_no_gradient(target, images):
    parameters = list(target.model.parameters())
    ClassAgnosticMask(target).fit(images, steps=2)
    assert all(p.grad is None and p.requires_grad for p in parameters)


def test_refusals(target, images):
    method = ClassAgnosticMask(target)
    with pytest.raises(RuntimeError, match="fit must be called before explaining"):
        method(images)
    with pytest.raises(ValueError, match="at least one input, got none"):
        method.fit(images[:0])
    with pytest.raises(ValueError, match="steps and batch_size must be at least 1, got 0 and 64"):
        method.fit(images, steps=0)
    with pytest.raises(ValueError, match="sparsity must be >= 0"):
        method.fit(images, sparsity=-1.0)
    with pytest.raises(ValueError, match="sigma, gamma and start must be positive"):
        ClassAgnosticMask(target, sigma=0.0)
    with pytest.raises(ValueError, match=r"min_keep must be in \[0, 1\], got 2"):
        ClassAgnosticMask(target, min_keep=2)

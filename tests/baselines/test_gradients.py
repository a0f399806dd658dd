"""gate_gradients: by hand, and against a plain network with multiplications."""

import pytest
import torch
from baseline_networks import dense, dense_target

from pathways.baselines.gradients import gate_gradients


@pytest.fixture
def target():
    return dense_target(
        [[1.0, 1.0], [1.0, -1.0]], [[1, 2], [-1, 1], [2, 0]], [[1, 1, -1], [2, 0, -0.5]]
    )


def test_against_a_plain_network(target):
    torch.manual_seed(0)
    first, _, second, _, head = dense(torch.randn(4, 3), torch.randn(5, 4), torch.randn(2, 5))
    images, gates = torch.randn(6, 3), torch.rand(6, 9, requires_grad=True)
    hidden = first(images).relu() * gates[:, :4]
    logits = head(second(hidden).relu() * gates[:, 4:])
    (expected,) = torch.autograd.grad(logits.amax(1).sum(), gates)
    net = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), head)
    found = gate_gradients(type(target)(net, images[:1]), images, gates)
    torch.testing.assert_close(found, (logits.detach(), expected))
    assert not any(value.requires_grad for value in found)


def test_one_site_and_given_classes(target):
    images = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    ones = torch.ones(1, 5)
    classes = torch.tensor([0, 1])
    _, everything = gate_gradients(target, images, ones, classes)
    # Row 0: activations (3, 0), then (3, 0, 6); the first logit takes (1, 1, -1).
    assert everything[0].tolist() == [-3.0, 0.0, 3.0, 0.0, -6.0]
    for site, columns in ((0, slice(0, 2)), (1, slice(2, 5))):
        _, part = gate_gradients(target, images, ones, classes, site)
        assert torch.equal(part, everything[:, columns])
    assert not torch.equal(everything, gate_gradients(target, images, ones, 1 - classes)[1])

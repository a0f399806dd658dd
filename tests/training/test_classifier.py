"""Training of small classifiers."""

import pytest
import torch
from torch import nn

from pathways.training.classifier import _shifted, accuracy, train_classifier


def blobs(rows=120):
    """Three classes: a bright quadrant each, stored as bytes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (rows,), generator=generator)
    images = torch.randint(0, 60, (rows, 1, 6, 6), generator=generator)
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[i, 0, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 150
    return images.to(torch.uint8), labels


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 3))


def test_it_learns():
    images, labels = blobs()
    model = make_model()
    steps = []
    trained = train_classifier(
        model, images, labels, epochs=6, batch_size=32, transform=lambda x: x - 0.5,
        progress=lambda step, total, loss: steps.append((step, total, loss)),
    )  # fmt: skip
    assert trained is model
    assert not model.training
    assert [step for step, _, _ in steps] == list(range(1, 25))
    assert {total for _, total, _ in steps} == {24}
    assert steps[-1][2] < steps[0][2] / 2
    assert accuracy(model, images, labels, lambda x: x - 0.5) > 0.95


def test_equal_seeds_give_equal_weights():
    images, labels = blobs()
    weights = [
        train_classifier(make_model(), images, labels, epochs=1, shift=1, seed=seed)[2].weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_lengths_must_agree():
    images, labels = blobs()
    with pytest.raises(ValueError, match="must have equal length, got 120 and 119"):
        train_classifier(make_model(), images, labels[1:], epochs=1)


def test_accuracy_by_hand():
    def predict(x):
        return torch.stack([x.mean((1, 2, 3)), torch.full((len(x),), 0.5)], 1)

    images = torch.tensor([0, 255, 255, 0, 255], dtype=torch.uint8).view(5, 1, 1, 1)
    labels = torch.tensor([1, 0, 1, 0, 0])
    for batch_size in (1, 2, 100):
        assert accuracy(predict, images, labels, batch_size=batch_size) == pytest.approx(0.6)
    assert accuracy(predict, images, labels, lambda x: 1 - x) == pytest.approx(0.4)
    assert accuracy(predict, images[:0], labels[:0]) == 0


def test_shift():
    x = torch.arange(12.0).view(1, 1, 3, 4) + 1
    down = _shifted(x, 1, 0)
    assert down[0, 0, 0].tolist() == [0, 0, 0, 0]
    assert torch.equal(down[0, 0, 1:], x[0, 0, :2])
    left = _shifted(x, 0, -2)
    assert torch.equal(left[0, 0, :, :2], x[0, 0, :, 2:])
    assert left[0, 0, :, 2:].sum() == 0
    assert torch.equal(_shifted(x, 0, 0), x)
    assert _shifted(x, -1, 1).shape == x.shape

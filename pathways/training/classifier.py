"""Training of small classifiers, for the demo and the examples that bring no trained target."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathways.training.data import as_float


def train_classifier(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    transform: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 64,
    learning_rate: float = 5e-3,
    shift: int = 0,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> nn.Module:
    """Train a classifier in place with AdamW and a one-cycle schedule; returned in eval mode.

    Args:
        model (nn.Module): logits ``[N, K]`` from images ``[N, C, H, W]``.
        images (Tensor[N, C, H, W]): uint8, or float in [0, 1].
        labels (Tensor[N], int64): labels.
        epochs (int): passes over the images.
        transform (callable or None): preprocessing of a float batch.
        batch_size (int): images per step.
        learning_rate (float): peak.
        shift (int): random translation of every batch by up to so many pixels.
        seed (int): of initial order and shifts (not of the model's weights).
        progress (callable or None): called with (step, steps, loss).

    Raises:
        ValueError: images and labels of different length.
    """
    if len(images) != len(labels):
        raise ValueError(
            f"train_classifier: images and labels must have equal length, "
            f"got {len(images)} and {len(labels)}"
        )
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(images) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model.train()
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(batch_size):
            batch = as_float(images[rows])
            if shift:
                offset = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
                batch = _shifted(batch, offset[0], offset[1])
            loss = F.cross_entropy(
                model(batch if transform is None else transform(batch)), labels[rows]
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if progress is not None:
                progress(step, steps, loss.item())
    return model.eval()


def _shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Images moved by whole pixels, zeros moving in."""
    height, width = images.shape[2:]
    margin = max(abs(down), abs(right))
    padded = F.pad(images, [margin] * 4)
    top, left = margin - down, margin - right
    return padded[:, :, top : top + height, left : left + width]


@torch.no_grad()
def accuracy(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    transform: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
) -> float:
    """Share of correct predictions, in [0, 1]."""
    correct = 0
    for rows in torch.arange(len(images)).split(batch_size):
        batch = as_float(images[rows])
        logits = predict(batch if transform is None else transform(batch))
        correct += int((logits.argmax(1) == labels[rows]).sum())
    return correct / max(1, len(images))

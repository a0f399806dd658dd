"""A linear probe: how much of the predicted class can be read off the masks alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pathways.pathway import Pathway

# Penalties tried, as multiples of the mean squared length of the centred training masks.
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class MaskProbe:
    """Result of :func:`mask_probe`.

    Args:
        accuracy (float): share of held-out masks whose predicted class the probe names.
        chance (float): share of the most frequent class among them, what no information gives.
        penalty (float): the chosen ridge penalty.
        rows (int): number of held-out masks.
    """

    accuracy: float
    chance: float
    penalty: float
    rows: int


def mask_probe(
    pathway: Pathway, predictions: Tensor, *, seed: int = 0, max_rows: int = 4000
) -> MaskProbe:
    """Accuracy of a linear classifier from masks to the target's predicted class, held-out half.

    Lower means that masks carry less class information, in [0, 1]. It is *not* a fault by itself:
    class-specific pathways must differ between classes, so read it beside the wrong-class flip,
    which tells whether the target uses that information. Sensitive to the number of inputs.

    The classifier is ridge regression of one-hot predictions on the masks with an intercept; the
    penalty is chosen by leave-one-out accuracy on the training half. It works on the matrix of
    pairwise intersections, so that masks of millions of neurons are never unpacked. Deterministic
    for a seed.

    Args:
        pathway (Pathway): N rows.
        predictions (Tensor[N], int64): predicted class of each row.
        seed (int): of the split into halves.
        max_rows (int): use at most this many rows, a bound on time (cubic) and memory (quadratic).

    Returns:
        MaskProbe: NaN accuracy and chance with fewer than two rows.

    Raises:
        ValueError: another number of predictions.

    Source: our choice, method section "mask-leak probe".
    """
    if predictions.shape != (len(pathway),):
        raise ValueError(
            f"mask_probe: predictions must be [{len(pathway)}], got {tuple(predictions.shape)}"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pathway), generator=generator)[:max_rows]
    half = (len(order) + 1) // 2
    train, test = order[:half], order[half:]
    if len(test) == 0:
        return MaskProbe(float("nan"), float("nan"), float("nan"), 0)
    predictions = predictions.cpu()
    labels = predictions[train]
    onehot = torch.nn.functional.one_hot(labels, int(predictions.max()) + 1).double()
    mean = onehot.mean(0)
    rows, held_out = pathway[train], pathway[test]
    kernel = rows.pairwise_intersection().cpu().double()
    cross = held_out.pairwise_intersection(rows).cpu().double()
    # Centring by the training mean in feature space, expressed on inner products.
    column = kernel.mean(0)
    cross = cross - column - cross.mean(1, keepdim=True) + kernel.mean()
    kernel = kernel - column - column.unsqueeze(1) + kernel.mean()
    weights, penalty = _ridge(kernel, onehot - mean, labels, mean)
    guesses = (cross @ weights + mean).argmax(1)
    truth = predictions[test]
    return MaskProbe(
        accuracy=float((guesses == truth).double().mean()),
        chance=float(torch.bincount(truth).max()) / len(truth),
        penalty=penalty,
        rows=len(truth),
    )


def _ridge(kernel: Tensor, targets: Tensor, labels: Tensor, mean: Tensor) -> tuple[Tensor, float]:
    """Dual weights ``[N, K]`` of the penalty with the best leave-one-out accuracy."""
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp_min(0.0)
    projected = vectors.T @ targets
    scale = float(kernel.diagonal().mean()) or 1.0
    best, best_accuracy, best_penalty = torch.zeros_like(targets), -1.0, 0.0
    # Largest penalty first: it wins ties, being the simpler classifier.
    for penalty in sorted(_PENALTIES, reverse=True):
        inverse = 1.0 / (values + penalty * scale)
        weights = vectors @ (inverse.unsqueeze(1) * projected)
        # Residual of the fit without row i, from the fit with it.
        leverage = (vectors.square() * inverse).sum(1, keepdim=True)
        guesses = (targets - weights / leverage + mean).argmax(1)
        accuracy = float((guesses == labels).double().mean())
        if accuracy > best_accuracy:
            best, best_accuracy, best_penalty = weights, accuracy, penalty
    return best, best_penalty

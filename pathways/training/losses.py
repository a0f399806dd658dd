"""The terms of the generator's objective."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def distillation(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(logits)), mean over the batch, in nats, >= 0.

    Args:
        reference (Tensor[N, K]): logits of the clean run.
        logits (Tensor[N, K]): logits compared with it.

    Example:
        >>> distillation(torch.zeros(2, 3), torch.zeros(2, 3)).item()
        0.0
    """
    return F.kl_div(
        logits.float().log_softmax(1),
        reference.float().log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )


def sparsity(mask: Tensor, sizes: list[int], mode: str = "site") -> Tensor:
    """Mean share of kept neurons, in [0, 1].

    Args:
        mask (Tensor[N, D]): 0/1 mask with its gradient.
        sizes (list of int): neurons per site.
        mode (str): ``"site"``, every site counts the same; ``"neuron"``, every neuron does.

    Raises:
        ValueError: unknown mode.

    Example:
        >>> sparsity(torch.tensor([[1.0, 0, 0, 0, 1]]), [4, 1]).item()
        0.625
    """
    if mode == "neuron":
        return mask.mean()
    if mode == "site":
        return torch.stack([part.mean() for part in mask.split(sizes, dim=1)]).mean()
    raise ValueError(f"sparsity: mode must be site or neuron, got {mode!r}")


def class_log_probability(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """log p_c and log(1 - p_c) of one class per row, both exact where p_c is close to 0 or 1."""
    logits = logits.float()
    total = logits.logsumexp(1)
    own = logits.gather(1, classes.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, classes.unsqueeze(1), float("-inf")).logsumexp(1)
    return own - total, others - total


def specificity(foreign_logits: Tensor, reference: Tensor, classes: Tensor) -> Tensor:
    """How far a foreign pathway moves the probability of its own class.

    Each row is an input x run under the pathway of another input x' of predicted class c'. The
    gated probability of c' on x has to stay what the ungated target says, otherwise the mask
    decides instead of explaining: binary cross-entropy of p_m(x')(c' | x) against p(c' | x), less
    its smallest possible value, so that 0 means unchanged.

    Args:
        foreign_logits (Tensor[M, K]): logits of x gated by the pathway of x'.
        reference (Tensor[M, K]): clean logits of x.
        classes (Tensor[M], int64): c', the predicted class of x'.

    Returns:
        Tensor[]: mean over rows, in nats, >= 0; 0 for no rows.

    Source: our choice (leak control of amortised selectors, Jethwani et al., AISTATS 2021).
    """
    if len(classes) == 0:
        return foreign_logits.sum() * 0.0
    log_p, log_rest = class_log_probability(foreign_logits, classes)
    with torch.no_grad():
        ref_log_p, ref_log_rest = class_log_probability(reference, classes)
        p, rest = ref_log_p.exp(), ref_log_rest.exp()
        entropy = -(torch.xlogy(p, p) + torch.xlogy(rest, rest))
    cross = -(p * log_p + rest * log_rest)
    return (cross - entropy).mean()


def class_similarity(importance: Tensor, classes: Tensor) -> Tensor:
    """1 - mean soft IoU (sum of minima over sum of maxima) of pairs with the same class, in [0, 1].

    Args:
        importance (Tensor[N, D]): in [0, 1].
        classes (Tensor[N], int64): predicted classes.

    Returns:
        Tensor[]: 0 where the batch has no such pair.
    """
    i, j = torch.triu_indices(len(classes), len(classes), offset=1, device=classes.device)
    same = classes[i] == classes[j]
    i, j = i[same], j[same]
    if len(i) == 0:
        return importance.sum() * 0.0
    a, b = importance[i], importance[j]
    # |a - b| = max - min and a + b = max + min: one pass each, without stacked copies.
    difference, total = (a - b).abs().sum(1), (a + b).sum(1)
    return 1 - ((total - difference) / (total + difference).clamp_min(1e-12)).mean()

"""Gradients of a class's logit with respect to the gates of a gated run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pathways.target import GatedTarget


@contextmanager
def recording() -> Iterator[None]:
    """Records a graph inside, whatever the caller switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def recordable(tensor: Tensor) -> Tensor:
    """The tensor without its graph; copied if made in inference mode, which autograd refuses."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def gate_gradients(
    target: GatedTarget,
    images: Tensor,
    gates: Tensor,
    classes: Tensor | None = None,
    site: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits of a gated run and the gradient of one logit per input with respect to its gates.

    At a gate g of an activation a with baseline b (zero unless the target has another) the gradient
    is sum((a - b) * df/dz) over the positions that the gate covers, with z = g a + (1 - g) b the
    gated activation: with g = 1, b = 0 and units it is a * df/da, the first-order Taylor estimate
    of what switching the neuron off takes from f.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs.
        gates (Tensor[N, D] or Tensor[1, D]): floating, flat in site order.
        classes (Tensor[N], int64, or None): whose logit; None is the prediction of this run.
        site (int or None): gradient of this site's gates only, which costs no more than the part of
            the network above it.

    Returns:
        logits (Tensor[N, K]) and gradient (Tensor[N, D], or Tensor[N, size] of ``site``; dtype of
        the gates), both detached; 0 for neurons that the logit does not depend on.

    Source: Taylor scores of arXiv:2103.16886 (NeuronMCT), written for gates, which makes channels a
    sum over positions and the baseline part of the difference: our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> for p, v in zip(net.parameters(), [[[1.], [2.]], [0., 0.], [[3., -1.]], [0.]]):
        ...     p.data = torch.tensor(v)
        >>> target = GatedTarget(net, torch.zeros(1, 1))
        >>> logits, gradient = gate_gradients(target, torch.ones(1, 1), torch.ones(1, 2))
        >>> logits.tolist(), gradient.tolist()  # activations 1 and 2, weights 3 and -1
        ([[1.0]], [[3.0, -2.0]])
    """
    with recording():
        gates = recordable(gates).expand(len(images), -1)
        parts = [part.contiguous() for part in target.sites.gates(gates)]
        wanted = parts if site is None else [parts[site]]
        for part in wanted:
            part.requires_grad_(True)
        logits = target.gated(recordable(images), parts)
        classes = logits.argmax(1) if classes is None else recordable(classes)
        picked = logits.gather(1, classes.unsqueeze(1)).sum()
        if picked.requires_grad:
            found = torch.autograd.grad(picked, wanted, materialize_grads=True)
        else:
            found = tuple(torch.zeros_like(part) for part in wanted)
    return logits.detach(), torch.cat([part.flatten(1) for part in found], dim=1)

"""What runs inside a scripted target: one site, clean or gated. Scriptable, and plain Python too.

No ``from __future__ import annotations`` here: TorchScript reads annotations as objects.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pathways.generator.embedder import summarize


def activate(x: Tensor, activation: str, reuse: bool) -> Tensor:
    """``activation`` of x, written into x when ``reuse`` allows it; ``"none"`` is x itself."""
    if activation == "relu":
        return torch.relu_(x) if reuse else torch.relu(x)
    if activation == "relu6":
        return F.relu6(x, reuse)
    return x


def compose_gate(x: Tensor, gate: Tensor, baseline: Tensor | None) -> Tensor:
    """``gate * x + (1 - gate) * baseline`` in plain tensor operations, differentiable everywhere.

    The compiled op's gradient is registered in Python (in C++ it needs a library of its own), so
    that the passes that need gradients are spelled out; a scripted explainer then gives them in any
    process that has the ops. A gate of 0 keeps what x is, NaN included, out of the result.

    Args:
        x (Tensor[N, C, ...]): activation, channels first.
        gate (Tensor[N, C] or Tensor like x): values in [0, 1], dtype of x.
        baseline (Tensor[C], Tensor[C, *space] or None): None is zero.
    """
    if gate.dim() < x.dim():
        gate = gate.reshape(list(gate.shape) + [1] * (x.dim() - gate.dim()))
    kept = torch.where(gate == 0, torch.zeros_like(x), x * gate)
    if baseline is None:
        return kept
    if baseline.dim() == 1:
        baseline = baseline.reshape([1, -1] + [1] * (x.dim() - 2))
    return kept + (1 - gate) * baseline


def apply_gate(
    x: Tensor, gate: Tensor, baseline: Tensor | None, activation: str, reuse: bool
) -> Tensor:
    """``gate * activation(x) + (1 - gate) * baseline`` by the compiled op, without gradient.

    Args:
        x (Tensor[N, C, ...]): channels first; overwritten when ``reuse`` is true.
        gate (Tensor[N, C] or Tensor like x): values in [0, 1], dtype of x.
        baseline (Tensor[C], Tensor[C, *space] or None): None is zero.
        activation (str): ``"none"``, ``"relu"`` or ``"relu6"``.
        reuse (bool): x may be overwritten.
    """
    per_channel: Tensor | None = None
    per_unit: Tensor | None = None
    if baseline is not None:
        if baseline.dim() == 1:
            per_channel = baseline
        else:
            per_unit = baseline
    if reuse:
        # A fresh output costs more in page faults than the arithmetic does on a CPU.
        torch.ops.pathways.gated_forward_(
            x, gate, bias=None, activation=activation, baseline=per_channel
        )
        output = x
    else:
        output = torch.ops.pathways.gated_forward(
            x, gate, bias=None, activation=activation, baseline=per_channel
        )
    if per_unit is not None:
        output = output + (1 - gate) * per_unit
    return output


def run_site(
    x: Tensor,
    gates: list[Tensor],
    features: list[Tensor],
    gated: bool,
    record: bool,
    pool: int,
    probe: int,
    index: int,
    activation: str,
    channel_dim: int,
    reuse: bool,
    copy: bool,
    baseline: Tensor | None,
) -> Tensor:
    """One site of a rewritten target.

    Args:
        x (Tensor): input of the activation, or its output when ``activation`` is ``"none"``.
        gates (list of Tensor): one per site; empty in clean runs.
        features (list of Tensor): receives what is recorded of the activation, channels first, in a
            clean run with ``record``; in a gated one see ``probe``.
        gated (bool): multiply by the gate.
        record (bool): fill ``features``; a gated run with ``record`` is differentiable.
        pool (int): a clean run records the generator's summary of this side instead of the
            activation itself (:func:`pathways.generator.embedder.summarize`); -1 is the latter.
        probe (int): site whose gated activation is observed: ``features`` receives its value and a
            zero tensor added to it, both in the model's own layout; the gradient with respect to
            the latter is that of the activation. (TorchScript's autodiff loses the gradient of a
            tensor that it computes and uses within one of its subgraphs, but not of such a leaf.)
        index (int): position of the site.
        activation (str): ``"none"``, ``"relu"`` or ``"relu6"``.
        channel_dim (int): 1 or -1.
        reuse (bool): nothing else sees x, so that it may be overwritten.
        copy (bool): the model writes into the activation later, so that a clean record is a copy.
        baseline (Tensor or None): what replaces a gated-off activation.

    Returns:
        Tensor: the activation, in the layout of x.
    """
    if not gated:
        z = activate(x, activation, reuse)
        if record:
            view = z if channel_dim == 1 else z.movedim(-1, 1)
            if copy and pool <= 0:
                view = view.clone()
            features.append(view if pool < 0 else summarize(view, pool))
        return z
    gate = gates[index].to(x.dtype)
    view = x if channel_dim == 1 else x.movedim(-1, 1)
    if record:
        z = compose_gate(activate(view, activation, False), gate, baseline)
    else:
        z = apply_gate(view, gate, baseline, activation, reuse)
    if channel_dim != 1:
        z = z.movedim(1, -1)
    if record and index == probe:
        leaf = torch.zeros_like(z).requires_grad_(True)
        features.append(z.detach().clone() if copy else z.detach())
        features.append(leaf)
        z = z + leaf
    return z

"""Reference implementations of every op in plain PyTorch.

They are slow, allocate freely (``class_overlap`` holds an N x N matrix) and follow the formulas.
They are what the compiled ops are tested against, and they are differentiable by autograd to any
order and by ``torch.func``, which the compiled ops are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

WORD_BITS = 64

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
}


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def gated_forward(
    x: Tensor,
    gate: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    baseline: Tensor | None = None,
) -> Tensor:
    """Reference of :func:`pathways.ops.gated_forward`.

    Args:
        x (Tensor[N, C, ...]): activations before the bias, floating point.
        gate (Tensor): ``[N, C]``, ``[1, C]``, ``[C]`` or the shape of ``x``; floating point or
            bool.
        bias (Tensor[C], optional): added to ``x``.
        activation (str): one of ``none``, ``relu``, ``relu6``, ``silu``, ``gelu``.
        baseline (Tensor[C], optional): value of a neuron that is gated off; 0 by default.

    Returns:
        Tensor[N, C, ...]: dtype of ``x``.

    Example:
        >>> import torch
        >>> gated_forward(torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 0.0]))
        tensor([[1., 0.]])
    """
    dtype = _compute_dtype(x.dtype)
    channel = (1, -1) + (1,) * (x.dim() - 2)
    gate = gate.to(dtype)
    if gate.dim() == 1 or (gate.dim() == 2 and x.dim() > 2):
        gate = gate.reshape((-1, x.shape[1]) + (1,) * (x.dim() - 2))
    value = x.to(dtype)
    if bias is not None:
        value = value + bias.to(dtype).reshape(channel)
    value = ACTIVATIONS[activation](value)
    base = torch.zeros((), dtype=dtype, device=x.device)
    if baseline is not None:
        base = baseline.to(dtype).reshape(channel)
    # At a gate of exactly 0 or 1 the result is exactly one of the two values, NaN and infinity
    # included, and the derivative with respect to the gate is still their difference.
    finite = torch.where(torch.isfinite(value), value, torch.zeros_like(value))
    closed = base + gate * (finite - base)
    opened = value + (gate - 1) * (finite - base)
    mixed = gate * value + (1 - gate) * base
    return torch.where(gate == 0, closed, torch.where(gate == 1, opened, mixed)).to(x.dtype)


def gated_forward_(
    x: Tensor,
    gate: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    baseline: Tensor | None = None,
) -> Tensor:
    """Reference of :func:`pathways.ops.gated_forward_`: writes into ``x``, returns it.

    Example:
        >>> import torch
        >>> gated_forward_(torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 0.0]))
        tensor([[1., 0.]])
    """
    return x.copy_(gated_forward(x, gate, bias=bias, activation=activation, baseline=baseline))


def binarize(importance: Tensor, sigma: float = 1.0, gamma: float = 2.0) -> Tensor:
    """Reference of :func:`pathways.ops.binarize`: the softmax form of distance-aware quantization.

    Args:
        importance (Tensor): any shape, floating point.
        sigma (float): width of the kernel around the nearer level.
        gamma (float): what the temperature makes of the score difference.

    Returns:
        Tensor: 0 or 1, shape and dtype of ``importance``; its gradient is that of the assignment.

    Source:
        Kim, Lee, Ham, "Distance-aware Quantization", ICCV 2021 (arXiv:2108.06983), one bit.

    Example:
        >>> import torch
        >>> binarize(torch.tensor([0.2, 0.5, 0.8]))
        tensor([0., 0., 1.])
    """
    dtype = _compute_dtype(importance.dtype)
    # Not torch.clamp: releases of torch differ in its gradient exactly at the bounds.
    x = importance.to(dtype)
    x = torch.where(x < 0, torch.zeros_like(x), torch.where(x > 1, torch.ones_like(x), x))
    floor = x.detach().floor()
    r = x - floor
    # Distance scores exp(-|r - q|) of the levels q = 0 and q = 1, for r in [0, 1).
    d0, d1 = torch.exp(-r), torch.exp(r - 1)
    kappa = math.exp(-1 / sigma**2)
    lower_is_nearer = r.detach() <= 0.5
    one = torch.ones_like(r)
    s0 = d0 * torch.where(lower_is_nearer, one, kappa * one)
    s1 = d1 * torch.where(lower_is_nearer, kappa * one, one)
    beta = (gamma / (s0 - s1).abs()).detach()
    w1 = torch.sigmoid(beta * (s1 - s0))
    # Levels shifted outwards, so that the softmax average of the two is exactly the nearer level.
    delta = 1 / (math.exp(gamma) - 1)
    phi = (1 + delta) * w1 - delta * (1 - w1) + floor
    return (phi + (phi.round() - phi).detach()).to(importance.dtype)


def adaptive_avg_max_pool2d(x: Tensor, height: int, width: int) -> Tensor:
    """Reference of :func:`pathways.ops.adaptive_avg_max_pool2d`: the two poolings of torch.

    Args:
        x (Tensor[N, C, H, W]): maps, floating point.
        height (int): rows of the grid.
        width (int): columns of the grid.

    Returns:
        Tensor[N, 2C, height, width]: means, then maxima; dtype of ``x``.

    Example:
        >>> import torch
        >>> adaptive_avg_max_pool2d(torch.tensor([[[[1.0, 2.0, 6.0]]]]), 1, 1).flatten()
        tensor([3., 6.])
    """
    wide = x.to(_compute_dtype(x.dtype))
    means = F.adaptive_avg_pool2d(wide, (height, width))
    return torch.cat([means, F.adaptive_max_pool2d(wide, (height, width))], dim=1).to(x.dtype)


def pack_bits(mask: Tensor) -> Tensor:
    """Reference of :func:`pathways.ops.pack_bits`: ``[N, D]`` to int64 ``[N, ceil(D / 64)]``.

    Every nonzero value is a one. NaN is not zero, and -0.0 is.

    Example:
        >>> import torch
        >>> pack_bits(torch.tensor([[1, 0, 1]]))
        tensor([[5]])
    """
    rows, size = mask.shape
    width = -(-size // WORD_BITS)
    bits = torch.zeros(rows, width * WORD_BITS, dtype=torch.int64, device=mask.device)
    bits[:, :size] = (mask != 0).to(torch.int64)
    shifts = torch.arange(WORD_BITS, device=mask.device)
    return (bits.reshape(rows, width, WORD_BITS) << shifts).sum(dim=2)


def unpack_bits(words: Tensor, size: int) -> Tensor:
    """Reference of :func:`pathways.ops.unpack_bits`: words to bool ``[N, size]``.

    Example:
        >>> import torch
        >>> unpack_bits(torch.tensor([[5]]), 3)
        tensor([[ True, False,  True]])
    """
    shifts = torch.arange(WORD_BITS, device=words.device)
    bits = (words.unsqueeze(2) >> shifts) & 1
    return bits.reshape(words.shape[0], words.shape[1] * WORD_BITS)[:, :size].to(torch.bool)


def _bits(words: Tensor) -> Tensor:
    return unpack_bits(words, words.shape[1] * WORD_BITS).to(torch.float64)


def pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Reference of :func:`pathways.ops.pairwise_intersection`: int32 ``[N, M]``.

    Example:
        >>> import torch
        >>> pairwise_intersection(torch.tensor([[7]]), torch.tensor([[5], [8]]))
        tensor([[2, 0]], dtype=torch.int32)
    """
    return (_bits(a) @ _bits(b).T).to(torch.int32)


def _iou(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    shared = _bits(a) @ _bits(b).T
    joined = _bits(a).sum(1).unsqueeze(1) + _bits(b).sum(1).unsqueeze(0) - shared
    quotient = shared.to(dtype) / joined.to(dtype)
    return torch.where(joined == 0, torch.ones_like(quotient), quotient)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Reference of :func:`pathways.ops.pairwise_iou`: float32 ``[N, M]``; an empty union gives 1.

    Example:
        >>> import torch
        >>> pairwise_iou(torch.tensor([[3], [0]]), torch.tensor([[1], [0]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 1.0000]])
    """
    return _iou(a, b, torch.float32)


def class_overlap(words: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Reference of :func:`pathways.ops.class_overlap`, by way of the full N x N matrix.

    Example:
        >>> import torch
        >>> class_overlap(torch.tensor([[3], [1], [1]]), torch.tensor([0, 0, 1]), 2)[1]
        tensor([[1, 2],
                [2, 0]])
    """
    members = F.one_hot(labels, max(num_classes, 1))[:, :num_classes].to(torch.float64)
    iou = _iou(words, words, torch.float64)
    sums = members.T @ iou @ members
    counts = members.sum(0)
    pairs = counts.unsqueeze(1) * counts.unsqueeze(0)
    # Within a class every unordered pair is counted twice, and every row once with itself.
    itself = members.T @ iou.diagonal()
    sums = sums - torch.diag((sums.diagonal() + itself) / 2)
    pairs = pairs - torch.diag((pairs.diagonal() + counts) / 2)
    return sums, pairs.to(torch.int64)


def class_frequency(words: Tensor, labels: Tensor, num_classes: int, size: int) -> Tensor:
    """Reference of :func:`pathways.ops.class_frequency`: int64 ``[K, D]``.

    Example:
        >>> import torch
        >>> class_frequency(torch.tensor([[3], [1]]), torch.tensor([0, 0]), 1, 3)
        tensor([[2, 1, 0]])
    """
    members = F.one_hot(labels, max(num_classes, 1))[:, :num_classes].to(torch.float64)
    return (members.T @ unpack_bits(words, size).to(torch.float64)).to(torch.int64)

"""Fake kernels: shape, dtype and layout of every result, without data and for dynamic shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks


def _dense_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The memory order that the compiled kernels give a result that has the shape of ``x``."""
    if checks.is_dense(x):
        return torch.empty_like(x, dtype=dtype)
    return x.new_empty(x.shape, dtype=dtype)


@torch.library.register_fake("pathways::gated_forward")
def gated_forward(
    x: Tensor,
    gate: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    baseline: Tensor | None = None,
) -> Tensor:
    checks.check_gated("gated_forward", x, gate, bias, activation, baseline)
    return _dense_like(x, x.dtype)


@torch.library.register_fake("pathways::gated_forward_")
def gated_forward_(
    x: Tensor,
    gate: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    baseline: Tensor | None = None,
) -> None:
    checks.check_gated("gated_forward_", x, gate, bias, activation, baseline)
    checks.check_writable("gated_forward_", x)


@torch.library.register_fake("pathways::_gated_backward")
def gated_backward(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    baseline: Tensor | None = None,
    need_x: bool = True,
    need_gate: bool = True,
    need_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.check_gated("_gated_backward", x, gate, bias, activation, baseline)
    checks.check_gated_backward("_gated_backward", grad, x, gate, bias, need_gate, need_bias)
    grad_x = _dense_like(x, x.dtype) if need_x else x.new_empty(0)
    if not need_gate:
        grad_gate = gate.new_empty(0)
    elif checks.is_unit_gate(x, gate):
        grad_gate = _dense_like(x, gate.dtype)
    else:
        grad_gate = gate.new_empty(gate.shape)
    bias_dtype = x.dtype if bias is None else bias.dtype
    grad_bias = x.new_empty(x.shape[1] if need_bias else 0, dtype=bias_dtype)
    return grad_x, grad_gate, grad_bias


@torch.library.register_fake("pathways::binarize")
def binarize(importance: Tensor, sigma: float = 1.0, gamma: float = 2.0) -> Tensor:
    checks.check_binarize("binarize", importance, sigma, gamma)
    return importance.new_empty(importance.shape)


@torch.library.register_fake("pathways::_binarize_backward")
def binarize_backward(
    grad: Tensor, importance: Tensor, sigma: float = 1.0, gamma: float = 2.0
) -> Tensor:
    checks.check_binarize_backward("_binarize_backward", grad, importance, sigma, gamma)
    return importance.new_empty(importance.shape)


@torch.library.register_fake("pathways::adaptive_avg_max_pool2d")
def adaptive_avg_max_pool2d(x: Tensor, height: int, width: int) -> Tensor:
    checks.check_adaptive_pool("adaptive_avg_max_pool2d", x, height, width)
    return x.new_empty((x.shape[0], 2 * x.shape[1], height, width))


@torch.library.register_fake("pathways::pack_bits")
def pack_bits(mask: Tensor) -> Tensor:
    checks.check_pack_bits("pack_bits", mask)
    width = (mask.shape[1] + checks.WORD_BITS - 1) // checks.WORD_BITS
    return mask.new_empty((mask.shape[0], width), dtype=torch.int64)


@torch.library.register_fake("pathways::unpack_bits")
def unpack_bits(words: Tensor, size: int) -> Tensor:
    checks.check_words_of_size("unpack_bits", words, size)
    return words.new_empty((words.shape[0], size), dtype=torch.bool)


@torch.library.register_fake("pathways::pairwise_intersection")
def pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    checks.check_pairwise("pairwise_intersection", a, b)
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.int32)


@torch.library.register_fake("pathways::pairwise_iou")
def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    checks.check_pairwise("pairwise_iou", a, b)
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.float32)


@torch.library.register_fake("pathways::class_overlap")
def class_overlap(words: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    checks.check_labels("class_overlap", words, labels, num_classes)
    shape = (num_classes, num_classes)
    return words.new_empty(shape, dtype=torch.float64), words.new_empty(shape)


@torch.library.register_fake("pathways::class_frequency")
def class_frequency(words: Tensor, labels: Tensor, num_classes: int, size: int) -> Tensor:
    checks.check_class_frequency("class_frequency", words, labels, num_classes, size)
    return words.new_empty((num_classes, size))

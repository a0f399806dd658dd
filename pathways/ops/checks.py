"""The checks of csrc/ops/check.h once more, for kernels that see shapes but no data.

Words and order are those of the compiled checks, so that a mistake reads the same in eager mode,
under ``torch.compile`` and in ``torch.export``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ACTIVATION_NAMES = ("none", "relu", "relu6", "silu", "gelu")
FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGRAL = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
WORD_BITS = 64
MAX_WORDS = (2**31 - 1) // WORD_BITS
MAX_NUMBERS = 2**36
MAX_CLASSES = 2**18


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _same_device(op: str, a: Tensor, a_name: str, b: Tensor, b_name: str) -> None:
    _require(
        a.device == b.device,
        f"{op}: {a_name} and {b_name} must be on the same device "
        f"(got {a_name}={a.device}, {b_name}={b.device})",
    )


def _floating(op: str, tensor: Tensor, name: str) -> None:
    _require(
        tensor.dtype in FLOATING,
        f"{op}: {name} must be floating point (float64, float32, bfloat16 or float16), "
        f"got {_dtype(tensor)}",
    )


def _channel_vector(op: str, x: Tensor, vector: Tensor | None, name: str) -> None:
    if vector is None:
        return
    _same_device(op, x, "x", vector, name)
    _floating(op, vector, name)
    _require(
        vector.dim() == 1 and vector.shape[0] == x.shape[1],
        f"{op}: {name} must have shape [C] = [{x.shape[1]}], got {_shape(vector)}",
    )


def is_channel_innermost(x: Tensor) -> bool:
    """Whether moving dimension 1 to the end gives a contiguous tensor (channels_last in 4-D)."""
    expected = 1
    for dim in (1, *range(x.dim() - 1, 1, -1), 0):
        # The stride first: a comparison of a dynamic size with 1 would specialise it.
        if x.stride(dim) != expected and x.shape[dim] != 1:
            return False
        expected = expected * x.shape[dim]
    return True


def is_dense(x: Tensor) -> bool:
    """Whether ``x`` is in one of the two memory orders that the gated ops keep."""
    return x.is_contiguous() or is_channel_innermost(x)


def is_unit_gate(x: Tensor, gate: Tensor) -> bool:
    """Whether ``gate`` holds one value per element of ``x`` rather than one per channel."""
    return gate.dim() == x.dim() and x.dim() > 2


def check_gated(
    op: str,
    x: Tensor,
    gate: Tensor,
    bias: Tensor | None,
    activation: str,
    baseline: Tensor | None,
) -> None:
    """Checks of ``gated_forward``, ``gated_forward_`` and ``_gated_backward``."""
    _floating(op, x, "x")
    _require(
        x.dim() >= 2,
        f"{op}: x must have at least 2 dimensions [N, C, ...], got shape {_shape(x)}",
    )
    _require(
        activation in ACTIVATION_NAMES,
        f"{op}: activation must be one of {', '.join(ACTIVATION_NAMES)}, got '{activation}'",
    )
    _same_device(op, x, "x", gate, "gate")
    _require(
        gate.dtype in FLOATING or gate.dtype == torch.bool,
        f"{op}: gate must be floating point or bool, got {_dtype(gate)}",
    )
    channels = x.shape[1]
    fits = (
        (gate.dim() == 1 and gate.shape[0] == channels)
        or (
            gate.dim() == 2
            and gate.shape[1] == channels
            and (gate.shape[0] == x.shape[0] or gate.shape[0] == 1)
        )
        or (gate.dim() == x.dim() and all(g == s for g, s in zip(gate.shape, x.shape, strict=True)))
    )
    _require(
        fits,
        f"{op}: gate must have shape [N, C], [1, C], [C] or the shape of x "
        f"(got x={_shape(x)}, gate={_shape(gate)})",
    )
    _channel_vector(op, x, bias, "bias")
    _channel_vector(op, x, baseline, "baseline")


def check_writable(op: str, x: Tensor) -> None:
    """The check of ``gated_forward_`` beyond those of ``gated_forward``."""
    for dim in range(x.dim()):
        _require(
            x.stride(dim) != 0 or x.shape[dim] <= 1,
            f"{op}: x must have memory of its own for every element, "
            f"got stride 0 in dimension {dim}",
        )


def check_gated_backward(
    op: str,
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    bias: Tensor | None,
    need_gate: bool,
    need_bias: bool,
) -> None:
    """Checks of ``_gated_backward`` beyond those of the forward."""
    _same_device(op, x, "x", grad, "grad")
    _require(
        grad.dim() == x.dim()
        and all(g == s for g, s in zip(grad.shape, x.shape, strict=True))
        and grad.dtype == x.dtype,
        f"{op}: grad must have the shape and dtype of x "
        f"(got x={_shape(x)} {_dtype(x)}, grad={_shape(grad)} {_dtype(grad)})",
    )
    _require(
        not need_gate or gate.dtype in FLOATING,
        f"{op}: gate must be floating point when its gradient is asked for, got {_dtype(gate)}",
    )
    _require(
        not need_bias or bias is not None,
        f"{op}: bias must be a tensor when its gradient is asked for, got None",
    )


def check_binarize(op: str, importance: Tensor, sigma: float, gamma: float) -> None:
    """Checks of ``binarize`` except for NaN, which needs the data."""
    _floating(op, importance, "importance")
    for name, value in (("sigma", sigma), ("gamma", gamma)):
        _require(
            math.isfinite(value) and value > 0,
            f"{op}: {name} must be positive and finite, got {value:g}",
        )


def check_binarize_backward(
    op: str, grad: Tensor, importance: Tensor, sigma: float, gamma: float
) -> None:
    """Checks of ``_binarize_backward``."""
    check_binarize(op, importance, sigma, gamma)
    _same_device(op, importance, "importance", grad, "grad")
    _require(
        grad.dim() == importance.dim()
        and all(g == s for g, s in zip(grad.shape, importance.shape, strict=True))
        and grad.dtype == importance.dtype,
        f"{op}: grad must have the shape and dtype of importance (got importance="
        f"{_shape(importance)} {_dtype(importance)}, grad={_shape(grad)} {_dtype(grad)})",
    )


def check_adaptive_pool(op: str, x: Tensor, height: int, width: int) -> None:
    """Checks of ``adaptive_avg_max_pool2d``."""
    _floating(op, x, "x")
    _require(x.dim() == 4, f"{op}: x must have shape [N, C, H, W], got {_shape(x)}")
    _require(
        x.shape[2] > 0 and x.shape[3] > 0,
        f"{op}: x must have at least one row and one column, got {_shape(x)}",
    )
    _require(
        height > 0 and width > 0,
        f"{op}: height and width must be at least 1, got {height} and {width}",
    )


def check_pack_bits(op: str, mask: Tensor) -> None:
    """Checks of ``pack_bits``."""
    _require(
        mask.dtype in FLOATING or mask.dtype in INTEGRAL or mask.dtype == torch.bool,
        f"{op}: mask must be bool, integer or floating point, got {_dtype(mask)}",
    )
    _require(mask.dim() == 2, f"{op}: mask must have shape [N, D], got {_shape(mask)}")


def check_words(op: str, words: Tensor, name: str) -> None:
    """Checks of an argument that holds packed rows."""
    _require(words.dtype == torch.int64, f"{op}: {name} must be int64, got {_dtype(words)}")
    _require(
        words.dim() == 2, f"{op}: {name} must have shape [N, ceil(D / 64)], got {_shape(words)}"
    )
    _require(
        words.shape[1] <= MAX_WORDS,
        f"{op}: {name} must have at most {MAX_WORDS} words per row, got {words.shape[1]}",
    )


def check_words_of_size(op: str, words: Tensor, size: int) -> None:
    """Checks of packed rows together with the number of neurons they hold."""
    check_words(op, words, "words")
    _require(size >= 0, f"{op}: size must not be negative, got {size}")
    expected = (size + WORD_BITS - 1) // WORD_BITS
    _require(
        words.shape[1] == expected,
        f"{op}: words must have {expected} words per row for size {size}, got {words.shape[1]}",
    )


def check_pairwise(op: str, a: Tensor, b: Tensor) -> None:
    """Checks of ``pairwise_intersection`` and ``pairwise_iou``."""
    check_words(op, a, "a")
    check_words(op, b, "b")
    _same_device(op, a, "a", b, "b")
    _require(
        a.shape[1] == b.shape[1],
        f"{op}: a and b must have the same number of words per row "
        f"(got a={_shape(a)}, b={_shape(b)})",
    )


def check_labels(op: str, words: Tensor, labels: Tensor, num_classes: int) -> None:
    """Checks of packed rows with their labels, except for the values of the labels."""
    check_words(op, words, "words")
    _same_device(op, words, "words", labels, "labels")
    _require(labels.dtype == torch.int64, f"{op}: labels must be int64, got {_dtype(labels)}")
    _require(
        labels.dim() == 1 and labels.shape[0] == words.shape[0],
        f"{op}: labels must have shape [N] = [{words.shape[0]}], got {_shape(labels)}",
    )
    _require(num_classes >= 0, f"{op}: num_classes must not be negative, got {num_classes}")
    _require(
        num_classes <= MAX_CLASSES,
        f"{op}: num_classes must be at most {MAX_CLASSES}, got {num_classes}",
    )


def check_class_frequency(
    op: str, words: Tensor, labels: Tensor, num_classes: int, size: int
) -> None:
    """Checks of ``class_frequency``, except for the values of the labels."""
    check_labels(op, words, labels, num_classes)
    check_words_of_size(op, words, size)
    _require(
        num_classes * size <= MAX_NUMBERS,
        f"{op}: num_classes * size must be at most {MAX_NUMBERS}, got {num_classes} * {size}",
    )

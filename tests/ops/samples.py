"""The inputs of every op, and the tests' notion of "equal": one place for all of tests/ops."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu")
LAYOUTS = ("contiguous", "channels_last", "permuted", "sliced")
SIZES = (1, 63, 64, 65, 127)

GATED_OPS = ("gated_forward", "gated_forward_", "_gated_backward")
# Those whose arguments have one of DTYPES.
FLOATING_OPS = (*GATED_OPS, "binarize", "_binarize_backward", "adaptive_avg_max_pool2d")
OPS = (
    *FLOATING_OPS,
    "pack_bits",
    "unpack_bits",
    "pairwise_intersection",
    "pairwise_iou",
    "class_overlap",
    "class_frequency",
)


class Sample(NamedTuple):
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def tolerance(dtype: torch.dtype, length: int = 1) -> dict[str, float]:
    """Relative and absolute tolerance for a sum of ``length`` terms of order one.

    The storage type rounds once; the terms add up in float32, or float64 for float64.
    """
    storage = torch.finfo(dtype).eps
    compute = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return {
        "rtol": 2 * storage + 8 * compute,
        "atol": 2 * storage + 8 * compute * math.sqrt(length),
    }


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` in memory of another order.

    channels_last means channels innermost for any number of dimensions; permuted reverses the
    memory order of all dimensions; sliced is a part of a larger tensor.
    """
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "permuted":
        order = tuple(range(x.dim()))[::-1]
        return x.permute(order).contiguous().permute(order)
    if layout == "sliced":
        wide = x.new_zeros([size + 2 for size in x.shape])
        view = wide[tuple(slice(1, size + 1) for size in x.shape)]
        return view.copy_(x)
    raise ValueError(layout)


def make_gate(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A gate with exact zeros, exact ones and values between them."""
    shapes = {
        "input": shape[:2],
        "shared": (1, shape[1]),
        "vector": (shape[1],),
        "unit": shape,
    }
    values = torch.rand(shapes[kind.removesuffix("_bool")])
    values = torch.where(values < 0.3, 0.0, torch.where(values > 0.7, 1.0, values))
    return values > 0.5 if kind.endswith("_bool") else values.to(dtype)


def make_words(rows: int, size: int, density: float = 0.5) -> Tensor:
    from pathways.ops import reference

    return reference.pack_bits(torch.rand(rows, size) < density)


def gated_samples(op: str, dtype: torch.dtype) -> list[Sample]:
    samples = []
    for shape in ((2, 3, 4, 5), (3, 17), (2, 5, 7), (1, 1, 1, 1), (0, 3, 4, 4), (2, 2, 3, 2, 2)):
        for kind in ("input", "shared", "vector", "unit", "input_bool", "unit_bool"):
            activation = ACTIVATIONS[len(samples) % len(ACTIVATIONS)]
            x = (3 * torch.randn(shape)).to(dtype)
            gate = make_gate(kind, shape, dtype)
            kwargs: dict[str, Any] = {"activation": activation}
            if len(samples) % 2:
                kwargs["bias"] = torch.randn(shape[1]).to(dtype)
            if len(samples) % 3:
                kwargs["baseline"] = torch.randn(shape[1]).to(dtype)
            args: tuple[Any, ...] = (x, gate)
            if op == "_gated_backward":
                args = (torch.randn(shape).to(dtype), x, gate)
                kwargs["need_gate"] = not kind.endswith("bool")
                kwargs["need_bias"] = "bias" in kwargs
            samples.append(Sample(f"{list(shape)}-{kind}-{activation}", args, kwargs))
    return samples


# [N, C, H, W] and the grid: one that divides the map evenly, by halves or not, that does not, that
# is finer; maps as wide as some lanes, fewer and more; rows that are not lanes of their own; none.
POOL_SHAPES = (
    ((2, 3, 8, 8), (4, 4)),
    ((1, 16, 32, 32), (4, 4)),
    ((2, 5, 7, 7), (4, 4)),
    ((1, 2, 28, 28), (4, 4)),
    ((2, 70, 3, 3), (2, 3)),
    ((1, 33, 13, 50), (5, 8)),
    ((2, 3, 2, 3), (4, 7)),
    ((1, 4, 6, 5), (6, 5)),
    ((1, 130, 9, 4), (1, 1)),
    ((2, 3, 37, 1), (4, 1)),
    ((1, 1, 1, 70), (1, 9)),
    ((2, 17, 1, 1), (1, 1)),
    ((1, 1, 3, 2500), (2, 5)),
    ((0, 3, 4, 4), (2, 2)),
)


def pool_samples(dtype: torch.dtype, special: bool = False) -> list[Sample]:
    """``special``: with NaN and infinity, which are not what opcheck takes for equal."""
    samples = []
    for shape, size in POOL_SHAPES:
        for layout in ("contiguous", "channels_last"):
            x = torch.randn(shape).to(dtype)
            if special:
                flat = x.view(-1)
                flat[::71], flat[5::67], flat[7::83] = float("nan"), float("inf"), -float("inf")
            name = f"{list(shape)}-{list(size)}-{layout}"
            samples.append(Sample(name, (in_layout(x, layout), *size), {}))
    return samples


def sample_inputs(op: str, dtype: torch.dtype = torch.float32) -> list[Sample]:
    """Typical and awkward arguments of ``op``; ``dtype`` matters to the floating-point ops only."""
    if op in GATED_OPS:
        return gated_samples(op, dtype)
    if op in ("binarize", "_binarize_backward"):
        samples = []
        for shape in ((), (0,), (1,), (3, 65), (2, 3, 4, 5)):
            importance = (1.4 * torch.rand(shape) - 0.2).to(dtype)
            args = (importance,) if op == "binarize" else (torch.randn(shape).to(dtype), importance)
            samples.append(Sample(str(list(shape)), args, {}))
            samples.append(Sample(f"{list(shape)}-sigma2", (*args, 2.0, 1.0), {}))
        return samples
    if op == "adaptive_avg_max_pool2d":
        return pool_samples(dtype)
    if op == "pack_bits":
        return [
            Sample(f"{n}x{d}", (torch.rand(n, d) > 0.5,), {}) for n in (0, 3) for d in (0, *SIZES)
        ]
    if op == "unpack_bits":
        return [Sample(f"{n}x{d}", (make_words(n, d), d), {}) for n in (0, 3) for d in (0, *SIZES)]
    if op.startswith("pairwise"):
        return [
            Sample(f"{n}x{m}x{d}", (make_words(n, d), make_words(m, d, 0.2)), {})
            for n, m, d in (
                (0, 3, 5),
                (3, 0, 5),
                (4, 3, 0),
                *((5, 3, d) for d in SIZES),
                (9, 8, 700),
            )
        ]
    samples = []
    for n, d, classes in ((0, 5, 3), (1, 1, 1), (9, 65, 4), (150, 127, 3), (5, 0, 2), (0, 5, 0)):
        labels = torch.randint(0, max(classes, 1), (n,))
        args = (make_words(n, d, 0.3), labels, classes)
        samples.append(
            Sample(f"{n}x{d}x{classes}", (*args, d) if op == "class_frequency" else args, {})
        )
    return samples


def sample_params(op: str, dtype: torch.dtype = torch.float32) -> list[Any]:
    """The same as pytest parameters."""
    import pytest

    torch.manual_seed(0)
    return [pytest.param(s, id=f"{op}-{s.name}") for s in sample_inputs(op, dtype)]

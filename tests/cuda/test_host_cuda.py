"""The kernels of floating-point ops on the CPU, from the source nvcc compiles, and the shim itself.

Nothing here needs a GPU or nvcc. The kernels are called below the ops: with the pointers, shapes
and alignments that the launch code turns into grids. test_host_bits.py has the other kernels.
"""

from __future__ import annotations

import pytest
import torch
from host_library import ACTIVATIONS, TYPES, HostLibrary, Memory
from torch import Tensor

from pathways.ops import reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# [N, C, space]. Rows longer and shorter than a vector and a warp, rows that begin between two
# vectors, no space at all, more elements than one trip of the smallest grid covers.
SHAPES = (
    (2, 3, 35),
    (3, 16, 16),
    (2, 5, 1),
    (5, 64, 1),
    (1, 1, 1),
    (2, 2, 5000),
    (4, 33, 131),
    (2, 40, 49),
    (3, 7, 9),
    (2, 32, 3),
)


def type_of(dtype: torch.dtype) -> int:
    return TYPES.index(dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def tolerance(
    result: torch.dtype, inputs: torch.dtype | None = None, length: int = 1
) -> dict[str, float]:
    """For a sum of ``length`` terms of order three, from ``inputs``, stored as ``result``."""
    storage = torch.finfo(result).eps
    compute = torch.finfo(compute_dtype(inputs or result)).eps
    return {"rtol": 2 * storage + 16 * compute, "atol": 2 * storage + 64 * compute * length**0.5}


def in_order(values: Tensor, innermost: bool) -> Tensor:
    """[N, C, S] in the memory order of the kernel."""
    return values.movedim(1, 2).contiguous() if innermost else values.contiguous()


def from_order(values: Tensor, innermost: bool) -> Tensor:
    return values.movedim(2, 1) if innermost else values


def stored(shape: tuple[int, int, int], innermost: bool) -> tuple[int, int, int]:
    n, c, s = shape
    return (n, s, c) if innermost else shape


def gate_values(kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    size = {"input": shape[:2], "shared": (1, shape[1]), "unit": shape}[kind]
    values = torch.rand(size)
    values = torch.where(values < 0.35, 0.0, torch.where(values > 0.65, 1.0, values))
    return values > 0.5 if dtype == torch.bool else values.to(dtype)


class Gated:
    """Random arguments of one gated call."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        kind: str,
        gate_dtype: torch.dtype,
        innermost: bool,
        vectors: bool,
        offset: int = 0,
    ) -> None:
        self.shape, self.dtype, self.innermost = shape, dtype, innermost
        self.x = (3 * torch.randn(shape)).to(dtype)
        self.grad = torch.randn(shape).to(dtype)
        self.gate = gate_values(kind, shape, gate_dtype)
        acc = compute_dtype(dtype)
        self.bias = torch.randn(shape[1], dtype=acc) if vectors else None
        self.baseline = torch.randn(shape[1], dtype=acc) if vectors else None
        unit = kind == "unit"
        self.flags = (unit, kind == "input", innermost)
        self.x_memory = Memory(in_order(self.x, innermost), offset)
        self.grad_memory = Memory(in_order(self.grad, innermost), offset)
        self.gate_memory = Memory(in_order(self.gate, innermost) if unit else self.gate)
        self.bias_memory = Memory(self.bias) if vectors else None
        self.baseline_memory = Memory(self.baseline) if vectors else None

    def forward(self, kernels: HostLibrary, activation: str, y: Memory, device: int = 1) -> Tensor:
        kernels.call(
            "gated_forward",
            type_of(self.dtype),
            self.x_memory,
            y,
            type_of(self.gate.dtype),
            self.gate_memory,
            self.bias_memory,
            self.baseline_memory,
            ACTIVATIONS.index(activation),
            self.shape,
            self.flags,
            device,
        )
        return from_order(y.tensor(), self.innermost)

    def backward(
        self,
        kernels: HostLibrary,
        activation: str,
        wanted: tuple[bool, bool, bool] = (True, True, True),
        bias_dtype: torch.dtype = torch.float32,
        device: int = 1,
    ) -> list[Tensor | None]:
        need_x, need_gate, need_bias = wanted
        order = stored(self.shape, self.innermost)
        grad_x = Memory.empty(order, self.dtype) if need_x else None
        unit = self.flags[0]
        gate_shape = order if unit else tuple(self.gate.shape)
        grad_gate = Memory.empty(gate_shape, self.gate.dtype) if need_gate else None
        grad_bias = Memory.empty((self.shape[1],), bias_dtype) if need_bias else None
        kernels.call(
            "gated_backward",
            type_of(self.dtype),
            self.grad_memory,
            self.x_memory,
            type_of(self.gate.dtype),
            self.gate_memory,
            self.bias_memory,
            self.baseline_memory,
            ACTIVATIONS.index(activation),
            grad_x,
            grad_gate,
            type_of(bias_dtype),
            grad_bias,
            self.shape,
            self.flags,
            device,
        )
        result: list[Tensor | None] = [None, None, None]
        if grad_x is not None:
            result[0] = from_order(grad_x.tensor(), self.innermost)
        if grad_gate is not None:
            values = grad_gate.tensor()
            result[1] = from_order(values, self.innermost) if unit else values
        if grad_bias is not None:
            result[2] = grad_bias.tensor()
        return result

    def expected_forward(self, activation: str) -> Tensor:
        return reference.gated_forward(
            self.x,
            self.gate,
            bias=self.bias,
            activation=activation,
            baseline=self.baseline,
        )

    def expected_backward(self, activation: str) -> list[Tensor]:
        """In float64, from the values as stored."""
        x = self.x.double().requires_grad_()
        gate = self.gate.double().requires_grad_()
        channels = self.shape[1]
        bias = torch.zeros(channels) if self.bias is None else self.bias
        bias = bias.double().requires_grad_()
        baseline = None if self.baseline is None else self.baseline.double()
        y = reference.gated_forward(x, gate, bias=bias, activation=activation, baseline=baseline)
        return list(torch.autograd.grad(y, (x, gate, bias), self.grad.double()))


@pytest.mark.parametrize("innermost", [False, True], ids=["channel_first", "innermost"])
@pytest.mark.parametrize("kind", ["input", "shared", "unit"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_forward(
    kernels: HostLibrary, dtype: torch.dtype, kind: str, innermost: bool
) -> None:
    for k, shape in enumerate(SHAPES):
        gate_dtype = (dtype, torch.bool, torch.float32, torch.float64)[k % 4]
        activation = ACTIVATIONS[k % len(ACTIVATIONS)]
        call = Gated(shape, dtype, kind, gate_dtype, innermost, vectors=k % 3 != 0)
        y = Memory.empty(stored(shape, innermost), dtype)
        actual = call.forward(kernels, activation, y, device=1 + k % 2)
        expected = call.expected_forward(activation)
        torch.testing.assert_close(
            actual, expected, **tolerance(dtype), msg=lambda m, shape=shape: f"{shape}: {m}"
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["input", "shared", "unit"])
def test_gated_forward_closed_and_open_gates_are_exact(
    kernels: HostLibrary, kind: str, activation: str
) -> None:
    shape = (2, 6, 20)
    call = Gated(shape, torch.float32, kind, torch.float32, False, vectors=False)
    x = torch.randn(shape)
    gate = (call.gate > 0.5).float()
    closed = (gate if kind == "unit" else gate.unsqueeze(-1)).expand(shape) == 0
    x = torch.where(closed, torch.full_like(x, float("nan")), x)
    x[~closed] *= 1e3
    x.view(-1)[0] = -0.0
    call.x_memory, call.gate_memory = Memory(x), Memory(gate)
    y = call.forward(kernels, activation, Memory.empty(shape, torch.float32))
    assert (y[closed] == 0).all()
    expected = reference.ACTIVATIONS[activation](x)
    if activation in ("none", "relu", "relu6"):
        assert torch.equal(y[~closed].view(torch.int32), expected[~closed].view(torch.int32))
    else:
        torch.testing.assert_close(y[~closed], expected[~closed])


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "gelu"])
def test_gated_forward_hands_nan_on_through_open_gates(
    kernels: HostLibrary, activation: str
) -> None:
    call = Gated((1, 2, 8), torch.float32, "input", torch.float32, False, vectors=False)
    call.x_memory = Memory(torch.full((1, 2, 8), float("nan")))
    call.gate_memory = Memory(torch.tensor([[1.0, 0.5]]))
    y = call.forward(kernels, activation, Memory.empty((1, 2, 8), torch.float32))
    assert y.isnan().all()


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("innermost", [False, True], ids=["channel_first", "innermost"])
def test_gated_forward_in_place_and_unaligned(
    kernels: HostLibrary, innermost: bool, offset: int
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((3, 8, 33), (2, 24, 1)):
            call = Gated(shape, dtype, "input", dtype, innermost, True, offset)
            expected = call.expected_forward("relu")
            actual = call.forward(kernels, "relu", call.x_memory)
            torch.testing.assert_close(actual, expected, **tolerance(dtype))


@pytest.mark.parametrize("innermost", [False, True], ids=["channel_first", "innermost"])
@pytest.mark.parametrize("kind", ["input", "shared", "unit"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_backward(
    kernels: HostLibrary, dtype: torch.dtype, kind: str, innermost: bool
) -> None:
    for k, shape in enumerate(SHAPES):
        gate_dtype = (dtype, torch.float32, torch.float64)[k % 3]
        activation = ACTIVATIONS[k % len(ACTIVATIONS)]
        call = Gated(shape, dtype, kind, gate_dtype, innermost, vectors=k % 3 != 1)
        actual = call.backward(kernels, activation, device=1 + k % 2)
        expected = call.expected_backward(activation)
        n, _, s = shape
        lengths = (1, {"input": s, "shared": n * s, "unit": 1}[kind], n * s)
        for got, want, length in zip(actual, expected, lengths, strict=True):
            assert got is not None
            limits = tolerance(got.dtype, dtype, length)
            torch.testing.assert_close(
                got.double(), want, **limits, msg=lambda m, case=(shape, activation): f"{case}: {m}"
            )


@pytest.mark.parametrize("kind", ["input", "shared", "unit"])
def test_gated_backward_gives_only_what_is_wanted(kernels: HostLibrary, kind: str) -> None:
    for innermost in (False, True):
        call = Gated((3, 5, 21), torch.float32, kind, torch.float32, innermost, vectors=True)
        everything = call.backward(kernels, "silu")
        for wanted in ((True, False, False), (False, True, False), (False, False, True)):
            some = call.backward(kernels, "silu", wanted)
            for need, got, want in zip(wanted, some, everything, strict=True):
                assert (got is not None) == need
                if got is not None and want is not None:
                    # Alignment may differ by the absent result, so only the order of sums does.
                    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("innermost", [False, True], ids=["channel_first", "innermost"])
@pytest.mark.parametrize("kind", ["input", "shared", "unit"])
def test_gated_backward_is_the_same_for_any_grid_and_order(
    kernels: HostLibrary, kind: str, innermost: bool
) -> None:
    for shape in ((2, 3, 5000), (70, 12, 1), (3, 9, 20)):
        call = Gated(shape, torch.float32, kind, torch.float32, innermost, vectors=True)
        first = call.backward(kernels, "gelu", device=1)
        kernels.set_order(5)
        try:
            second = call.backward(kernels, "gelu", device=3)
        finally:
            kernels.set_order(0)
        for a, b in zip(first, second, strict=True):
            assert a is not None and b is not None and torch.equal(a, b)


@pytest.mark.parametrize("innermost", [False, True], ids=["channel_first", "innermost"])
def test_gated_backward_unaligned(kernels: HostLibrary, innermost: bool) -> None:
    for kind in ("input", "unit"):
        call = Gated((2, 8, 50), torch.float16, kind, torch.float16, innermost, True, offset=1)
        for got, want in zip(
            call.backward(kernels, "relu6"), call.expected_backward("relu6"), strict=True
        ):
            assert got is not None
            torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (0, 3, 1)], ids=str)
def test_gated_backward_sums_over_nothing_are_zero(
    kernels: HostLibrary, shape: tuple[int, int, int]
) -> None:
    call = Gated(shape, torch.float32, "shared", torch.float32, False, vectors=True)
    _, grad_gate, grad_bias = call.backward(kernels, "relu", (False, True, True))
    assert grad_gate is not None and grad_bias is not None
    assert torch.equal(grad_gate, torch.zeros(1, 3)) and torch.equal(grad_bias, torch.zeros(3))


def test_gated_backward_keeps_nan_behind_closed_gates(kernels: HostLibrary) -> None:
    call = Gated((1, 2, 16), torch.float32, "input", torch.float32, False, vectors=False)
    call.x_memory = Memory(torch.full((1, 2, 16), float("nan")))
    call.gate = torch.zeros(1, 2)
    call.gate_memory = Memory(call.gate)
    grad_x, grad_gate, _ = call.backward(kernels, "relu", (True, False, False))
    assert grad_gate is None and grad_x is not None and (grad_x == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_binarize(kernels: HostLibrary, dtype: torch.dtype, offset: int) -> None:
    for count in (1, 7, 64, 20011):
        importance = (1.4 * torch.rand(count) - 0.2).to(dtype)
        importance[0] = 0.5
        result = Memory.empty((count,), dtype, offset)
        source = Memory(importance, offset)
        kernels.call("binarize", type_of(dtype), source, count, result, 1)
        assert torch.equal(result.tensor(), (importance > 0.5).to(dtype))
        grad = torch.randn(count).to(dtype)
        for sigma, gamma in ((1.0, 2.0), (2.0, 1.0)):
            x = importance.double().requires_grad_()
            y = reference.binarize(x, sigma, gamma)
            (expected,) = torch.autograd.grad(y, x, grad.double())
            slope = Memory.empty((count,), dtype, offset)
            kernels.call(
                "binarize_backward",
                type_of(dtype),
                Memory(grad, offset),
                source,
                count,
                sigma,
                gamma,
                slope,
                1,
            )
            torch.testing.assert_close(slope.tensor().double(), expected, **tolerance(dtype))


def test_binarize_hands_nan_on(kernels: HostLibrary) -> None:
    result = Memory.empty((5,), torch.float32)
    source = Memory(torch.tensor([0.1, float("nan"), 0.9, float("nan"), 0.5]))
    kernels.call("binarize", 0, source, 5, result, 1)
    assert result.tensor().isnan().tolist() == [False, True, False, True, False]


# N, C, H, W and the grid: cells of one lane, of some and of more than a warp; overlapping ones;
# grids finer than the map; more cells than one trip of the smallest grid covers.
POOLS = (
    (2, 3, 8, 8, 4, 4),
    (1, 5, 7, 7, 4, 4),
    (1, 2, 5, 150, 2, 3),
    (2, 3, 37, 1, 4, 1),
    (1, 2, 2, 3, 5, 7),
    (2, 33, 6, 5, 1, 1),
    (3, 130, 4, 4, 3, 2),
    (1, 2, 64, 64, 33, 40),
    (1, 3, 4, 5, 4, 5),
)


def pool(
    kernels: HostLibrary, x: Tensor, sizes: tuple[int, ...], last: bool, offset: int
) -> Tensor:
    order = x.permute(0, 2, 3, 1) if last else x
    n, c, _, _, rows, columns = sizes
    y = Memory.empty((n, 2 * c, rows, columns), x.dtype, offset)
    source = Memory(order, offset)
    kernels.call("adaptive_pool", type_of(x.dtype), source, y, sizes, last, 1)
    return y.tensor()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("innermost", [False, True], ids=["channel_first", "innermost"])
@pytest.mark.parametrize("offset", [0, 1])
def test_adaptive_pool(
    kernels: HostLibrary, order: int, dtype: torch.dtype, innermost: bool, offset: int
) -> None:
    for sizes in POOLS:
        x = torch.randn(sizes[:4]).to(dtype)
        flat = x.view(-1)
        flat[::97], flat[3::101] = float("nan"), float("inf")
        expected = reference.adaptive_avg_max_pool2d(x, *sizes[4:])
        actual = pool(kernels, x, sizes, innermost, offset)
        limits = tolerance(dtype, length=sizes[2] * sizes[3])
        torch.testing.assert_close(actual, expected, equal_nan=True, **limits)
        maxima = actual[:, sizes[1] :], expected[:, sizes[1] :]
        torch.testing.assert_close(*maxima, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("divergent_barrier", "threads wait at a barrier that others of the block never reach"),
        ("excluded_lane", "a lane called a warp collective whose mask leaves it out"),
        ("foreign_lane", "a lane read from a lane outside the mask of the shuffle"),
        ("partial_warp", "threads wait at a barrier that others of the block never reach"),
        ("unfinished_copy", "a thread ends before its asynchronous copies have landed"),
        ("unaligned_copy", "an asynchronous copy is not aligned"),
        ("too_much_shared", "a block declares more than 48 KiB of shared memory"),
    ],
)
def test_shim_notices_planted_mistakes(kernels: HostLibrary, name: str, words: str) -> None:
    out = Memory.empty((64,), torch.float32)
    with pytest.raises(RuntimeError, match=words):
        kernels.call("planted", name, out)


def test_shim_poisons_shared_memory(kernels: HostLibrary) -> None:
    """What a block has not written is NaN, also after a block that wrote there."""
    out = Memory.empty((64,), torch.float32)
    kernels.call("planted", "missing_barrier", out)
    kernels.call("planted", "unwritten_shared", out)
    assert out.tensor().isnan().all()


def test_missing_barrier_shows_in_some_order(kernels: HostLibrary) -> None:
    expected = torch.arange(63.0, -1.0, -1.0)
    wrong = 0
    for seed in range(3):
        kernels.set_order(seed)
        out = Memory.empty((64,), torch.float32)
        kernels.call("planted", "missing_barrier", out)
        wrong += not torch.equal(out.tensor(), expected)
    kernels.set_order(0)
    assert wrong > 0

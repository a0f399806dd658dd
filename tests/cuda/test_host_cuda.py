"""Every CUDA kernel against the reference, run on the CPU from the very source that nvcc compiles.

Nothing here needs a GPU or nvcc. The kernels are called below the ops: with the pointers, shapes
and alignments that the launch code turns into grids.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from host_library import ACTIVATIONS, TYPES, HostLibrary, Memory, build, compiler
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


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> HostLibrary:
    if compiler() is None:
        pytest.skip("no C++ compiler")
    return HostLibrary(build(tmp_path_factory.mktemp("host_cuda")))


@pytest.fixture(params=[0, 7], ids=["ascending", "shuffled"])
def order(request: pytest.FixtureRequest, kernels: HostLibrary) -> Iterator[int]:
    """Threads in two orders: a result that depends on it misses a barrier."""
    kernels.set_order(request.param)
    yield request.param
    kernels.set_order(0)


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


MASK_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *DTYPES)


def make_mask(rows: int, size: int, dtype: torch.dtype) -> Tensor:
    mask = torch.rand(rows, size) < 0.4
    if dtype == torch.bool:
        return mask
    # Any value but zero counts as one, and minus zero is a zero.
    values = torch.randint(1, 100, (rows, size)).to(dtype)
    return torch.where(mask, values, torch.zeros_like(values) * -1)


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_pack_bits(kernels: HostLibrary, order: int, dtype: torch.dtype) -> None:
    for rows, size in ((1, 1), (3, 63), (2, 64), (5, 65), (4, 127), (3, 128), (2, 4160), (300, 48)):
        mask = make_mask(rows, size, dtype)
        words = Memory.empty((rows, -(-size // 64)), torch.int64)
        itemsize = mask.element_size()
        arguments = (itemsize, dtype.is_floating_point)
        kernels.call("pack_bits", *arguments, Memory(mask), size, 1, rows, size, words, 1)
        expected = reference.pack_bits(mask)
        assert torch.equal(words.tensor(), expected), (rows, size)
        # A transposed mask, and a slice of a wider one that begins off a boundary.
        words = Memory.empty((rows, -(-size // 64)), torch.int64)
        kernels.call("pack_bits", *arguments, Memory(mask.T), 1, rows, rows, size, words, 1)
        assert torch.equal(words.tensor(), expected), (rows, size)
        wide = Memory(torch.cat([mask, make_mask(rows, 5, dtype)], 1), offset=1)
        words = Memory.empty((rows, -(-size // 64)), torch.int64)
        kernels.call("pack_bits", *arguments, wide, size + 5, 1, rows, size, words, 1)
        assert torch.equal(words.tensor(), expected), (rows, size)


def test_unpack_bits(kernels: HostLibrary) -> None:
    for rows, size in ((1, 1), (3, 63), (2, 64), (5, 65), (4, 127), (3, 128), (40, 1001), (700, 7)):
        mask = torch.rand(rows, size) < 0.4
        words = reference.pack_bits(mask)
        width = words.shape[1]
        # Rows of a wider packed tensor, as one site of several.
        wide = torch.cat([words, torch.full((rows, 2), -1)], 1)
        result = Memory.empty((rows, size), torch.bool)
        kernels.call("unpack_bits", Memory(wide), width + 2, rows, size, result, 1)
        assert torch.equal(result.tensor(), mask), (rows, size)


# The values of pathways::cuda::BitProduct.
PRODUCTS = {"popc": 0, "mma64": 1, "mma128": 2}
# Rows and neurons: parts of a tile, whole tiles and more; an odd number of words (rows that begin
# between two 16-byte vectors), one chunk of the matrix kernel and several.
PAIRS = (
    (1, 1, 1),
    (3, 5, 63),
    (64, 64, 128),
    (65, 130, 65),
    (2, 200, 1025),
    (70, 3, 2112),
    (129, 127, 520),
    (12, 260, 704),
)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["pairwise_intersection", "pairwise_iou"])
def test_pairwise(kernels: HostLibrary, order: int, name: str, product: str) -> None:
    dtype = torch.float32 if name == "pairwise_iou" else torch.int32
    for rows_a, rows_b, size in PAIRS:
        a = reference.pack_bits(torch.rand(rows_a, size) < 0.3)
        b = reference.pack_bits(torch.rand(rows_b, size) < 0.3)
        a[0] = 0
        b[0] = 0
        width = a.shape[1]
        # b as a slice of wider rows, the results aligned and not.
        wide = torch.cat([b, torch.full((rows_b, 3), -1)], 1)
        for offset in (0, 1):
            out = Memory.empty((rows_a, rows_b), dtype, offset)
            source_a, source_b = Memory(a, offset), Memory(wide)
            sources = (source_a, width, rows_a, source_b, width + 3, rows_b)
            kernels.call(name, *sources, width, PRODUCTS[product], out, 1)
            expected = getattr(reference, name)(a, b)
            assert torch.equal(out.tensor(), expected), (rows_a, rows_b, size, offset)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["pairwise_intersection", "pairwise_iou"])
def test_pairwise_with_itself_is_symmetric(kernels: HostLibrary, name: str, product: str) -> None:
    dtype = torch.float32 if name == "pairwise_iou" else torch.int32
    # One to five tiles across, an even and an odd number of them.
    for rows, size in ((1, 5), (64, 100), (150, 333), (257, 10), (320, 64)):
        a = reference.pack_bits(torch.rand(rows, size) < 0.3)
        width = a.shape[1]
        source = Memory(a)
        out = Memory.empty((rows, rows), dtype)
        sources = (source, width, rows, source, width, rows)
        kernels.call(name, *sources, width, PRODUCTS[product], out, 1)
        assert torch.equal(out.tensor(), getattr(reference, name)(a, a)), (rows, size)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["pairwise_intersection", "pairwise_iou"])
def test_pairwise_of_rows_without_words(kernels: HostLibrary, name: str, product: str) -> None:
    dtype = torch.float32 if name == "pairwise_iou" else torch.int32
    words = Memory(torch.zeros(0, dtype=torch.int64))
    out = Memory.empty((3, 2), dtype)
    kernels.call(name, words, 0, 3, words, 0, 2, 0, PRODUCTS[product], out, 1)
    expected = 1 if name == "pairwise_iou" else 0
    assert (out.tensor() == expected).all()


def test_iou_is_the_rounded_division_of_the_counts(kernels: HostLibrary) -> None:
    # Row k of A has k + 1 neurons, all of them in the one row of B, which has many more.
    rows, size = 300, 21 * 64
    a = reference.pack_bits(torch.arange(size)[None, :] <= torch.arange(rows)[:, None])
    b = reference.pack_bits(torch.arange(size)[None, :] < torch.arange(size - 90, size)[:, None])
    out = Memory.empty((rows, 90), torch.float32)
    kernels.call("pairwise_iou", Memory(a), 21, rows, Memory(b), 21, 90, 21, 0, out, 1)
    expected = (torch.arange(rows) + 1.0)[:, None] / torch.arange(size - 90.0, size)
    assert torch.equal(out.tensor(), expected)


def fragments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The registers of every lane for bits a [16, 256] and b [256, 8].

    Element by element as "Matrix Fragments for mma.m16n8k256" of the PTX ISA has it.
    """
    registers_a = torch.zeros(32, 4, 32, dtype=torch.int64)
    registers_b = torch.zeros(32, 2, 32, dtype=torch.int64)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(128):
            row = group if i < 32 or 64 <= i < 96 else group + 8
            column = thread * 32 + (i & 0x1F) + (128 if i >= 64 else 0)
            registers_a[lane, i // 32, i % 32] = a[row, column]
        for i in range(64):
            row = thread * 32 + (i & 0x1F) + (128 if i >= 32 else 0)
            registers_b[lane, i // 32, i % 32] = b[row, group]
    return registers_a, registers_b


def sums(result: Tensor) -> Tensor:
    """[16, 8] from the four sums of every lane."""
    matrix = torch.zeros(16, 8, dtype=torch.int32)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(4):
            matrix[group + (0 if i < 2 else 8), thread * 2 + (i & 1)] = result[lane, i]
    return matrix


def as_words(registers: Tensor) -> Tensor:
    weights = (1 << torch.arange(32)).to(torch.int64)
    values = (registers * weights).sum(-1)
    return torch.where(values >= 1 << 31, values - (1 << 32), values).to(torch.int32)


def mma(kernels: HostLibrary, a: Tensor, b: Tensor) -> Tensor:
    out = Memory(torch.zeros(32, 4, dtype=torch.int32))
    kernels.call("mma", Memory(as_words(a)), Memory(as_words(b)), out)
    return out.tensor()


def test_mma_follows_the_fragment_layout(kernels: HostLibrary) -> None:
    a = (torch.rand(16, 256) < 0.5).long()
    b = (torch.rand(256, 8) < 0.5).long()
    expected = (a @ b).int()
    assert torch.equal(sums(mma(kernels, *fragments(a, b))), expected)


def test_mma_of_a_wrong_layout_is_wrong(kernels: HostLibrary) -> None:
    a = (torch.rand(16, 256) < 0.5).long()
    b = (torch.rand(256, 8) < 0.5).long()
    expected = (a @ b).int()
    of_a, of_b = fragments(a, b)
    # Lane 8 t + g in place of lane 4 g + t.
    transposed = torch.arange(32).view(8, 4).T.reshape(-1)
    wrong = {
        "rows and k of A exchanged": (of_a[:, [0, 2, 1, 3]], of_b),
        "halves of k exchanged in B": (of_a, of_b[:, [1, 0]]),
        "lanes of A transposed": (of_a[transposed], of_b),
        "lanes of B transposed": (of_a, of_b[transposed]),
        "bits of A reversed": (of_a.flip(-1), of_b),
        "lanes of A shifted": (of_a.roll(1, 0), of_b),
    }
    for name, (left, right) in wrong.items():
        assert not torch.equal(sums(mma(kernels, left, right)), expected), name
    # Results read by a wrong mapping.
    result = mma(kernels, of_a, of_b)
    for name, read in {
        "rows and columns": result[:, [0, 2, 1, 3]],
        "lanes": result[transposed],
    }.items():
        assert not torch.equal(sums(read), expected), name
    # The order of k alone does not matter, as long as both agree; the kernel relies on it.
    order = torch.randperm(256)
    assert torch.equal(sums(mma(kernels, *fragments(a[:, order], b[order]))), expected)


def choose(
    kernels: HostLibrary,
    wish: str | None,
    capability: int,
    rows: tuple[int, int] = (1000, 1000),
    code: int | None = None,
) -> str | None:
    """What the rule takes on a device of 100 multiprocessors; None for a wish that is refused."""
    value = kernels.value(
        "choose_bit_product", wish, capability, capability if code is None else code, 100, *rows
    )
    return None if value < 0 else list(PRODUCTS)[value]


def test_the_rule_takes_tensor_cores_where_they_are_binary(kernels: HostLibrary) -> None:
    for capability in (80, 86, 87, 89, 90):
        assert choose(kernels, None, capability) == "mma64"
        assert choose(kernels, None, capability, (1280, 1280)) == "mma128"
        assert choose(kernels, None, capability, (1279, 1152)) == "mma64"
        assert choose(kernels, "auto", capability, (12800, 1)) == "mma128"
    for capability in (75, 100, 103, 110, 120, 121):
        assert choose(kernels, None, capability, (5000, 5000)) == "popc"
        assert choose(kernels, "", capability) == "popc"
    # A build for older devices only holds no such instruction.
    assert choose(kernels, None, 90, code=75) == "popc"
    assert choose(kernels, None, 86, code=80) == "mma64"


def test_the_rule_obeys_the_user(kernels: HostLibrary) -> None:
    for capability in (75, 80, 90, 120):
        assert choose(kernels, "popc", capability, (5000, 5000)) == "popc"
    for capability in (80, 120):
        assert choose(kernels, "mma", capability, (5, 5)) == "mma64"
    for wish in ("MMA", "tensor", "popc ", "1"):
        assert choose(kernels, wish, 80) is None


def run_class_overlap(
    kernels: HostLibrary,
    words: Tensor,
    labels: Tensor,
    classes: int,
    product: str,
    device: int = 1,
) -> Tensor:
    out = Memory.empty((classes, classes), torch.float64)
    rows, width = words.shape
    source = (Memory(words), width, rows, width, Memory(labels), classes)
    kernels.call("class_overlap", *source, PRODUCTS[product], out, device)
    return out.tensor()


@pytest.mark.parametrize(
    ("rows", "size", "classes"),
    [(0, 10, 2), (1, 10, 1), (7, 64, 3), (130, 100, 1), (300, 65, 4), (90, 129, 40), (2150, 20, 1)],
)
def test_class_overlap(
    kernels: HostLibrary, order: int, rows: int, size: int, classes: int
) -> None:
    words = reference.pack_bits(torch.rand(rows, size) < 0.3)
    if rows > 2:
        words[:2] = 0
    # The last class is empty where there is more than one.
    labels = torch.randint(0, max(classes - 1, 1), (rows,))
    actual = run_class_overlap(kernels, words, labels, classes, "popc")
    expected, _ = reference.class_overlap(words, labels, classes)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(actual, actual.T)
    # The same bits whatever the order of the threads, the grid and the product.
    kernels.set_order(11)
    assert torch.equal(run_class_overlap(kernels, words, labels, classes, "popc", 4), actual)
    if rows < 1000:
        assert torch.equal(run_class_overlap(kernels, words, labels, classes, "mma64"), actual)


@pytest.mark.parametrize(
    ("rows", "size", "classes"),
    [(0, 10, 2), (1, 1, 1), (9, 63, 3), (1200, 64, 2), (40, 65, 30), (1030, 2200, 2)],
)
def test_class_frequency(
    kernels: HostLibrary, order: int, rows: int, size: int, classes: int
) -> None:
    words = reference.pack_bits(torch.rand(rows, size) < 0.7)
    labels = torch.randint(0, max(classes - 1, 1), (rows,))
    expected = reference.class_frequency(words, labels, classes, size)
    # Bits behind the last neuron are not counted.
    if size % 64:
        words[:, -1] |= -1 << size % 64
    out = Memory(torch.zeros(classes, size, dtype=torch.int64))
    width = words.shape[1]
    kernels.call(
        "class_frequency", Memory(words), width, rows, size, Memory(labels), classes, out, 1
    )
    assert torch.equal(out.tensor(), expected)


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

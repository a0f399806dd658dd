"""The CUDA ops on a GPU, against the CPU ops. Everything here is skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from samples import (
    DTYPES,
    FLOATING_OPS,
    LAYOUTS,
    OPS,
    in_layout,
    make_gate,
    make_words,
    sample_inputs,
    tolerance,
)
from torch import Tensor

from pathways import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def to_cuda(value: Tensor) -> Tensor:
    """The same view of the same storage on the GPU: strides, gaps and offset stay."""
    if value.numel() == 0:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
    items = value.untyped_storage().nbytes() // value.element_size()
    storage = value.as_strided((items,), (1,), 0).cuda()
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())


def run(op: str, args: Iterable[Any], kwargs: dict[str, Any], cuda: bool) -> list[Tensor]:
    """The results of one op as a list; of an op in place, its first argument."""
    moved: dict[int, Tensor] = {}  # an argument given twice stays one tensor

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in moved:
            moved[id(value)] = to_cuda(value) if cuda else value
        return moved[id(value)]

    arguments = [place(value) for value in args]
    named = {name: place(value) for name, value in kwargs.items()}
    if op.endswith("_") and not cuda:
        arguments[0] = arguments[0].clone()  # the sample is used again
    result = getattr(torch.ops.pathways, op)(*arguments, **named)
    if result is None:
        return [arguments[0]]
    return list(result) if isinstance(result, tuple) else [result]


def assert_same(op: str, args: Iterable[Any], kwargs: dict[str, Any], length: int = 1) -> None:
    args = list(args)
    for got, want in zip(run(op, args, kwargs, True), run(op, args, kwargs, False), strict=True):
        assert got.device.type == "cuda" and got.dtype == want.dtype
        assert op.endswith("_") or got.stride() == want.stride() or got.numel() < 2
        if got.dtype.is_floating_point:
            limits = tolerance(got.dtype, length)
            torch.testing.assert_close(got.cpu(), want, equal_nan=True, **limits)
        else:
            assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_samples(op: str, dtype: torch.dtype) -> None:
    if dtype != torch.float32 and op not in FLOATING_OPS:
        pytest.skip("the op has no floating-point argument")
    for sample in sample_inputs(op, dtype):
        assert_same(op, sample.args, sample.kwargs, length=1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["gated_forward", "gated_forward_", "_gated_backward"])
def test_layouts(op: str, layout: str, dtype: torch.dtype) -> None:
    # 7 x 7: vectors that lie in two rows. 33 channels: no whole vectors of channels.
    for shape in ((3, 8, 7, 7), (2, 64, 5), (4, 33), (2, 16, 30, 30), (2, 33, 9)):
        for kind in ("input", "shared", "unit"):
            x = in_layout(torch.randn(shape).to(dtype), layout)
            gate = make_gate(kind, shape, dtype)
            grad = [torch.randn(shape).to(dtype)] if op == "_gated_backward" else []
            kwargs = {"bias": torch.randn(shape[1]), "activation": "silu"}
            if op == "_gated_backward":
                kwargs["need_bias"] = True
            assert_same(op, (*grad, x, gate), kwargs, length=3000)


@pytest.mark.parametrize("offset", [1, 3])
def test_storage_between_two_vectors(offset: int) -> None:
    """Slices that begin off a 16-byte boundary, of every kind of argument."""
    flat = torch.randn(2 * 8 * 50 + offset)
    x = flat[offset:].view(2, 8, 50)
    gate = torch.rand(16 + offset)[offset:].view(2, 8).round()
    bias = torch.randn(8 + offset)[offset:]
    assert_same("gated_forward", (x, gate), {"bias": bias, "activation": "relu"})
    kwargs = {"bias": bias, "activation": "relu", "need_bias": True}
    assert_same("_gated_backward", (x, x, gate), kwargs, length=100)
    assert_same("binarize", (flat[offset:],), {})
    assert_same("pack_bits", ((flat[offset:] > 0).view(8, 100),), {})
    words = make_words(40, 640).view(-1)[offset : offset + 390].view(39, 10)
    assert_same("unpack_bits", (words, 640), {})
    assert_same("pairwise_iou", (words, words), {})


@pytest.mark.parametrize(
    "shape", [(32, 64, 112, 112), (32, 256, 28, 28), (8, 512, 14, 14)], ids=str
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_sites(shape: tuple[int, ...], layout: str) -> None:
    x = in_layout(torch.randn(shape), layout)
    gate = make_gate("input", shape, torch.float32)
    assert_same("gated_forward", (x, gate), {"activation": "relu"})
    grad = torch.randn(shape)
    kwargs = {"activation": "relu", "bias": torch.randn(shape[1]), "need_bias": True}
    assert_same("_gated_backward", (grad, x, gate), kwargs, length=x.numel() // shape[1])


PAIRWISE = ("popc", "mma")


@pytest.fixture(params=PAIRWISE)
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kernel for bit products; tensor cores count bits from compute capability 8.0 on."""
    if request.param == "mma" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("tensor cores without bit products")
    monkeypatch.setenv("PATHWAYS_CUDA_PAIRWISE", request.param)
    return str(request.param)


def test_large_words(product: str) -> None:
    words = make_words(3000, 4100, 0.3)
    labels = torch.randint(0, 7, (3000,))
    other = make_words(1111, 4100, 0.4)
    assert_same("pairwise_iou", (words, words), {})
    assert_same("pairwise_iou", (words, other), {})
    assert_same("pairwise_intersection", (words, words.clone()), {})
    # An odd number of words from an odd one on, in rows of 65.
    assert_same("pairwise_intersection", (words[:, 3:40], other[:, 3:40]), {})
    assert_same("class_overlap", (words, labels, 8), {})
    assert_same("class_frequency", (words, labels, 8, 4100), {})


@pytest.mark.parametrize("rows", [(1, 1), (1, 900), (63, 65), (128, 128), (129, 257), (2000, 2000)])
@pytest.mark.parametrize("size", [1, 64, 500, 513, 1100])
def test_products_of_all_sizes(product: str, rows: tuple[int, int], size: int) -> None:
    a, b = make_words(rows[0], size, 0.3), make_words(rows[1], size, 0.6)
    assert_same("pairwise_intersection", (a, b), {})
    assert_same("pairwise_iou", (a, a), {})


def test_both_products_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("tensor cores without bit products")
    words = make_words(1500, 2000, 0.3).cuda()
    labels = torch.randint(0, 5, (1500,), device="cuda")
    results = []
    for kind in PAIRWISE:
        monkeypatch.setenv("PATHWAYS_CUDA_PAIRWISE", kind)
        results.append([ops.pairwise_iou(words, words), *ops.class_overlap(words, labels, 5)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
def test_results_do_not_change_between_runs(deterministic: bool) -> None:
    """Nothing depends on the order of threads, so deterministic mode has nothing to change."""
    shape = (16, 64, 56, 56)
    x, grad = torch.randn(shape, device="cuda"), torch.randn(shape, device="cuda")
    gate = make_gate("shared", shape, torch.float32).cuda()
    bias = torch.randn(64, device="cuda")
    words = make_words(2000, 1000).cuda()
    labels = torch.randint(0, 5, (2000,), device="cuda")

    def everything() -> list[Tensor]:
        backward = torch.ops.pathways._gated_backward(
            grad, x, gate, bias=bias, activation="gelu", need_bias=True
        )
        frequency = ops.class_frequency(words, labels, 5, 1000)
        return [*backward, frequency, *ops.class_overlap(words, labels, 5)]

    first = everything()
    torch.use_deterministic_algorithms(deterministic)
    try:
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    sample = next(s for s in sample_inputs(op)[::-1] if s.args[0].numel() != 0)
    args = [to_cuda(value) if isinstance(value, Tensor) else value for value in sample.args]
    kwargs = {
        name: to_cuda(value) if isinstance(value, Tensor) else value
        for name, value in sample.kwargs.items()
    }
    torch.library.opcheck(getattr(torch.ops.pathways, op).default, tuple(args), kwargs)


@pytest.mark.parametrize("kind", ["input", "shared", "unit"])
def test_gradients(kind: str) -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64, device="cuda", requires_grad=True)
    gate = torch.rand_like(make_gate(kind, (2, 3, 5), torch.float64), device="cuda")
    bias = torch.randn(3, dtype=torch.float64, device="cuda", requires_grad=True)

    def forward(x: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
        return ops.gated_forward(x, gate, bias=bias, activation="silu")

    assert torch.autograd.gradcheck(forward, (x, gate.requires_grad_(), bias))


def test_current_stream_is_used() -> None:
    stream = torch.cuda.Stream()
    x = torch.zeros(1 << 24, device="cuda").view(1, 1, -1)
    gate = torch.ones(1, 1, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # On another stream the op would not wait for this.
        torch.cuda._sleep(50_000_000)
        x.fill_(2.0)
        y = ops.gated_forward(x, gate)
    stream.synchronize()
    assert (y == 2).all()


def test_all_ops_wait_for_their_stream() -> None:
    """Inputs that a side stream is still writing: every launch must be queued behind."""
    words = make_words(300, 700).cuda()
    labels = torch.randint(0, 4, (300,), device="cuda")
    x, gate = torch.randn(4, 8, 9, 9, device="cuda"), torch.rand(4, 8, device="cuda")
    importance = torch.rand(4, 700, device="cuda")

    def everything() -> list[Tensor]:
        backward = torch.ops.pathways._gated_backward(x, x, gate, activation="relu")
        return [
            ops.gated_forward(x, gate, activation="relu"),
            *backward[:2],
            ops.binarize(importance),
            ops.pack_bits(importance > 0.5),
            ops.unpack_bits(words, 700),
            ops.pairwise_iou(words, words),
            *ops.class_overlap(words, labels, 4),
            ops.class_frequency(words, labels, 4, 700),
        ]

    expected = everything()
    late = [value.clone() for value in (words, labels, x, gate, importance)]
    for value in (words, labels, x, gate, importance):
        value.zero_()
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for value, kept in zip((words, labels, x, gate, importance), late, strict=True):
            value.copy_(kept)
        actual = everything()
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_guard() -> None:
    for index in (0, 1):
        device = f"cuda:{index}"
        with torch.cuda.device(1 - index):
            mask = torch.ones(3, 100, device=device)
            words = ops.pack_bits(mask)
            assert words.device == torch.device(device)
            assert torch.equal(ops.unpack_bits(words, 100), mask.bool())
            labels = torch.zeros(3, dtype=torch.int64, device=device)
            assert ops.class_overlap(words, labels, 1)[0].item() == 3
            assert (ops.pairwise_iou(words, words) == 1).all()
            assert torch.cuda.current_device() == 1 - index


def test_gated_forward_in_a_cuda_graph() -> None:
    x = torch.randn(4, 8, 16, 16, device="cuda")
    gate = torch.ones(4, 8, device="cuda")
    ops.gated_forward(x, gate, activation="relu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.gated_forward(x, gate, activation="relu")
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(y, torch.relu(x))


def test_labels_out_of_range_are_refused() -> None:
    words = make_words(3, 10).cuda()
    for bad in (-1, 2):
        labels = torch.tensor([0, bad, 1], device="cuda")
        with pytest.raises(RuntimeError, match=rf"in \[0, num_classes\) = \[0, 2\), got {bad}"):
            ops.class_overlap(words, labels, 2)


def test_tensors_on_two_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"\(got x=cuda:0, gate=cpu\)"):
        ops.gated_forward(torch.ones(2, 3, device="cuda"), torch.ones(2, 3))


def test_nan_goes_through_binarize() -> None:
    importance = torch.tensor([0.2, float("nan"), 0.9], device="cuda")
    assert ops.binarize(importance).isnan().tolist() == [False, True, False]


def test_more_than_2_to_31_elements() -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < 12 << 30:
        pytest.skip("needs 12 GiB of free memory")
    size = (1 << 31) + 77
    x = torch.ones(1, 2, size // 2 + 1, dtype=torch.bfloat16, device="cuda")
    gate = torch.tensor([[0.0, 2.0]], device="cuda")
    ops.gated_forward_(x, gate)
    assert (x[:, 0] == 0).all() and (x[:, 1] == 2).all()
    mask = torch.ones(1, size, dtype=torch.bool, device="cuda")
    words = ops.pack_bits(mask[:, : (1 << 31) - 64])
    assert (words == -1).all()


def test_more_than_2_to_31_results() -> None:
    rows = 46400
    free, _ = torch.cuda.mem_get_info()
    if free < 20 << 30:
        pytest.skip("needs 20 GiB of free memory")
    words = make_words(rows, 64).cuda()
    both = ops.pairwise_intersection(words, words)
    last = rows - 200
    assert torch.equal(both[last:, :100], both[:100, last:].T)
    expected = torch.ops.pathways.pairwise_intersection(words[last:].cpu(), words.cpu())
    assert torch.equal(both[last:].cpu(), expected)


def test_memory_does_not_grow() -> None:
    x = torch.randn(8, 16, 20, 20, device="cuda", requires_grad=True)
    gate = torch.rand(8, 16, device="cuda", requires_grad=True)
    words = make_words(200, 300).cuda()
    labels = torch.randint(0, 3, (200,), device="cuda")

    def step() -> None:
        ops.gated_forward(x, gate, activation="silu").sum().backward()
        x.grad = gate.grad = None
        ops.class_overlap(words, labels, 3)
        ops.class_frequency(words, labels, 3, 300)

    step()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        step()
    assert torch.cuda.memory_allocated() == before

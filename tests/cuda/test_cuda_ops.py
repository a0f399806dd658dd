"""The CUDA ops on a GPU, against the CPU ops. Everything here is skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from samples import DTYPES, LAYOUTS, OPS, in_layout, make_gate, make_words, sample_inputs, tolerance
from torch import Tensor

from pathways import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

FLOATING_OPS = ("gated_forward", "gated_forward_", "_gated_backward", "binarize")


def to_device(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def run(op: str, args: Iterable[Any], kwargs: dict[str, Any], device: str) -> list[Tensor]:
    """The results of one op as a list; of an op in place, its first argument."""
    moved = [to_device(value, device) for value in args]
    named = {name: to_device(value, device) for name, value in kwargs.items()}
    if op.endswith("_"):
        # A copy in the same layout: the sample is used again.
        moved[0] = torch.empty_like(moved[0]).copy_(moved[0])
    result = getattr(torch.ops.pathways, op)(*moved, **named)
    if result is None:
        return [moved[0]]
    return list(result) if isinstance(result, tuple) else [result]


def assert_same(op: str, args: Iterable[Any], kwargs: dict[str, Any], length: int = 1) -> None:
    args = list(args)
    for got, want in zip(run(op, args, kwargs, "cuda"), run(op, args, kwargs, "cpu"), strict=True):
        assert got.device.type == "cuda" and got.dtype == want.dtype
        assert got.stride() == want.stride() or got.numel() < 2
        if got.dtype.is_floating_point:
            limits = tolerance(got.dtype, length)
            torch.testing.assert_close(got.cpu(), want, equal_nan=True, **limits)
        else:
            assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_samples(op: str, dtype: torch.dtype) -> None:
    if dtype != torch.float32 and op not in (*FLOATING_OPS, "_binarize_backward"):
        pytest.skip("the op has no floating-point argument")
    for sample in sample_inputs(op, dtype):
        assert_same(op, sample.args, sample.kwargs, length=1000)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["gated_forward", "gated_forward_", "_gated_backward"])
def test_layouts(op: str, layout: str) -> None:
    for shape in ((3, 8, 7, 7), (2, 64, 5), (4, 33), (2, 16, 30, 30)):
        for kind in ("input", "shared", "unit"):
            x = in_layout(torch.randn(shape), layout)
            gate = make_gate(kind, shape, torch.float32)
            grad = [torch.randn(shape)] if op == "_gated_backward" else []
            kwargs = {"bias": torch.randn(shape[1]), "activation": "silu"}
            assert_same(op, (*grad, x, gate), kwargs, length=3000)


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


def test_large_words() -> None:
    words = make_words(3000, 4100, 0.3)
    labels = torch.randint(0, 7, (3000,))
    assert_same("pairwise_iou", (words, words), {})
    assert_same("pairwise_intersection", (words[:, 3:40], words[:, 3:40]), {})
    assert_same("class_overlap", (words, labels, 8), {})
    assert_same("class_frequency", (words, labels, 8, 4100), {})


def test_results_do_not_change_between_runs() -> None:
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
        return [*backward, *ops.class_overlap(words, labels, 5)]

    first = everything()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))


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


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_guard() -> None:
    for index in (0, 1):
        device = f"cuda:{index}"
        with torch.cuda.device(1 - index):
            mask = torch.ones(3, 100, device=device)
            words = ops.pack_bits(mask)
            assert words.device == torch.device(device)
            assert torch.equal(ops.unpack_bits(words, 100), mask.bool())
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

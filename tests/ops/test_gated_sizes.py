"""The gated ops over sizes that decide how their loops run: tails, blocks, large tensors."""

import os

import pytest
import torch
from samples import DTYPES, in_layout, make_gate, tolerance

from pathways import ops
from pathways.ops import reference

LAYOUTS = ("contiguous", "channels_last")
# Around the lanes (8 or 16), the blocks (256) and the longest repeated channel vector (2,048).
SHAPES = (
    *((2, 3, space) for space in (1, 7, 8, 9, 15, 16, 17, 31, 255, 256, 257, 784, 1000)),
    *((2, channels, 5) for channels in (1, 2, 8, 10, 16, 17, 24, 100, 127, 129, 513, 2048, 2049)),
    (3, 24, 7, 7),
    (1, 64, 9, 31),
    (5, 40),
    (4, 2049),
    (40, 3),
    (600, 2, 1, 1),
)


def arguments(shape, layout, dtype, kind):
    x = in_layout((3 * torch.randn(shape)).to(dtype), layout)
    gate = make_gate(kind, shape, torch.float32 if len(shape) == 4 else dtype)
    bias, baseline = torch.randn(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype)
    return x, gate, bias, baseline


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(dtype, layout, activation):
    for shape in SHAPES:
        for kind in ("input", "vector", "unit", "input_bool"):
            x, gate, bias, baseline = arguments(shape, layout, dtype, kind)
            for kwargs in ({}, {"bias": bias, "baseline": baseline}):
                expected = reference.gated_forward(x, gate, activation=activation, **kwargs)
                actual = ops.gated_forward(x, gate, activation=activation, **kwargs)
                torch.testing.assert_close(
                    actual,
                    expected,
                    **tolerance(dtype, 4),
                    msg=lambda m, s=shape, k=kind: f"{s} {k}: {m}",
                )
                ops.gated_forward_(copy := x.clone(), gate, activation=activation, **kwargs)
                assert torch.equal(copy, actual), (shape, kind)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward(dtype, layout, activation):
    """Against autograd through the reference in float64."""
    for shape in SHAPES:
        for kind in ("input", "vector", "unit"):
            x, gate, bias, baseline = arguments(shape, layout, dtype, kind)
            grad = in_layout(torch.randn(shape).to(dtype), layout)
            wide = [t.double().requires_grad_() for t in (x, gate, bias)]
            result = reference.gated_forward(
                wide[0], wide[1], bias=wide[2], activation=activation, baseline=baseline.double()
            )
            expected = torch.autograd.grad(result, wide, grad.double())
            actual = torch.ops.pathways._gated_backward(
                grad,
                x,
                gate,
                bias=bias,
                activation=activation,
                baseline=baseline,
                need_bias=True,
            )
            terms = x.numel() // (1 if kind == "unit" else gate.numel())
            lengths = (4, 4 * terms, 4 * (x.numel() // shape[1]))
            for name, a, e, length in zip(
                ("x", "gate", "bias"), actual, expected, lengths, strict=True
            ):
                torch.testing.assert_close(
                    a.double(),
                    e,
                    **tolerance(a.dtype if a.dtype != torch.float64 else torch.float64, length),
                    msg=lambda m, s=shape, k=kind, n=name: f"{s} {k} grad_{n}: {m}",
                )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large(dtype, layout):
    """Results of 32 MiB and more are stored past the caches; rows start at odd addresses."""
    rows = 1699 if dtype == torch.float32 else 3391
    x = in_layout(torch.randn(1, 3, rows, 1733).to(dtype), layout)
    assert x.numel() * x.element_size() >= 32 << 20
    gate = torch.tensor([[1.0, 0.0, 0.5]])
    baseline = torch.tensor([0.5, -1.0, 2.0])
    for kwargs in ({}, {"baseline": baseline}):
        expected = reference.gated_forward(x, gate, activation="relu", **kwargs)
        actual = ops.gated_forward(x, gate, activation="relu", **kwargs)
        torch.testing.assert_close(actual, expected, **tolerance(dtype))
        assert actual.stride() == x.stride()
        ops.gated_forward_(copy := x.clone(), gate, activation="relu", **kwargs)
        assert torch.equal(copy, actual)
    hard = torch.tensor([[True, False, True]])
    assert torch.equal(
        ops.gated_forward(x, hard, activation="relu"), x.relu() * hard[:, :, None, None]
    )
    grad = in_layout(torch.randn(x.shape).to(dtype), layout)
    grad_x, grad_gate, _ = torch.ops.pathways._gated_backward(grad, x, gate, activation="relu")
    expected = (grad.float() * (x > 0) * gate[:, :, None, None]).to(dtype)
    assert torch.equal(grad_x, expected)
    sums = (grad.double() * x.relu().double()).sum((2, 3))
    torch.testing.assert_close(grad_gate.double(), sums, rtol=1e-5, atol=1e-2)


def free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_than_2_to_the_31_elements(layout):
    count = 2**31 + 3 * 2**10
    if free_memory() < 3 * count:
        pytest.skip("needs 6 GiB of free memory")
    shape = (1, 2, count // 2) if layout == "contiguous" else (1, count // 2, 2)
    x = torch.full(shape, 2.0, dtype=torch.float16)
    if layout == "channels_last":
        x = x.transpose(1, 2)
    x[0, 1, -1] = -3.0
    ops.gated_forward_(x, torch.tensor([0.0, 0.5]), activation="relu")
    assert x[0, 0, -1] == 0.0 and x[0, 1, -1] == 0.0 and x[0, 1, -2] == 1.0
    assert x[0, 0, 0] == 0.0 and x[0, 1, 0] == 1.0


def test_in_place_refuses_shared_memory():
    x = torch.ones(2, 3, 1).expand(2, 3, 4)
    with pytest.raises(RuntimeError) as error:
        torch.ops.pathways.gated_forward_(x, torch.ones(3))
    expected = (
        "gated_forward_: x must have memory of its own for every element, "
        "got stride 0 in dimension 2"
    )
    assert str(error.value) == expected
    with pytest.raises(RuntimeError, match=r"stride 0 in dimension 2"):
        meta = torch.ones(2, 3, 1, device="meta").expand(2, 3, 4)
        torch.ops.pathways.gated_forward_(meta, torch.ones(3, device="meta"))


def test_a_gate_that_is_x_itself():
    for shape in ((2, 3, 37), (5, 37)):
        x = torch.rand(shape)
        expected = ops.gated_forward(x, x.clone(), activation="relu")
        ops.gated_forward_(x, x, activation="relu")
        assert torch.equal(x, expected)

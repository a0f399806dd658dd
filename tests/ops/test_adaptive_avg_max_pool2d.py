"""adaptive_avg_max_pool2d."""

import pytest
import torch
import torch.nn.functional as F
from samples import DTYPES, LAYOUTS, POOL_SHAPES, in_layout, sample_inputs, tolerance

from pathways import ops
from pathways.ops import reference

FILLED = [(shape, size) for shape, size in POOL_SHAPES if 0 not in shape]


def assert_same(actual, expected, length):
    """Equal but for the rounding of sums; maxima are exact."""
    channels = expected.shape[1] // 2
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert actual.is_contiguous()
    limits = tolerance(actual.dtype, length)
    torch.testing.assert_close(actual, expected, equal_nan=True, **limits)
    maxima = actual[:, channels:], expected[:, channels:]
    torch.testing.assert_close(*maxima, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_reference(dtype):
    for sample in sample_inputs("adaptive_avg_max_pool2d", dtype):
        actual = ops.adaptive_avg_max_pool2d(*sample.args)
        expected = reference.adaptive_avg_max_pool2d(*sample.args)
        assert_same(actual, expected, sample.args[0].shape[2:].numel())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_side(size, dtype):
    """Maps around the lanes of every level, in both memory orders, against torch's own ops."""
    for side in range(1, 36):
        x = torch.randn(2, 3, side, 36 - side, dtype=dtype)
        grid = (size, 8 - size)
        expected = torch.cat([F.adaptive_avg_pool2d(x, grid), F.adaptive_max_pool2d(x, grid)], 1)
        for layout in ("contiguous", "channels_last"):
            assert_same(ops.adaptive_avg_max_pool2d(in_layout(x, layout), *grid), expected, side**2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_number_of_channels(layout):
    x = torch.randn(2, 140, 5, 6)
    for channels in range(1, 140):
        part = x[:, :channels].contiguous()
        expected = reference.adaptive_avg_max_pool2d(part, 2, 3)
        assert_same(ops.adaptive_avg_max_pool2d(in_layout(part, layout), 2, 3), expected, 30)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded", "reversed", "unaligned"])
def test_layouts(layout, dtype):
    x = torch.randn(3, 20, 9, 13).to(dtype)
    if layout == "expanded":
        x = x[:1, :, :1].expand(3, 20, 9, 13)
        moved = x
    elif layout == "reversed":
        moved = x.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "unaligned":
        flat = torch.cat([x.new_zeros(1), x.reshape(-1)])
        moved = flat[1:].view(x.shape)
    else:
        moved = in_layout(x, layout)
    for size in ((4, 4), (9, 13), (1, 13)):
        expected = reference.adaptive_avg_max_pool2d(x.contiguous(), *size)
        assert_same(ops.adaptive_avg_max_pool2d(moved, *size), expected, 117)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("values", [("nan",), ("inf",), ("-inf",), ("inf", "-inf"), ("nan", "inf")])
def test_nan_and_infinity(values, layout, dtype):
    """Wherever they are, only the cells that hold them see them."""
    for (batch, channels, height, width), size in FILLED:
        if height * width > 200:
            continue
        x = torch.randn(batch, channels, height, width).to(dtype)
        for value in values:
            for at in torch.randint(0, x.numel(), (max(1, x.numel() // 40),)):
                x.view(-1)[at] = float(value)
        expected = reference.adaptive_avg_max_pool2d(x, *size)
        assert_same(ops.adaptive_avg_max_pool2d(in_layout(x, layout), *size), expected, 200)


def test_nothing_behind_the_map_is_read_into_it():
    """The last map of a storage, and one that is followed by NaN."""
    for channels in (1, 3, 17):
        for side in (1, 2, 3, 5, 7, 15):
            for layout in ("contiguous", "channels_last"):
                x = torch.randn(1, channels, side, side)
                stored = in_layout(x, layout)
                order = stored.permute(0, 2, 3, 1) if layout == "channels_last" else stored
                padded = torch.cat([order.reshape(-1), torch.full((64,), float("nan"))])
                view = padded[: x.numel()].view(order.shape)
                view = view.permute(0, 3, 1, 2) if layout == "channels_last" else view
                expected = reference.adaptive_avg_max_pool2d(x, 2, 3)
                assert_same(ops.adaptive_avg_max_pool2d(view, 2, 3), expected, side**2)
                assert_same(ops.adaptive_avg_max_pool2d(stored, 2, 3), expected, side**2)


def test_long_sums_keep_their_digits():
    """One cell over a large map of numbers near one; a sum in bfloat16 would stop at 256."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("contiguous", "channels_last"):
            x = in_layout((1 + torch.rand(1, 3, 300, 300)).to(dtype), layout)
            expected = x.double().mean((2, 3))
            actual = ops.adaptive_avg_max_pool2d(x, 1, 1)[:, :3, 0, 0]
            limit = 1e-5 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(actual.double(), expected, rtol=limit, atol=0)


def test_two_threads_give_the_same_bits():
    results = []
    for layout in ("contiguous", "channels_last"):
        x = in_layout(torch.randn(8, 70, 30, 30), layout)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            try:
                results.append(ops.adaptive_avg_max_pool2d(x, 4, 4))
            finally:
                torch.set_num_threads(1)
        assert torch.equal(*results[-2:])


def test_the_input_stays():
    x = torch.randn(2, 3, 8, 8)
    kept = x.clone()
    ops.adaptive_avg_max_pool2d(x, 8, 8).fill_(7)
    ops.adaptive_avg_max_pool2d(x, 4, 4).fill_(7)
    assert torch.equal(x, kept)


# --------------------------------------------------------------------------- gradients

# Few numbers: gradcheck calls the op twice for each.
GRADIENTS = [((2, 2, 4, 4), (2, 2)), ((1, 2, 5, 3), (3, 2)), ((1, 3, 2, 2), (3, 3))]
GRADIENTS += [((1, 2, 3, 3), (3, 3)), ((2, 1, 3, 4), (1, 1)), ((0, 2, 3, 3), (2, 2))]


@torch.jit.script
def scripted_pool(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return torch.ops.pathways.adaptive_avg_max_pool2d(x, height, width)


@pytest.mark.parametrize("shape, size", GRADIENTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("pool", [ops.adaptive_avg_max_pool2d, scripted_pool], ids=["eager", "jit"])
def test_gradients(pool, layout, shape, size):
    x = in_layout(torch.randn(shape, dtype=torch.float64), layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: pool(v, *size), x)
    assert torch.autograd.gradgradcheck(lambda v: pool(v, *size), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_against_reference(dtype):
    for shape, size in POOL_SHAPES:
        x = torch.randn(shape).to(dtype).requires_grad_()
        y = ops.adaptive_avg_max_pool2d(x, *size)
        grad = torch.randn_like(y)
        (actual,) = torch.autograd.grad(y, x, grad)
        wide = x.detach().double().requires_grad_()
        (expected,) = torch.autograd.grad(
            reference.adaptive_avg_max_pool2d(wide, *size), wide, grad.double()
        )
        assert actual.dtype == dtype
        limits = tolerance(dtype, 100)
        torch.testing.assert_close(actual.double(), expected, **limits)


def test_only_what_needs_a_gradient_pays_for_it():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert ops.adaptive_avg_max_pool2d(x, 4, 4).grad_fn is not None
    assert ops.adaptive_avg_max_pool2d(x.detach(), 4, 4).grad_fn is None
    with torch.no_grad():
        assert not ops.adaptive_avg_max_pool2d(x, 4, 4).requires_grad
    with torch.inference_mode():
        assert ops.adaptive_avg_max_pool2d(x.detach(), 4, 4).is_inference()


def test_derivatives_that_are_refused():
    x = torch.randn(1, 2, 4, 4)
    words = r"adaptive_avg_max_pool2d: derivatives by torch\.func and in forward mode"
    with pytest.raises(RuntimeError, match=words):
        torch.func.grad(lambda v: ops.adaptive_avg_max_pool2d(v, 2, 2).sum())(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match=words):
            ops.adaptive_avg_max_pool2d(dual, 2, 2)


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            (torch.ones(1, 2, 3, 3).int(), 2, 2),
            "x must be floating point (float64, float32, bfloat16 or float16), got int32",
        ),
        ((torch.ones(2, 3, 3), 2, 2), "x must have shape [N, C, H, W], got [2, 3, 3]"),
        (
            (torch.ones(1, 2, 0, 3), 2, 2),
            "x must have at least one row and one column, got [1, 2, 0, 3]",
        ),
        (
            (torch.ones(0, 2, 3, 0), 2, 2),
            "x must have at least one row and one column, got [0, 2, 3, 0]",
        ),
        ((torch.ones(1, 2, 3, 3), 0, 2), "height and width must be at least 1, got 0 and 2"),
        ((torch.ones(1, 2, 3, 3), 2, -1), "height and width must be at least 1, got 2 and -1"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)
def test_errors(device, arguments, message):
    x, *size = arguments
    for call in (ops.adaptive_avg_max_pool2d, torch.ops.pathways.adaptive_avg_max_pool2d):
        with pytest.raises(RuntimeError) as error:
            call(x.to(device), *size)
        assert str(error.value) == f"adaptive_avg_max_pool2d: {message}"


@pytest.mark.parametrize("size", [(1 << 40, 1), (1 << 62, 1 << 62)])
def test_results_that_no_machine_holds(size):
    with pytest.raises(RuntimeError) as error:
        ops.adaptive_avg_max_pool2d(torch.ones(1, 2, 3, 3), *size)
    assert str(error.value) == (
        "adaptive_avg_max_pool2d: the result must fit into memory, "
        f"got shape [1, 4, {size[0]}, {size[1]}] of float32"
    )


def test_no_channels():
    """Torch refuses these."""
    x = torch.ones(2, 0, 3, 3, requires_grad=True)
    y = ops.adaptive_avg_max_pool2d(x, 2, 4)
    assert y.shape == (2, 0, 2, 4)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_vast_grids_over_nothing():
    assert ops.adaptive_avg_max_pool2d(torch.ones(0, 2, 3, 3), 1 << 30, 1).shape[2] == 1 << 30

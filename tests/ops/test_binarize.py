"""binarize and _binarize_backward."""

import math

import pytest
import torch
from samples import DTYPES, LAYOUTS, in_layout, sample_inputs, tolerance

from pathways import ops
from pathways.ops import reference


def closed_form(r, sigma, gamma):
    """The derivative as it stands in the derivation, in float64, for 0 <= r <= 1."""
    t = min(r, 1 - r)
    kappa = math.exp(-1 / sigma**2)
    near, far = math.exp(-t), kappa * math.exp(-(1 - t))
    return gamma / (2 * math.sinh(gamma)) * (near + far) / (near - far)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_reference(dtype):
    for sample in sample_inputs("binarize", dtype):
        expected = reference.binarize(*sample.args)
        actual = ops.binarize(*sample.args)
        assert actual.dtype == dtype and actual.shape == sample.args[0].shape
        assert torch.equal(actual, expected), sample.name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_against_softmax_form(dtype):
    for sample in sample_inputs("_binarize_backward", dtype):
        grad, importance, *constants = sample.args
        importance = importance.clone().requires_grad_()
        (expected,) = torch.autograd.grad(
            reference.binarize(importance, *constants), importance, grad
        )
        (actual,) = torch.autograd.grad(ops.binarize(importance, *constants), importance, grad)
        bounds = tolerance(dtype)
        # The softmax form loses digits where the two scores are close.
        bounds["rtol"] = max(bounds["rtol"], 1e-5 if dtype != torch.float64 else 1e-13)
        torch.testing.assert_close(actual, expected, **bounds)


@pytest.mark.parametrize("sigma, gamma", [(1.0, 2.0), (2.0, 2.0), (0.5, 1.0), (3.0, 6.0)])
def test_gradient_is_the_closed_form(sigma, gamma):
    r = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    ops.binarize(r, sigma, gamma).sum().backward()
    expected = torch.tensor([closed_form(v, sigma, gamma) for v in r.tolist()], dtype=r.dtype)
    torch.testing.assert_close(r.grad, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(r.grad, r.grad.flip(0), rtol=1e-12, atol=0)
    assert (r.grad > 0).all() and r.grad.argmax() == 50


@pytest.mark.parametrize(
    "sigma, values", [(1.0, (0.362, 0.434, 0.597)), (2.0, (0.497, 0.769, 2.217))]
)
def test_worked_values(sigma, values):
    """Slopes at distances 0, 1/4 and 1/2 from the nearer level for gamma = 2, by hand."""
    r = torch.tensor([0.0, 0.25, 0.5], requires_grad=True)
    ops.binarize(r, sigma, 2.0).sum().backward()
    torch.testing.assert_close(r.grad, torch.tensor(values), rtol=0, atol=5e-4)


def test_gradient_is_the_surrogate_of_gradcheck():
    """The derivative of a smooth function with this slope: checks sign, chain rule and layout."""

    class Surrogate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            scale = 2 / (2 * math.sinh(2))
            u = 0.5 * (1 + (2 * x - 1).abs())
            # Integral of scale / tanh(u) over x; u has slope -1 below one half and +1 above.
            whole = torch.log(torch.sinh(u))
            return scale * torch.where(x < 0.5, -whole, whole)

        @staticmethod
        def backward(ctx, grad):
            return torch.ops.pathways._binarize_backward(grad, ctx.saved_tensors[0], 1.0, 2.0)

    x = torch.rand(4, 5, dtype=torch.float64)
    x = torch.where((x - 0.5).abs() < 0.01, x + 0.1, x).requires_grad_()
    assert torch.autograd.gradcheck(Surrogate.apply, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_and_bounds(dtype):
    eps = torch.finfo(dtype).eps
    values = [-float("inf"), -1.0, -0.0, 0.0, 0.5 - eps / 2, 0.5, 0.5 + eps, 1.0, 1 + eps, 7.0]
    r = torch.tensor([*values, float("inf")], dtype=dtype, requires_grad=True)
    mask = ops.binarize(r)
    assert mask.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    mask.sum().backward()
    assert [g > 0 for g in r.grad.tolist()] == [False, False, *[True] * 6, False, False, False]


def test_large_sigma_is_finite_at_the_tie():
    for dtype in DTYPES:
        r = torch.tensor([0.5], dtype=dtype, requires_grad=True)
        ops.binarize(r, 100.0, 2.0).backward()
        assert r.grad.isfinite().all()


def test_applying_twice_is_applying_once():
    once = ops.binarize(torch.rand(100))
    assert torch.equal(ops.binarize(once), once)
    assert set(once.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    x = torch.rand(3, 4, 5, 6)
    moved = in_layout(x, layout)
    assert torch.equal(ops.binarize(moved), ops.binarize(x))
    assert ops.binarize(moved).is_contiguous()
    grad = torch.randn_like(x)
    expected = torch.ops.pathways._binarize_backward(grad, x)
    actual = torch.ops.pathways._binarize_backward(in_layout(grad, "permuted"), moved)
    assert torch.equal(actual, expected)


def test_nan_is_refused():
    importance = torch.rand(100_000)
    importance[77_777] = float("nan")
    with pytest.raises(RuntimeError) as error:
        ops.binarize(importance)
    assert str(error.value) == "binarize: importance must not contain NaN, got NaN"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            (torch.ones(3).int(),),
            "importance must be floating point (float64, float32, bfloat16 or float16), got int32",
        ),
        ((torch.ones(3), 0.0), "sigma must be positive and finite, got 0"),
        ((torch.ones(3), float("inf")), "sigma must be positive and finite, got inf"),
        ((torch.ones(3), 1.0, -2.0), "gamma must be positive and finite, got -2"),
        ((torch.ones(3), 1.0, float("nan")), "gamma must be positive and finite, got nan"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)
def test_errors(device, arguments, message):
    importance, *constants = arguments
    importance = importance.to(device)
    with pytest.raises(RuntimeError) as error:
        ops.binarize(importance, *constants)
    assert str(error.value) == f"binarize: {message}"
    with pytest.raises(RuntimeError) as error:
        torch.ops.pathways._binarize_backward(importance, importance, *constants)
    assert str(error.value) == f"_binarize_backward: {message}"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_backward_errors(device):
    importance = torch.ones(3, device=device)
    with pytest.raises(RuntimeError) as error:
        torch.ops.pathways._binarize_backward(importance[:2], importance)
    assert str(error.value) == (
        "_binarize_backward: grad must have the shape and dtype of importance "
        "(got importance=[3] float32, grad=[2] float32)"
    )


def test_differentiation_errors():
    importance = torch.rand(5, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.binarize(importance).sum(), importance, create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"binarize: the backward pass is not differentiable; use pathways"
    ):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match=r"binarize: derivatives by torch.func"):
        torch.func.grad(lambda v: ops.binarize(v).sum())(importance.detach())

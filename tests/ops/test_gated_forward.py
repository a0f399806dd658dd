"""gated_forward, gated_forward_ and _gated_backward."""

import pytest
import torch
from samples import ACTIVATIONS, DTYPES, LAYOUTS, in_layout, make_gate, sample_inputs, tolerance

from pathways import ops
from pathways.ops import reference

KINDS = ("input", "shared", "vector", "unit")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_reference(dtype):
    for sample in sample_inputs("gated_forward", dtype):
        expected = reference.gated_forward(*sample.args, **sample.kwargs)
        actual = ops.gated_forward(*sample.args, **sample.kwargs)
        assert actual.dtype == dtype, sample.name
        torch.testing.assert_close(
            actual, expected, **tolerance(dtype), msg=lambda m, s=sample: f"{s.name}: {m}"
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_equals_functional(dtype):
    for sample in sample_inputs("gated_forward_", dtype):
        expected = ops.gated_forward(*sample.args, **sample.kwargs)
        x = sample.args[0].clone()
        assert ops.gated_forward_(x, *sample.args[1:], **sample.kwargs) is x
        assert torch.equal(x, expected), sample.name


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 65, 7), (3, 6), (2, 3, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [*KINDS, "unit_bool"])
def test_layouts(shape, layout, kind):
    x = torch.randn(shape)
    gate = make_gate(kind, shape, torch.float32)
    bias, baseline = torch.randn(shape[1]), torch.randn(shape[1])
    kwargs = {"bias": bias, "baseline": baseline, "activation": "relu"}
    expected = reference.gated_forward(x, gate, **kwargs)
    moved = in_layout(x, layout)
    before = moved.clone()
    actual = ops.gated_forward(moved, gate, **kwargs)
    torch.testing.assert_close(actual, expected, **tolerance(x.dtype))
    assert torch.equal(moved, before), "the input was written to"
    keeps = layout in ("contiguous", "channels_last") or moved.is_contiguous()
    assert actual.stride() == (moved.stride() if keeps else x.stride())
    if kind.startswith("unit"):
        # The layout of the gate is independent of that of x.
        other = ops.gated_forward(moved, in_layout(gate, "permuted"), **kwargs)
        assert torch.equal(other, actual)
    strides = moved.stride()
    ops.gated_forward_(moved, gate, **kwargs)
    assert torch.equal(moved, actual)
    assert moved.stride() == strides


def test_in_place_leaves_the_rest_of_a_sliced_tensor():
    wide = torch.ones(4, 6, 5)
    ops.gated_forward_(wide[1:3, 1:4, 1:3], torch.zeros(3))
    assert wide.sum() == 4 * 6 * 5 - 2 * 3 * 2


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", KINDS)
def test_ones_are_bit_exact(activation, dtype, layout, kind):
    x = (6 * torch.randn(3, 5, 7, 9)).to(dtype)
    x[0, 0, 0, :4] = torch.tensor([0.0, -0.0, float("inf"), -float("inf")])
    x[1, 2, 3, 4] = float("nan")
    x = in_layout(x, layout)
    torch_function = {"none": lambda v: v, "relu": torch.relu, "relu6": torch.nn.functional.relu6}
    expected = torch_function[activation](x)
    gate = torch.ones_like(make_gate(kind, x.shape, dtype))
    actual = ops.gated_forward(x, gate, activation=activation)
    # NaN is compared as NaN: its payload depends on how torch converts a vector of bfloat16.
    assert torch.equal(actual.isnan(), x.isnan())
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()]
    numbers = ~x.isnan()
    assert torch.equal(actual[numbers].view(integers), expected[numbers].view(integers))
    bias = torch.randn(5).to(dtype)
    expected = torch_function[activation](x + bias[:, None, None])
    actual = ops.gated_forward(x, gate, bias=bias, activation=activation)
    assert torch.equal(actual.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ones_are_the_activation(activation):
    x = 3 * torch.randn(2, 4, 8, dtype=torch.float64)
    expected = reference.ACTIVATIONS[activation](x)
    actual = ops.gated_forward(x, torch.ones(4), activation=activation)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_read_nothing(activation, layout, kind):
    x = in_layout(torch.full((2, 3, 4, 4), float("nan")), layout)
    x[:, 1] = float("inf")
    gate = torch.zeros_like(make_gate(kind, x.shape, x.dtype))
    assert torch.equal(ops.gated_forward(x, gate, activation=activation), torch.zeros(2, 3, 4, 4))
    baseline = torch.tensor([1.5, -2.0, 0.1])
    actual = ops.gated_forward(x, gate, activation=activation, baseline=baseline)
    assert torch.equal(actual, baseline[:, None, None].expand(2, 3, 4, 4))
    grad = torch.full_like(x, float("inf"))
    grad_x = torch.ops.pathways._gated_backward(grad, x, gate, activation=activation)[0]
    assert torch.equal(grad_x, torch.zeros(2, 3, 4, 4)), "gradient leaks through a closed gate"


def test_nan_propagates_where_the_gate_is_open():
    x = torch.tensor([[[float("nan"), -1.0], [1.0, float("nan")]]])
    for activation in ACTIVATIONS:
        y = ops.gated_forward(x, torch.tensor([[1.0, 0.5]]), activation=activation)
        assert torch.equal(y.isnan(), x.isnan())


def test_gating_twice_is_gating_once():
    x = torch.randn(2, 5, 3)
    gate = torch.rand(2, 5) > 0.5
    once = ops.gated_forward(x, gate, activation="relu")
    assert torch.equal(ops.gated_forward(once, gate, activation="relu"), once)


def test_bool_equals_float():
    x = torch.randn(2, 5, 3, 3)
    for kind in ("input_bool", "unit_bool"):
        gate = make_gate(kind, x.shape, x.dtype)
        for dtype in DTYPES:
            assert torch.equal(ops.gated_forward(x, gate), ops.gated_forward(x, gate.to(dtype)))


@pytest.mark.parametrize("kind", KINDS)
def test_gate_keeps_its_precision(kind):
    """A float32 gate of a bfloat16 activation is not rounded to bfloat16 first."""
    x = torch.full((2, 3, 4), 256.0, dtype=torch.bfloat16)
    gate = torch.full_like(make_gate(kind, x.shape, torch.float32), 1.0 - 2.0**-8)
    assert gate.to(torch.bfloat16).max() == 1.0 - 2.0**-8
    finer = torch.full_like(gate, 1.0 - 3 * 2.0**-9)
    assert torch.equal(ops.gated_forward(x, gate), torch.full_like(x, 255.0))
    assert torch.equal(ops.gated_forward(2 * x, finer), torch.full_like(x, 509.0).to(x.dtype))


def test_batch_equals_single():
    x, gate = torch.randn(5, 3, 4, 4), torch.rand(5, 3)
    whole = ops.gated_forward(x, gate, activation="silu")
    for n in range(5):
        single = ops.gated_forward(x[n : n + 1], gate[n : n + 1], activation="silu")
        assert torch.equal(single[0], whole[n])


def test_threads_do_not_change_results():
    x, gate, grad = torch.randn(4, 70, 30, 30), torch.rand(1, 70), torch.randn(4, 70, 30, 30)
    for layout in ("contiguous", "channels_last"):
        moved = in_layout(x, layout)
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            try:
                y = ops.gated_forward(moved, gate, activation="gelu")
                grads = torch.ops.pathways._gated_backward(
                    grad, moved, gate, bias=x[0, :, 0, 0], activation="gelu", need_bias=True
                )
                results.append((y, *grads))
            finally:
                torch.set_num_threads(1)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# --------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_gradcheck(activation, kind, layout):
    x = 3 * torch.randn(2, 3, 2, 3, dtype=torch.float64)
    # Away from the kinks of relu and relu6, where there is no derivative to check.
    x = torch.where((x.abs() < 0.1) | ((x - 6).abs() < 0.1), x + 0.3, x)
    gate = make_gate(kind, x.shape, torch.float64)
    leaves = (in_layout(x, layout).detach().requires_grad_(), gate.requires_grad_())
    bias = torch.full((3,), 0.01, dtype=torch.float64, requires_grad=True)
    baseline = torch.randn(3, dtype=torch.float64)

    def function(x, gate, bias):
        return ops.gated_forward(x, gate, bias=bias, activation=activation, baseline=baseline)

    # The op is not differentiable at gates 0 and 1 in floating point, but equals the smooth formula
    # there and near there.
    assert torch.autograd.gradcheck(function, (*leaves, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_against_reference(dtype):
    for sample in sample_inputs("_gated_backward", dtype):
        grad, x, gate = sample.args
        kwargs = dict(sample.kwargs)
        need_gate, need_bias = kwargs.pop("need_gate"), kwargs.pop("need_bias")
        leaves = [x.clone().requires_grad_()]
        if need_gate:
            gate = gate.clone().requires_grad_()
            leaves.append(gate)
        if need_bias:
            kwargs["bias"] = kwargs["bias"].clone().requires_grad_()
            leaves.append(kwargs["bias"])
        expected = torch.autograd.grad(
            reference.gated_forward(leaves[0], gate, **kwargs), leaves, grad
        )
        actual = torch.autograd.grad(ops.gated_forward(leaves[0], gate, **kwargs), leaves, grad)
        for leaf, e, a in zip(leaves, expected, actual, strict=True):
            assert a.dtype == leaf.dtype and a.shape == leaf.shape
            torch.testing.assert_close(
                a, e, **tolerance(dtype, x.numel()), msg=lambda m, s=sample: f"{s.name}: {m}"
            )


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 130, 7), (3, 6)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_backward_layouts(shape, layout, kind):
    x, grad = torch.randn(shape), torch.randn(shape)
    gate = make_gate(kind, shape, torch.float32)
    bias = torch.randn(shape[1])
    kwargs = {"bias": bias, "activation": "silu", "need_bias": True}
    expected = torch.ops.pathways._gated_backward(grad, x, gate, **kwargs)
    moved = in_layout(x, layout)
    actual = torch.ops.pathways._gated_backward(in_layout(grad, "permuted"), moved, gate, **kwargs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, **tolerance(torch.float32, x.numel()))


def test_reduction_stays_exact_over_many_elements():
    """A float32 running sum of 2^20 terms drifts; blocks with float64 totals do not."""
    x = torch.full((1, 2, 1 << 20), 0.1)
    grad = torch.ones_like(x)
    for layout in ("contiguous", "channels_last"):
        _, grad_gate, grad_bias = torch.ops.pathways._gated_backward(
            grad, in_layout(x, layout), torch.ones(2), bias=torch.zeros(2), need_bias=True
        )
        torch.testing.assert_close(grad_gate, torch.full((2,), 0.1 * (1 << 20)), rtol=1e-5, atol=0)
        assert torch.equal(grad_bias, torch.full((2,), float(1 << 20)))


def test_only_asked_gradients_are_computed():
    x, gate, bias = torch.randn(2, 3, 4), torch.rand(2, 3), torch.randn(3)
    results = torch.ops.pathways._gated_backward(
        x, x, gate, bias=bias, need_x=False, need_gate=False, need_bias=False
    )
    assert [list(r.shape) for r in results] == [[0], [0], [0]]
    gate.requires_grad_()
    (grad,) = torch.autograd.grad(ops.gated_forward(x, gate, bias=bias).sum(), gate)
    torch.testing.assert_close(grad, (x + bias[:, None]).sum(2))


def test_no_gradient_is_recorded_without_need():
    x, gate = torch.randn(2, 3, requires_grad=True), torch.rand(2, 3)
    with torch.no_grad():
        assert not ops.gated_forward(x, gate).requires_grad
    assert not ops.gated_forward(x.detach(), gate).requires_grad
    with torch.inference_mode():
        assert torch.equal(ops.gated_forward_(torch.ones(1, 3), gate[:1]), gate[:1])


@pytest.mark.parametrize("inference", [False, True])
def test_in_place_is_noticed_by_autograd(inference):
    """Inference mode leaves autograd out, but x may be from outside of it."""
    x = torch.randn(2, 3)
    w = torch.randn(2, 3, requires_grad=True)
    y = w * x
    with torch.inference_mode(inference):
        ops.gated_forward_(x, torch.zeros(3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --------------------------------------------------------------------------- errors

X = torch.zeros(2, 3, 4, 4)
G = torch.ones(2, 3)
ERRORS = [
    (
        {"x": X.long()},
        "x must be floating point (float64, float32, bfloat16 or float16), got int64",
    ),
    (
        {"x": X.to(torch.complex64)},
        "x must be floating point (float64, float32, bfloat16 or float16), got complex64",
    ),
    ({"x": torch.zeros(3)}, "x must have at least 2 dimensions [N, C, ...], got shape [3]"),
    (
        {"activation": "tanh"},
        "activation must be one of none, relu, relu6, silu, gelu, got 'tanh'",
    ),
    ({"gate": G.int()}, "gate must be floating point or bool, got int32"),
    (
        {"gate": torch.ones(2, 4)},
        "gate must have shape [N, C], [1, C], [C] or the shape of x "
        "(got x=[2, 3, 4, 4], gate=[2, 4])",
    ),
    (
        {"gate": torch.ones(3, 3)},
        "gate must have shape [N, C], [1, C], [C] or the shape of x "
        "(got x=[2, 3, 4, 4], gate=[3, 3])",
    ),
    (
        {"gate": torch.ones(2, 3, 1, 1)},
        "gate must have shape [N, C], [1, C], [C] or the shape of x "
        "(got x=[2, 3, 4, 4], gate=[2, 3, 1, 1])",
    ),
    ({"bias": torch.ones(4)}, "bias must have shape [C] = [3], got [4]"),
    ({"bias": torch.ones(3, 1)}, "bias must have shape [C] = [3], got [3, 1]"),
    (
        {"bias": torch.ones(3).int()},
        "bias must be floating point (float64, float32, bfloat16 or float16), got int32",
    ),
    ({"baseline": torch.ones(2)}, "baseline must have shape [C] = [3], got [2]"),
    (
        {"baseline": torch.ones(3).bool()},
        "baseline must be floating point (float64, float32, bfloat16 or float16), got bool",
    ),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("changes, message", ERRORS, ids=[m[:40] for _, m in ERRORS])
def test_errors(changes, message, device):
    arguments = {"x": X, "gate": G, **changes}
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    x, gate = arguments.pop("x"), arguments.pop("gate")
    for name in ("gated_forward", "gated_forward_"):
        with pytest.raises(RuntimeError) as error:
            getattr(ops, name)(x, gate, **arguments)
        assert str(error.value) == f"{name}: {message}"
    with pytest.raises(RuntimeError) as error:
        torch.ops.pathways._gated_backward(x, x, gate, **arguments)
    assert str(error.value) == f"_gated_backward: {message}"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_backward_errors(device):
    x, gate = X.to(device), G.to(device)
    backward = torch.ops.pathways._gated_backward
    cases = [
        (
            lambda: backward(x[:1], x, gate),
            "_gated_backward: grad must have the shape and dtype of x "
            "(got x=[2, 3, 4, 4] float32, grad=[1, 3, 4, 4] float32)",
        ),
        (
            lambda: backward(x.double(), x, gate),
            "_gated_backward: grad must have the shape and dtype of x "
            "(got x=[2, 3, 4, 4] float32, grad=[2, 3, 4, 4] float64)",
        ),
        (
            lambda: backward(x, x, gate.bool()),
            "_gated_backward: gate must be floating point when its gradient is asked for, got bool",
        ),
        (
            lambda: backward(x, x, gate, need_bias=True),
            "_gated_backward: bias must be a tensor when its gradient is asked for, got None",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError) as error:
            call()
        assert str(error.value) == message


def test_device_mismatch():
    with pytest.raises(
        RuntimeError,
        match=r"gated_forward: x and gate must be on the same device \(got x=meta, gate=cpu\)",
    ):
        ops.gated_forward(X.to("meta"), G)


def test_differentiation_errors():
    x = torch.randn(2, 3, requires_grad=True)
    gate = torch.rand(2, 3)
    with pytest.raises(
        RuntimeError, match=r"gated_forward_: arguments must not require a gradient"
    ):
        ops.gated_forward_(x, gate)
    with pytest.raises(RuntimeError, match=r"gated_forward: baseline must not require a gradient"):
        ops.gated_forward(x, gate, baseline=torch.ones(3, requires_grad=True))
    (grad,) = torch.autograd.grad(
        ops.gated_forward(x, gate, activation="silu").sum(), x, create_graph=True
    )
    with pytest.raises(
        RuntimeError, match=r"gated_forward: the backward pass is not differentiable; use pathways"
    ):
        grad.sum().backward()


def test_functional_derivatives_are_refused():
    x, gate = torch.randn(2, 3), torch.rand(2, 3)
    message = r"gated_forward: derivatives by torch.func and in forward mode are not supported"
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda v: ops.gated_forward(v, gate).sum())(x)
    with pytest.raises(RuntimeError, match=message):
        torch.func.vmap(torch.func.grad(lambda v: ops.gated_forward(v, gate).sum()))(
            x.expand(4, 2, 3)
        )
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(lambda v: ops.gated_forward(v, gate), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(RuntimeError, match=message):
            ops.gated_forward(dual, gate)
        assert ops.gated_forward(x, gate).shape == x.shape
    # The reference serves them.
    torch.func.vmap(torch.func.grad(lambda v: reference.gated_forward(v, gate).sum()))(
        x.expand(4, 2, 3)
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_a_loop():
    x, gate = torch.randn(4, 2, 3, 5), torch.rand(4, 2, 3)
    expected = torch.stack([ops.gated_forward(v, g) for v, g in zip(x, gate, strict=True)])
    assert torch.equal(torch.func.vmap(ops.gated_forward)(x, gate), expected)


def test_faces_call_the_same_op_whatever_the_mode():
    """Without gradients the faces go past autograd; nothing else may change."""
    x, gate = torch.randn(2, 3, 4), torch.rand(2, 3)
    expected = torch.ops.pathways.gated_forward(x, gate, activation="silu")
    with torch.no_grad():
        needs = x.clone().requires_grad_()
        assert not ops.gated_forward(needs, gate, activation="silu").requires_grad
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(ops.gated_forward(x, gate, activation="silu"), expected)
            written = x.clone()
            ops.gated_forward_(written, gate, activation="silu")
            assert torch.equal(written, expected)
    parameter = torch.nn.Parameter(gate)
    assert ops.gated_forward(x, parameter).requires_grad
    with pytest.raises(RuntimeError, match="must not require a gradient"):
        ops.gated_forward_(x.clone(), parameter)
    with pytest.raises(RuntimeError, match=r"derivatives by torch\.func"):
        torch.func.grad(lambda g: ops.gated_forward(x, g).sum())(gate)
    weight = torch.randn(2, 3, 4, requires_grad=True)
    saved = x.clone()
    product = weight * saved
    ops.gated_forward_(saved, gate)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()

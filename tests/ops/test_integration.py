"""Every op under opcheck, torch.compile, TorchScript and torch.export."""

import io

import pytest
import torch
from samples import OPS, sample_inputs, sample_params
from torch import Tensor

from pathways import ops


def overload(name):
    return getattr(torch.ops.pathways, name).default


def with_gradients(sample):
    """The arguments of a differentiable op, its floating-point tensors requiring gradients."""
    args = [
        a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in sample.args
    ]
    kwargs = {k: v.clone().requires_grad_() if k == "bias" else v for k, v in sample.kwargs.items()}
    return args, kwargs


OPCHECK = [param for name in OPS for param in sample_params(name)[:: 7 if "gated" in name else 2]]


@pytest.mark.parametrize("name, sample", [(p.id.split("-")[0], p.values[0]) for p in OPCHECK])
def test_opcheck(name, sample):
    torch.library.opcheck(overload(name), sample.args, sample.kwargs)


@pytest.mark.parametrize("name", ["gated_forward", "binarize", "adaptive_avg_max_pool2d"])
def test_opcheck_with_gradients(name):
    for sample in sample_inputs(name)[1::5]:
        args, kwargs = with_gradients(sample)
        torch.library.opcheck(overload(name), args, kwargs)


def test_fake_layouts_match():
    """What the fake kernels promise about strides, for inputs in every memory order."""
    from samples import LAYOUTS, in_layout
    from torch._subclasses import FakeTensorMode

    for shape in ((2, 3, 4, 5), (2, 5, 7), (2, 3), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1)):
        for layout in LAYOUTS:
            x = in_layout(torch.randn(shape), layout)
            for gate in (torch.rand(shape[:2]), torch.rand(shape, dtype=torch.float64)):
                real = torch.ops.pathways._gated_backward(x, x, gate)
                y = torch.ops.pathways.gated_forward(x, gate)
                with FakeTensorMode() as mode:
                    fake_x, fake_gate = mode.from_tensor(x), mode.from_tensor(gate)
                    fake = torch.ops.pathways._gated_backward(fake_x, fake_x, fake_gate)
                    fake_y = torch.ops.pathways.gated_forward(fake_x, fake_gate)
                for r, f in zip((y, *real), (fake_y, *fake), strict=True):
                    assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride())


# --------------------------------------------------------------------------- compile


def everything(x: Tensor, importance: Tensor, bias: Tensor, labels: Tensor):
    """One function that calls every public op, so that one compilation proves them all."""
    mask = torch.ops.pathways.binarize(importance)
    y = torch.ops.pathways.gated_forward(x, mask, bias=bias, activation="silu")
    z = y.detach() * 2
    torch.ops.pathways.gated_forward_(z, mask.detach(), activation="relu")
    pooled = torch.ops.pathways.adaptive_avg_max_pool2d(x, 2, 2)
    words = torch.ops.pathways.pack_bits(mask.detach())
    unpacked = torch.ops.pathways.unpack_bits(words, 70)
    shared = torch.ops.pathways.pairwise_intersection(words, words)
    iou = torch.ops.pathways.pairwise_iou(words, words)
    overlap = torch.ops.pathways.class_overlap(words, labels, 3)
    frequency = torch.ops.pathways.class_frequency(words, labels, 3, 70)
    return y + pooled.mean(), z, pooled, unpacked, shared, iou, *overlap, frequency


def everything_inputs(n):
    generator = torch.Generator().manual_seed(n)
    return (
        torch.randn(n, 70, 3, 3, generator=generator, requires_grad=True),
        torch.rand(n, 70, generator=generator, requires_grad=True),
        torch.randn(70, generator=generator, requires_grad=True),
        torch.arange(n) % 3,
    )


@pytest.mark.slow
def test_compile():
    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, dynamic=True)
    for n in (4, 7):
        inputs = everything_inputs(n)
        expected, actual = everything(*inputs), compiled(*inputs)
        for e, a in zip(expected, actual, strict=True):
            torch.testing.assert_close(a, e)
        weight = torch.randn_like(expected[0])
        grads = torch.autograd.grad(expected[0], inputs[:3], weight)
        compiled_grads = torch.autograd.grad(actual[0], inputs[:3], weight)
        for e, a in zip(grads, compiled_grads, strict=True):
            torch.testing.assert_close(a, e)


def test_compiled_faces_break_no_graph():
    """The Python faces and the backward ops, traced without generating code."""

    def function(x, importance):
        mask = ops.binarize(importance, 2.0)
        y = ops.gated_forward(x, mask, activation="gelu")
        return ops.adaptive_avg_max_pool2d(y, 2, 1).square().sum() + ops.pack_bits(mask).sum()

    torch._dynamo.reset()
    x, importance, _, _ = everything_inputs(3)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    expected = torch.autograd.grad(function(x, importance), (x, importance))
    actual = torch.autograd.grad(compiled(x, importance), (x, importance))
    for e, a in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, e)


def test_errors_read_the_same_when_compiled():
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def function(x):
        return torch.ops.pathways.gated_forward(x, x.new_ones(4))

    with pytest.raises(Exception, match=r"gated_forward: gate must have shape \[N, C\]"):
        function(torch.zeros(2, 3))


# --------------------------------------------------------------------------- TorchScript


class Everything(torch.nn.Module):
    def forward(self, x: Tensor, importance: Tensor, bias: Tensor, labels: Tensor):
        mask = torch.ops.pathways.binarize(importance)
        y = torch.ops.pathways.gated_forward(x, mask, bias=bias, activation="silu")
        z = y.detach() * 2
        torch.ops.pathways.gated_forward_(z, mask.detach(), activation="relu")
        pooled = torch.ops.pathways.adaptive_avg_max_pool2d(x, 2, 2)
        words = torch.ops.pathways.pack_bits(mask.detach())
        unpacked = torch.ops.pathways.unpack_bits(words, 70)
        shared = torch.ops.pathways.pairwise_intersection(words, words)
        iou = torch.ops.pathways.pairwise_iou(words, words)
        sums, pairs = torch.ops.pathways.class_overlap(words, labels, 3)
        frequency = torch.ops.pathways.class_frequency(words, labels, 3, 70)
        return y + pooled.mean(), z, pooled, unpacked, shared, iou, sums, pairs, frequency


def test_script():
    """Scripted, saved and loaded: equal values, and gradients while Python holds the rules."""
    inputs = everything_inputs(4)
    expected = everything(*inputs)
    scripted = torch.jit.script(Everything())
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    for module in (scripted, torch.jit.load(buffer)):
        actual = module(*inputs)
        for e, a in zip(expected, actual, strict=True):
            assert torch.equal(e, a)
        weight = torch.randn_like(expected[0])
        expected_grads = torch.autograd.grad(expected[0], inputs[:3], weight, retain_graph=True)
        for e, a in zip(
            expected_grads, torch.autograd.grad(actual[0], inputs[:3], weight), strict=True
        ):
            assert torch.equal(e, a)


def test_script_faces():
    """Faces without keyword-only arguments, unknown to TorchScript, can be scripted as they are."""
    mask = torch.rand(3, 70) > 0.5
    words = torch.jit.script(ops.pack_bits)(mask)
    assert torch.equal(torch.jit.script(ops.unpack_bits)(words, 70), mask)
    for face in (ops.binarize, ops.pairwise_iou, ops.class_overlap, ops.class_frequency):
        torch.jit.script(face)
    x = torch.randn(2, 3, 5, 5)
    pool = torch.jit.script(ops.adaptive_avg_max_pool2d)
    assert torch.equal(pool(x, 2, 3), ops.adaptive_avg_max_pool2d(x, 2, 3))


@torch.jit.script
def scripted_gate(x: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.pathways.gated_forward(x, gate, bias=bias, activation="gelu")


def test_script_gradcheck():
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scripted_gate, (x, gate, bias))


def test_freeze_keeps_the_op():
    frozen = torch.jit.freeze(torch.jit.script(Everything()).eval())
    assert "pathways::gated_forward" in str(frozen.graph)


# --------------------------------------------------------------------------- export


def test_export_dynamic_batch(tmp_path):
    inputs = tuple(t.detach() for t in everything_inputs(4))
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = ({0: batch}, {0: batch}, None, {0: batch})
    program = torch.export.export(Everything(), inputs, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "everything.pt2")
    program = torch.export.load(tmp_path / "everything.pt2")
    for n in (1, 4, 9):
        inputs = tuple(t.detach() for t in everything_inputs(n))
        for e, a in zip(everything(*inputs), program.module()(*inputs), strict=True):
            torch.testing.assert_close(a, e)


def test_export_backward_op():
    """Gradients for exported programs, which have no autograd: the backward op by name."""

    class Gradient(torch.nn.Module):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            y = torch.ops.pathways.gated_forward(x, gate, activation="relu")
            return torch.ops.pathways._gated_backward(y, x, gate, activation="relu")[0]

    x, gate = torch.randn(3, 2, 4), torch.rand(3, 2)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Gradient(), (x, gate), dynamic_shapes=({0: batch}, {0: batch}))
    x, gate = torch.randn(5, 2, 4), torch.rand(5, 2)
    assert torch.equal(program.module()(x, gate), Gradient()(x, gate))


@pytest.mark.slow
def test_native_program(tmp_path):
    """Pooling inside compiled code, traced below autograd as exported explainers are."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x):
        return ops.adaptive_avg_max_pool2d(x.relu(), 2, 3) + 1

    x = torch.randn(11, 3, 5, 7)
    with torch.no_grad():
        traced = make_fx(function, tracing_mode="symbolic")(x)
    assert "pathways.adaptive_avg_max_pool2d" in traced.code
    program = torch.export.export(traced, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "pool.pt2")
    )
    run = torch._inductor.aoti_load_package(package)
    for n in (1, 4, 30):
        x = torch.randn(n, 3, 5, 7)
        torch.testing.assert_close(run(x), function(x))

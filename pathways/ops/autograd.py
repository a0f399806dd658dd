"""Gradients of the compiled ops: backward rules that only call backward ops, ours or torch's.

The kernels are registered under the ``Autograd`` key directly, as
``torch.library.register_autograd`` does internally. That function itself refuses schemas with
keyword-only tensors, and ``bias`` is one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("pathways", "IMPL")


def _refuse_derivatives(op: str, *tensors: Tensor | None) -> None:
    """Refuse what would fail obscurely or, in forward mode, lose the derivative silently."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    # The tangents are looked for only inside a dual level: this runs at every call.
    if not transformed and forward_ad._current_level >= 0:
        transformed = any(
            tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None
            for tensor in tensors
        )
    if transformed:
        raise RuntimeError(
            f"{op}: derivatives by torch.func and in forward mode are not supported; "
            f"use pathways.ops.reference.{op}"
        )


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def _is_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether autograd would only hand a call with these tensors on."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    if transformed or forward_ad._current_level >= 0:
        return False
    records = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) is not Tensor or (records and tensor.requires_grad):
            return False
    return True


def call_gated(
    op: Any,
    x: Tensor,
    gate: Tensor,
    bias: Tensor | None,
    activation: str,
    baseline: Tensor | None,
    *,
    written: Tensor | None = None,
) -> Any:
    """Call a gating op, past autograd at once where autograd would only hand the call on.

    The kernels of this file are in Python: on the way through one a call takes twice the time.

    Args:
        op (OpOverload): what to call.
        x, gate, bias, activation, baseline: its arguments.
        written (Tensor, optional): the argument that the op writes into.
    """
    # Only what is given: to match an argument by name costs as much as to check all of them here.
    options: dict[str, Any] = {"activation": activation}
    if bias is not None:
        options["bias"] = bias
    if baseline is not None:
        options["baseline"] = baseline
    if torch.compiler.is_compiling() or not _is_plain((x, gate, bias, baseline)):
        return op(x, gate, **options)
    result = _past_autograd(op, x, gate, **options)
    if written is not None:
        _bump_version(written)
    return result


def call_pool(op: Any, x: Tensor, height: int, width: int) -> Any:
    """Call a pooling op, past autograd at once as :func:`call_gated` does."""
    if torch.compiler.is_compiling() or not _is_plain((x,)):
        return op(x, height, width)
    return _past_autograd(op, x, height, width)


def _past_autograd(op: Any, *args: Any, **kwargs: Any) -> Any:
    # _op is what OpOverload.__call__ hands everything to. In inference mode the dispatcher leaves
    # autograd out by itself.
    if torch.is_inference_mode_enabled():
        return op._op(*args, **kwargs)
    with torch._C._AutoDispatchBelowAutograd():
        return op._op(*args, **kwargs)


def _bump_version(written: Tensor) -> None:
    """What autograd saved of a tensor is no longer there: let it notice."""
    if not written.is_inference():
        torch.autograd.graph.increment_version(written)


def _below(op: Any, keyset: Any, *args: Any, **kwargs: Any) -> Any:
    """Call ``op`` where autograd has been passed."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)


def _backward_op(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a backward op; past autograd, unless the caller builds a graph of the backward pass."""
    if torch.is_grad_enabled():
        return op(*args, **kwargs)
    with torch._C._AutoDispatchBelowAutograd():
        return op.default(*args, **kwargs)


def _refuse_twice(op: str) -> RuntimeError:
    return RuntimeError(
        f"{op}: the backward pass is not differentiable; "
        f"use pathways.ops.reference.{op} for second derivatives"
    )


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        keyset: Any,
        x: Tensor,
        gate: Tensor,
        bias: Tensor | None,
        activation: str,
        baseline: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, gate, bias, baseline)
        ctx.activation = activation
        return _below(
            torch.ops.pathways.gated_forward.default,
            keyset,
            x,
            gate,
            bias=bias,
            activation=activation,
            baseline=baseline,
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gate, bias, baseline = ctx.saved_tensors
        _, need_x, need_gate, need_bias, _, _ = ctx.needs_input_grad
        grad_x, grad_gate, grad_bias = _backward_op(
            torch.ops.pathways._gated_backward,
            grad,
            x,
            gate,
            bias=bias,
            activation=ctx.activation,
            baseline=baseline,
            need_x=need_x,
            need_gate=need_gate,
            need_bias=need_bias,
        )
        return (
            None,
            grad_x if need_x else None,
            grad_gate if need_gate else None,
            grad_bias if need_bias else None,
            None,
            None,
        )


class _GatedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keyset: Any, kwargs: dict[str, Any], *args: Any) -> Any:
        return _below(torch.ops.pathways._gated_backward.default, keyset, *args, **kwargs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise _refuse_twice("gated_forward")


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keyset: Any, importance: Tensor, sigma: float, gamma: float) -> Tensor:
        ctx.save_for_backward(importance)
        ctx.constants = (sigma, gamma)
        return _below(torch.ops.pathways.binarize.default, keyset, importance, sigma, gamma)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (importance,) = ctx.saved_tensors
        result = _backward_op(
            torch.ops.pathways._binarize_backward, grad, importance, *ctx.constants
        )
        return None, result, None, None


class _BinarizeBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
        return _below(torch.ops.pathways._binarize_backward.default, keyset, *args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise _refuse_twice("binarize")


class _AdaptivePool(torch.autograd.Function):
    """Backward by the operations of torch, so that it can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, x: Tensor, height: int, width: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.size = [height, width]
        op = torch.ops.pathways.adaptive_avg_max_pool2d.default
        return _below(op, keyset, x, height, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        if x.shape[1] == 0:  # not for torch
            return None, torch.zeros_like(x), None, None
        aten = torch.ops.aten
        means, maxima = grad.chunk(2, dim=1)
        # Where the maxima were is looked up here: without gradients nobody needs to know.
        indices = aten.adaptive_max_pool2d(x.detach(), ctx.size)[1]
        grad_x = aten._adaptive_avg_pool2d_backward(means, x)
        return None, grad_x + aten.adaptive_max_pool2d_backward(maxima, x, indices), None, None


def _gated_forward(
    keyset: Any,
    x: Tensor,
    gate: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    baseline: Tensor | None = None,
) -> Tensor:
    _refuse_derivatives("gated_forward", x, gate, bias, baseline)
    if _needs_gradient(baseline):
        raise RuntimeError(
            "gated_forward: baseline must not require a gradient, got one that does; "
            "detach it, or use pathways.ops.reference.gated_forward"
        )
    if _needs_gradient(x, gate, bias):
        return _Gated.apply(keyset, x, gate, bias, activation, baseline)
    return _below(
        torch.ops.pathways.gated_forward.default,
        keyset,
        x,
        gate,
        bias=bias,
        activation=activation,
        baseline=baseline,
    )


def _gated_forward_(
    keyset: Any,
    x: Tensor,
    gate: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    baseline: Tensor | None = None,
) -> None:
    _refuse_derivatives("gated_forward_", x, gate, bias, baseline)
    if _needs_gradient(x, gate, bias, baseline):
        raise RuntimeError(
            "gated_forward_: arguments must not require a gradient, got one that does; "
            "the op is in place and for inference only, use gated_forward"
        )
    _below(
        torch.ops.pathways.gated_forward_.default,
        keyset,
        x,
        gate,
        bias=bias,
        activation=activation,
        baseline=baseline,
    )
    _bump_version(x)


def _gated_backward(keyset: Any, grad: Tensor, x: Tensor, gate: Tensor, **kwargs: Any) -> Any:
    _refuse_derivatives("gated_forward", grad, x, gate)
    if _needs_gradient(grad, x, gate, kwargs.get("bias"), kwargs.get("baseline")):
        return _GatedBackward.apply(keyset, kwargs, grad, x, gate)
    return _below(torch.ops.pathways._gated_backward.default, keyset, grad, x, gate, **kwargs)


def _binarize(keyset: Any, importance: Tensor, sigma: float = 1.0, gamma: float = 2.0) -> Tensor:
    _refuse_derivatives("binarize", importance)
    if _needs_gradient(importance):
        return _Binarize.apply(keyset, importance, sigma, gamma)
    return _below(torch.ops.pathways.binarize.default, keyset, importance, sigma, gamma)


def _binarize_backward(
    keyset: Any, grad: Tensor, importance: Tensor, sigma: float = 1.0, gamma: float = 2.0
) -> Tensor:
    _refuse_derivatives("binarize", grad, importance)
    if _needs_gradient(grad, importance):
        return _BinarizeBackward.apply(keyset, grad, importance, sigma, gamma)
    op = torch.ops.pathways._binarize_backward.default
    return _below(op, keyset, grad, importance, sigma, gamma)


def _adaptive_avg_max_pool2d(keyset: Any, x: Tensor, height: int, width: int) -> Tensor:
    _refuse_derivatives("adaptive_avg_max_pool2d", x)
    if _needs_gradient(x):
        return _AdaptivePool.apply(keyset, x, height, width)
    op = torch.ops.pathways.adaptive_avg_max_pool2d.default
    return _below(op, keyset, x, height, width)


for _name, _kernel in (
    ("gated_forward", _gated_forward),
    ("gated_forward_", _gated_forward_),
    ("_gated_backward", _gated_backward),
    ("binarize", _binarize),
    ("_binarize_backward", _binarize_backward),
    ("adaptive_avg_max_pool2d", _adaptive_avg_max_pool2d),
):
    _LIBRARY.impl(_name, _kernel, "Autograd", with_keyset=True)

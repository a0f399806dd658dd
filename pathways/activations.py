"""Activation calls: which calls are activations, and how they are intercepted in a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Every callable under which PyTorch spells an activation. Modules (nn.ReLU) call these too, so that
# one interception serves modules, reused modules, functional calls and exported graphs alike.
ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    Tensor.relu: "relu",
    Tensor.relu_: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.gelu: "gelu",
    F.hardswish: "hardswish",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.elu: "elu",
    F.elu_: "elu",
    F.mish: "mish",
    F.selu: "selu",
    torch.selu: "selu",
    torch.selu_: "selu",
    F.celu: "celu",
    torch.celu: "celu",
    torch.celu_: "celu",
    F.rrelu: "rrelu",
    torch.rrelu: "rrelu",
    torch.rrelu_: "rrelu",
    F.prelu: "prelu",
    torch.prelu: "prelu",
    Tensor.prelu: "prelu",
    # A site where its lower bound is 0, see activation_of; nn.ReLU6 calls it too.
    F.hardtanh: "hardtanh",
    F.hardtanh_: "hardtanh",
}
INPLACE_CALLS = {
    torch.relu_,
    Tensor.relu_,
    F.leaky_relu_,
    F.elu_,
    torch.selu_,
    torch.celu_,
    torch.rrelu_,
    F.hardtanh_,
}
# The operators under all these names, as graphs of torch.export call them.
for _name in sorted(set(ACTIVATIONS.values())):
    for _operator in (_name, f"{_name}_"):
        if hasattr(torch.ops.aten, _operator):
            _overload = getattr(torch.ops.aten, _operator).default
            ACTIVATIONS[_overload] = _name
            if _operator.endswith("_"):
                INPLACE_CALLS.add(_overload)
# What the fused kernel computes bit for bit as torch does (comparisons only, no transcendental).
FUSED = frozenset({"relu", "relu6"})
TOKEN_MARK = "_pathways_channels_last_dim"
# Functions whose result has its features where their argument has them.
_KEEPS_FEATURES = frozenset(
    f"{name}{ending}"
    for name in ("add", "sub", "rsub", "__rsub__", "mul", "div", "sigmoid", "tanh", "dropout",
                 "layer_norm", "rms_norm", "clone", "contiguous", "to", "float")
    for ending in ("", "_")
)  # fmt: skip


def activation_of(func: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    """Name of the activation that a call computes, None for every other call."""
    name = ACTIVATIONS.get(func)
    if name != "hardtanh":
        return name
    bounds = {"min_val": -1.0, "max_val": 1.0}
    bounds |= dict(zip(bounds, args[1:], strict=False))
    bounds |= {key: kwargs[key] for key in bounds if key in kwargs}
    if bounds["min_val"] != 0:
        return None
    return "relu6" if bounds["max_val"] == 6 else "hardtanh"


def has_last_dim_features(func: Any, args: Any, output: Any) -> bool:
    """Whether a call's result has its features in the last dimension, as tokens have."""
    name = getattr(func, "__name__", "").split(".")[0]
    if not isinstance(output, Tensor) or output.dim() <= 2:
        return False
    # Of what a normalisation over several dimensions gives, nothing is known.
    normalised = args[1] if name in ("layer_norm", "rms_norm") and len(args) > 1 else ()
    if name == "linear" or len(normalised) == 1:
        return True
    return name in _KEEPS_FEATURES and any(getattr(arg, TOKEN_MARK, False) for arg in args)


class ActivationCalls(TorchFunctionMode):
    """Calls ``handler(call number, function, args, kwargs, activation name)`` for each activation.

    Sites are identified by their order: a network in eval mode makes the same activation calls in
    the same order every time. Function modes are thread-local and leave no trace in the model.
    """

    def __init__(self, handler: Callable[..., Any], mark_tokens: bool = False) -> None:
        super().__init__()
        self.handler = handler
        self.mark_tokens = mark_tokens
        self.calls = 0
        self.inside = 0  # depth of activation modules: what these call is part of them

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        activation = activation_of(func, args, kwargs)
        if activation is not None and self.inside == 0:
            call = self.calls
            self.calls += 1
            return self.handler(call, func, args, kwargs, activation)
        output = func(*args, **kwargs)
        if self.mark_tokens and has_last_dim_features(func, args, output):
            setattr(output, TOKEN_MARK, True)
        return output


def origins_of_activations(graph_module: fx.GraphModule, path: str) -> list[str]:
    """Path of the module that each activation call of a traced graph comes from."""
    origins = []
    for node in graph_module.graph.nodes:
        func = getattr(Tensor, node.target, None) if node.op == "call_method" else node.target
        if not node.op.startswith("call_") or activation_of(func, node.args, node.kwargs) is None:
            continue
        stack = list(node.meta.get("nn_module_stack", {}).values())
        origins.append(".".join(name for name in (path, stack[-1][0] if stack else "") if name))
    return origins


def out_of_place(func: Any, source: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """The activation's result on ``source`` (a private copy that the call may overwrite)."""
    result: Tensor = (
        func(source, *args[1:], **kwargs) if args else func(**{**kwargs, "input": source})
    )
    return result

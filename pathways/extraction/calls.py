"""What a node of a captured graph computes, whichever of PyTorch's spellings it uses."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

# What a function computes by itself on every element; further arguments are numbers.
_POINTWISE = [
    "relu", "relu6", "silu", "gelu", "hardswish", "leaky_relu", "elu", "mish", "selu", "celu",
    "rrelu", "hardtanh", "sigmoid", "tanh", "hardsigmoid", "softplus", "softsign", "logsigmoid",
    "log_sigmoid", "tanhshrink", "hardshrink", "softshrink", "threshold", "exp", "log", "log1p",
    "expm1", "sqrt", "rsqrt", "abs", "neg", "square", "clamp", "clamp_min", "clamp_max", "clip",
    "pow", "erf", "sin", "cos", "reciprocal", "sign",
]  # fmt: skip
_IDENTITY = [
    "contiguous", "clone", "to", "float", "double", "half", "bfloat16", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
]  # fmt: skip

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NORM = ("running_mean", "running_var")
_AFFINE = ("weight", "bias")
_NORM_OPTIONS = ("training", "momentum", "eps", "cudnn_enabled")
_POOL = ("input", "kernel_size", "stride", "padding")
_AVERAGE = (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")
# Name of the operation, names of its arguments, and the functions that compute it.
_OPERATIONS: list[tuple[str, tuple[str, ...], list[str]]] = [
    ("conv", _CONV, ["conv1d", "conv2d", "conv3d"]),
    ("linear", ("input", "weight", "bias"), ["linear"]),
    ("prelu", ("input", "weight"), ["prelu"]),
    ("add", ("input", "other"), ["add"]),
    ("sub", ("input", "other"), ["sub", "subtract"]),
    ("mul", ("input", "other"), ["mul", "multiply"]),
    ("div", ("input", "other"), ["div", "divide", "true_divide", "truediv"]),
    ("cat", ("tensors", "dim"), ["cat", "concat", "concatenate"]),
    ("flatten", ("input", "start_dim", "end_dim"), ["flatten"]),
    ("reshape", ("input", "shape"), ["reshape", "view", "_unsafe_view"]),
    ("permute", ("input", "dims"), ["permute"]),
    ("transpose", ("input", "dim0", "dim1"), ["transpose", "swapaxes"]),
    ("unsqueeze", ("input", "dim"), ["unsqueeze"]),
    ("squeeze", ("input", "dim"), ["squeeze"]),
    ("mean", ("input", "dim", "keepdim"), ["mean"]),
    ("extremum", ("input", "dim", "keepdim"), ["amax", "amin"]),
    (
        "max_pool",
        (*_POOL, "dilation", "ceil_mode", "return_indices"),
        ["max_pool1d", "max_pool2d", "max_pool3d"],
    ),
    ("avg_pool", _AVERAGE, ["avg_pool2d", "avg_pool3d"]),
    ("avg_pool", _AVERAGE[:-1], ["avg_pool1d"]),
    (
        "adaptive_pool",
        ("input", "output_size", "return_indices"),
        [f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)],
    ),
    (
        "interpolate",
        ("input",),
        ["interpolate", "upsample", "upsample_linear1d", "upsample_bilinear2d"]
        + ["upsample_trilinear3d"]
        + [f"upsample_nearest{n}d" for n in (1, 2, 3)],
    ),
    ("pad", ("input", "pad", "mode", "value"), ["pad"]),
    ("getitem", ("input", "index"), ["getitem"]),
    ("slice", ("input", "dim", "start", "end", "step"), ["slice"]),
    ("narrow", ("input", "dim", "start", "length"), ["narrow"]),
    ("chunk", ("input", "chunks", "dim"), ["chunk"]),
    ("split", ("input", "split_size_or_sections", "dim"), ["split", "split_with_sizes"]),
    ("size", ("input", "dim"), ["size", "sym_size"]),
    ("attribute", ("input", "name"), ["getattr"]),
    ("pointwise", ("input",), _POINTWISE),
    ("identity", ("input",), _IDENTITY),
]
_MODULES: list[tuple[str, tuple[type[nn.Module], ...]]] = [
    ("conv", (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    ("batch_norm", (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)),
    ("linear", (nn.Linear,)),
    ("prelu", (nn.PReLU,)),
    ("max_pool", (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)),
    ("avg_pool", (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)),
    (
        "adaptive_pool",
        (
            nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
            nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
        ),
    ),
    ("interpolate", (nn.Upsample,)),
    ("flatten", (nn.Flatten,)),
    (
        "identity",
        (
            nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
            nn.FeatureAlphaDropout,
        ),
    ),
    (
        "pointwise",
        (
            nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Mish,
            nn.SELU, nn.CELU, nn.RReLU, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Hardsigmoid,
            nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink,
            nn.Threshold,
        ),
    ),
]  # fmt: skip
_MODULE_OPERATIONS = {kind: name for name, kinds in _MODULES for kind in kinds}
# Operations, and names of others, whose result may be, or lie in, the memory of their argument.
_VIEWS = {
    "flatten", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "getitem", "slice",
    "narrow", "chunk", "split", "identity", "pad", "attribute",
}  # fmt: skip
_OTHER_VIEWS = {
    "expand", "expand_as", "view_as", "reshape_as", "unflatten", "unbind", "t", "adjoint", "select",
    "movedim", "moveaxis", "swapdims", "diagonal", "unfold", "as_strided", "tensor_split", "hsplit",
    "vsplit", "type_as", "alias", "broadcast_to", "detach", "Unflatten",
}  # fmt: skip
_INPLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def _tables() -> tuple[dict[Any, tuple[str, tuple[str, ...]]], dict[str, Any]]:
    functions: dict[Any, tuple[str, tuple[str, ...]]] = {}
    methods: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, arguments, spellings in _OPERATIONS:
        for spelling in spellings:
            if hasattr(torch.Tensor, spelling):
                methods[spelling] = (name, arguments)
            for space in (F, torch, torch._C._nn, torch.ops.aten, operator):
                if hasattr(space, spelling):
                    functions[getattr(space, spelling)] = (name, arguments)
    functions[getattr] = ("attribute", ("input", "name"))
    functions[F.batch_norm] = ("batch_norm", ("input", *_NORM, *_AFFINE, *_NORM_OPTIONS))
    for function in (torch.batch_norm, torch.ops.aten.batch_norm):
        functions[function] = ("batch_norm", ("input", *_AFFINE, *_NORM, *_NORM_OPTIONS))
    return functions, methods


_FUNCTIONS, _METHODS = _tables()


@dataclass
class Call:
    """One operation: its name, its arguments by name, and the module that computes it, if any."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, from the call or from the module's settings."""
        if name in self.arguments:
            return self.arguments[name]
        return getattr(self.module, name, default)

    @property
    def input(self) -> fx.Node:
        node = self.arguments["input"]
        assert isinstance(node, fx.Node)
        return node


def read_call(node: fx.Node, root: nn.Module) -> Call | None:
    """What a node computes, None where that is not one of the operations known here."""
    module = None
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        name = _MODULE_OPERATIONS.get(type(module))
        if name is None and isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            # torch.nn's own subclasses, such as those with a parametrised weight.
            name = "linear" if isinstance(module, nn.Linear) else "conv"
            known = type(module).forward in (
                nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward,
            )  # fmt: skip
            name = name if known else None
        hooks = module._forward_hooks or module._forward_pre_hooks
        if name is None or hooks or len(node.args) != 1 or node.kwargs:
            return None
        found: tuple[str, tuple[str, ...]] | None = (name, ("input",))
    elif node.op == "call_method":
        found = _METHODS.get(str(node.target))
    elif node.op == "call_function":
        found = _FUNCTIONS.get(node.target)
    else:
        found = None
    if found is None:
        return None
    name, names = found
    args = list(node.args)
    if name in ("reshape", "permute") and (len(args) > 2 or isinstance(args[-1], int)):
        args = [args[0], tuple(args[1:])]  # x.view(2, 3) and x.view((2, 3))
    arguments = dict(zip(names, args, strict=False))
    for key, value in node.kwargs.items():
        arguments["input" if key == "self" and "input" in names else key] = value
    numbers = name in ("add", "sub", "mul", "div")  # as in 2 * x
    if "input" in names and not numbers and not isinstance(arguments.get("input"), fx.Node):
        return None
    return Call(name, arguments, module)


# ---------------------------------------------------------------------- writes into tensors


class CannotFollow(Exception):
    """A graph that writes into tensors in a way that is not followed; the text says where."""


def make_functional(captured: fx.GraphModule) -> None:
    """Replace writes into tensors by new tensors, in place.

    Uses of the tensor that come after the write see the new one; so do uses of other names of the
    same tensor.

    Raises:
        CannotFollow: something else than these, such as a write through a view.
    """
    order = {node: position for position, node in enumerate(captured.graph.nodes)}
    for node in list(captured.graph.nodes):
        written = _out_of_place(captured, node)
        if written is None:
            continue
        target, result = written
        names = _names_of(captured, target)
        for other in _memory_of(captured, target) - names:
            if any(order.get(user, -1) > order[node] for user in other.users):
                raise CannotFollow(f"{node} writes into memory that {other} shares")
        for name in names:
            for user in list(name.users):
                if user is not result and order.get(user, -1) > order[node]:
                    user.replace_input_with(name, result)
        if result is not node:
            node.replace_all_uses_with(result)
            captured.graph.erase_node(node)


def _out_of_place(captured: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The tensor a node writes into and the node that holds what is written; None for others."""
    target: Any = node.target
    name = target if node.op == "call_method" else getattr(target, "__name__", "")
    plain: Any = None
    if node.op == "call_function" and target in _INPLACE_OPERATORS:
        plain = _INPLACE_OPERATORS[target]
    elif node.op == "call_function" and target is operator.setitem:
        raise CannotFollow(f"{node} assigns to a part of {node.args[0]}")
    elif node.op in ("call_method", "call_function") and name.endswith("_") and name[-2:] != "__":
        if name == "copy_" and len(node.args) == 2 and isinstance(node.args[1], fx.Node):
            for made in (node.args[1], *node.args[1].args[:1]):  # a marker, its activation
                if isinstance(made, fx.Node):
                    made.meta["inplace"] = True
            return _written(node), node.args[1]
        plain = name[:-1] if node.op == "call_method" else _plain_function(target, name[:-1])
        if plain is None:
            raise CannotFollow(f"{node} calls {name}, which writes into its argument")
    elif node.kwargs.get("inplace", False) is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        node.meta["inplace"] = True
        return _written(node), node
    elif node.op == "call_module":
        module = captured.get_submodule(str(target))
        if getattr(module, "inplace", False) and _MODULE_OPERATIONS.get(type(module)) != "identity":
            return _written(node), node
    elif isinstance(node.kwargs.get("out"), fx.Node):
        raise CannotFollow(f"{node} writes into its argument out")
    elif node.op == "call_function":
        positions = {F.relu: 1, F.relu6: 1, F.silu: 1, F.hardswish: 1, F.hardsigmoid: 1, F.mish: 1,
                     F.leaky_relu: 2, F.elu: 2, F.selu: 1, F.celu: 2, F.rrelu: 4, F.hardtanh: 3,
                     F.threshold: 3}  # fmt: skip
        position = positions.get(target)
        if position is not None and len(node.args) > position and node.args[position]:
            node.args = (*node.args[:position], False, *node.args[position + 1 :])
            return _written(node), node
    if plain is None:
        return None
    node.target = plain
    return _written(node), node


def _written(node: fx.Node) -> fx.Node:
    target = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("self"))
    if not isinstance(target, fx.Node):
        raise CannotFollow(f"{node} writes into something that is no tensor of the graph")
    return target


def _plain_function(function: Any, name: str) -> Callable[..., Any] | None:
    if isinstance(function, torch._ops.OpOverloadPacket):
        return getattr(torch.ops.aten, name, None)
    for space in (F, torch):
        if getattr(space, name + "_", None) is function:
            plain: Callable[..., Any] | None = getattr(space, name, None)
            return plain
    return None


def _names_of(captured: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """Every node that is the very same tensor, seen through operations that change nothing."""
    return _connected(captured, node, lambda name: name == "identity")


def _memory_of(captured: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """Every node that may share memory with a node."""
    return _connected(captured, node, lambda name: name in _VIEWS)


def _connected(
    captured: fx.GraphModule, node: fx.Node, follows: Callable[[str], bool]
) -> set[fx.Node]:
    def passes(user: fx.Node) -> bool:
        if user.op not in ("call_module", "call_function", "call_method"):
            return False
        call = read_call(user, captured)
        if call is not None and call.name == "identity":
            # A copy is another tensor.
            return follows("identity") and user.target not in ("clone", torch.clone)
        if call is not None:
            return follows(call.name)
        if user.op == "call_module":
            name = type(captured.get_submodule(str(user.target))).__name__
        else:
            name = getattr(user.target, "__name__", str(user.target))
        return name in _OTHER_VIEWS and follows("getitem")

    found = {node}
    waiting = [node]
    while waiting:
        current = waiting.pop()
        near = [user for user in current.users if passes(user)]
        if passes(current):
            near += current.all_input_nodes
        for other in near:
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def private_copy(module: nn.Module) -> nn.Module:
    """A copy of a module that writes into nothing but its own result."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(getattr(part, "inplace", None), bool):
            part.inplace = False  # type: ignore[assignment]
    return module


def own_name(name: str) -> str:
    """A path in the target, of a path in the captured graph."""
    return name.removeprefix("classifier.").removeprefix("model.")

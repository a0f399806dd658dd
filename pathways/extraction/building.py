"""Builds the smaller graph: tensors with the channels that are kept, and the others on demand."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pathways.extraction.analysis import Analysis
from pathways.extraction.calls import CannotFollow, own_name, private_copy
from pathways.extraction.network import Layer

# What computes a tensor that nobody else holds and that no gradient needs again.
_FRESH_MODULES = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.Linear)
_FRESH_FUNCTIONS = {operator.add, torch.add, torch.index_add}
_FRESH_METHODS = {"add_", "index_add_", "index_copy_"}
_RELU = ("relu", torch.relu, torch.ops.aten.relu)
_INPLACE = (F.relu, F.relu6, F.silu, F.hardswish, F.leaky_relu, F.elu, F.selu, F.celu, F.mish)


class Builder:
    """Emits the nodes of the smaller graph.

    In it a tensor has only the channels that are alive and asked for, in their old order. What a
    node of the captured graph has become is found by :meth:`take` (some channels), :meth:`full`
    (all of them, constant ones included) and :meth:`anchor` (one channel, for its shape alone).

    Args:
        analysis (Analysis): of the captured graph.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.layers: dict[fx.Node, Layer] = {}
        self._made: dict[fx.Node, Any] = {}
        self._memo: dict[Hashable, fx.Node] = {}
        self._names: set[str] = set()
        self._names_of_target = frozenset(
            own_name(name) for name, _ in analysis.captured.named_modules()
        )
        self._modules: dict[Hashable, str] = {}
        self._kept = {
            node: analysis.kept(node).nonzero().squeeze(1).tolist() for node in analysis.channels
        }

    def build(self) -> fx.GraphModule:
        """The graph as a module, in eval mode."""
        for node in self.analysis.captured.graph.nodes:
            if node in self.analysis.static:
                continue  # made where it is used
            if node in self.analysis.operations:
                if self._kept[node]:
                    operation = self.analysis.operations[node]
                    self._made[node] = operation.emit(self, self._kept[node])
            else:
                self._made[node] = self._copied(node)
        self._remove_unused()
        self._reuse_memory()
        self.graph.lint()
        module = fx.GraphModule(self.root, self.graph, "Network")
        module.delete_all_unused_submodules()
        return module.eval()

    def all_layers(self) -> list[Layer]:
        """Convolutions and linear layers in order, those of which nothing is left included."""
        found = (
            self.layers.get(node) or operation.layer()
            for node, operation in self.analysis.operations.items()
        )
        return [layer for layer in found if layer is not None]

    # ------------------------------------------------------------------ nodes

    def function(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function."""
        return self.graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a tensor's method."""
        return self.graph.call_method(name, args, kwargs)

    def again(self, node: fx.Node, source: fx.Node, becomes: fx.Node, *args: Any) -> fx.Node:
        """The operation of a captured node with its input replaced, and its arguments if given."""
        made: fx.Node = self._copied(node, {source: becomes}, args or None)
        return made

    def module(
        self, name: str, key: Hashable, make: Callable[[], nn.Module], *args: fx.Node
    ) -> fx.Node:
        """A call of a module named like the one it comes from; equal keys share one module."""
        if key not in self._modules:
            self._modules[key] = self._free_name(name)
            path, _, last = self._modules[key].rpartition(".")
            self._container(path).add_module(last, make())
        return self.graph.call_module(self._modules[key], args)

    def buffer(self, name: str, value: Tensor) -> fx.Node:
        """A constant tensor, on the device of the model."""
        contents = (name, value.dtype, tuple(value.shape), tuple(value.flatten().tolist()))
        if contents not in self._memo:
            free = self._free_name(name, self._names_of_target)
            self.root.register_buffer(free, value.to(self.device))
            self._memo[contents] = self.graph.get_attr(free)
        return self._memo[contents]

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        captured = self.analysis.captured
        for tensor in itertools.chain(captured.parameters(), captured.buffers()):
            return tensor.device
        return torch.device("cpu")

    # ------------------------------------------------------------------ channels

    def take(self, node: fx.Node, dim: int, wanted: Sequence[int]) -> fx.Node:
        """The wanted channels of a node along a dimension; constant ones are filled in."""
        wanted = list(wanted)
        if self.analysis.channel_dim(node) != dim:
            return self._index(self.full(node), dim, wanted, self.analysis.facts[node].shape[dim])
        kept = self._kept[node]
        if wanted == kept:
            made: fx.Node = self._made[node]
            return made
        key = ("take", node, tuple(wanted))
        if key not in self._memo:
            place = {channel: position for position, channel in enumerate(kept)}
            present = [channel for channel in wanted if channel in place]
            found = [place[channel] for channel in present]
            if len(present) == len(wanted):
                self._memo[key] = self._index(self._made[node], dim, found, len(kept))
            else:
                self._memo[key] = self._filled(node, dim, wanted, present, found)
        return self._memo[key]

    def full(self, node: fx.Node) -> Any:
        """What a node was: a tensor with all its channels, or any other value."""
        if node in self.analysis.static:
            return self.own(node)
        channels = self.analysis.channels.get(node)
        if channels is None:
            return self._made[node]
        return self.take(node, channels.dim, range(len(channels)))

    def anchor(self, node: fx.Node, dim: int) -> fx.Node:
        """A tensor shaped as a node's, but with one channel of no particular values."""
        key = ("anchor", node, dim)
        if key not in self._memo:
            if self.analysis.channel_dim(node) != dim:
                made = self.function(torch.narrow, self.full(node), dim, 0, 1)
            elif self._kept[node]:
                made = self.function(torch.narrow, self._made[node], dim, 0, 1)
            else:
                made = self.analysis.operations[node].anchor(self)
            self._memo[key] = made
        return self._memo[key]

    def vector(self, node: fx.Node, dim: int, constant: Tensor) -> fx.Node:
        """Constants as a tensor that broadcasts along the channels of a node's tensor."""
        fact = self.analysis.facts[node]
        shape = [1] * len(fact.shape)
        shape[dim] = len(constant)
        return self.buffer("constant", constant.to(fact.dtype).reshape(shape))

    def spread(self, node: fx.Node, dim: int, constant: Tensor) -> fx.Node:
        """Constants as a whole tensor shaped as a node's."""
        zeros = self.function(torch.zeros_like, self.anchor(node, dim))
        return self.function(torch.add, zeros, self.vector(node, dim, constant))

    def _filled(
        self, node: fx.Node, dim: int, wanted: list[int], present: list[int], found: list[int]
    ) -> fx.Node:
        channels = self.analysis.channels[node]
        missing = set(wanted) - set(present)
        assert not any(bool(channels.alive[channel]) for channel in missing), node
        whole = self.spread(node, dim, channels.constant[torch.tensor(wanted)])
        if not present:
            return whole
        places = [i for i, channel in enumerate(wanted) if channel not in missing]
        values = self._index(self._made[node], dim, found, len(self._kept[node]))
        index = self.buffer("index", torch.tensor(places))
        return self.method("index_copy_", whole, dim, index, values)

    def _index(self, node: fx.Node, dim: int, index: list[int], count: int) -> fx.Node:
        if index == list(range(count)):
            return node
        first = index[0]
        if index == list(range(first, first + len(index))):
            return self.function(torch.narrow, node, dim, first, len(index))
        return self.function(
            torch.index_select, node, dim, self.buffer("index", torch.tensor(index))
        )

    # ------------------------------------------------------------------ what is not understood

    def argument(self, value: Any) -> Any:
        """An argument of a captured node in terms of the smaller graph."""
        if isinstance(value, fx.Node):
            return self.full(value)
        if isinstance(value, tuple | list):
            return type(value)(self.argument(part) for part in value)
        if isinstance(value, slice):
            return slice(*(self.argument(part) for part in (value.start, value.stop, value.step)))
        if isinstance(value, dict):
            return {key: self.argument(part) for key, part in value.items()}
        return value

    def _copied(
        self,
        node: fx.Node,
        replaced: dict[fx.Node, fx.Node] | None = None,
        args: Sequence[Any] | None = None,
    ) -> Any:
        if node in self.analysis.literals:
            return self.analysis.literals[node]
        size = None if replaced else self._size(node)
        if size is not None:
            return size
        if self._is_left_out(node):
            return None
        if node.op == "get_attr":
            raise CannotFollow(f"{node} is no tensor")
        known: dict[fx.Node, Any] = replaced or {}

        def argument(value: Any) -> Any:
            return known[value] if isinstance(value, fx.Node) and value in known else value

        given = node.args if args is None else (node.args[0], *args)
        new_args = tuple(self.argument_or(value, argument) for value in given)
        new_kwargs = {
            key: self.argument_or(value, argument)
            for key, value in (node.kwargs.items() if args is None else ())
        }
        if node.op == "output":
            return self.graph.output(new_args[0])
        if node.op == "placeholder":
            return self.graph.placeholder(node.name)
        if node.op == "call_module":
            original = self.analysis.captured.get_submodule(str(node.target))
            key = ("whole", str(node.target))
            name = str(node.target)
            return self.module(name, key, lambda: private_copy(original), *new_args)
        made = self.graph.create_node(node.op, node.target, new_args, new_kwargs, name=node.name)
        made.meta["inplace"] = node.meta.get("inplace", False)
        return made

    def argument_or(self, value: Any, replaced: Callable[[Any], Any]) -> Any:
        """:meth:`argument` where ``replaced`` leaves a value alone."""
        other = replaced(value)
        return self.argument(value) if other is value else other

    def _is_left_out(self, node: fx.Node) -> bool:
        """Parts of a split whose users all understand which channels they are."""
        call = self.analysis.calls.get(node)
        return (
            call is not None
            and call.name in ("chunk", "split")
            and len(node.users) > 0
            and all(user in self.analysis.operations for user in node.users)
        )

    def own(self, node: fx.Node, dim: int = 0, kept: Sequence[int] | None = None) -> fx.Node:
        """A parameter or buffer of the target or what follows from these alone; some of it."""
        key = ("own", node, dim, None if kept is None else tuple(kept))
        if key in self._memo:
            return self._memo[key]
        value = self.analysis.static[node].detach()
        if kept is not None:
            value = value.index_select(dim, torch.tensor(kept, device=value.device))
        name, trained = node.name, False
        if node.op == "get_attr":
            name = str(node.target)
            path, _, last = name.rpartition(".")
            owner = self.analysis.captured.get_submodule(path)
            trained = isinstance(getattr(owner, last), nn.Parameter)
        path, _, last = self._free_name(name).rpartition(".")
        owner = self._container(path)
        if trained:
            owner.register_parameter(last, nn.Parameter(value.clone()))
        else:
            owner.register_buffer(last, value.clone())
        self._memo[key] = self.graph.get_attr(f"{path}.{last}" if path else last)
        return self._memo[key]

    def _container(self, path: str) -> nn.Module:
        """The module at a path, made where there is none."""
        owner = self.root
        for name in path.split(".") if path else ():
            if not hasattr(owner, name):
                owner.add_module(name, nn.Module())
            owner = getattr(owner, name)
        return owner

    def _size(self, node: fx.Node) -> Any:
        """Shapes, of which the number of channels is the old one; None for other nodes."""
        call = self.analysis.calls.get(node)
        if call is None or call.name not in ("getitem", "size", "attribute"):
            return None
        source = call.input
        if call.name == "getitem" and isinstance(self._made.get(source), tuple):
            index = call.get("index")
            shape: tuple[Any, ...] = self._made[source]
            return shape[index] if isinstance(index, int | slice) else None
        if source not in self.analysis.channels:
            return None
        if call.name == "size":
            dim = call.get("dim")
            shape = self._shape(source)
            return shape if dim is None else (shape[dim] if isinstance(dim, int) else None)
        if call.name == "attribute":
            name = call.get("name")
            if name == "shape":
                return self._shape(source)
            if name == "ndim":
                return len(self.analysis.facts[source].shape)
            if name in ("dtype", "device"):
                anchor = self.anchor(source, self.analysis.channels[source].dim)
                return self.function(getattr, anchor, name)
        return None

    def _shape(self, node: fx.Node) -> tuple[Any, ...]:
        channels = self.analysis.channels[node]
        anchor = self.anchor(node, channels.dim)
        return tuple(
            len(channels) if dim == channels.dim else self.method("size", anchor, dim)
            for dim in range(len(self.analysis.facts[node].shape))
        )

    # ------------------------------------------------------------------ last passes

    def _remove_unused(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)

    def _reuse_memory(self) -> None:
        """Write into tensors that nobody else holds: fresh memory costs more than the sum."""
        for node in self.graph.nodes:
            source = node.args[0] if node.args else None
            if node.target in _RELU:
                node.op, node.target = "call_function", F.relu
            if node.op != "call_function":
                continue
            if node.target in _INPLACE:
                always = node.target in (F.relu, F.relu6)
                if (always or node.meta.get("inplace", False)) and self._is_owned(source):
                    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
                    bound.arguments["inplace"] = True
                    node.args, node.kwargs = bound.args, bound.kwargs
            elif (
                "whole" in node.meta and len(set(node.all_input_nodes)) > 1
            ):  # which operands have the shape of the result
                for operand in node.meta["whole"]:
                    if self._is_owned(operand):
                        others = [other for other in node.args if other is not operand]
                        node.op = "call_method"
                        node.target = "index_add_" if node.target is torch.index_add else "add_"
                        node.args = (operand, *others)
                        break

    def _is_owned(self, node: Any) -> bool:
        if not isinstance(node, fx.Node) or len(node.users) != 1:
            return False
        if node.op == "call_module":
            return isinstance(self.root.get_submodule(str(node.target)), _FRESH_MODULES)
        if node.op == "call_method":
            return node.target in _FRESH_METHODS
        return node.op == "call_function" and node.target in _FRESH_FUNCTIONS

    def _free_name(self, name: str, reserved: frozenset[str] = frozenset()) -> str:
        """A path like the one in the target, with a number where it, or a part of it, is taken."""
        *path, last = own_name(name).split(".")
        if hasattr(fx.GraphModule, (path or [last])[0]):
            path = ["model", *path]  # the target has a part that is called "graph", say
        owners = [".".join(path[: length + 1]) for length in range(len(path))]
        if any(owner in self._modules.values() for owner in owners):
            path, last, owners = [], "_".join([*path, last]), []
        free = [*path, last]
        for number in itertools.count(1):
            if ".".join(free) not in self._names | reserved:
                break
            free = [*path, f"{last}_{number}"]
        self._names.update([*owners, ".".join(free)])
        return ".".join(free)

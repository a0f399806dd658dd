"""Operations that are understood channel by channel; :func:`operation_of` chooses among them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from pathways.extraction.analysis import Analysis, Channels
from pathways.extraction.calls import Call
from pathways.extraction.network import Layer

if TYPE_CHECKING:
    from pathways.extraction.building import Builder


class NotUnderstood(Exception):
    """A call of a known function in a form that is not followed; it keeps every channel."""


class Operation:
    """A node that is understood channel by channel.

    ``channels`` says what is known of its result. :meth:`ask` passes on which channels of the
    inputs are used; :meth:`emit` computes the result's channels that are kept (at least one);
    :meth:`anchor` gives a tensor of the result's shape, but one channel, where none is kept.
    """

    channels: Channels

    def __init__(self, analysis: Analysis, node: fx.Node) -> None:
        self.analysis = analysis
        self.node = node

    @property
    def dim(self) -> int:
        """Dimension of the channels of the result."""
        return self.channels.dim

    def ask(self, kept: Tensor) -> None:
        raise NotImplementedError

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        raise NotImplementedError

    def anchor(self, builder: Builder) -> fx.Node:
        raise NotImplementedError

    def layer(self) -> Layer | None:
        """What the report says of a layer of which nothing is left; None for what is no layer."""
        return None


class OneInput(Operation):
    """An operation on one tensor whose channels are known or, with ``dim``, found there.

    Args:
        analysis (Analysis): what is known so far.
        node (Node): the node.
        source (Node): its input.
        dim (int or None): where the input has its channels; None is where they are known to be.
    """

    def __init__(
        self, analysis: Analysis, node: fx.Node, source: fx.Node, dim: int | None = None
    ) -> None:
        super().__init__(analysis, node)
        if dim is None:
            dim = analysis.channel_dim(source)
        if dim is None or not analysis.is_tensor(source) or not analysis.is_tensor(node):
            raise NotUnderstood
        self.source = source
        self.shape = analysis.facts[source].shape
        self.input_dim = dim % len(self.shape)
        self.input = analysis.view(source, self.input_dim)

    def ask(self, kept: Tensor) -> None:
        self.analysis.ask(self.source, self.input_dim, kept)


class PerChannel(OneInput):
    """Every channel of the result comes from the same channel of the input alone.

    Args:
        dim (int or None): where the result has its channels; None is where the input has them.
        constant (Tensor[C] or None): what constant channels become; None leaves them.
        uniform (Tensor[C], bool, or None): constant channels that stay constant all over; the
            others count as alive. None is all.
    """

    def __init__(
        self,
        analysis: Analysis,
        node: fx.Node,
        source: fx.Node,
        *,
        dim: int | None = None,
        constant: Tensor | None = None,
        uniform: Tensor | None = None,
    ) -> None:
        super().__init__(analysis, node, source)
        alive = self.input.alive if uniform is None else self.input.alive | ~uniform
        self.channels = self.input.but(
            dim=self.input_dim if dim is None else dim, alive=alive, constant=constant
        )
        if analysis.facts[node].shape[self.dim] != len(self.channels):
            raise NotUnderstood

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        return self.apply(builder, builder.take(self.source, self.input_dim, kept))

    def anchor(self, builder: Builder) -> fx.Node:
        return self.apply(builder, builder.anchor(self.source, self.input_dim))

    def apply(self, builder: Builder, x: fx.Node) -> fx.Node:
        """The operation on some channels of the input."""
        return builder.again(self.node, self.source, x)


class Pointwise(PerChannel):
    """A function of every element by itself."""

    def __init__(self, analysis: Analysis, node: fx.Node, call: Call) -> None:
        source = call.input
        if any(other is not source for other in node.all_input_nodes):
            raise NotUnderstood
        channels = analysis.channels.get(source)
        try:
            constant = None if channels is None else self._values(analysis, node, source, channels)
        except (RuntimeError, TypeError) as error:  # an argument that one number does not go with
            raise NotUnderstood from error
        super().__init__(analysis, node, source, constant=constant)

    @staticmethod
    def _values(analysis: Analysis, node: fx.Node, source: fx.Node, channels: Channels) -> Tensor:
        """The function of constants. At 0, where living channels stand, it may be infinite."""
        x = channels.constant
        if node.op == "call_module":
            values: Tensor = analysis.captured.get_submodule(str(node.target))(x.clone())
            return values
        args = fx.node.map_arg(node.args, lambda _: x.clone())
        kwargs = fx.node.map_arg(node.kwargs, lambda _: x.clone())
        if node.op == "call_method":
            values = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            values = node.target(*args, **kwargs)
        return values

    def anchor(self, builder: Builder) -> fx.Node:
        return builder.anchor(self.source, self.input_dim)


class Identity(PerChannel):
    """What gives back its input: dropout in eval mode, contiguous, conversions of dtype."""

    def __init__(self, analysis: Analysis, node: fx.Node, call: Call) -> None:
        if any(other is not call.input for other in node.all_input_nodes):
            raise NotUnderstood
        same = analysis.facts.get(node) == analysis.facts.get(call.input)
        self.dropped = same and call.name == "identity" and _does_nothing(node, call)
        if "dropout" in str(node.target) and not self.dropped and node.op != "call_module":
            raise NotUnderstood  # one that is active in eval mode, too
        super().__init__(analysis, node, call.input)

    def apply(self, builder: Builder, x: fx.Node) -> fx.Node:
        return x if self.dropped else super().apply(builder, x)


def _does_nothing(node: fx.Node, call: Call) -> bool:
    if isinstance(call.module, torch.nn.Identity):
        return True
    if node.op == "call_module":
        return False  # a Dropout stays, for whoever trains the network further
    name = getattr(node.target, "__name__", str(node.target))
    if "dropout" not in name:
        return name in ("to", "float", "double")
    # (input, p, training) in all spellings; eager calls write training=False as a literal.
    flags = [*node.args[2:3], *(node.kwargs.get(key, True) for key in ("training", "train"))]
    return any(flag is False for flag in flags)


class Site(OneInput):
    """A marker behind the activation of a site: removes the channels that are not kept."""

    def __init__(
        self, analysis: Analysis, node: fx.Node, dim: int, gate: Tensor, baseline: Tensor | None
    ) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        super().__init__(analysis, node, source, dim)
        value = torch.zeros(len(gate))
        if baseline is not None:
            value = baseline.to(analysis.facts[source].dtype)
        constant = torch.where(gate, self.input.constant, value.cpu().double())
        self.channels = self.input.but(alive=self.input.alive & gate, constant=constant)

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        return builder.take(self.source, self.input_dim, kept)

    def anchor(self, builder: Builder) -> fx.Node:
        return builder.anchor(self.source, self.input_dim)


# ---------------------------------------------------------------------- shapes


def _pads(call: Call) -> bool:
    padding = call.get("padding", 0)
    return any(padding) if isinstance(padding, tuple | list) else padding not in (0, "valid")


def _check_channels_first(analysis: Analysis, node: fx.Node, call: Call) -> None:
    """Pools work on the last dimensions, which the channels must not be among."""
    name = type(call.module).__name__ if call.module else getattr(node.target, "__name__", "")
    found = re.search(r"(\d)d$", name)
    count = len(analysis.facts[call.input].shape)
    space = count - 2 if found is None else int(found[1])
    if analysis.channel_dim(call.input) != 1 or count != space + 2:
        raise NotUnderstood


def _pool(analysis: Analysis, node: fx.Node, call: Call) -> Operation:
    _check_channels_first(analysis, node, call)
    if call.get("return_indices", False):
        raise NotUnderstood
    return PerChannel(analysis, node, call.input)


def _avg_pool(analysis: Analysis, node: fx.Node, call: Call) -> Operation:
    _check_channels_first(analysis, node, call)
    uniform = None
    counted = _pads(call) and call.get("count_include_pad", True)
    if counted or call.get("divisor_override") is not None:
        uniform = analysis.view(call.input, 1).constant == 0
    return PerChannel(analysis, node, call.input, uniform=uniform)


def _interpolate(analysis: Analysis, node: fx.Node, call: Call) -> Operation:
    if any(other is not call.input and other in analysis.facts for other in node.all_input_nodes):
        raise NotUnderstood
    _check_channels_first(analysis, node, call)
    return PerChannel(analysis, node, call.input)


def _dims(value: Any, count: int) -> tuple[int, ...]:
    dims = (value,) if isinstance(value, int) else value
    if not isinstance(dims, tuple | list) or not all(isinstance(dim, int) for dim in dims):
        raise NotUnderstood
    return tuple(dim % count for dim in dims)


def _reduction(analysis: Analysis, node: fx.Node, call: Call) -> Operation:
    source = call.input
    dim = analysis.channel_dim(source)
    if dim is None or call.get("dtype") is not None:
        raise NotUnderstood
    dims = _dims(call.get("dim"), len(analysis.facts[source].shape))
    if dim in dims or 0 in dims or not dims:
        raise NotUnderstood
    moved = 0 if call.get("keepdim", False) else sum(other < dim for other in dims)
    return PerChannel(analysis, node, source, dim=dim - moved)


def _rearranged(analysis: Analysis, node: fx.Node, call: Call) -> Operation:
    source = call.input
    dim = analysis.channel_dim(source)
    if dim is None:
        raise NotUnderstood
    count = len(analysis.facts[source].shape)
    if call.name == "permute":
        return PerChannel(analysis, node, source, dim=_dims(call.get("dims"), count).index(dim))
    if call.name == "transpose":
        first, second = _dims((call.get("dim0"), call.get("dim1")), count)
        other = {first: second, second: first}.get(dim, dim)
        return PerChannel(analysis, node, source, dim=other)
    (place,) = _dims(call.get("dim"), count + (call.name == "unsqueeze"))
    if call.name == "unsqueeze":
        return PerChannel(analysis, node, source, dim=dim + (place <= dim))
    if place == dim:
        raise NotUnderstood
    return PerChannel(analysis, node, source, dim=dim - (place < dim))


class Reshape(OneInput):
    """A view that keeps the channels, or makes them features together with the space around them.

    Feature ``(before * C + channel) * after + place`` is one place of a channel.
    """

    def __init__(self, analysis: Analysis, node: fx.Node, call: Call) -> None:
        super().__init__(analysis, node, call.input)
        self.call = call
        shape, dim = self.shape, self.input_dim
        if not isinstance(call.get("shape", ()), tuple | list | fx.Node):
            raise NotUnderstood  # another dtype
        new = analysis.facts[node].shape
        for place in range(1, len(new)):
            ahead = math.prod(new[:place])
            firsts = [first for first in range(1, dim + 1) if math.prod(shape[:first]) == ahead]
            for first in firsts:
                for last in range(dim, len(shape)):
                    if math.prod(shape[first : last + 1]) == new[place]:
                        self.before = math.prod(shape[first:dim])
                        self.after = math.prod(shape[dim + 1 : last + 1])
                        count = len(self.input)
                        channel = torch.arange(count).repeat_interleave(self.after)
                        self.of_feature = channel.repeat(self.before)
                        self.channels = self.input.at(self.of_feature).but(dim=place)
                        return
        raise NotUnderstood

    def ask(self, kept: Tensor) -> None:
        channels = torch.zeros(len(self.input), dtype=torch.bool)
        channels[self.of_feature[kept]] = True
        super().ask(channels)

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        features = torch.zeros(len(self.channels), dtype=torch.bool)
        features[kept] = True
        used = torch.zeros(len(self.input), dtype=torch.bool)
        used[self.of_feature[features]] = True
        made = self._applied(builder, builder.take(
            self.source, self.input_dim, used.nonzero().squeeze(1).tolist()
        ), int(used.sum()))  # fmt: skip
        present = used[self.of_feature].nonzero().squeeze(1)
        if len(present) == len(kept):
            return made
        wanted = torch.searchsorted(present, torch.tensor(kept))
        return builder.function(torch.index_select, made, self.dim, builder.buffer("index", wanted))

    def anchor(self, builder: Builder) -> fx.Node:
        made = self._applied(builder, builder.anchor(self.source, self.input_dim), 1)
        return builder.function(torch.narrow, made, self.dim, 0, 1)

    def _applied(self, builder: Builder, x: fx.Node, channels: int) -> fx.Node:
        if self.call.name == "flatten":
            return builder.again(self.node, self.source, x)
        shape = builder.argument(self.call.get("shape"))
        if len(shape) == 1 and isinstance(shape[0], tuple | list):
            (shape,) = shape
        shape = list(shape)
        if shape[self.dim] != -1:
            shape[self.dim] = self.before * channels * self.after
        return builder.function(torch.reshape, x, shape)


class Slice(OneInput):
    """Some channels, every one as it was or with a part of its space.

    Args:
        channel_of (list of int): for every channel of the result the one of the input.
        index (tuple or None): what is done to the other dimensions; None is nothing.
    """

    def __init__(
        self,
        analysis: Analysis,
        node: fx.Node,
        source: fx.Node,
        channel_of: list[int],
        index: tuple[slice, ...] | None = None,
    ) -> None:
        super().__init__(analysis, node, source)
        self.channel_of = torch.tensor(channel_of, dtype=torch.long)
        self.index = index
        self.channels = self.input.at(self.channel_of)
        if analysis.facts[node].shape[self.dim] != len(channel_of):
            raise NotUnderstood

    def ask(self, kept: Tensor) -> None:
        wanted = torch.zeros(len(self.input), dtype=torch.bool)
        wanted[self.channel_of[kept]] = True
        super().ask(wanted)

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        wanted = self.channel_of[kept].tolist()
        return self._cut(builder, builder.take(self.source, self.input_dim, wanted))

    def anchor(self, builder: Builder) -> fx.Node:
        return self._cut(builder, builder.anchor(self.source, self.input_dim))

    def _cut(self, builder: Builder, x: fx.Node) -> fx.Node:
        for dim, part in enumerate(self.index or ()):
            if part != slice(None):
                start, stop, step = (
                    builder.argument(value) for value in (part.start, part.stop, part.step)
                )
                # Unlike an index by a tuple, every form of a graph has this operator.
                x = builder.function(
                    torch.ops.aten.slice, x, dim, start, stop, 1 if step is None else step
                )
        return x


def _getitem(analysis: Analysis, node: fx.Node, call: Call) -> Operation:
    source, index = call.input, call.get("index")
    if not analysis.is_tensor(source):
        return _part_of_split(analysis, node, call)
    shape = analysis.facts[source].shape
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    if not all(isinstance(part, slice) for part in parts):
        raise NotUnderstood
    return _sliced(analysis, node, source, parts)


def _sliced(analysis: Analysis, node: fx.Node, source: fx.Node, parts: list[slice]) -> Operation:
    dim = analysis.channel_dim(source)
    if dim is None:
        raise NotUnderstood
    channel_of = list(range(analysis.facts[source].shape[dim]))
    if dim < len(parts):
        part = parts[dim]
        if any(isinstance(value, fx.Node) for value in (part.start, part.stop, part.step)):
            raise NotUnderstood
        channel_of = channel_of[part]
        parts[dim] = slice(None)
    return Slice(analysis, node, source, channel_of, tuple(parts))


def _slice(analysis: Analysis, node: fx.Node, call: Call) -> Operation:
    """aten.slice and narrow."""
    count = len(analysis.facts[call.input].shape)
    (dim,) = _dims(call.get("dim", 0), count)
    start = call.get("start", 0)
    if call.name == "narrow":
        length = call.get("length")
        if not isinstance(start, int) or not isinstance(length, int) or start < 0:
            raise NotUnderstood
        part = slice(start, start + length)
    else:
        part = slice(start, call.get("end"), call.get("step", 1))
    parts = [slice(None)] * count
    parts[dim] = part
    return _sliced(analysis, node, call.input, parts)


def _part_of_split(analysis: Analysis, node: fx.Node, call: Call) -> Operation:
    split, index = analysis.calls.get(call.input), call.get("index")
    if split is None or split.name not in ("chunk", "split") or not isinstance(index, int):
        raise NotUnderstood
    source = split.input
    dim = analysis.channel_dim(source)
    if dim is None or _dims(split.get("dim", 0), len(analysis.facts[source].shape)) != (dim,):
        raise NotUnderstood
    count = analysis.facts[source].shape[dim]
    if split.name == "chunk":
        size: Any = -(-count // int(split.get("chunks")))
    else:
        size = split.get("split_size_or_sections")
    if isinstance(size, int):
        size = [min(size, count - start) for start in range(0, count, size)]
    if not isinstance(size, list | tuple) or not all(isinstance(part, int) for part in size):
        raise NotUnderstood
    index %= len(size)
    start = sum(size[:index])
    return Slice(analysis, node, source, list(range(start, start + size[index])))


class Pad(OneInput):
    """Padding of space and of channels; new channels are constant and need not exist."""

    def __init__(self, analysis: Analysis, node: fx.Node, call: Call) -> None:
        super().__init__(analysis, node, call.input)
        pad = call.get("pad")
        if not isinstance(pad, list | tuple) or not all(isinstance(size, int) for size in pad):
            raise NotUnderstood
        self.mode = call.get("mode", "constant")
        self.value = call.get("value") or 0.0
        count = len(self.shape)
        pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
        sides = {count - 1 - i: pair for i, pair in enumerate(pairs)}
        low, high = sides.pop(self.input_dim, (0, 0))
        if min(low, high) < 0 or not isinstance(self.value, int | float):
            raise NotUnderstood
        if (low or high) and self.mode != "constant":
            raise NotUnderstood
        self.low = low
        self.space = [size for i, pair in enumerate(pairs) for size in
                      ((0, 0) if count - 1 - i == self.input_dim else pair)]  # fmt: skip
        while self.space[-2:] == [0, 0]:
            self.space = self.space[:-2]
        alive, constant = self.input.alive, self.input.constant
        if self.mode == "constant" and any(size > 0 for size in self.space):
            alive = alive | (constant != self.value)
        inner = self.input.but(alive=alive)
        self.channels = Channels(
            self.input_dim,
            F.pad(inner.alive, (low, high), value=False),
            F.pad(inner.constant, (low, high), value=float(self.value)),
        )

    def ask(self, kept: Tensor) -> None:
        super().ask(kept[self.low : self.low + len(self.input)])

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        wanted = [channel - self.low for channel in kept]
        return self._padded(builder, builder.take(self.source, self.input_dim, wanted))

    def anchor(self, builder: Builder) -> fx.Node:
        return self._padded(builder, builder.anchor(self.source, self.input_dim))

    def _padded(self, builder: Builder, x: fx.Node) -> fx.Node:
        if not self.space:
            return x
        if self.mode != "constant":
            return builder.function(F.pad, x, self.space, self.mode)
        return builder.function(F.pad, x, self.space, "constant", float(self.value))


def operation_of(analysis: Analysis, node: fx.Node, call: Call) -> Operation | None:
    """The operation of a node, None where it is not understood and needs every channel."""
    from pathways.extraction import combining, layers

    makers: dict[str, Any] = {
        "conv": layers.Convolution,
        "linear": layers.Linear,
        "batch_norm": layers.BatchNorm,
        "prelu": layers.PReLU,
        "add": combining.combined,
        "sub": combining.combined,
        "mul": combining.combined,
        "div": combining.combined,
        "cat": combining.concatenated,
        "flatten": Reshape,
        "reshape": Reshape,
        "permute": _rearranged,
        "transpose": _rearranged,
        "unsqueeze": _rearranged,
        "squeeze": _rearranged,
        "mean": _reduction,
        "extremum": _reduction,
        "max_pool": _pool,
        "avg_pool": _avg_pool,
        "adaptive_pool": _pool,
        "interpolate": _interpolate,
        "pad": Pad,
        "getitem": _getitem,
        "slice": _slice,
        "narrow": _slice,
        "pointwise": Pointwise,
        "identity": Identity,
    }
    make = makers.get(call.name)
    if make is None:
        return None
    try:
        operation: Operation = make(analysis, node, call)
    except NotUnderstood:
        return None
    return operation

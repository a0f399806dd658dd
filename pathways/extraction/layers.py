"""Layers with parameters: convolutions, linear layers, normalisation, PReLU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pathways.extraction.analysis import Analysis, Channels
from pathways.extraction.calls import Call, own_name
from pathways.extraction.network import Layer
from pathways.extraction.operations import NotUnderstood, OneInput, PerChannel

if TYPE_CHECKING:
    from pathways.extraction.building import Builder

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _parameter(analysis: Analysis, call: Call, name: str) -> Tensor | None:
    """A layer's tensor, None where it has none."""
    value = call.get(name)
    if value is None:
        return None
    tensor = analysis.fixed(value)
    if tensor is None:
        raise NotUnderstood  # a weight that follows from the input
    return tensor


def _needed(analysis: Analysis, call: Call, name: str) -> Tensor:
    tensor = _parameter(analysis, call, name)
    if tensor is None:
        raise NotUnderstood
    return tensor


def _name(node: fx.Node, call: Call) -> str:
    """Path of the module, or of the one that a function takes its weight from."""
    if call.module is not None:
        return str(node.target)
    weight = call.get("weight")
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return str(weight.target).rpartition(".")[0] or node.name
    return node.name


def _key(*parts: Any) -> tuple[Any, ...]:
    """What tells modules apart; tensors by their contents."""
    return tuple(tuple(p.flatten().tolist()) if isinstance(p, Tensor) else p for p in parts)


def _set(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    for name, tensor in tensors.items():
        old = getattr(module, name)
        if tensor is None or old is None:
            continue
        value = tensor.detach().clone()
        setattr(module, name, nn.Parameter(value) if isinstance(old, nn.Parameter) else value)
    return module


class Linear(OneInput):
    """A linear layer on the last dimension; constant inputs become part of its bias."""

    def __init__(self, analysis: Analysis, node: fx.Node, call: Call) -> None:
        self.weight = _needed(analysis, call, "weight")
        if not analysis.is_tensor(call.input) or self.weight.dim() != 2:
            raise NotUnderstood
        count = len(analysis.facts[call.input].shape)
        super().__init__(analysis, node, call.input, count - 1)
        self.name = _name(node, call)
        self.bias = _parameter(analysis, call, "bias")
        # Sums of constants are rounded once, when they are done.
        shift = self.weight.cpu().double() @ self.input.constant
        self.shift = shift if bool(shift.any()) else None
        outputs = len(self.weight)
        alive = torch.full((outputs,), bool(self.input.alive.any()))
        self.channels = Channels(count - 1, alive, torch.zeros(outputs)).but(
            constant=_shifted(self.bias, self.shift, outputs)
        )

    def ask(self, kept: Tensor) -> None:
        super().ask(torch.full((len(self.input),), bool(kept.any())))

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        index = self.input.alive.nonzero().squeeze(1)
        weight = self.weight[kept][:, index.to(self.weight.device)]
        bias = _folded(self.bias, self.shift, self.weight)
        bias = None if bias is None else bias[kept]

        def make() -> nn.Module:
            module = nn.Linear(len(index), len(kept), bias is not None, **_like(weight))
            return _set(module, weight=weight, bias=bias)

        builder.layers[self.node] = self.layer(len(index), len(kept), weight.numel())
        key = _key("linear", self.name, tuple(kept), index, self.shift)
        x = builder.take(self.source, self.input_dim, index.tolist())
        return builder.module(self.name, key, make, x)

    def anchor(self, builder: Builder) -> fx.Node:
        return builder.anchor(self.source, self.input_dim)

    def layer(self, inputs: int = 0, outputs: int = 0, weights: int = 0) -> Layer:
        places = math.prod(self.shape[1:-1])
        return Layer(
            own_name(self.name), "Linear", inputs, self.weight.shape[1], outputs,
            len(self.weight), weights * places, self.weight.numel() * places,
        )  # fmt: skip


def _shifted(bias: Tensor | None, shift: Tensor | None, count: int) -> Tensor:
    """Bias and shift as float64 on the CPU."""
    total = torch.zeros(count).double() if bias is None else bias.detach().cpu().double()
    return total if shift is None else total + shift


def _folded(bias: Tensor | None, shift: Tensor | None, weight: Tensor) -> Tensor | None:
    """The bias with the shift in it, the very bias where there is none."""
    if shift is None:
        return bias
    return _shifted(bias, shift, len(weight)).to(weight.device, weight.dtype)


def _like(tensor: Tensor) -> dict[str, Any]:
    return {"device": tensor.device, "dtype": tensor.dtype}


class Convolution(OneInput):
    """A convolution, grouped or not.

    A constant input channel that is not 0 adds the same to every place only where the border does
    not count as 0; then it becomes part of the bias. Else what all constant channels add together
    is a map that depends on the size of the input alone: the convolution of one channel of ones.
    """

    def __init__(self, analysis: Analysis, node: fx.Node, call: Call) -> None:
        super().__init__(analysis, node, call.input, 1)
        self.weight = _needed(analysis, call, "weight")
        self.bias = _parameter(analysis, call, "bias")
        self.space = self.weight.dim() - 2
        if self.space not in _CONVOLUTIONS or len(self.shape) != self.space + 2:
            raise NotUnderstood
        self.name = _name(node, call)
        self.groups = int(call.get("groups", 1))
        self.options = {
            "stride": call.get("stride", 1),
            "padding": call.get("padding", 0),
            "dilation": call.get("dilation", 1),
            "padding_mode": call.get("padding_mode", "zeros"),
        }
        if any(isinstance(option, fx.Node) for option in self.options.values()):
            raise NotUnderstood
        if self.weight.shape[1] * self.groups != len(self.input):
            raise NotUnderstood
        outputs = len(self.weight)
        self.ins = len(self.input) // self.groups
        self.outs = outputs // self.groups
        # What the constant channels of a group add to each of its outputs, place by place.
        constant = self.input.constant.reshape(self.groups, 1, self.ins)
        taps = self.weight.detach().cpu().double().reshape(self.groups, self.outs, self.ins, -1)
        self.kernel = torch.einsum("gui,goik->gok", constant, taps).reshape(outputs, -1)
        padded = self.options["padding_mode"] == "zeros" and self._has_padding()
        self.shift: Tensor | None = None
        if not padded and bool(self.kernel.any()):
            self.shift = self.kernel.sum(1)
            self.kernel = torch.zeros_like(self.kernel)
        groups_alive = self.input.alive.reshape(self.groups, self.ins).any(1)
        alive = groups_alive.repeat_interleave(self.outs) | self.kernel.any(1)
        self.channels = Channels(1, alive, torch.zeros(outputs)).but(
            constant=_shifted(self.bias, self.shift, outputs)
        )

    def _has_padding(self) -> bool:
        padding = self.options["padding"]
        if padding == "valid":
            return False
        if padding == "same":
            return any(size > 1 for size in self.weight.shape[2:])
        return any(padding) if isinstance(padding, tuple | list) else padding != 0

    def ask(self, kept: Tensor) -> None:
        used = kept.reshape(self.groups, self.outs).any(1)
        super().ask(used.repeat_interleave(self.ins))

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        bias = _folded(self.bias, self.shift, self.weight)
        index = torch.tensor(kept)
        by_group = [(index[index // self.outs == group] - group * self.outs).tolist()
                    for group in range(self.groups)]  # fmt: skip
        alive = self.input.alive.reshape(self.groups, self.ins)
        inputs = [
            alive[group].nonzero().squeeze(1).tolist() if outputs else []
            for group, outputs in enumerate(by_group)
        ]
        spatial = self.kernel[index]
        if not any(inputs):
            made = self._only_border(builder, index, bias)
            builder.layers[self.node] = self.layer(0, len(kept), 0)
            return made
        weight, take, give, groups = self._regrouped(inputs, by_group)
        wanted = [0] * len(weight)
        for place, output in zip(give, kept, strict=True):
            wanted[place] = output
        new_bias = None if bias is None else bias[wanted]
        x = builder.take(self.source, 1, take)
        made = self._layer(builder, x, weight, new_bias, groups, wanted, take)
        builder.layers[self.node] = self.layer(len(take), len(kept), weight.numel())
        if give != list(range(len(weight))):
            index_node = builder.buffer("index", torch.tensor(give))
            made = builder.function(torch.index_select, made, 1, index_node)
        if bool(spatial.any()):
            # In memory that the convolution has just made, and that no gradient needs.
            made = builder.method("add_", made, self._border(builder, x, spatial))
        return made

    def _regrouped(
        self, inputs: list[list[int]], outputs: list[list[int]]
    ) -> tuple[Tensor, list[int], list[int], int]:
        """The weight of the smaller layer, the channels it takes, where it gives which, groups.

        Groups of different sizes are filled up, with weights of 0, or made one dense layer where
        that costs less.
        """
        groups = [group for group in range(self.groups) if outputs[group]]
        most_in = max(len(inputs[group]) for group in groups)
        most_out = max(len(outputs[group]) for group in groups)
        dense_in = sum(len(inputs[group]) for group in groups)
        dense_out = sum(len(outputs[group]) for group in groups)
        dense = len(groups) == 1 or dense_in * dense_out <= len(groups) * most_in * most_out
        shape = (dense_out, dense_in) if dense else (len(groups) * most_out, most_in)
        weight = self.weight.new_zeros(*shape, *self.weight.shape[2:])
        filler = next(group * self.ins + inputs[group][0] for group in groups if inputs[group])
        take: list[int] = []
        give: list[int] = []
        row = 0
        for group in groups:
            chosen = self.weight[[group * self.outs + o for o in outputs[group]]]
            chosen = chosen[:, inputs[group]]
            column = len(take) if dense else 0
            weight[row : row + len(chosen), column : column + chosen.shape[1]] = chosen
            give += range(row, row + len(chosen))
            take += [group * self.ins + i for i in inputs[group]]
            if not dense:
                take += [filler] * (most_in - len(inputs[group]))
            row += len(chosen) if dense else most_out
        return weight, take, give, 1 if dense else len(groups)

    def _layer(
        self,
        builder: Builder,
        x: fx.Node,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        outputs: list[int],
        inputs: list[int],
    ) -> fx.Node:
        key = _key(
            "conv", self.name, str(self.options), groups, tuple(outputs), tuple(inputs), self.shift,
            weight if groups > 1 else None,
        )  # fmt: skip
        make = self._maker(weight, bias, groups)
        return builder.module(self.name, key, make, x)

    def _maker(self, weight: Tensor, bias: Tensor | None, groups: int) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            kind: Any = _CONVOLUTIONS[self.space]
            module = kind(
                weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]), groups=groups,
                bias=bias is not None, **self.options, **_like(weight),
            )  # fmt: skip
            return _set(module, weight=weight, bias=bias)

        return make

    def _border(self, builder: Builder, x: fx.Node, kernel: Tensor) -> fx.Node:
        """The map ``[1, C, ...]`` that constant inputs add, for the size that ``x`` has."""
        sizes = [builder.method("size", x, 2 + place) for place in range(self.space)]
        ones = builder.method("new_ones", x, [1, 1, *sizes])
        weight = kernel.reshape(-1, 1, *self.weight.shape[2:]).to(self.weight)
        make = self._maker(weight, None, 1)
        key = _key("border", self.name, str(self.options), kernel)
        return builder.module(f"{self.name}_constant", key, make, ones)

    def _only_border(self, builder: Builder, index: Tensor, bias: Tensor | None) -> fx.Node:
        """A result that no input changes, though it is not the same everywhere."""
        anchor = builder.anchor(self.source, 1)
        made = self._border(builder, anchor, self.kernel[index])
        if bias is not None:
            constant = bias[index.to(bias.device)].cpu()
            made = builder.function(torch.add, made, builder.vector(self.node, 1, constant))
        count = builder.method("size", anchor, 0)
        return builder.method("expand", made, count, *[-1] * (self.space + 1))

    def layer(self, inputs: int = 0, outputs: int = 0, weights: int = 0) -> Layer:
        places = math.prod(self.analysis.facts[self.node].shape[2:])
        kind = _CONVOLUTIONS[self.space].__name__
        return Layer(
            own_name(self.name), kind, inputs, len(self.input), outputs,
            len(self.weight), weights * places, self.weight.numel() * places,
        )  # fmt: skip

    def anchor(self, builder: Builder) -> fx.Node:
        x = builder.anchor(self.source, 1)
        weight = self.weight.new_zeros(1, 1, *self.weight.shape[2:])
        make = self._maker(weight, None, 1)
        return builder.module(
            f"{self.name}_shape", _key("shape", self.name, str(self.options)), make, x
        )


class BatchNorm(PerChannel):
    """Batch normalisation by running statistics."""

    def __init__(self, analysis: Analysis, node: fx.Node, call: Call) -> None:
        self.call = call
        self.name = _name(node, call)
        self.mean = _needed(analysis, call, "running_mean")
        self.variance = _needed(analysis, call, "running_var")
        self.weight = _parameter(analysis, call, "weight")
        self.bias = _parameter(analysis, call, "bias")
        if call.module is None and call.get("training", False):
            raise NotUnderstood
        self.eps, self.momentum = call.get("eps", 1e-5), call.get("momentum", 0.1)
        channels = analysis.channels.get(call.input)
        if channels is None or channels.dim != 1 or len(channels) != len(self.mean):
            raise NotUnderstood
        tensors = [
            None if tensor is None else tensor.cpu().double()
            for tensor in (self.mean, self.variance, self.weight, self.bias)
        ]
        mean, variance, weight, bias = tensors
        constant = F.batch_norm(
            channels.constant[None], mean, variance, weight, bias, eps=self.eps
        )[0]
        super().__init__(analysis, node, call.input, constant=constant)

    def apply(self, builder: Builder, x: fx.Node) -> fx.Node:
        return x  # of an anchor only the shape counts

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        def some(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[kept]

        def make() -> nn.Module:
            # Two parameters or none is all that the module knows.
            affine = self.weight is not None or self.bias is not None
            kind: Any = type(self.call.module) if self.call.module else _NORMS[len(self.shape)]
            module = kind(len(kept), self.eps, self.momentum, affine, **_like(self.mean))
            old = getattr(self.call.module, "num_batches_tracked", None)
            return _set(
                module, weight=some(self.weight), bias=some(self.bias),
                running_mean=some(self.mean), running_var=some(self.variance),
                num_batches_tracked=old,
            )  # fmt: skip

        x = builder.take(self.source, 1, kept)
        return builder.module(self.name, _key("norm", self.name, tuple(kept)), make, x)


class PReLU(PerChannel):
    """PReLU with one slope, or one per channel."""

    def __init__(self, analysis: Analysis, node: fx.Node, call: Call) -> None:
        self.weight = _needed(analysis, call, "weight")
        self.module = call.module
        self.name = _name(node, call) if call.module is not None else node.name
        channels = analysis.channels.get(call.input)
        if channels is None or (self.weight.numel() > 1 and channels.dim != 1):
            raise NotUnderstood
        slope = self.weight.cpu().double().flatten()
        x = channels.constant
        super().__init__(analysis, node, call.input, constant=torch.where(x < 0, slope * x, x))
        self.trained = call.module is not None or isinstance(_owned(analysis, call), nn.Parameter)

    def apply(self, builder: Builder, x: fx.Node) -> fx.Node:
        return x

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        weight = self.weight if self.weight.numel() == 1 else self.weight[kept]
        x = builder.take(self.source, self.input_dim, kept)

        def make() -> nn.Module:
            return _set(nn.PReLU(weight.numel(), **_like(weight)), weight=weight)

        return builder.module(self.name, _key("prelu", self.name, tuple(kept)), make, x)


def _owned(analysis: Analysis, call: Call) -> Any:
    weight = call.get("weight")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    path, _, last = str(weight.target).rpartition(".")
    return getattr(analysis.captured.get_submodule(path), last)

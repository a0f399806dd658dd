"""Operations on several tensors: sums, products and concatenations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from pathways.extraction.analysis import Analysis, Channels
from pathways.extraction.calls import Call
from pathways.extraction.operations import NotUnderstood, Operation

if TYPE_CHECKING:
    from pathways.extraction.building import Builder

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}


class _Operand:
    """One side of a sum or product, as its result sees it.

    Args:
        analysis (Analysis): what is known so far.
        node (Node): the sum or product.
        dim (int): where the result has its channels.
        value (Node or number): the operand.
    """

    def __init__(self, analysis: Analysis, node: fx.Node, dim: int, value: Any) -> None:
        self.analysis = analysis
        self.value = value
        self.shared = False  # the same for every channel, though it depends on the input
        self.dim = dim
        result = analysis.facts[node].shape
        count = result[dim]
        self.fixed = analysis.fixed(value)
        self.across = False
        self.fills = False  # has the shape of the result, but for the channels
        if isinstance(value, int | float):
            constant = torch.full((count,), float(value)).double()
            self.channels = Channels(dim, torch.zeros(count, dtype=torch.bool), constant)
            return
        if not analysis.is_tensor(value):
            raise NotUnderstood
        shape = analysis.facts[value].shape
        self.dim = dim - (len(result) - len(shape))
        self.across = self.dim >= 0 and shape[self.dim] == count
        space = [size for place, size in enumerate(shape) if place != self.dim]
        if self.fixed is not None and all(size == 1 for size in space):
            constant = self.fixed.detach().cpu().double().flatten().expand(count)
            self.channels = Channels(dim, torch.zeros(count, dtype=torch.bool), constant)
            return
        self.fills = analysis.facts[value] == analysis.facts[node]
        self.shared = not self.across
        self.channels = (
            Channels.all_alive(dim, count)
            if self.shared or self.fixed is not None
            else analysis.view(value, self.dim).but(dim=dim)
        )

    @property
    def is_constant(self) -> bool:
        """Whether it is a number or one number per channel in every run."""
        return not isinstance(self.value, fx.Node) or (
            self.fixed is not None and not bool(self.channels.alive.any())
        )

    def ask(self, kept: Tensor) -> None:
        if not isinstance(self.value, fx.Node) or self.fixed is not None:
            return
        if self.shared:
            self.analysis.ask_all(self.value)
        else:
            self.analysis.ask(self.value, self.dim, kept)

    def emit(self, builder: Builder, kept: list[int]) -> Any:
        """The operand for some channels of the result."""
        if not isinstance(self.value, fx.Node):
            return self.value
        if self.fixed is not None:
            return builder.own(self.value, self.dim, kept if self.across else None)
        if self.shared:
            return builder.full(self.value)
        return builder.take(self.value, self.dim, kept)


class Combination(Operation):
    """Sum, difference, product or quotient of two tensors, or of one and numbers."""

    def __init__(self, analysis: Analysis, node: fx.Node, call: Call) -> None:
        super().__init__(analysis, node)
        self.name = call.name
        extra = set(call.arguments) - {"input", "other"}
        first, second = call.arguments.get("input"), call.arguments.get("other")
        if extra or not analysis.is_tensor(node) or len(node.args) > 2:
            raise NotUnderstood
        dim = self._channel_dim((first, second))
        self.operands = [_Operand(analysis, node, dim, value) for value in (first, second)]
        a, b = (operand.channels for operand in self.operands)
        alive = a.alive | b.alive
        constant: Tensor = _FUNCTIONS[self.name](a.constant, b.constant)
        if self.name == "mul":
            zero = (~a.alive & (a.constant == 0)) | (~b.alive & (b.constant == 0))
            alive = alive & ~zero
        self.channels = a.but(alive=alive, constant=constant)

    def _channel_dim(self, values: tuple[Any, Any]) -> int:
        facts = self.analysis.facts
        result = facts[self.node].shape
        for value in values:
            if isinstance(value, fx.Node) and value in self.analysis.channels:
                shape = facts[value].shape
                dim = self.analysis.channels[value].dim + len(result) - len(shape)
                if result[dim] == len(self.analysis.channels[value]):
                    return dim
        raise NotUnderstood

    def ask(self, kept: Tensor) -> None:
        for operand in self.operands:
            operand.ask(kept)

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        if self.name == "add" and all(operand.fills for operand in self.operands):
            return self._sum(builder, kept)
        first, second = (operand.emit(builder, kept) for operand in self.operands)
        made = builder.function(_FUNCTIONS[self.name], first, second)
        if self.name == "add":
            made.meta["whole"] = [
                given
                for operand, given in zip(self.operands, (first, second), strict=True)
                if operand.fills
            ]
        return made

    def _sum(self, builder: Builder, kept: list[int]) -> fx.Node:
        """Adds to one operand those channels of the other that are alive."""
        index = torch.tensor(kept)
        whole = [bool(operand.channels.alive[index].all()) for operand in self.operands]
        if all(whole):
            first, second = (operand.emit(builder, kept) for operand in self.operands)
            made = builder.function(operator.add, first, second)
            made.meta["whole"] = [first, second]
            return made
        # Where neither is whole, the one with more channels is filled up.
        share = [int(operand.channels.alive[index].sum()) for operand in self.operands]
        at = 0 if share[0] >= share[1] else 1
        base, other = self.operands[at], self.operands[1 - at]
        made = base.emit(builder, kept)
        channels = other.channels.at(index)
        if bool(channels.constant.any()):
            vector = builder.vector(self.node, self.dim, channels.constant)
            added = builder.function(torch.add, made, vector)
            added.meta["whole"] = [made]
            made = added
        places = channels.alive.nonzero().squeeze(1)
        if len(places):
            part = other.emit(builder, index[places].tolist())
            at_places = builder.buffer("index", places)
            added = builder.function(torch.index_add, made, self.dim, at_places, part)
            added.meta["whole"] = [made]
            made = added
        return made

    def anchor(self, builder: Builder) -> fx.Node:
        made: Any = None
        for operand in self.operands:
            if operand.is_constant:
                continue
            if operand.shared or operand.fixed is not None:
                part = operand.emit(builder, [0])
            else:
                part = builder.anchor(operand.value, operand.dim)
            made = part if made is None else builder.function(torch.add, made, part)
        assert isinstance(made, fx.Node)
        return made


def combined(analysis: Analysis, node: fx.Node, call: Call) -> Operation:
    """Sum, difference, product or quotient."""
    return Combination(analysis, node, call)


class Concatenation(Operation):
    """Tensors side by side, along the channels or along another dimension."""

    def __init__(self, analysis: Analysis, node: fx.Node, call: Call) -> None:
        super().__init__(analysis, node)
        self.parts = call.get("tensors")
        along = call.get("dim", 0)
        if not isinstance(self.parts, list | tuple) or not isinstance(along, int):
            raise NotUnderstood
        if not self.parts or not all(analysis.is_tensor(part) for part in self.parts):
            raise NotUnderstood
        shape = analysis.facts[node].shape
        self.along = along % len(shape)
        known = [analysis.channel_dim(part) for part in self.parts]
        dim = next((dim for dim in known if dim is not None), None)
        if dim is None or self.along == 0:
            raise NotUnderstood
        views = [analysis.view(part, dim) for part in self.parts]
        if self.along == dim:
            self.starts = [0]
            for view in views:
                self.starts.append(self.starts[-1] + len(view))
            alive = torch.cat([view.alive for view in views])
            constant = torch.cat([view.constant for view in views])
        else:
            first = views[0]
            alive = torch.stack([view.alive for view in views]).any(0)
            alive |= torch.stack([view.constant != first.constant for view in views]).any(0)
            constant = first.constant
        self.channels = Channels(dim, alive, constant).but()

    def ask(self, kept: Tensor) -> None:
        for part, wanted in zip(self.parts, self._of_parts(kept), strict=True):
            self.analysis.ask(part, self.dim, wanted)

    def emit(self, builder: Builder, kept: list[int]) -> fx.Node:
        mask = torch.zeros(len(self.channels), dtype=torch.bool)
        mask[kept] = True
        made = []
        for part, wanted in zip(self.parts, self._of_parts(mask), strict=True):
            if bool(wanted.any()):
                index = wanted.nonzero().squeeze(1).tolist()
                made.append(builder.take(part, self.dim, index))
        return made[0] if len(made) == 1 else builder.function(torch.cat, made, self.along)

    def anchor(self, builder: Builder) -> fx.Node:
        made = [builder.anchor(part, self.dim) for part in self.parts]
        return made[0] if self.along == self.dim else builder.function(torch.cat, made, self.along)

    def _of_parts(self, mask: Tensor) -> list[Tensor]:
        if self.along != self.dim:
            return [mask] * len(self.parts)
        pairs = zip(self.starts[:-1], self.starts[1:], strict=True)
        return [mask[start:stop] for start, stop in pairs]


def concatenated(analysis: Analysis, node: fx.Node, call: Call) -> Operation:
    """Concatenation."""
    return Concatenation(analysis, node, call)

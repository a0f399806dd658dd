"""What is known of every tensor of a captured graph: shapes, values, living channels, demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pathways.extraction.calls import Call, read_call
from pathways.pathway import Pathway

_FIXED = ("placeholder", "get_attr", "output")


@dataclass(frozen=True)
class Channels:
    """The channels of a tensor: which depend on the input, and what the others are.

    Args:
        dim (int): dimension of the tensor that holds the channels, not negative.
        alive (Tensor[C], bool): channels that may differ between inputs or places.
        constant (Tensor[C], float64): what every element of a channel is that is not alive; 0 for
            the others.
    """

    dim: int
    alive: Tensor
    constant: Tensor

    def __len__(self) -> int:
        return len(self.alive)

    @classmethod
    def all_alive(cls, dim: int, count: int) -> Channels:
        """Channels of which nothing is known."""
        return cls(dim, torch.ones(count, dtype=torch.bool), torch.zeros(count).double())

    def but(
        self, *, dim: int | None = None, alive: Tensor | None = None, constant: Tensor | None = None
    ) -> Channels:
        """The same with other parts; constants of living channels are set to 0."""
        alive = self.alive if alive is None else alive
        constant = self.constant if constant is None else constant
        constant = torch.where(alive, 0.0, constant.double())
        return Channels(self.dim if dim is None else dim, alive, constant)

    def at(self, index: Tensor) -> Channels:
        """Some of the channels."""
        return Channels(self.dim, self.alive[index], self.constant[index])


@dataclass(frozen=True)
class Fact:
    """Shape and dtype of the tensor that a node gave for the example."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class _Recorder(fx.Interpreter):
    """Runs a graph once, notes what its tensors are like, and keeps what is the same in every run.

    That is tensors (``static``) and numbers and shapes (``literals``) that follow from parameters.
    """

    def __init__(self, captured: fx.GraphModule) -> None:
        super().__init__(captured)
        self.facts: dict[fx.Node, Fact] = {}
        self.static: dict[fx.Node, Tensor] = {}
        self.literals: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        sources = n.all_input_nodes
        fixed = n.op == "get_attr" or (
            n.op in ("call_function", "call_method")
            and len(sources) > 0
            and all(node in self.static or node in self.literals for node in sources)
        )
        if isinstance(value, Tensor):
            self.facts[n] = Fact(tuple(value.shape), value.dtype)
            if fixed:
                self.static[n] = value.detach()
        elif fixed and isinstance(value, int | float | tuple | torch.dtype | torch.device):
            self.literals[n] = tuple(value) if isinstance(value, tuple) else value
        return value


class Analysis:
    """Follows living and constant channels through a graph, and which of them are asked for.

    Args:
        captured (GraphModule): functional, with markers behind the sites.
        markers (mapping): the marker nodes and the sites they stand for.
        pathway (Pathway): one row.
        baseline (list of Tensor or None): what replaces channels that are not kept.
        example (Tensor[N, ...]): images to learn shapes from.
    """

    def __init__(
        self,
        captured: fx.GraphModule,
        markers: Mapping[fx.Node, int],
        pathway: Pathway,
        baseline: list[Tensor] | None,
        example: Tensor,
    ) -> None:
        from pathways.extraction.operations import Operation, Site, operation_of

        self.captured = captured
        recorder = _Recorder(captured)
        with torch.no_grad():
            recorder.run(example)
        self.facts = recorder.facts
        self.static = recorder.static
        self.literals = recorder.literals
        self.channels: dict[fx.Node, Channels] = {}
        self.operations: dict[fx.Node, Operation] = {}
        self.calls: dict[fx.Node, Call] = {}
        gates = [gate[0].cpu() for gate in pathway.gates(torch.bool)]
        for node in captured.graph.nodes:
            operation: Operation | None
            if node in markers:
                site = markers[node]
                value = None if baseline is None else baseline[site]
                dim = pathway.sites[site].channel_dim
                operation = Site(self, node, dim, gates[site], value)
            elif (
                node in self.static
                or node in self.literals
                or node.op in ("placeholder", "get_attr", "output")
            ):
                continue
            else:
                call = read_call(node, captured)
                if call is None:
                    continue
                self.calls[node] = call
                operation = operation_of(self, node, call)
            if operation is not None:
                self.operations[node] = operation
                self.channels[node] = operation.channels
        self.asked = {
            node: torch.zeros(len(channels), dtype=torch.bool)
            for node, channels in self.channels.items()
        }
        for node in reversed(captured.graph.nodes):
            if node in self.operations:
                self.operations[node].ask(self.kept(node))
            elif node not in self.static and not self._only_reads_sizes(node):
                for source in node.all_input_nodes:
                    self.ask_all(source)

    def kept(self, node: fx.Node) -> Tensor:
        """Channels of a node that are computed: alive and asked for, bool ``[C]``."""
        return self.channels[node].alive & self.asked[node]

    def view(self, node: fx.Node, dim: int) -> Channels:
        """The channels of a node along a dimension."""
        channels = self.channels.get(node)
        if channels is not None and channels.dim == dim:
            return channels
        return Channels.all_alive(dim, self.facts[node].shape[dim])

    def ask(self, node: fx.Node, dim: int, wanted: Tensor) -> None:
        """Note that a node's channels along a dimension are used."""
        channels = self.channels.get(node)
        if channels is None:
            return
        if channels.dim == dim:
            self.asked[node] |= wanted
        else:
            self.ask_all(node)

    def ask_all(self, node: fx.Node) -> None:
        """Note that a node is used as a whole."""
        if node in self.asked:
            self.asked[node].fill_(True)

    def is_tensor(self, node: Any) -> bool:
        """Whether a node gave a floating tensor."""
        return isinstance(node, fx.Node) and (
            node in self.facts and self.facts[node].dtype.is_floating_point
        )

    def fixed(self, value: Any) -> Tensor | None:
        """The tensor that an argument is in every run, None where it depends on the input."""
        if isinstance(value, Tensor | nn.Parameter):
            return value.detach()
        return self.static.get(value) if isinstance(value, fx.Node) else None

    def channel_dim(self, node: fx.Node) -> int | None:
        """Where a node has its channels, None where that is not known."""
        channels = self.channels.get(node)
        return None if channels is None else channels.dim

    def _only_reads_sizes(self, node: fx.Node) -> bool:
        call = self.calls.get(node)
        if call is None or call.name not in ("size", "attribute", "getitem", "chunk", "split"):
            return False
        if call.name == "getitem":  # of a shape, or of parts; a part that is used asks for itself
            return not self.is_tensor(call.input)
        if call.name in ("chunk", "split"):
            return all(user in self.operations for user in node.users)
        return call.name == "size" or call.get("name") in ("shape", "dtype", "device", "ndim")

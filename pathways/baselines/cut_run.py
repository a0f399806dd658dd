"""What the neurons of one site bring directly to the neurons that are computed from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pathways.baselines.gradients import recordable, recording
from pathways.target import GatedTarget


class CutRun:
    """A clean run whose graph is cut at every site: gradients reach the sites before, no further.

    Positions count the sites, then the logits.
    """

    def __init__(self, target: GatedTarget) -> None:
        self.sites = target.sites
        self.activations: list[Tensor] = []  # in order of the sites, then the logits
        self.logits = torch.empty(0)
        self._root = -1
        self._gradients: dict[int, Tensor] = {}

    def observe(self, site: int, output: Tensor) -> None:
        def cut(gradient: Tensor) -> Tensor | None:
            if site == self._root:
                return None
            self._gradients[site] = gradient
            return torch.zeros_like(gradient)

        output.register_hook(cut)
        self.activations.append(output)

    def inputs(self, consumer: int) -> list[int]:
        """Sites from which a site, or the logits, is computed without another site between."""
        nodes = {self.activations[i].grad_fn: i for i in range(len(self.sites))}
        found, seen = set(), set()
        waiting = [self.activations[consumer].grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in nodes and nodes[node] != consumer:
                found.add(nodes[node])
            else:
                waiting += [upstream for upstream, _ in node.next_functions]
        return sorted(found)

    def contributions(
        self, consumer: int, neuron: Tensor, rows: Tensor, inputs: list[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Value ``[N, 1]`` of one neuron per row, and what the neurons of every input bring."""
        output = self.activations[consumer]
        picked = torch.zeros(output.shape[0], self._flat(consumer, output).shape[1])
        picked = picked.to(output).scatter_(1, neuron, rows.to(output.dtype))
        seed = picked.reshape(self._shape(consumer, output))
        if consumer < len(self.sites):
            seed = seed.movedim(1, self.sites[consumer].channel_dim)
        self._root, self._gradients = consumer, {}
        sources = [self.activations[i] for i in inputs]
        torch.autograd.grad(
            output, sources, seed.expand_as(output), retain_graph=True, allow_unused=True
        )
        value = self._flat(consumer, output.detach().float()).gather(1, neuron)
        return value, [
            self._flat(i, source.detach().float() * self._gradients.get(i, 0.0))
            for i, source in zip(inputs, sources, strict=True)
        ]

    def _shape(self, position: int, output: Tensor) -> list[int]:
        """Channels first, with one position for channels."""
        if position == len(self.sites):
            return list(output.shape)
        shape = list(output.movedim(self.sites[position].channel_dim, 1).shape)
        channel = self.sites.granularity == "channel"
        return shape[:2] + ([1] * len(shape[2:]) if channel else shape[2:])

    def _flat(self, position: int, output: Tensor) -> Tensor:
        """One value per neuron ``[N, size]``: of its unit, or the sum over its channel."""
        if position == len(self.sites):
            return output
        output = output.movedim(self.sites[position].channel_dim, 1)
        if self.sites.granularity == "channel":
            return output.flatten(2).sum(2) if output.dim() > 2 else output
        return output.flatten(1)


@contextmanager
def cut_run(target: GatedTarget, images: Tensor) -> Iterator[CutRun]:
    """Record a clean run of inputs ``[N, ...]``; contributions may be asked for inside."""
    with recording():
        run = CutRun(target)
        gates = torch.ones(1, target.sites.num_neurons, device=images.device, requires_grad=True)
        run.logits = target.gated(recordable(images), gates, observe=run.observe)
        run.activations.append(run.logits)
        yield run

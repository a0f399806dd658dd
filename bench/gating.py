"""Shapes, inputs and the plain torch expression that the two gating benches share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from machine import pages

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = ((32, 64, 112, 112), (32, 256, 28, 28), (8, 512, 14, 14), (1, 64, 56, 56))


class Case(NamedTuple):
    shape: tuple[int, int, int, int]
    layout: str
    kept: int
    threads: int

    @property
    def work(self) -> str:
        return f"{self.shape} {self.layout}, kept {self.kept} %{pages()}"

    def input(self) -> torch.Tensor:
        return torch.randn(self.shape).contiguous(memory_format=LAYOUTS[self.layout])

    def gate(self) -> torch.Tensor:
        """0 or 1 for every channel of every input, exactly ``kept`` percent of them 1."""
        order = torch.rand(self.shape[:2]).argsort(1).argsort(1)
        return (order < self.shape[1] * self.kept // 100).to(torch.float32)


def gated_relu(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """What a torch user writes."""
    return x.relu() * gate[:, :, None, None]


def gated_relu_(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """The same in place."""
    return x.relu_().mul_(gate[:, :, None, None])

"""A target as one scriptable module with a clean and a gated run.

No ``from __future__ import annotations`` here: TorchScript reads annotations as objects.
"""

import torch
from torch import Tensor, nn


class GatedGraph(nn.Module):
    """A rewritten target: one graph, one set of parameters, run clean or gated.

    Made by :func:`pathways.export.gated_graph`; scriptable. Nothing is shared with the target.

    Args:
        graph (GraphModule):
            ``graph(images, gates, features, gated, record, pool, probe) -> logits``,
            see :func:`pathways.export.runtime.run_site`.
        captured_by (str): ``"torch.fx"`` or ``"torch.export"``.
    """

    def __init__(self, graph: nn.Module, captured_by: str) -> None:
        super().__init__()
        self.graph = graph
        self.captured_by = captured_by

    def forward(self, images: Tensor) -> Tensor:
        """Clean logits ``[N, K]``."""
        gates: list[Tensor] = []
        features: list[Tensor] = []
        logits: Tensor = self.graph(images, gates, features, False, False, -1, -1)
        return logits

    @torch.jit.export
    def clean(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Clean logits ``[N, K]`` and the activation of every site, ``[N, C, *space]``."""
        gates: list[Tensor] = []
        features: list[Tensor] = []
        logits: Tensor = self.graph(images, gates, features, False, True, -1, -1)
        return logits, features

    @torch.jit.export
    def summaries(self, images: Tensor, pool: int) -> tuple[Tensor, list[Tensor]]:
        """Clean logits ``[N, K]`` and what a generator with this ``pool`` reads of every site.

        Each activation is summarised while it is in the caches, and given up with its last use.
        """
        gates: list[Tensor] = []
        features: list[Tensor] = []
        logits: Tensor = self.graph(images, gates, features, False, True, pool, -1)
        return logits, features

    @torch.jit.export
    def gated(self, images: Tensor, gates: list[Tensor]) -> Tensor:
        """Logits ``[N, K]`` of the gated run, by the compiled op; without gradient.

        Args:
            images (Tensor[N, ...]): inputs.
            gates (list of Tensor): floating, one per site, ``[N, C]`` or ``[1, C]`` (channel
                granularity), ``[N, C, *space]`` (unit).
        """
        features: list[Tensor] = []
        with torch.no_grad():
            logits: Tensor = self.graph(images, gates, features, True, False, -1, -1)
        return logits

    @torch.jit.export
    def gated_with_gradient(
        self, images: Tensor, gates: list[Tensor], probe: int = -1
    ) -> tuple[Tensor, list[Tensor]]:
        """The gated run as differentiable tensor operations.

        Args:
            images (Tensor[N, ...]): inputs; gradients flow to them where they require it.
            gates (list of Tensor): as in :meth:`gated`.
            probe (int): site to observe; -1 is none.

        Returns:
            logits (Tensor[N, K]) and a list: empty, or the probed site's gated activation in the
            model's own layout (detached) and a tensor of zeros whose gradient is the activation's.
        """
        features: list[Tensor] = []
        logits: Tensor = self.graph(images, gates, features, True, True, -1, probe)
        return logits, features

"""Pathway Distillation Network: class-relevant information from the codes of all sites."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PathwayDistillation(nn.Module):
    """Attention over the site codes with a class query; deep semantics reach the shallow sites.

    Site codes are tokens of a small transformer together with a learned class query. The query's
    output is the class code g; an auxiliary head on g is distilled from the target's logits, which
    forces class content into it, and a feature-wise linear modulation by g is applied to every
    site's code. With ``reads_logits`` the query also has a linear reading of the target's own
    logits, which say who wins a close call where the codes cannot.

    Args:
        num_sites (int): L.
        width (int): d.
        num_classes (int): K, of the auxiliary head.
        layers (int): transformer encoder layers, 1 or more.
        heads (int): attention heads; divides ``width``.
        reads_logits (bool): the query reads the target's logits.

    Returns of ``forward(codes, logits)``, codes ``[N, L, d]`` and the target's logits ``[N, K]``:
        modulated codes (Tensor[N, L, d]), class code g (Tensor[N, d]), auxiliary logits (Tensor[N,
        K]).

    Source: arXiv:2309.09887 names the part and its purpose; the layers and the reading of the
    logits are our choice.

    Example:
        >>> distil = PathwayDistillation(num_sites=4, width=8, num_classes=3, layers=1, heads=2)
        >>> codes, g, logits = distil(torch.randn(5, 4, 8), torch.randn(5, 3))
        >>> codes.shape, g.shape, logits.shape
        (torch.Size([5, 4, 8]), torch.Size([5, 8]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        num_sites: int,
        width: int,
        num_classes: int,
        layers: int = 1,
        heads: int = 4,
        reads_logits: bool = False,
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, num_sites, width) * 0.02)
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.encoder = nn.ModuleList(
            [
                nn.TransformerEncoderLayer(
                    width,
                    heads,
                    dim_feedforward=2 * width,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(layers)
            ]
        )
        self.norm = nn.LayerNorm(width)
        self.auxiliary = nn.Linear(width, num_classes)
        self.modulation = nn.Linear(width, 2 * width)
        self.reading = nn.Linear(2 * num_classes, width) if reads_logits else None

    def forward(self, codes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query = self.query.expand(codes.size(0), -1, -1)
        if self.reading is not None:
            query = query + self.reading(_reading(logits).to(codes.dtype)).unsqueeze(1)
        tokens = torch.cat([query, codes + self.position], dim=1)
        for layer in self.encoder:
            tokens = layer(tokens)
        tokens = self.norm(tokens)
        class_code = tokens[:, 0]
        scale, shift = self.modulation(class_code).unsqueeze(1).chunk(2, dim=2)
        return tokens[:, 1:] * (1 + scale) + shift, class_code, self.auxiliary(class_code)


def _reading(logits: Tensor) -> Tensor:
    """What the target says ``[N, 2 K]``: log-probabilities in [-2, 0] and the winner's one-hot."""
    # Finite, so that logits beyond the range of float32 are merely certain.
    probabilities = logits.float().clamp(-1e38, 1e38).log_softmax(1)
    # Of the logits themselves: rounding could make the two first log-probabilities equal.
    winner = torch.zeros_like(probabilities).scatter(1, logits.argmax(1, keepdim=True), 1.0)
    # Below e**-10 it is all the same; a fifth brings the rest to the range of the codes.
    return torch.cat([probabilities.clamp_min(-10.0) / 5.0, winner], dim=1)

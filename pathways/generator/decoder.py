"""Recursive Pathway Decoders: from the codes, deep to shallow, to importance scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _start(layer: nn.Linear | nn.Conv2d, start: float) -> None:
    """Outputs around ``start``, spread: equal scores would be switched off in the same step."""
    nn.init.normal_(layer.weight, std=0.02)
    assert layer.bias is not None  # the heads are built with one
    nn.init.uniform_(layer.bias, start - 0.5 * abs(start), start + 0.5 * abs(start))


class UnitHead(nn.Module):
    """Scores ``[N, C, H, W]`` of one site from its grown state, its own map and its activity.

    The adapter's output is added at the end so that position information survives. Activity counts
    as in :class:`ChannelHead`, the gain being that of the place.
    """

    def __init__(self, width: int, channels: int, start: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, channels, kernel_size=1)
        self.gain = nn.Conv2d(width, channels, kernel_size=1)
        _start(self.project, start)
        _start(self.gain, 0.0)

    def forward(self, grown: Tensor, adapted: Tensor, activity: Tensor) -> Tensor:
        size = [adapted.size(2), adapted.size(3)]
        grown = F.interpolate(grown, size=size, mode="bilinear", align_corners=False)
        scores: Tensor = self.project(F.gelu(grown + adapted)) + self.gain(grown) * activity
        return scores


class ChannelHead(nn.Module):
    """Scores ``[N, C]`` of one site from its state ``[N, d]`` and its activity ``[N, 2 C]``.

    What a neuron does for a class is about its activation times a weight that depends on the class;
    the state gives every neuron's weights, the gains. Positions play no part.
    """

    def __init__(self, width: int, channels: int, start: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, channels)
        self.gain = nn.Linear(width, 2 * channels)
        _start(self.project, start)
        _start(self.gain, 0.0)

    def forward(self, grown: Tensor, adapted: Tensor, activity: Tensor) -> Tensor:
        means, maxima = (self.gain(grown) * activity).chunk(2, dim=1)
        scores: Tensor = self.project(grown) + means + maxima
        return scores


class GrowthBlock(nn.Module):
    """Residual upsampling by 2, ``[N, d, h, w] -> [N, d, 2h, 2w]``, shared by all sites."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.spread = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.mix = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x + self.mix(F.gelu(self.spread(self.norm(x))))


class PathwayDecoders(nn.Module):
    """One Recursive Pathway Decoder per site, deep to shallow.

    A shared recurrent cell joins the site's code with the state carried from the deeper site, whose
    first value is the class code; the site's own head turns the state into scores. The heads'
    initial biases are spread around ``start``: with a positive one every neuron starts on.

    Args:
        channels (list of int): C of every site.
        width (int): d.
        unit (bool): scores per unit instead of per channel.
        start (float): mean initial score.

    Returns of ``forward(codes, class_code, activity, maps)``, where maps count only by unit:
        list of Tensor: flat scores ``[N, size]`` per site, in execution order.

    Source: arXiv:2309.09887 names the part and its purpose; the layers are our choice.

    Example:
        >>> import torch
        >>> decode = PathwayDecoders([3, 5], width=8, unit=False)
        >>> activity = [torch.randn(2, 6), torch.randn(2, 10)]
        >>> scores = decode(torch.randn(2, 2, 8), torch.randn(2, 8), activity, maps=[])
        >>> [tuple(score.shape) for score in scores]
        [(2, 3), (2, 5)]
    """

    def __init__(self, channels: list[int], width: int, unit: bool, start: float = 2.0) -> None:
        super().__init__()
        self.unit = unit
        self.cell = nn.GRUCell(width, width)
        self.growth = GrowthBlock(width) if unit else nn.Identity()
        # Listed deep to shallow: TorchScript walks a ModuleList only in its own order.
        self.heads = nn.ModuleList(
            [
                UnitHead(width, c, start) if unit else ChannelHead(width, c, start)
                for c in reversed(channels)
            ]
        )

    def forward(
        self, codes: Tensor, class_code: Tensor, activity: list[Tensor], maps: list[Tensor]
    ) -> list[Tensor]:
        states = self._states(codes.flip(1), class_code)
        scores: list[Tensor] = []
        for i, head in enumerate(self.heads):
            site = codes.size(1) - 1 - i
            grown = adapted = states[i]
            if self.unit:
                adapted = maps[site]
                grown = grown.unsqueeze(2).unsqueeze(3)
                while grown.size(2) < adapted.size(2) or grown.size(3) < adapted.size(3):
                    grown = self.growth(grown)
            scores.append(head(grown, adapted, activity[site]).flatten(1))
        return scores[::-1]

    def _states(self, codes: Tensor, class_code: Tensor) -> list[Tensor]:
        """States ``[N, d]`` of the cell after each of the codes ``[N, L, d]``."""
        cell = self.cell
        if codes.is_cuda:  # cuDNN's recurrences have no second derivative and want flat weights
            states = [class_code]
            for code in codes.unbind(1):
                states.append(cell(code, states[-1]))
            return states[1:]
        weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
        steps = codes.transpose(0, 1).contiguous()
        out = torch.gru(steps, class_code.unsqueeze(0), weights, True, 1, 0.0, False, False, False)
        return list(out[0].unbind(0))

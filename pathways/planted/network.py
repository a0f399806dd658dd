"""Planted nets: weights written by hand, so that the circuit of every class is known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathways.planted.stimuli import (
    CELL,
    EDGE_THRESHOLD,
    PART_THRESHOLD,
    WHOLE_THRESHOLD,
    WINDOW,
    edge_kernels,
    templates,
)

ROLES = {
    "shared": "edges that every class is seen by; in every circuit",
    "chain": "parts, whole and evidence of one class; in its circuit",
    "inhibitory": "the class's evidence against all other logits; in its circuit",
    "backup": "a second copy of the chain that takes over when the first is gone",
    "companion": "chain of a glyph that comes with a class, as active as the class's, unconnected",
    "texture": "brightness and darkness, always active, unconnected",
    "cancelling": "two per class, always active, for and against its logit in equal measure",
    "dead": "never active, with weights to everything",
}
"""Roles of channels and what they mean."""

EVIDENCE = 6.0  # logit of a class per unit of evidence
INHIBITION = 3.0  # what evidence for a class takes from the logits of all others
REJECT = 4.0  # logit of "nothing": more than no evidence, less than evidence less inhibition
CANCELLING = 8.0  # what one half of a cancelling pair does to its class's logit


@dataclass(frozen=True)
class Channel:
    """One channel of a planted net.

    Args:
        role (str): key of :data:`ROLES`.
        owner (int): class it belongs to; -1 for none.
        part (int): which of several of the same role: edge, part of the chain, half of a pair.
        backup (bool): belongs to the second copy, which takes over.
    """

    role: str
    owner: int = -1
    part: int = 0


def layout(
    num_classes: int, chain: int, depth: int, dead: int, backup: bool, seed: int
) -> list[list[Channel]]:
    """Channels of every site, shuffled, so that no method gains by the order of ties."""
    classes = range(num_classes)
    edges = [Channel("shared", part=part) for part in range(4)]
    sites = [edges + [Channel("texture", part=part) for part in range(2)]]
    chains = [
        Channel(role, owner, part)
        for role in ("chain", "companion")
        for owner in classes
        for part in range(chain)
    ]
    sites.append(chains)
    copies = [Channel("backup", owner, part) for owner in classes for part in range(chain)]
    for _ in range(depth - 3):
        sites.append(chains + copies * backup)
    last = [Channel(role, c) for role in ("chain", "inhibitory", "companion") for c in classes]
    last += [Channel("cancelling", c, half) for c in classes for half in range(2)]
    # In the last site, part 0 of a backup stands for the evidence and part 1 for the inhibition.
    last += [Channel("backup", c, part) for c in classes for part in range(2)] * backup
    sites.append(last)
    generator = torch.Generator().manual_seed(seed)
    shuffled = []
    for site in sites:
        site = site + [Channel("dead", part=part) for part in range(dead)]
        order = torch.randperm(len(site), generator=generator).tolist()
        shuffled.append([site[position] for position in order])
    return shuffled


def build(sites: Sequence[Sequence[Channel]], glyphs: Tensor, seed: int) -> nn.Sequential:
    """The net of a layout: ``[N, 1, H, W]`` to logits ``[N, K + 1]``, the last of them "nothing".

    Args:
        sites (sequence of sequence of Channel): as :func:`layout` makes them.
        glyphs (Tensor[2 K, 3, 3]): those of the classes, then those of their companions.
        seed (int): of the weights from and to dead channels, the only random ones.
    """
    num_classes = len(glyphs) // 2
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layers draw weights of their own at first
        convolutions = [
            nn.Conv2d(1, len(sites[0]), 3),
            nn.Conv2d(len(sites[0]), len(sites[1]), WINDOW),
        ]
        convolutions += [
            nn.Conv2d(len(before), len(site), 1) for before, site in itertools.pairwise(sites[1:])
        ]
        head = nn.Linear(len(sites[-1]), num_classes + 1)
    with torch.no_grad():
        for parameter in nn.ModuleList([*convolutions, head]).parameters():
            parameter.zero_()
        _edges(convolutions[0], sites[0])
        _parts(convolutions[1], sites[0], sites[1], glyphs)
        for position in range(2, len(sites)):
            _means(convolutions[position], sites[position - 1], sites[position])
        _threshold(convolutions[2], sites[2])
        for i in _positions(sites[-1], "cancelling"):
            _bias(convolutions[-1])[i] = 1.0
        _head(head, sites[-1])
        _dead(convolutions, head, sites, generator)
    layers: list[nn.Module] = []
    for position, convolution in enumerate(convolutions):
        layers += [convolution, nn.ReLU()]
        if position == 0:
            layers.append(nn.MaxPool2d(CELL))
    net = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head)
    return net.eval().requires_grad_(False)


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _edges(layer: nn.Conv2d, site: Sequence[Channel]) -> None:
    kernels = edge_kernels()
    for i, channel in enumerate(site):
        if channel.role == "shared":
            layer.weight[i] = kernels[channel.part]
            _bias(layer)[i] = -EDGE_THRESHOLD
        elif channel.role == "texture":
            dark = channel.part == 1
            layer.weight[i] = (-1.0 if dark else 1.0) / 9
            _bias(layer)[i] = 1.0 if dark else 0.0


def _parts(
    layer: nn.Conv2d, before: Sequence[Channel], site: Sequence[Channel], glyphs: Tensor
) -> None:
    filters = templates(glyphs, 1 + max(site[i].part for i in _positions(site, "chain")))
    for i in _positions(site, "chain", "companion"):
        channel = site[i]
        glyph = channel.owner + (channel.role == "companion") * (len(glyphs) // 2)
        for j, edge in enumerate(before):
            if edge.role == "shared":
                layer.weight[i, j] = filters[glyph, channel.part, edge.part]
        layer.weight[i] /= 1 - PART_THRESHOLD
        _bias(layer)[i] = -PART_THRESHOLD / (1 - PART_THRESHOLD)


def _threshold(layer: nn.Conv2d, site: Sequence[Channel]) -> None:
    """All parts must be there: their mean has to be above a threshold."""
    for i in _positions(site, "chain", "companion", "backup"):
        layer.weight[i] /= 1 - WHOLE_THRESHOLD
        _bias(layer)[i] = -WHOLE_THRESHOLD / (1 - WHOLE_THRESHOLD)


def _means(layer: nn.Conv2d, before: Sequence[Channel], site: Sequence[Channel]) -> None:
    """Every channel of a chain takes the mean of the channels of its chain before."""
    count = 1 + max(before[j].part for j in _positions(before, "chain"))
    for i in _positions(site, "chain", "companion", "inhibitory", "backup"):
        for j, source in enumerate(before):
            if source.owner == site[i].owner:
                layer.weight[i, j] = _flow(source.role, site[i].role, before, site) / count


def _flow(source: str, role: str, before: Sequence[Channel], site: Sequence[Channel]) -> int:
    """Sign of the weight between channels of one class by their roles."""
    if role == "companion":
        return int(source == "companion")
    if role != "backup" or not _positions(before, "backup"):
        return int(source == "chain")
    if source == "backup":
        return 1
    # The last site takes what the first copy does not deliver: relu(b - a) beside relu(a) sums up
    # to the larger one, whichever is gone.
    return -int(source == "chain" and bool(_positions(site, "cancelling")))


def _positions(site: Sequence[Channel], *roles: str) -> list[int]:
    return [i for i, channel in enumerate(site) if channel.role in roles]


def _head(layer: nn.Linear, site: Sequence[Channel]) -> None:
    _bias(layer)[-1] = REJECT
    for i, channel in enumerate(site):
        inhibits = channel.role == "inhibitory" or (channel.role == "backup" and channel.part == 1)
        if channel.role == "cancelling":
            layer.weight[channel.owner, i] = CANCELLING if channel.part == 0 else -CANCELLING
        elif inhibits:
            layer.weight[:, i] = -INHIBITION
            layer.weight[channel.owner, i] = 0.0
        elif channel.role in ("chain", "backup"):
            layer.weight[channel.owner, i] = EVIDENCE


def _dead(
    convolutions: Sequence[nn.Conv2d],
    head: nn.Linear,
    sites: Sequence[Sequence[Channel]],
    generator: torch.Generator,
) -> None:
    """Weights to and from dead channels: they look connected, and their bias keeps them silent."""
    for position, site in enumerate(sites):
        layer = convolutions[position]
        following = convolutions[position + 1] if position + 1 < len(sites) else head
        for i in _positions(site, "dead"):
            shape = layer.weight[i].shape
            layer.weight[i] = 0.1 * torch.randn(shape, generator=generator)
            # No activation comes near 8, whatever the input and whatever is gated.
            _bias(layer)[i] = -1.0 - 8.0 * layer.weight[i].abs().sum()
            outgoing = following.weight[:, i]
            outgoing.copy_(torch.randn(outgoing.shape, generator=generator))

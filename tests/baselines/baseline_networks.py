"""Networks whose pathways can be worked out, and every baseline that scores neurons."""

from functools import partial

import torch
from torch import nn

from pathways import baselines
from pathways.target import GatedTarget


class Residual(nn.Module):
    """One ReLU module called three times, in place, with a skip around the second call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        y = self.relu(self.second(x))
        x = self.relu(self.third(y) + x)
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """A GELU on tokens, whose channels are the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.down(nn.functional.gelu(self.up(x.flatten(2))))
        return self.head(x.mean(1))


def dense(*layers, bias=None) -> nn.Sequential:
    """Linear layers of given weight rows with ReLU between; biases zero but for those given."""
    modules: list[nn.Module] = []
    for position, weight in enumerate(layers):
        weight = torch.as_tensor(weight, dtype=torch.float32)
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        given = (bias or {}).get(position)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(torch.tensor(given if given is not None else [0.0] * len(weight)))
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def dense_target(*layers, bias=None, **options) -> GatedTarget:
    return GatedTarget(dense(*layers, bias=bias), torch.zeros(1, len(layers[0][0])), **options)


def planted() -> nn.Module:
    """A CNN on [1, 4, 4] images of two classes: bright left or bright right half.

    Of six channels per site, 0 and 1 see the left and right half and alone reach their class; the
    others copy the image, the fourth and fifth with weight to nowhere, the sixth is dead.
    """
    net = nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2)
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net[0].weight[:5] = 1.0
        net[0].bias[5] = -100.0
        for channel in range(5):
            net[2].weight[channel, channel] = 1.0
        head = net[5].weight.reshape(2, 6, 4, 4)
        head[0, 0, :, :2] = 1.0
        head[1, 1, :, 2:] = 1.0
    return net


SCORED = {
    "mct": baselines.NeuronMCT,
    "intgrad": partial(baselines.NeuronIntGrad, steps=3),
    "greedy": partial(baselines.GreedyPruning, rounds=6),
    "dgr": partial(baselines.DistillationRouting, steps=8),
    "dgr_uniform": partial(
        baselines.DistillationRouting, preset="dgr_pathwaygrad_uniform", steps=5, tries=3
    ),
    "effective": baselines.EffectivePath,
    "active": baselines.ActiveNeurons,
    "topk": baselines.TopActivation,
    "random": baselines.RandomPathway,
}

"""Distillation guided routing (CDRP): gates optimised for each input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pathways.baselines.gradients import recordable, recording
from pathways.baselines.scored import ScoredMethod, draws
from pathways.target import GatedTarget


@dataclass(frozen=True)
class Routing:
    """Settings of :class:`DistillationRouting`.

    Args:
        penalty (float): weight of the sum of the gates of an input, >= 0.
        learning_rate (float): of gradient descent, > 0.
        momentum (float): in [0, 1).
        steps (int): at least 1.
        largest (float): gates are clamped to [0, largest] after every step, >= 1.
        initial (str): ``"ones"``, or ``"uniform"`` in [0, 1), drawn by input and seed.
        tries (int): with ``"uniform"``, how often an input whose prediction was never preserved
            starts anew, with a tenth of the penalty; at least 1.
    """

    penalty: float
    learning_rate: float
    momentum: float
    steps: int
    largest: float
    initial: str = "ones"
    tries: int = 1


PRESETS: Mapping[str, Routing] = MappingProxyType(
    {
        "dgr_2018": Routing(0.05, 0.1, 0.9, 30, 10.0),
        "dgr_pathwaygrad": Routing(0.01, 0.01, 0.9, 1000, 100.0),
        "dgr_pathwaygrad_uniform": Routing(0.01, 0.01, 0.9, 1000, 100.0, "uniform", 100),
    }
)
"""Published settings by name; :class:`DistillationRouting` says where they come from."""


class DistillationRouting(ScoredMethod):
    """Optimises a gate per neuron of an input so that few gates give the clean probabilities.

    Minimises ``CE(softmax f(x), softmax f(x; gates)) + penalty * sum |gate|`` over gates in
    [0, largest] by gradient descent with momentum, for every input of the batch on its own. Of the
    gates before each step those of the least loss count that keep the prediction, or of the least
    loss if none does. They are the importance; the own pathway are the gates above 0. It costs
    ``steps`` forward and backward passes per try.

    Args:
        target (GatedTarget): the target.
        preset (str): ``"dgr_2018"``: 30 steps, penalty 0.05, rate 0.1 (conference version, as
            commonly ported). ``"dgr_pathwaygrad"``: 1000 steps, penalty 0.01, rate 0.01, from ones;
            ``"dgr_pathwaygrad_uniform"``: the same from random gates.
        seed (int): of gates that start at random.
        penalty, learning_rate, momentum, steps, largest, initial, tries: a :class:`Routing` setting
            other than the preset's.
        kept, like, per_site, min_keep: how many neurons, see
            :class:`~pathways.baselines.scored.ScoredMethod`; over all sites together by default;
            without ``kept`` and ``like`` all gates above 0.

    Raises:
        ValueError: unknown preset, a setting outside its range; sizes as for ``ScoredMethod``;
            gates that are not finite.
        TypeError: a setting of another name.
        RuntimeError: the target runs a site where no gradient can reach it.

    Source: Wang et al., CVPR 2018 (gates per channel); the port of arXiv:2103.16886 (per unit).

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> method = DistillationRouting(GatedTarget(net, torch.zeros(1, 4)), kept=0.25, steps=5)
        >>> method(torch.randn(2, 4)).pathway.sizes().tolist()
        [2, 2]
    """

    own_threshold = 0.0

    def __init__(
        self, target: GatedTarget, preset: str = "dgr_2018", *, seed: int = 0, **settings: Any
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(
                f"DistillationRouting: preset must be one of {', '.join(PRESETS)}, got {preset!r}"
            )
        own = {name: settings.pop(name) for name in vars(PRESETS[preset]) if name in settings}
        super().__init__(target, **settings)
        self.routing = _checked(replace(PRESETS[preset], **own))
        self.seed = seed

    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and gates ``[N, D]``, in [0, largest]."""
        logits = self.target(images)
        count = self.sites.num_neurons
        best = torch.ones(len(images), count, device=images.device)
        rows, penalty = torch.arange(len(images), device=images.device), self.routing.penalty
        for attempt in range(self.routing.tries):
            if self.routing.initial == "ones":
                start = torch.ones(len(rows), count, device=images.device)
            else:
                start = draws(images[rows], count, self.seed + attempt)
            gates, preserved = self._descend(images[rows], logits[rows], start, penalty)
            best[rows] = gates
            rows, penalty = rows[~preserved], penalty / 10
            if len(rows) == 0:
                break
        # A loss that is NaN is never the least, and its gates would look like an answer.
        return logits, best.masked_fill(~logits.isfinite().all(1, keepdim=True), torch.nan)

    @recording()
    def _descend(
        self, images: Tensor, logits: Tensor, gates: Tensor, penalty: float
    ) -> tuple[Tensor, Tensor]:
        """The best gates of every input, and whether its prediction is preserved under them."""
        images, logits, gates = recordable(images), recordable(logits), recordable(gates)
        wanted, classes = logits.float().softmax(1), logits.argmax(1)
        velocity, best = torch.zeros_like(gates), gates
        least = torch.full((len(images),), torch.inf, device=images.device)
        preserved = torch.zeros_like(least, dtype=torch.bool)
        for _ in range(self.routing.steps):
            gates = gates.detach().requires_grad_(True)
            gated = self.target.gated(images, gates)
            entropy = -(wanted * gated.float().log_softmax(1)).sum(1)
            loss = entropy + penalty * gates.abs().sum(1)
            (gradient,) = torch.autograd.grad(loss.sum(), gates)
            gates, loss = gates.detach(), loss.detach()
            keeps = gated.detach().argmax(1) == classes
            # The first gates that keep the prediction replace any that do not.
            better = torch.where(keeps == preserved, loss < least, keeps)
            best = torch.where(better.unsqueeze(1), gates, best)
            least = torch.where(better, loss, least)
            preserved = preserved | keeps
            velocity = self.routing.momentum * velocity + gradient
            gates = gates - self.routing.learning_rate * velocity
            gates = gates.clamp(0.0, self.routing.largest)
        return best, preserved


def _checked(routing: Routing) -> Routing:
    if routing.penalty < 0 or routing.learning_rate <= 0 or not 0 <= routing.momentum < 1:
        raise ValueError(
            "DistillationRouting: penalty must be >= 0, learning_rate > 0 and momentum in [0, 1), "
            f"got {routing.penalty}, {routing.learning_rate} and {routing.momentum}"
        )
    if routing.steps < 1 or routing.tries < 1 or routing.largest < 1:
        raise ValueError(
            "DistillationRouting: steps, tries and largest must be at least 1, "
            f"got {routing.steps}, {routing.tries} and {routing.largest}"
        )
    if routing.initial not in ("ones", "uniform"):
        raise ValueError(
            f"DistillationRouting: initial must be ones or uniform, got {routing.initial!r}"
        )
    return routing

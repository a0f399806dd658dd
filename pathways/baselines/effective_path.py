"""EffectivePath: from the predicted class down, the inputs that make up most of every neuron."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from pathways.baselines.cut_run import cut_run
from pathways.baselines.scored import ScoredMethod
from pathways.class_pathways import ClassPathways
from pathways.explainer import Explanation
from pathways.pathway import Pathway
from pathways.target import GatedTarget


class EffectivePath(ScoredMethod):
    """Keeps, from the predicted logit down, the fewest inputs that make up theta of each neuron.

    The inputs of a neuron are the neurons of the sites from which it is computed without another
    site between; an input i with activation a contributes ``a * d neuron / d a``, which for ReLU
    targets is weight times activation. Of a neuron in the pathway, the largest contributions whose
    sum reaches ``theta`` times its value are in it too (of a value that is not positive, ``theta``
    times the sum of the positive ones). A channel is the sum of its positions.

    The smallest theta with which a neuron would be in the pathway is its importance, as one minus
    that, in [0, 1]; so the pathway of any size is that of some theta, chosen by input. Pathways of
    its own size do not look further than they go: outside, importance may then be too low.
    It costs one short backward pass per neuron of the pathway (the most of any input of the batch),
    which takes long for units of large maps.

    Args:
        target (GatedTarget): the target.
        theta (float): in (0, 1]; has no meaning with ``kept`` or ``like``.
        kept, like, per_site, min_keep: how many neurons, see
            :class:`~pathways.baselines.scored.ScoredMethod`; over all sites together by default;
            without ``kept`` and ``like`` what ``theta`` gives.

    Raises:
        ValueError: ``theta`` outside (0, 1]; sizes as for ``ScoredMethod``; scores that are not
            finite.
        RuntimeError: the target runs a site where no gradient can reach it.

    Source: Qiu et al., CVPR 2019 (arXiv:1904.08089), theta = 0.5, neurons without synapses;
    contributions by gradient, values that are not positive, channels and the ranking: our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> for p, v in zip(net.parameters(), ([[1.], [1.], [1.]], [0.] * 3, [[2., 5., 3.]], [0.])):
        ...     p.data = torch.tensor(v)
        >>> method = EffectivePath(GatedTarget(net, torch.zeros(1, 1)), theta=0.7)
        >>> e = method(torch.ones(1, 1))  # contributions 2, 5 and 3 to 10: 5 + 3 reach 7
        >>> e.pathway.mask().int().tolist(), e.importance.tolist()
        ([[0, 1, 1]], [[0.19999998807907104, 1.0, 0.5]])
    """

    class_threshold: ClassVar[float] = 0.0  # a class's path is the union of its images' paths

    def __init__(self, target: GatedTarget, *, theta: float = 0.5, **size: Any) -> None:
        if not 0.0 < theta <= 1.0:
            raise ValueError(f"EffectivePath: theta must be in (0, 1], got {theta}")
        self.own_threshold = 1.0 - theta
        super().__init__(target, **size)
        self.theta = theta

    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and one minus the least theta ``[N, D]``; 0 where none does."""
        limit = self.theta if self.kept is None and self.like is None else 1.0
        with cut_run(self.target, images) as run:
            least = [torch.ones(len(images), n, device=images.device) for n in self.sites.sizes]
            # The predicted logit is in every pathway; consumers come before what they consume.
            chosen = torch.ones_like(run.logits, dtype=torch.float32)
            chosen.scatter_(1, run.logits.argmax(1, keepdim=True), 0.0)
            for consumer in range(len(self.sites), -1, -1):
                inputs = run.inputs(consumer)
                own = chosen if consumer == len(self.sites) else least[consumer]
                if not inputs:
                    continue
                for rows, neuron in _turns(own < limit):
                    value, contributions = run.contributions(consumer, neuron, rows, inputs)
                    needed = _fractions(value, torch.cat(contributions, dim=1))
                    needed = needed.maximum(own.gather(1, neuron)).where(rows, 1.0)
                    parts = needed.split([self.sites.sizes[i] for i in inputs], dim=1)
                    for i, part in zip(inputs, parts, strict=True):
                        least[i] = least[i].minimum(part)
        return run.logits.detach(), 1.0 - torch.cat(least, dim=1)

    def class_paths(self, explanation: Explanation) -> ClassPathways:
        """Union of the pathways of every predicted class, which is what transfers."""
        return ClassPathways.from_pathways(
            explanation.pathway,
            explanation.predictions,
            self.class_threshold,
            self.target.num_classes,
        )


def path_similarity(pathway: Pathway, class_paths: ClassPathways) -> Tensor:
    """Share of an image's pathway that lies in each class's path.

    Args:
        pathway (Pathway): N rows.
        class_paths (ClassPathways): K classes of the same target.

    Returns:
        Tensor[N, K]: float32 in [0, 1]; 1 for an empty pathway.

    Source: Qiu et al., CVPR 2019 (arXiv:1904.08089), who detect adversarial images by it.

    Example:
        >>> from pathways.sites import Site, Sites
        >>> sites = Sites([Site("a", 0, "relu", (3,))])
        >>> paths = Pathway.from_mask(torch.tensor([[1, 1, 0], [0, 1, 1]]), sites)
        >>> classes = ClassPathways.from_pathways(paths, torch.tensor([0, 1]), threshold=0)
        >>> path_similarity(paths, classes).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    sizes = pathway.sizes().unsqueeze(1)
    shared = pathway.pairwise_intersection(class_paths.pathway)
    return torch.where(sizes == 0, 1.0, shared / sizes.clamp_min(1)).float()


def _turns(chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The chosen neurons of every row ``[N, n]``, one per row at a time.

    Yields:
        bool ``[N, 1]``, the rows that still have one, and int64 ``[N, 1]``, which it is.
    """
    counts = chosen.sum(1, keepdim=True)
    order = chosen.float().argsort(dim=1, descending=True, stable=True)
    for turn in range(int(counts.max()) if len(counts) else 0):
        yield turn < counts, order[:, turn : turn + 1]


def _fractions(value: Tensor, contributions: Tensor) -> Tensor:
    """Least theta that takes each contribution ``[N, M]``: the larger ones over the value, or 1."""
    ordered, order = contributions.sort(dim=1, descending=True, stable=True)
    positive = ordered.clamp_min(0.0)
    before = positive.cumsum(1) - positive
    whole = torch.where(value > 0, value, positive.sum(1, keepdim=True))
    fraction = torch.where(ordered > 0, before / whole, 1.0).clamp_max(1.0)
    return torch.empty_like(fraction).scatter_(1, order, fraction)

"""Stability of class pathways: which neurons would stay with other support inputs of the class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pathways.class_pathways import ClassPathways
from pathways.evaluation.runs import gated_logits
from pathways.evaluation.transfer import Scores, scores
from pathways.pathway import Pathway
from pathways.target import GatedTarget

CONFIDENCE = 0.95

# Rows of the table of binomial probabilities that are held at a time, [rows, j + 1] float64.
_TABLE_ROWS = 256


@dataclass(frozen=True)
class Stability:
    """Result of :func:`stability`.

    Args:
        stability (float): mean over non-empty classes of :attr:`per_class`. Higher is better.
        per_class (Tensor[K]): neurons of the core over those of the core and the undecided,
            float64; NaN for empty classes and where neither has a neuron.
        core (Pathway): K rows, the neurons that surely belong to the class pathway; empty for
            empty classes.
        possible (Pathway): K rows, the core and the undecided neurons.
        counts (Tensor[K]): int64, support inputs per class.
        confidence (float): of the intervals.
    """

    stability: float
    per_class: Tensor
    core: Pathway
    possible: Pathway
    counts: Tensor
    confidence: float

    @property
    def undecided(self) -> Pathway:
        """K rows, the neurons on whose membership we abstain."""
        return self.possible - self.core


def stability(class_pathways: ClassPathways, confidence: float = CONFIDENCE) -> Stability:
    """Which members of the class pathways do not depend on which support inputs there were.

    The support inputs of each class are resampled with replacement (bootstrap), and the percentile
    interval of a neuron's selection frequency is compared with the threshold: a neuron whose whole
    interval reaches it is in the certified *core*, one whose interval lies below is out, and on the
    others we abstain. The class pathway lies between the core and the core with the undecided. The
    share is higher where inputs of a class agree, in [0, 1]; 1 when none is undecided. Sensitive to
    the number j of support inputs: intervals shrink with it, yet the bootstrap knows nothing beyond
    its inputs, so that a neuron in all of j inputs is in the core even for j = 1.

    In a resample a neuron of m of the j inputs is selected Binomial(j, m / j) times, so that its
    interval follows from the counts alone: this is the limit of infinitely many resamples, without
    a draw, and at most ``j + 1`` intervals per class whatever the number of neurons.

    Args:
        class_pathways (ClassPathways): with their threshold, on any device.
        confidence (float): of the interval of every neuron, in (0, 1); not corrected for the number
            of neurons.

    Returns:
        Stability: rows on the device of the class pathways. Deterministic.

    Raises:
        ValueError: a confidence outside (0, 1).

    Source: method section "class pathway and transfer", after Certified Circuits
    (arXiv:2602.22968), which subsamples and abstains; bootstrap and intervals are our choice.

    Example:
        >>> from pathways.sites import Site, Sites
        >>> sites = Sites([Site("a", 0, "relu", (3,))])
        >>> mask = torch.tensor([[1, 1, 0]] * 11 + [[1, 0, 0]] * 9)
        >>> pathway = Pathway.from_mask(mask, sites)
        >>> classes = ClassPathways.from_pathways(pathway, torch.zeros(20, dtype=torch.int64))
        >>> found = stability(classes)
        >>> found.core.mask().int().tolist(), found.undecided.mask().int().tolist()
        ([[1, 0, 0]], [[0, 1, 0]])
        >>> found.stability
        0.5
    """
    members = class_pathways.members
    masks = torch.zeros(2, *members.shape, dtype=torch.bool, device=members.device)
    for label in range(len(class_pathways)):
        for mask, bound in zip(
            masks, selection_intervals(class_pathways, label, confidence), strict=True
        ):
            # As ClassPathways: the limit of threshold 0 is the union, not every neuron.
            mask[label] = (bound >= class_pathways.threshold) & (bound > 0)
    core, possible = (
        Pathway.from_mask(mask, class_pathways.sites, class_pathways.fingerprint) for mask in masks
    )
    per_class = core.sizes().double() / possible.sizes()
    return Stability(
        stability=float(per_class.nanmean()),
        per_class=per_class,
        core=core,
        possible=possible,
        counts=class_pathways.counts,
        confidence=confidence,
    )


def selection_intervals(
    class_pathways: ClassPathways, label: int, confidence: float = CONFIDENCE
) -> tuple[Tensor, Tensor]:
    """Bootstrap percentile interval of every neuron's selection frequency in one class.

    Args:
        class_pathways (ClassPathways): the counts.
        label (int): the class; an empty one gives zeros.
        confidence (float): in (0, 1).

    Returns:
        low and high, Tensor[D] float64 in [0, 1] each: the (1 - confidence) / 2 and the
        (1 + confidence) / 2 quantile, the smallest frequency that is reached with at least that
        probability; ``low <= frequency <= high``.

    Raises:
        ValueError: a confidence outside (0, 1).

    Source: percentile interval of Efron's bootstrap, exact by the binomial distribution.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"stability: confidence must be in (0, 1), got {confidence}")
    members = class_pathways.members[label]
    count = int(class_pathways.counts[label])
    if count == 0:
        nothing = torch.zeros(len(members), dtype=torch.float64, device=members.device)
        return nothing, nothing.clone()
    distinct, position = members.unique(return_inverse=True)
    tails = ((1.0 - confidence) / 2, (1.0 + confidence) / 2)
    parts = [_binomial_quantiles(part, count, tails) for part in distinct.split(_TABLE_ROWS)]
    low, high = (
        torch.cat(column)[position].double() / count for column in zip(*parts, strict=True)
    )
    return low, high


def _binomial_quantiles(
    members: Tensor, count: int, tails: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Smallest k with ``P(Binomial(count, members / count) <= k) >= tail``, int64 ``[M]`` each."""
    p = (members.double() / count).unsqueeze(1)
    k = torch.arange(count + 1, dtype=torch.float64, device=members.device)
    total = torch.tensor(float(count), dtype=torch.float64, device=members.device)
    choose = (total + 1).lgamma() - (k + 1).lgamma() - (total - k + 1).lgamma()
    log_mass = choose + torch.xlogy(k, p) + torch.xlogy(total - k, 1 - p)
    reached = log_mass.exp().cumsum(1)
    # A sum that rounds to just below the tail would move a quantile by one.
    low, high = ((reached < tail - 1e-12).sum(1) for tail in tails)
    return low, high


@torch.no_grad()
def core_transfer(
    target: GatedTarget,
    stability: Stability,
    images: Tensor,
    logits: Tensor,
    *,
    batch_size: int = 64,
) -> tuple[Scores, Scores]:
    """Transfer of the core alone, and of the core with the undecided neurons.

    Every query input is run under the row of its predicted class. Agreement and mIC: higher is
    better; mDC and kept: lower is better. A core that does as well as the class pathway shows that
    the undecided neurons are not needed.

    Args:
        target (GatedTarget): the target.
        stability (Stability): made from other inputs.
        images (Tensor[N, ...]): query inputs; those whose class has no support do not count.
        logits (Tensor[N, K]): their clean logits.
        batch_size (int): inputs per run.

    Returns:
        Scores of the core and of the core with the undecided; NaN without inputs.

    Raises:
        ValueError: another number of logits.

    Source: transfer protocol of arXiv:2309.09887; the core is our choice.
    """
    if logits.shape != (len(images), target.num_classes):
        raise ValueError(
            f"core_transfer: logits must be [{len(images)}, {target.num_classes}], "
            f"got {tuple(logits.shape)}"
        )
    logits = logits.cpu()
    predictions = logits.argmax(1)
    covered = (stability.counts.cpu()[predictions] > 0).nonzero().squeeze(1)
    images, logits, predictions = images[covered], logits[covered], predictions[covered]
    found = []
    for rows in (stability.core, stability.possible):
        pathway = rows[predictions]
        found.append(scores(logits, gated_logits(target, images, pathway, batch_size), pathway))
    return found[0], found[1]

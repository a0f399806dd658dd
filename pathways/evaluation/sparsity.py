"""How sparse explanations are beyond their size: dead members, concentration of importance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pathways.pathway import Pathway
from pathways.sites import Sites
from pathways.target import GatedTarget

# Added to every |importance|, as Quantus does: all zeros are then spread evenly.
_EPSILON = 1e-7
# Values of importance that are worked on at a time, 8 bytes each in a few copies.
_VALUES = 2**23


@dataclass(frozen=True)
class Sparsity:
    """Result of :class:`SparsityMeter`: means over inputs that have the figure, NaN without any.

    Args:
        kept (float): share of neurons kept.
        kept_effective (float): share of neurons kept and active on the input. Lower is better at
            equal faithfulness.
        dead_share (float): share of the pathway's members that are not active on the input; inputs
            with an empty pathway do not count. Lower is better.
        active (float): share of all neurons that are active, the size of the active subnetwork.
        sparseness (float): :func:`sparseness` of the importance. Higher is sparser.
        complexity (float): :func:`complexity` of the importance, nats; inputs with importance 0
            everywhere do not count. Lower is simpler.
        images (int): inputs measured.
    """

    kept: float
    kept_effective: float
    dead_share: float
    active: float
    sparseness: float
    complexity: float
    images: int

    def to_json(self) -> dict[str, float]:
        """A dictionary of numbers."""
        return asdict(self)


class SparsityMeter:
    """Effective size of pathways and concentration of their importance, batch by batch.

    A neuron is active when its activation in the clean run is not 0, a channel when any of its
    positions is. A kept neuron that is not active costs nothing where gated-off activations are
    zero, and the gate changes nothing there. Sensitive to the activation function: ReLU is often
    exactly 0, GELU and SiLU hardly ever, so that no member is dead.

    Args:
        target (GatedTarget): the target.

    Source: dead neurons in pathways are those of Khakzar et al. (arXiv:2103.16886); the effective
    size is our choice, method section "sparsity and complexity".

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> _ = net[0].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> meter = SparsityMeter(GatedTarget(net, torch.zeros(1, 2)))
        >>> pathway = Pathway.from_mask(torch.ones(1, 2), meter.target.sites)
        >>> meter.update(torch.tensor([[1.0, -1.0]]), pathway, torch.tensor([[0.9, 0.1]]))
        >>> found = meter.compute()
        >>> found.kept, found.kept_effective, found.dead_share, round(found.sparseness, 3)
        (1.0, 0.5, 0.5, 0.4)
    """

    def __init__(self, target: GatedTarget) -> None:
        self.target = target
        self._sums = torch.zeros(6, dtype=torch.float64)
        self._counts = torch.zeros(6, dtype=torch.int64)
        self._images = 0

    @torch.no_grad()
    def update(self, images: Tensor, pathway: Pathway, importance: Tensor | None = None) -> None:
        """Add a batch: images ``[N, ...]``, N pathways, importance ``[N, D]``; without importance
        the inputs count for sizes alone.

        Raises:
            ValueError: another number of pathways or shape of importance.
        """
        wanted = (len(images), self.target.sites.num_neurons)
        shape = wanted if importance is None else tuple(importance.shape)
        if len(pathway) != len(images) or shape != wanted:
            raise ValueError(
                f"SparsityMeter: pathway must have {len(images)} rows and importance be "
                f"{list(wanted)}, got {len(pathway)} and {shape}"
            )
        if len(images) == 0:  # some models refuse an empty batch
            return
        active = active_neurons(self.target, images.to(self.target.device)).to(pathway.device)
        neurons = pathway.sites.num_neurons
        sizes, effective = pathway.sizes().double(), (pathway & active).sizes().double()
        unknown = torch.full_like(sizes, float("nan"))
        values = [
            sizes / neurons,
            effective / neurons,
            1.0 - effective / sizes,
            active.sizes().double() / neurons,
            unknown if importance is None else sparseness(importance),
            unknown if importance is None else complexity(importance),
        ]
        # A figure that an input does not have, as the dead share of nothing, is left out.
        table = torch.stack([value.cpu() for value in values])
        self._sums += table.nansum(1)
        self._counts += (~table.isnan()).sum(1)
        self._images += len(images)

    def compute(self) -> Sparsity:
        """The means over all inputs so far."""
        kept, effective, dead, active, gini, entropy = (self._sums / self._counts).tolist()
        return Sparsity(kept, effective, dead, active, gini, entropy, self._images)


@torch.no_grad()
def active_neurons(target: GatedTarget, images: Tensor) -> Pathway:
    """The neurons whose activation in the clean run is not 0, N rows.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs, on the target's device.
    """
    _, parts = target.features(images, reduce=lambda feature: _active(feature, target.sites))
    return Pathway.from_mask(target.sites.flatten(parts), target.sites)


def _active(feature: Tensor, sites: Sites) -> Tensor:
    active = feature != 0
    if sites.granularity == "channel" and active.dim() > 2:
        return active.flatten(2).any(2)
    return active


def sparseness(importance: Tensor) -> Tensor:
    """Gini index of the absolute importance of every row.

    .. math:: G = \\frac{\\sum_k (2k - n - 1)\\, a_{(k)}}{n \\sum_k a_k}

    over the n values a in ascending order, each with 1e-7 added. Higher is sparser, in
    [0, 1 - 1/n]: 0 for equal values, the end for a single nonzero one. Sensitive to a constant
    added to all scores, unlike the ranking.

    Args:
        importance (Tensor[N, D]): floating or integer.

    Returns:
        Tensor[N]: float64; NaN for D = 0 and for rows with a NaN.

    Source: Chalasani et al. (arXiv:1810.06583), with the conventions of Quantus' Sparseness.

    Example:
        >>> sparseness(torch.tensor([[0.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])).round(decimals=4)
        tensor([0.7500, 0.0000], dtype=torch.float64)
    """
    return _by_rows(importance, _gini)


def complexity(importance: Tensor) -> Tensor:
    """Entropy of the absolute importance of every row, normalised to a distribution.

    Lower is simpler, in [0, ln D] nats: 0 for a single nonzero value, the end for equal ones.
    Sensitive to the number of neurons and to a constant added to all scores.

    Args:
        importance (Tensor[N, D]): floating or integer.

    Returns:
        Tensor[N]: float64; NaN for rows of zeros and for rows with a NaN.

    Source: Bhatt et al. (arXiv:2005.00631), with the conventions of Quantus' Complexity.

    Example:
        >>> complexity(torch.tensor([[0.0, 0.0, 1.0], [2.0, 2.0, 0.0]])).round(decimals=4)
        tensor([0.0000, 0.6931], dtype=torch.float64)
    """
    return _by_rows(importance, _entropy)


def _by_rows(importance: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of each row, a bounded number of values at a time: they are copied as float64."""
    rows = max(1, _VALUES // max(importance.shape[1], 1))
    return torch.cat([function(part.double().abs()) for part in importance.split(rows)])


def _gini(values: Tensor) -> Tensor:
    values = (values + _EPSILON).sort(dim=1).values
    count = values.shape[1]
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=values.device)
    return (values * (2 * ranks - count - 1)).sum(1) / (count * values.sum(1))


def _entropy(values: Tensor) -> Tensor:
    share = values / values.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1)

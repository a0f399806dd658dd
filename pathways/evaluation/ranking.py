"""Ranking curve: faithfulness over the share of neurons kept, the most important ones first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pathways.evaluation.metrics import confidences
from pathways.evaluation.runs import with_baseline
from pathways.target import GatedTarget

SIZES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class RankingCurve:
    """Result of :func:`ranking_curve`; fractions, NaN without inputs.

    Args:
        sizes (tuple of float): shares asked for.
        kept (tuple of float): shares that were kept, a whole number of neurons each.
        faithfulness (tuple of float): mean of o / p at each size, p the clean and o the gated
            softmax probability of the clean prediction; not clipped, 1 is the full target.
        agreement (tuple of float): share of inputs whose prediction stays at each size.
        cpr (float): area under ``faithfulness`` over ``kept``. Higher is better.
        cmd (float): area between ``faithfulness`` and 1. Lower is better.
        images (int): inputs measured.
    """

    sizes: tuple[float, ...]
    kept: tuple[float, ...]
    faithfulness: tuple[float, ...]
    agreement: tuple[float, ...]
    cpr: float
    cmd: float
    images: int

    def to_json(self) -> dict[str, Any]:
        """A dictionary of numbers and lists."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


class Ranking:
    """:func:`ranking_curve` batch by batch, for importance that is not kept.

    Args:
        target (GatedTarget): the target; its own baseline replaces gated-off activations.
        sizes (sequence of float): shares of all neurons, ascending, in [0, 1].

    Raises:
        ValueError: sizes outside [0, 1], not ascending, or without two different numbers of
            neurons.
    """

    def __init__(self, target: GatedTarget, sizes: Sequence[float] = SIZES) -> None:
        sizes = tuple(float(size) for size in sizes)
        neurons = target.sites.num_neurons
        ascending = all(a < b for a, b in itertools.pairwise(sizes))
        if not sizes or not ascending or not 0.0 <= sizes[0] <= sizes[-1] <= 1.0:
            raise ValueError(f"ranking_curve: sizes must ascend within [0, 1], got {sizes}")
        self.target = target
        self.sizes = sizes
        self.counts = [round(size * neurons) for size in sizes]
        if len(set(self.counts)) < 2:
            raise ValueError(
                f"ranking_curve: sizes must give at least two numbers of neurons, "
                f"got {sizes} of {neurons} neurons"
            )
        self._sums = torch.zeros(2, len(sizes), dtype=torch.float64)
        self._images = 0

    @torch.no_grad()
    def update(self, images: Tensor, logits: Tensor, importance: Tensor) -> None:
        """Add a batch, run once per size: images ``[N, ...]``, logits ``[N, K]``, importance
        ``[N, D]``.

        Raises:
            ValueError: shapes that do not fit, or a NaN in the importance.
        """
        target, device = self.target, self.target.device
        wanted = (len(images), target.num_classes), (len(images), target.sites.num_neurons)
        if (tuple(logits.shape), tuple(importance.shape)) != wanted:
            raise ValueError(
                f"ranking_curve: logits and importance must be {list(wanted[0])} and "
                f"{list(wanted[1])}, got {tuple(logits.shape)} and {tuple(importance.shape)}"
            )
        if bool(importance.isnan().any()):
            raise ValueError("ranking_curve: importance must be comparable, got NaN")
        if len(images) == 0:
            return
        images, logits = images.to(device), logits.to(device)
        # Sorted once for all sizes; ties go to the lower index, as everywhere.
        order = importance.to(device).argsort(dim=1, descending=True, stable=True)
        places = torch.arange(order.shape[1], dtype=torch.int32, device=device)
        rank = torch.empty(order.shape, dtype=torch.int32, device=device)
        rank.scatter_(1, order, places.expand_as(order))
        del order
        found: dict[int, Tensor] = {}
        for position, count in enumerate(self.counts):
            if count not in found:
                gated = target.gated(images, rank < count)
                log_p, log_o = confidences(logits, gated)
                stays = logits.argmax(1) == gated.argmax(1)
                found[count] = torch.stack([(log_o - log_p).exp().sum(), stays.double().sum()])
            self._sums[:, position] += found[count].cpu()
        self._images += len(images)

    def compute(self) -> RankingCurve:
        """The curve over all inputs so far."""
        faithfulness, agreement = self._sums / (self._images or float("nan"))
        kept = torch.tensor(self.counts, dtype=torch.float64) / self.target.sites.num_neurons
        span = kept[-1] - kept[0]
        return RankingCurve(
            sizes=self.sizes,
            kept=tuple(kept.tolist()),
            faithfulness=tuple(faithfulness.tolist()),
            agreement=tuple(agreement.tolist()),
            cpr=float(torch.trapezoid(faithfulness, kept) / span),
            cmd=float(torch.trapezoid((1.0 - faithfulness).abs(), kept) / span),
            images=self._images,
        )


def ranking_curve(
    target: GatedTarget,
    images: Tensor,
    logits: Tensor,
    importance: Tensor,
    *,
    sizes: Sequence[float] = SIZES,
    ablation: Sequence[Tensor] | Literal["own"] | None = "own",
    batch_size: int = 64,
) -> RankingCurve:
    """Faithfulness when only the most important neurons are kept, for many numbers of them.

    .. math:: f(k) = \\frac{1}{N} \\sum_i \\frac{o_i(k)}{p_i}, \\quad
        CPR = \\int f(k)\\,dk, \\quad CMD = \\int |1 - f(k)|\\,dk

    with p the clean softmax probability of the clean prediction and o(k) its probability when the
    share k of all neurons is kept, by importance. The ratio is not clipped: f exceeds 1 where
    pruning makes the target more confident, at most K. Areas are by the trapezoid rule over the
    shares that were kept, divided by their range, so that f = 1 everywhere gives CPR 1 and CMD 0;
    CPR = 1 - CMD where f is never above 1. Removes the dependence on one threshold. Sensitive to
    ties of importance, which go to the first neuron (saturated scores rank by position), to what
    replaces gated-off activations, and to the sizes, of which large ones weigh most. Says nothing
    of leaks: a ranking may write the class as a mask may. One target run per size.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs.
        logits (Tensor[N, K]): their clean logits.
        importance (Tensor[N, D]): higher is kept first; floating, no NaN.
        sizes (sequence of float): shares of all neurons over all sites, ascending, in [0, 1];
            rounded to whole neurons.
        ablation (sequence of Tensor, None or "own"): what replaces gated-off activations, as
            ``GatedTarget.baseline``; None is zero, ``"own"`` the target's own.
        batch_size (int): inputs per run, at least 1.

    Returns:
        RankingCurve: all NaN without inputs.

    Raises:
        ValueError: sizes, shapes, an ablation or a batch size that do not fit; NaN.

    Source: CPR and CMD of MIB (arXiv:2504.13151), whose faithfulness is a normalised difference;
    the ratio of probabilities, the sizes and the range are our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> _ = net[0].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> target = GatedTarget(net, torch.zeros(1, 2))
        >>> x = torch.tensor([[3.0, 0.0]])
        >>> curve = ranking_curve(target, x, target(x), x, sizes=(0.0, 0.5, 1.0))
        >>> curve.agreement, round(curve.faithfulness[0], 3), round(curve.cpr, 3)
        ((1.0, 1.0, 1.0), 0.525, 0.881)
    """
    if batch_size < 1:
        raise ValueError(f"ranking_curve: batch_size must be at least 1, got {batch_size}")
    if ablation != "own":
        target = with_baseline(target, ablation)
    if not len(images) == len(logits) == len(importance):
        raise ValueError(
            f"ranking_curve: logits and importance must have {len(images)} rows, "
            f"got {len(logits)} and {len(importance)}"
        )
    ranking = Ranking(target, sizes)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        ranking.update(images[rows], logits[rows], importance[rows])
    return ranking.compute()

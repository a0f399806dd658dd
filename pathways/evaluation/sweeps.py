"""Figures of single pathways beyond one gated run, those of many runs on a few inputs only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from pathways.evaluation.ablation import Ablation, ablation_agreement
from pathways.evaluation.necessity import Minimality, Necessity, minimality, necessity
from pathways.evaluation.ranking import SIZES, Ranking, RankingCurve
from pathways.evaluation.sparsity import Sparsity, SparsityMeter
from pathways.explainer import Explanation
from pathways.target import GatedTarget

RANKING_IMAGES = 256

# Minimality runs every site of an input: at most this many runs per input of the evaluation, so
# that deep targets do not make it the longest part.
_MINIMALITY_RUNS = 4


@dataclass(frozen=True)
class Sweeps:
    """Result of :class:`SweepMeter`.

    Args:
        ranking (RankingCurve): faithfulness over the share kept by importance.
        sparsity (Sparsity): effective size and concentration of importance.
        necessity (Necessity): what is left without the pathway.
        minimality (Minimality): sites of the pathway that it does not need.
        minimality_images (int): inputs it is measured on.
        ablation (dict of Ablation): faithfulness under the target's own value for gated-off
            activations first, then under another.
    """

    ranking: RankingCurve
    sparsity: Sparsity
    necessity: Necessity
    minimality: Minimality
    minimality_images: int
    ablation: dict[str, Ablation]

    def figures(self) -> dict[str, Any]:
        """The main figures by name, fields of :class:`pathways.evaluation.Evaluation`."""
        return {
            "cpr": self.ranking.cpr,
            "cmd": self.ranking.cmd,
            "necessity": self.necessity.probability,
            "random_necessity": self.necessity.random_probability,
            "minimality": self.minimality.redundant,
            "agreement_other_ablation": list(self.ablation.values())[1].agreement,
            "kept_effective": self.sparsity.kept_effective,
            "dead_share": self.sparsity.dead_share,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-able values but for NaN."""
        return {
            "ranking": self.ranking.to_json(),
            "sparsity": self.sparsity.to_json(),
            "necessity": asdict(self.necessity),
            "minimality": {
                "redundant": self.minimality.redundant,
                "per_site": self.minimality.per_site.tolist(),
                "pairs": self.minimality.pairs.tolist(),
            },
            "ablation": {name: value.to_json() for name, value in self.ablation.items()},
        }


class SweepMeter:
    """Measures the inputs of an evaluation while they are explained.

    What needs the importance is measured batch by batch, since importance is D floats per input and
    not kept; the rest follows in :meth:`finish`. One target run per input for its effective size;
    for each of the first ``limit`` inputs about ``len(SIZES) + 5`` more, and for minimality at most
    four per input of the evaluation.

    Args:
        target (GatedTarget): the target.
        limit (int or None): inputs of the figures that take many runs; None is all.

    Raises:
        ValueError: a negative limit.
    """

    def __init__(self, target: GatedTarget, limit: int | None = RANKING_IMAGES) -> None:
        if limit is not None and limit < 0:
            raise ValueError(f"evaluate: ranking_images must not be negative, got {limit}")
        self.target = target
        self.limit = limit
        self.seen = 0
        self._ranking = Ranking(target, SIZES)
        self._sparsity = SparsityMeter(target)

    def update(self, images: Tensor, explanation: Explanation) -> None:
        """Measure a batch; what takes many runs, only as far as the limit goes."""
        count = len(images) if self.limit is None else min(len(images), self.limit - self.seen)
        rows, others = slice(0, count), slice(count, None)
        logits, importance = explanation.logits, explanation.importance
        self._ranking.update(images[rows], logits[rows], importance[rows])
        self._sparsity.update(images[rows], explanation.pathway[rows], importance[rows])
        # Sizes take one run, and are read beside those of all inputs.
        self._sparsity.update(images[others], explanation.pathway[others])
        self.seen += count

    def finish(
        self, images: Tensor, explained: Explanation, others: Tensor, batch_size: int, seed: int
    ) -> Sweeps:
        """The remaining figures of the first inputs.

        Args:
            images (Tensor[N, ...]): all inputs of the evaluation, in the order of the updates.
            explained (Explanation): of all of them.
            others (Tensor[M, ...]): inputs for the mean activations, as many as were seen are used.
            batch_size (int): inputs per run.
            seed (int): of the random control.
        """
        count = self.seen
        logits, pathway = explained.logits[:count], explained.pathway[:count]
        total = _MINIMALITY_RUNS * len(images) // (len(self.target.sites) + 1)
        few = min(count, max(total, 1))
        rows = (self.target, images[:count], logits, pathway)
        return Sweeps(
            ranking=self._ranking.compute(),
            sparsity=self._sparsity.compute(),
            necessity=necessity(*rows, batch_size=batch_size, seed=seed),
            minimality=minimality(self.target, images[:few], pathway[:few], batch_size=batch_size),
            minimality_images=few,
            ablation=ablation_agreement(
                *rows, self._ablations(others[: max(count, 1)], batch_size), batch_size=batch_size
            ),
        )

    def _ablations(self, images: Tensor, batch_size: int) -> dict[str, list[Tensor] | None]:
        """The target's own value, then zero where that is another, else the mean of the inputs."""
        if self.target.baseline is not None:
            return {"own": self.target.baseline, "zero": None}
        batches = (batch.to(self.target.device) for batch in images.split(batch_size))
        return {"zero": None, "mean": self.target.mean_baseline(batches)}

"""Evaluation: every figure of one pathway method on one data set."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pathways.class_pathways import ClassPathways
from pathways.evaluation.leak import BlankHit, WrongClass
from pathways.evaluation.map_faithfulness import MapFaithfulness
from pathways.evaluation.probe import MaskProbe
from pathways.evaluation.stability import Stability
from pathways.evaluation.sweeps import Sweeps
from pathways.evaluation.told import ToldControl
from pathways.evaluation.transfer import Scores, TransferPoint

METRICS = (
    "target_accuracy",
    "agreement",
    "kept",
    "kept_std",
    "kept_effective",
    "dead_share",
    "kl",
    "mic",
    "mdc",
    "cpr",
    "cmd",
    "necessity",
    "random_necessity",
    "minimality",
    "agreement_other_ablation",
    "insertion",
    "deletion",
    "insertion_minus_deletion",
    "random_insertion_minus_deletion",
    "road",
    "grad_cam_insertion_minus_deletion",
    "grad_cam_road",
    "aciou",
    "aciou_corrected",
    "between_class_iou",
    "transfer_agreement",
    "transfer_kept",
    "stability",
    "core_agreement",
    "random_agreement",
    "wrong_class_flip",
    "wrong_class_probability",
    "blank_hit",
    "blank_hit_unseen",
    "mask_swap_flip",
    "told_flip",
    "told_runner_up_flip",
    "told_blank_hit",
    "mask_probe_accuracy",
    "ms_per_explanation",
    "ms_per_target_forward",
)


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`pathways.evaluation.evaluate`; fractions, not percent.

    Args:
        target_accuracy (float): accuracy of the clean run against labels. Higher is better.
        agreement (float): share of inputs whose prediction stays. Higher is better.
        kept (float): mean share of neurons kept, and ``kept_std`` its standard deviation over
            inputs.
        kept_effective (float): mean share of neurons kept and active on the input; ``dead_share``
            of the kept ones are not. Lower is better.
        kl (float): KL of gated from clean outputs, nats. Lower is better.
        mic (float): share of inputs that become more confident. Higher is better.
        mdc (float): mean relative drop of confidence. Lower is better.
        cpr (float): area under the curve of confidence kept over share of neurons kept by
            importance. Higher is better; ``cmd``, its distance from 1, lower.
        necessity (float): probability of the clean prediction without the pathway. Lower is better;
            ``random_necessity`` is that without random neurons, as many at every site.
        minimality (float): share of the pathway's sites whose removal leaves its prediction. Lower
            is better.
        agreement_other_ablation (float): agreement with another value for gated-off activations:
            zero, or the mean where the target's own is zero. Higher is better.
        insertion (float): probability of the prediction while pixels return in the order of the
            pathway gradient, area under the curve. Higher is better.
        deletion (float): the same while they are taken away. Lower is better.
        insertion_minus_deletion (float): their difference. Higher is better;
            ``random_insertion_minus_deletion`` is that of random maps.
        road (float): probability with the least important pixels imputed minus that with the most
            important ones, halved. Higher is better, 0 for random maps.
        grad_cam_insertion_minus_deletion, grad_cam_road (float): the same of Grad-CAM of the gated
            run. Higher is better; NaN for a target without a site with a map.
        aciou (float): similarity within classes, ``aciou_corrected`` for chance. Higher is better.
        between_class_iou (float): similarity across classes. Lower is better.
        transfer_agreement (float): agreement of query inputs under class pathways of all support
            inputs, which keep ``transfer_kept`` of the neurons. Higher is better.
        stability (float): share of the possible members of class pathways that are certain, mean
            over classes; ``core_agreement`` is the transfer of those alone. Higher is better.
        random_agreement (float): agreement of random pathways of the same size; a reference.
        wrong_class_flip (float): inputs that take another class under its pathway, which they do
            with ``wrong_class_probability``. Lower is better.
        blank_hit (float): blanks predicted as the class of the pathway; chance is 1 / K. Lower is
            better; ``blank_hit_unseen`` is that of content-free inputs of other kinds.
        mask_swap_flip (float): inputs that take the class of another input's pathway. Lower is
            better.
        told_flip (float): inputs that take another class that the generator is told; NaN where it
            does not read the logits. Lower is better; ``told_runner_up_flip`` is that of their
            second class (close calls aside), ``told_blank_hit`` that of blanks.
        mask_probe_accuracy (float): predicted class read off the mask by a linear classifier.
        ms_per_explanation (float): milliseconds per input, beside ``ms_per_target_forward``.
        mdc_unnormalized (float): mean absolute drop of confidence. Lower is better.
        aciou_chance (float): acIOU of random pathways of the same sizes.
        accuracy (dict): ``clean``, ``gated``, ``ratio`` (:class:`metrics.AccuracyKept`).
        macro (dict): means over classes of the class means.
        per_class (dict of Tensor[K]): figures of each predicted class, NaN for empty ones.
        class_overlap (Tensor[K, K]): mean IoU per pair of classes.
        kept_per_site (Tensor[L]): mean share kept at every site.
        class_pathways (ClassPathways): made from the support inputs.
        transfer (list of TransferPoint): the transfer curve; the last point has all support inputs.
        wrong_class (WrongClass): with the flips per pair of classes.
        blanks (BlankHit): per class and blank; ``blanks_unseen`` those of other kinds.
        certified (Stability): certain and undecided members of the class pathways.
        core (Scores): transfer of the certain members; ``possible`` with the undecided ones.
        sweeps (Sweeps): ranking curve, sparsity, necessity, minimality, ablation values.
        maps (dict of MapFaithfulness): of pathway gradient, gated Grad-CAM and random maps.
        probe (MaskProbe): with its chance level.
        told (ToldControl): pathways of own features and the logits of others.
        predictions (Tensor[N]): predicted class of every input.
        settings (dict): sizes, seeds and machine facts of the measurement.
    """

    target_accuracy: float
    agreement: float
    kept: float
    kept_std: float
    kept_effective: float
    dead_share: float
    kl: float
    mic: float
    mdc: float
    cpr: float
    cmd: float
    necessity: float
    random_necessity: float
    minimality: float
    agreement_other_ablation: float
    insertion: float
    deletion: float
    insertion_minus_deletion: float
    random_insertion_minus_deletion: float
    road: float
    grad_cam_insertion_minus_deletion: float
    grad_cam_road: float
    aciou: float
    aciou_corrected: float
    between_class_iou: float
    transfer_agreement: float
    transfer_kept: float
    stability: float
    core_agreement: float
    random_agreement: float
    wrong_class_flip: float
    wrong_class_probability: float
    blank_hit: float
    blank_hit_unseen: float
    mask_swap_flip: float
    told_flip: float
    told_runner_up_flip: float
    told_blank_hit: float
    mask_probe_accuracy: float
    ms_per_explanation: float
    ms_per_target_forward: float
    mdc_unnormalized: float
    aciou_chance: float
    accuracy: dict[str, float]
    macro: dict[str, float]
    per_class: dict[str, Tensor]
    class_overlap: Tensor
    kept_per_site: Tensor
    class_pathways: ClassPathways
    transfer: list[TransferPoint]
    wrong_class: WrongClass
    blanks: BlankHit
    blanks_unseen: BlankHit
    certified: Stability
    core: Scores
    possible: Scores
    sweeps: Sweeps
    maps: dict[str, MapFaithfulness]
    probe: MaskProbe
    told: ToldControl
    predictions: Tensor
    settings: dict[str, Any]

    def metrics(self) -> dict[str, float]:
        """The main figures by name, in a fixed order; fractions and milliseconds."""
        return {name: float(getattr(self, name)) for name in METRICS}

    def details(self) -> dict[str, Any]:
        """Everything behind the main figures as JSON-able values; NaN becomes None."""
        sites = self.class_pathways.sites
        return {
            "settings": self.settings,
            "accuracy": _plain(self.accuracy),
            "macro": _plain(self.macro),
            "mdc_unnormalized": _plain(self.mdc_unnormalized),
            "aciou_chance": _plain(self.aciou_chance),
            "kept_per_site": [
                {"site": site.key, "kept": _plain(value)}
                for site, value in zip(sites, self.kept_per_site.tolist(), strict=True)
            ],
            "classes": self.class_table(),
            "class_overlap": _plain(self.class_overlap),
            "transfer": [_plain(point.to_json()) for point in self.transfer],
            "wrong_class": {
                "pairs": self.wrong_class.pairs,
                "clean_probability": _plain(self.wrong_class.clean_probability),
                "flip": _plain(self.wrong_class.matrix),
            },
            "blanks": _blanks(self.blanks),
            "blanks_unseen": _blanks(self.blanks_unseen),
            "stability": {
                "confidence": self.certified.confidence,
                "core": _plain(asdict(self.core)),
                "possible": _plain(asdict(self.possible)),
            },
            **_plain(self.sweeps.to_json()),
            "maps": {kind: _plain(result.to_json()) for kind, result in self.maps.items()},
            "probe": _plain(vars(self.probe)),
            "told": _plain(vars(self.told)),
        }

    def class_table(self) -> list[dict[str, Any]]:
        """One dictionary per class: inputs, figures of its inputs, and its class pathway."""
        classes = self.class_pathways
        images = torch.bincount(self.predictions, minlength=len(classes)).tolist()
        support = classes.counts.tolist()
        kept = classes.pathway.kept().tolist()
        certain = self.certified.core.kept().tolist()
        undecided = self.certified.undecided.kept().tolist()
        table = []
        for label in range(len(classes)):
            row: dict[str, Any] = {"class": label, "images": images[label]}
            row |= {name: _plain(float(v[label])) for name, v in self.per_class.items()}
            row["support"] = support[label]
            row["class_pathway_kept"] = kept[label] if support[label] else None
            row["stability"] = _plain(float(self.certified.per_class[label]))
            row["core_kept"] = certain[label] if support[label] else None
            row["undecided"] = undecided[label] if support[label] else None
            # Column: inputs of other classes that this class's pathway captures.
            row["captures"] = _plain(float(self.wrong_class.matrix[:, label].nanmean()))
            table.append(row)
        return table


def _blanks(blanks: BlankHit) -> dict[str, Any]:
    return {
        "hits": blanks.hits.tolist(),
        "predictions": blanks.predictions.tolist(),
        "chance": blanks.chance,
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

"""Evaluation of pathway methods: faithfulness, class relevance, transfer and leak controls."""

import importlib.util

if importlib.util.find_spec("torchmetrics") is None:
    raise ModuleNotFoundError(
        "pathways.evaluation needs torchmetrics; pip install 'pathways[train]'",
        name="torchmetrics",
    )

from pathways.evaluation.class_iou import ClassIoU
from pathways.evaluation.evaluate import evaluate
from pathways.evaluation.leak import (
    BlankHit,
    WrongClass,
    blank_hit,
    default_blanks,
    mask_swap_flip,
    random_agreement,
    wrong_class,
)
from pathways.evaluation.metrics import (
    AccuracyKept,
    Agreement,
    DropInConfidence,
    IncreaseInConfidence,
    Kept,
    PathwayKL,
)
from pathways.evaluation.probe import MaskProbe, mask_probe
from pathways.evaluation.recovery import Recovery, recovery
from pathways.evaluation.result import METRICS, Evaluation
from pathways.evaluation.timing import milliseconds_per_image
from pathways.evaluation.transfer import SHOTS, Scores, TransferPoint, transfer

__all__ = [
    "METRICS",
    "SHOTS",
    "AccuracyKept",
    "Agreement",
    "BlankHit",
    "ClassIoU",
    "DropInConfidence",
    "Evaluation",
    "IncreaseInConfidence",
    "Kept",
    "MaskProbe",
    "PathwayKL",
    "Recovery",
    "Scores",
    "TransferPoint",
    "WrongClass",
    "blank_hit",
    "default_blanks",
    "evaluate",
    "mask_probe",
    "mask_swap_flip",
    "milliseconds_per_image",
    "random_agreement",
    "recovery",
    "transfer",
    "wrong_class",
]

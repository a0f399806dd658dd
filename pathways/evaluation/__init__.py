"""Evaluation of pathway methods: faithfulness, class relevance, transfer and leak controls."""

import importlib.util

if importlib.util.find_spec("torchmetrics") is None:
    raise ModuleNotFoundError(
        "pathways.evaluation needs torchmetrics; pip install 'pathways[train]'",
        name="torchmetrics",
    )

from pathways.evaluation.ablation import Ablation, ablation_agreement
from pathways.evaluation.blanks import default_blanks, unseen_blanks
from pathways.evaluation.class_iou import ClassIoU
from pathways.evaluation.evaluate import evaluate
from pathways.evaluation.infidelity import infidelity, sensitivity_max
from pathways.evaluation.insertion_deletion import PixelCurve, deletion, insertion
from pathways.evaluation.leak import (
    BlankHit,
    WrongClass,
    blank_hit,
    mask_swap_flip,
    random_agreement,
    wrong_class,
)
from pathways.evaluation.map_faithfulness import MapFaithfulness, map_faithfulness
from pathways.evaluation.metrics import (
    AccuracyKept,
    Agreement,
    DropInConfidence,
    IncreaseInConfidence,
    Kept,
    PathwayKL,
)
from pathways.evaluation.necessity import Minimality, Necessity, minimality, necessity
from pathways.evaluation.probe import MaskProbe, mask_probe
from pathways.evaluation.randomization import Randomization, randomization
from pathways.evaluation.ranking import Ranking, RankingCurve, ranking_curve
from pathways.evaluation.recovery import Recovery, recovery
from pathways.evaluation.result import METRICS, Evaluation
from pathways.evaluation.road import Road, impute, road
from pathways.evaluation.sparsity import Sparsity, SparsityMeter, complexity, sparseness
from pathways.evaluation.stability import Stability, core_transfer, stability
from pathways.evaluation.sweeps import Sweeps
from pathways.evaluation.timing import milliseconds_per_image
from pathways.evaluation.told import ToldControl, told_control
from pathways.evaluation.transfer import SHOTS, Scores, TransferPoint, transfer

__all__ = [
    "METRICS",
    "SHOTS",
    "Ablation",
    "AccuracyKept",
    "Agreement",
    "BlankHit",
    "ClassIoU",
    "DropInConfidence",
    "Evaluation",
    "IncreaseInConfidence",
    "Kept",
    "MapFaithfulness",
    "MaskProbe",
    "Minimality",
    "Necessity",
    "PathwayKL",
    "PixelCurve",
    "Randomization",
    "Ranking",
    "RankingCurve",
    "Recovery",
    "Road",
    "Scores",
    "Sparsity",
    "SparsityMeter",
    "Stability",
    "Sweeps",
    "ToldControl",
    "TransferPoint",
    "WrongClass",
    "ablation_agreement",
    "blank_hit",
    "complexity",
    "core_transfer",
    "default_blanks",
    "deletion",
    "evaluate",
    "impute",
    "infidelity",
    "insertion",
    "map_faithfulness",
    "mask_probe",
    "mask_swap_flip",
    "milliseconds_per_image",
    "minimality",
    "necessity",
    "random_agreement",
    "randomization",
    "ranking_curve",
    "recovery",
    "road",
    "sensitivity_max",
    "sparseness",
    "stability",
    "told_control",
    "transfer",
    "unseen_blanks",
    "wrong_class",
]

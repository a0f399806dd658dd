"""Figures of an evaluation as table rows: meaning, which way is better, what to compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

RANDOMIZED: Mapping[str, str] = MappingProxyType(
    {
        "agreement": "target itself",
        "iou": "masks (IoU)",
        "iou_chance": "chance",
        "importance": "importance",
        "gradient": "gradient",
        "cam": "Grad-CAM",
    }
)
"""Columns of a weight-randomisation table: figure of :class:`Randomization` and its heading."""


@dataclass(frozen=True)
class MetricRow:
    """One line of a table of metrics.

    Args:
        group (str): heading, for example ``"leak controls"``.
        name (str): key in metrics.json.
        meaning (str): a few words.
        value (float): the figure; NaN where it could not be measured.
        direction (str): ``"higher"``, ``"lower"``, or ``""`` where neither is better.
        reference (str): value to compare with: chance, ideal, or another figure.
    """

    group: str
    name: str
    meaning: str
    value: float
    direction: str
    reference: str

    @property
    def text(self) -> str:
        """The value as it is printed."""
        if math.isnan(self.value):
            return "-"
        if self.name.startswith("ms_"):
            return f"{self.value:.3g} ms"
        if self.name.startswith("seconds_"):
            return f"{self.value:.0f} s"
        return f"{self.value:.3f}"


# name: (group, meaning, better, reference). Formatted with the metrics and ``chance``.
_ROWS: dict[str, tuple[str, str, str, str]] = {
    "target_accuracy": ("target", "accuracy of the target itself", "higher", "chance {chance:.2f}"),
    "agreement": (
        "faithfulness",
        "prediction stays, pathway alone",
        "higher",
        "random {random_agreement:.3f}",
    ),
    "kl": ("faithfulness", "KL of gated from clean, nats", "lower", "0"),
    "mic": ("faithfulness", "inputs that gain confidence", "higher", "full target 0"),
    "mdc": ("faithfulness", "mean relative loss of confidence", "lower", "full target 0"),
    "cpr": ("faithfulness", "area of confidence over size", "higher", "full target 1"),
    "cmd": ("faithfulness", "distance of that curve from 1", "lower", "full target 0"),
    "necessity": (
        "faithfulness",
        "confidence left without pathway",
        "lower",
        "random {random_necessity:.3f}",
    ),
    "random_necessity": (
        "faithfulness",
        "the same, random, same size",
        "",
        "pathway {necessity:.3f}",
    ),
    "minimality": ("faithfulness", "sites that it does not need", "lower", "0"),
    "agreement_other_ablation": (
        "faithfulness",
        "agreement, other ablation value",
        "higher",
        "own {agreement:.3f}",
    ),
    "insertion": ("maps", "confidence as pixels return", "higher", "1"),
    "deletion": ("maps", "confidence as pixels go", "lower", "0"),
    "insertion_minus_deletion": (
        "maps",
        "difference of the two",
        "higher",
        "random {random_insertion_minus_deletion:.3f}",
    ),
    "random_insertion_minus_deletion": (
        "maps",
        "the same of random maps",
        "",
        "pathway {insertion_minus_deletion:.3f}",
    ),
    "road": ("maps", "unimportant over important pixels", "higher", "random 0"),
    "grad_cam_insertion_minus_deletion": (
        "maps",
        "insertion - deletion of Grad-CAM",
        "higher",
        "random {random_insertion_minus_deletion:.3f}",
    ),
    "grad_cam_road": ("maps", "ROAD of Grad-CAM", "higher", "random 0"),
    "kept": ("size", "share of neurons kept", "lower", "full target 1"),
    "kept_std": ("size", "its spread over inputs", "", "one mask for all 0"),
    "kept_effective": ("size", "kept and active on the image", "lower", "kept {kept:.3f}"),
    "dead_share": ("size", "kept ones that are not active", "lower", "0"),
    "aciou": ("classes", "overlap within classes", "higher", "between {between_class_iou:.3f}"),
    "aciou_corrected": ("classes", "the same, chance-corrected", "higher", "chance 0"),
    "between_class_iou": ("classes", "overlap across classes", "lower", "within {aciou:.3f}"),
    "transfer_agreement": (
        "transfer",
        "class pathways on new images",
        "higher",
        "own {agreement:.3f}",
    ),
    "transfer_kept": ("transfer", "neurons in class pathways", "lower", "full target 1"),
    "stability": ("transfer", "members that are certain", "higher", "1"),
    "core_agreement": (
        "transfer",
        "class pathways of those alone",
        "higher",
        "all {transfer_agreement:.3f}",
    ),
    "random_agreement": (
        "leak controls",
        "agreement, random, same size",
        "",
        "pathway {agreement:.3f}",
    ),
    "wrong_class_flip": (
        "leak controls",
        "wrong class's pathway decides",
        "lower",
        "masks decide 1",
    ),
    "wrong_class_probability": (
        "leak controls",
        "probability of that class",
        "lower",
        "masks decide 1",
    ),
    "blank_hit": (
        "leak controls",
        "class seen in a blank image",
        "lower",
        "chance {chance:.2f}",
    ),
    "blank_hit_unseen": (
        "leak controls",
        "the same, other content-free ones",
        "lower",
        "chance {chance:.2f}",
    ),
    "mask_swap_flip": (
        "leak controls",
        "another image's mask decides",
        "lower",
        "masks decide 1",
    ),
    "told_flip": (
        "leak controls",
        "told another class, that one wins",
        "lower",
        "masks decide 1",
    ),
    "told_runner_up_flip": (
        "leak controls",
        "the same, told the second class",
        "lower",
        "masks decide 1",
    ),
    "told_blank_hit": (
        "leak controls",
        "the same in content-free images",
        "lower",
        "chance {chance:.2f}",
    ),
    "mask_probe_accuracy": (
        "leak controls",
        "class read off the mask (probe)",
        "",
        "chance {chance:.2f}",
    ),
    "ms_per_explanation": (
        "cost",
        "time of one explanation",
        "lower",
        "target {ms_per_target_forward:.3g} ms",
    ),
    "ms_per_target_forward": ("cost", "time of one target forward", "lower", ""),
    "seconds_total": ("cost", "the whole run", "lower", ""),
}


def metric_rows(
    metrics: Mapping[str, float | None],
    num_classes: int,
    needed: Mapping[str, str] | None = None,
) -> list[MetricRow]:
    """Table rows of ``Evaluation.metrics()`` (or of metrics.json), grouped and in a fixed order.

    Args:
        metrics (mapping): figures by name; missing ones have no row, None is NaN.
        num_classes (int): K, for the chance level.
        needed (mapping or None): limits to show, ``{"agreement": ">= 0.95"}``.

    Raises:
        ValueError: ``num_classes`` below 1.
    """
    if num_classes < 1:
        raise ValueError(f"metric_rows: num_classes must be at least 1, got {num_classes}")
    values = {name: math.nan if value is None else value for name, value in metrics.items()}
    known = dict.fromkeys(_ROWS, math.nan) | values | {"chance": 1.0 / num_classes}
    rows = []
    for name, (group, meaning, direction, reference) in _ROWS.items():
        if name in values:
            text = reference.format(**known)
            if needed and name in needed:
                text = f"needed {needed[name]}, {text}"
            rows.append(MetricRow(group, name, meaning, values[name], direction, text))
    return rows

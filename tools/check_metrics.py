"""Check a metrics.json against limits: exits with 1 and names every limit that is missed.

A limit is NAME OP VALUE without spaces, where VALUE is a number, another figure, or a number times
one:  agreement>=0.95  kept<=0.55  random_agreement<=0.5*agreement

    python tools/check_metrics.py out/demo/metrics.json --keys 'agreement>=0.95' 'kept<=0.55'
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import re
import sys
from pathlib import Path

KEYS = [
    "target_accuracy", "agreement", "kept", "kept_std", "kept_effective", "dead_share", "kl", "mic",
    "mdc", "cpr", "cmd", "necessity", "random_necessity", "minimality", "agreement_other_ablation",
    "insertion", "deletion", "insertion_minus_deletion", "random_insertion_minus_deletion", "road",
    "grad_cam_insertion_minus_deletion", "grad_cam_road",
    "aciou", "aciou_corrected", "between_class_iou", "transfer_agreement", "transfer_kept",
    "stability", "core_agreement", "random_agreement", "wrong_class_flip",
    "wrong_class_probability", "blank_hit", "blank_hit_unseen", "mask_swap_flip",
    "told_flip", "told_runner_up_flip", "told_blank_hit", "mask_probe_accuracy",
    "ms_per_explanation", "ms_per_target_forward", "seconds_total",
]  # fmt: skip
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
LIMIT = re.compile(r"^(\w+)(>=|<=|>|<)(?:([\d.eE+-]+)\*)?([\w.+-]+)$")


def check(metrics: dict[str, float | None], limits: list[str], keys: bool) -> list[str]:
    """What is wrong with the metrics, one sentence each; empty when all is well."""
    wrong = []
    if keys:
        missing = [key for key in KEYS if key not in metrics]
        foreign = [key for key in metrics if key not in KEYS]
        wrong += [f"{key} is missing" for key in missing]
        wrong += [f"{key} is not a known figure" for key in foreign]
    for limit in limits:
        parts = LIMIT.match(limit)
        if parts is None:
            wrong.append(f"{limit!r} is not a limit like agreement>=0.95")
            continue
        name, sign, factor, bound = parts.groups()
        value = metrics.get(name)
        other = metrics.get(bound) if not _is_number(bound) else float(bound)
        if value is None or other is None:
            wrong.append(f"{limit}: {name if value is None else bound} was not measured")
            continue
        wanted = other * float(factor or 1.0)
        if not (math.isfinite(value) and OPERATORS[sign](value, wanted)):
            wrong.append(f"{name} must be {sign} {wanted:.4g}, got {value:.4g}")
    return wrong


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("limits", nargs="*")
    parser.add_argument("--keys", action="store_true", help="exactly the known figures")
    arguments = parser.parse_intermixed_args()
    try:
        metrics = json.loads(arguments.file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        print(f"{arguments.file} cannot be read: {error}", file=sys.stderr)
        return 1
    wrong = check(metrics, arguments.limits, arguments.keys)
    for sentence in wrong:
        print(f"{arguments.file}: {sentence}", file=sys.stderr)
    if not wrong:
        print(f"{arguments.file}: {len(arguments.limits)} limits kept")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Which images a method loses: agreement where the classifier's two first classes are close.

python tools/close_calls.py RUN --baselines mct,intgrad --kept 0.5 --out close_calls.json
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathways.baselines.registry import BaselineContext, make_sizes
from pathways.evaluation.runs import explain_batches
from pathways.evaluation.told import CLOSE, margins
from pathways.measuring import shuffled_test
from pathways.options import baseline_names, shares
from pathways.runs import Run, preprocess, write_json


def measured(run: Run, names: list[str], kept: list[float], images: int) -> dict[str, Any]:
    """Share of close images, and each method's agreement on them and on the others."""
    rows = shuffled_test(run.images, seed=0, limit=images)
    inputs = preprocess(run.images.test[rows], run.preprocessing)
    context = BaselineContext(run.explainer, preprocess(run.images.train, run.preprocessing))
    methods: dict[str, Any] = {"generator": run.explainer}
    for name in ["generator", *names]:
        methods |= make_sizes(name, context, kept)
    figures = {}
    close = torch.cat([margins(run.explainer.target(part)) < CLOSE for part in inputs.split(64)])
    for name, method in methods.items():
        explained = explain_batches(method, inputs)
        agrees = explained.gated_predictions == explained.predictions
        figures[name] = {
            "agreement": mean(agrees),
            "close": mean(agrees[close]),
            "clear": mean(agrees[~close]),
        }
    return {"images": len(inputs), "close_share": mean(close), "methods": figures}


def mean(values: Tensor) -> float | None:
    value = float(values.float().mean())
    return None if math.isnan(value) else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a trained run")
    parser.add_argument("--baselines", default="", help="names, separated by commas")
    parser.add_argument("--kept", default="", help="shares of neurons besides the generator's")
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error(f"--images must be at least 1, got {arguments.images}")
    found = measured(
        Run.open(arguments.run),
        baseline_names(arguments.baselines),
        shares("--kept", arguments.kept),
        arguments.images,
    )
    write_json(arguments.out, found)

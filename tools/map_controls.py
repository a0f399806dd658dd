"""Does a map show its image's pathway? Insertion - deletion under pathways of other images.

python tools/map_controls.py RUN --baselines mct,dgr --out maps.json

Every method's maps are measured three times on the same images: under the image's own pathway,
under that of another image of the same predicted class, and of one of another class.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathways.baselines.registry import BaselineContext, make_baseline
from pathways.evaluation import map_faithfulness
from pathways.evaluation.leak import swap_partners
from pathways.explainer import Explanation
from pathways.measuring import shuffled_test
from pathways.options import baseline_names
from pathways.runs import Run, preprocess, write_json

KINDS = ("gradient", "grad_cam")


def classmates(predictions: Tensor) -> Tensor:
    """For every input the next one of the same prediction, itself where there is no other."""
    partners = torch.arange(len(predictions))
    for value in predictions.unique():
        rows = (predictions == value).nonzero().squeeze(1)
        partners[rows] = rows.roll(-1)
    return partners


def borrowed(explained: Explanation, partners: Tensor) -> Explanation:
    """The same inputs with the pathways of others."""
    return replace(explained, pathway=explained.pathway[partners])


def measured(run: Run, names: list[str], images: int) -> dict[str, Any]:
    """Insertion - deletion by method, owner of the pathway and kind of map."""
    rows = shuffled_test(run.images, seed=0, limit=images)
    inputs = preprocess(run.images.test[rows], run.preprocessing)
    context = BaselineContext(run.explainer, preprocess(run.images.train, run.preprocessing))
    methods = {}
    for name in ["generator", *names]:
        method = run.explainer if name == "generator" else make_baseline(name, context)
        own = method(inputs)
        predictions = own.predictions.cpu()
        others, partners = swap_partners(predictions)
        if len(others) < len(inputs):
            raise ValueError(f"the {len(inputs)} images must be predicted as two classes or more")
        owners = {
            "own": own,
            "classmate": borrowed(own, classmates(predictions)),
            "other": borrowed(own, partners),
        }
        methods[name] = {
            owner: {
                kind: found.insertion_minus_deletion
                for kind, found in map_faithfulness(
                    method, inputs, explained, kinds=KINDS, max_images=len(inputs)
                ).items()
            }
            for owner, explained in owners.items()
        }
    return {"images": len(inputs), "methods": methods}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a trained run")
    parser.add_argument("--baselines", default="", help="names, separated by commas")
    parser.add_argument("--images", type=int, default=128, help="test images")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    found = measured(Run.open(arguments.run), baseline_names(arguments.baselines), arguments.images)
    write_json(arguments.out, found)

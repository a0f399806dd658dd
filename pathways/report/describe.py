"""Explanations as plain dictionaries: what ``--json`` prints and figures draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathways.explainer import Explanation
from pathways.sites import Sites


def describe(
    explanation: Explanation, classes: Sequence[str], *, top: int = 5
) -> list[dict[str, Any]]:
    """Describe every input of an explanation.

    Args:
        explanation (Explanation): N inputs.
        classes (sequence of str): K class names.
        top (int): neurons named per site, and in all; at least 0.

    Returns:
        list of dict: per input ``predicted`` and ``gated`` (each ``class``, ``name``,
        ``probability``), ``gated_probability_of_predicted``, ``agrees``, ``kept`` (fraction),
        ``neurons`` (``kept``, ``total``), ``sites`` (per site ``site``, ``activation``, ``shape``,
        ``kept``, ``neurons``, ``top``) and ``top`` (over all sites). An entry of ``top`` is a kept
        neuron, most important first: ``site``, ``channel``, ``position`` (only for units) and
        ``importance``.

    Raises:
        ValueError: another number of class names, or a negative ``top``.
    """
    count = explanation.logits.shape[1]
    if len(classes) != count:
        raise ValueError(f"describe: classes must hold {count} names, got {len(classes)}")
    if top < 0:
        raise ValueError(f"describe: top must not be negative, got {top}")
    clean = explanation.logits.double().softmax(1).cpu()
    gated = explanation.gated_logits.double().softmax(1).cpu()
    predictions = explanation.predictions.tolist()
    gated_predictions = explanation.gated_predictions.tolist()
    pathway = explanation.pathway.to("cpu")
    masks, sizes = pathway.mask(), pathway.sizes(per_site=True).tolist()
    importance = explanation.importance.detach().cpu()
    sites = pathway.sites
    described = []
    for row, (label, gated_label) in enumerate(zip(predictions, gated_predictions, strict=True)):
        ranked = [
            _top(sites, site, scores, kept, top)
            for site, (scores, kept) in enumerate(
                zip(sites.split(importance[row]), sites.split(masks[row]), strict=True)
            )
        ]
        table = [
            {
                "site": site.key,
                "activation": site.activation,
                "shape": list(site.shape),
                "kept": sizes[row][i] / sites.sizes[i],
                "neurons": {"kept": sizes[row][i], "total": sites.sizes[i]},
                "top": ranked[i],
            }
            for i, site in enumerate(sites)
        ]
        every = [entry for entries in ranked for entry in entries]
        every.sort(key=lambda entry: -entry["importance"])
        kept_neurons = sum(sizes[row])
        described.append(
            {
                "predicted": _prediction(clean[row], label, classes),
                "gated": _prediction(gated[row], gated_label, classes),
                "gated_probability_of_predicted": float(gated[row, label]),
                "agrees": label == gated_label,
                "kept": kept_neurons / sites.num_neurons,
                "neurons": {"kept": kept_neurons, "total": sites.num_neurons},
                "sites": table,
                "top": every[:top],
            }
        )
    return described


def _prediction(probabilities: Tensor, label: int, classes: Sequence[str]) -> dict[str, Any]:
    return {"class": label, "name": classes[label], "probability": float(probabilities[label])}


def _top(sites: Sites, site: int, scores: Tensor, kept: Tensor, top: int) -> list[dict[str, Any]]:
    """The most important kept neurons of a site."""
    chosen = scores.masked_fill(~kept, -math.inf).topk(min(top, int(kept.sum())))
    entries = []
    for value, neuron in zip(chosen.values.tolist(), chosen.indices.tolist(), strict=True):
        entry: dict[str, Any] = {"site": sites[site].key, "channel": neuron}
        if sites.granularity == "unit" and sites[site].space:
            inside = math.prod(sites[site].space)
            entry["channel"] = neuron // inside
            position = torch.unravel_index(torch.tensor(neuron % inside), sites[site].space)
            entry["position"] = [int(coordinate) for coordinate in position]
        entry["importance"] = value
        entries.append(entry)
    return entries

"""Comparisons over several seeds: run, summed up, written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from pathways.planted.comparing import (
    DEFAULT_METHODS,
    METHODS,
    STEPS,
    Progress,
    Score,
    check_methods,
    compare,
)
from pathways.planted.planting import planted

JSON, FIGURE = "planted.json", "planted.png"
FIGURES = tuple(entry.name for entry in fields(Score) if entry.name != "roles")


def compare_seeds(
    methods: Sequence[str] = DEFAULT_METHODS,
    *,
    options: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    steps: int = STEPS,
    kept: float | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, list[Score]], dict[str, Any]]:
    """Plant a net per seed and measure every method on each.

    Args:
        methods (sequence of str): keys of :data:`pathways.planted.comparing.METHODS`.
        options (mapping or None): arguments of :func:`pathways.planted.planted` but the seed.
        seeds (sequence of int): distinct, at least one; each is that of net, images, training and
            controls.
        steps (int): training steps of each generator.
        kept (float or None): share of the channels that baselines keep; None is the circuit's size.
        settings (mapping or None): other settings of the training.
        progress (callable or None): called with (stage, done, total).

    Returns:
        dict of list of Score, by method and seed, ``"truth"`` first; and a JSON-able dictionary:
        what was asked for, the nets' sizes, and per method ``meaning``, ``mean``, ``std`` (of the
        seeds, None for one) and every seed's figures.

    Raises:
        ValueError: unknown method, bad options or settings, no seeds or one twice.

    Example:
        >>> options = {"num_classes": 2, "train": 2, "test": 8}
        >>> _, result = compare_seeds(["random"], options=options, seeds=(0, 1))
        >>> result["circuit"], result["methods"]["truth"]["mean"]["recall"]
        (10, 1.0)
    """
    check_methods(methods)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"compare_seeds: seeds must be distinct, at least one, got {list(seeds)}")
    scores: dict[str, list[Score]] = {}
    for seed in seeds:
        net = planted(**(options or {}), seed=seed)
        report = None if progress is None else _named(progress, seed, len(seeds))
        found = compare(
            net, methods, steps=steps, kept=kept, settings=settings, seed=seed, progress=report
        )
        for name, score in found.items():
            scores.setdefault(name, []).append(score)
    result = {
        "options": dict(options or {}),
        "seeds": list(seeds),
        "steps": steps,
        "kept": kept,
        "settings": dict(settings or {}),
        "classes": net.num_classes,
        "channels": net.truth.shape[1],
        "sites": net.target().sites.sizes,
        "circuit": int(net.truth[0].sum()),
        "methods": {
            name: {"meaning": METHODS.get(name, "the planted circuit itself"), **summary(runs)}
            for name, runs in scores.items()
        },
    }
    return scores, result


def _named(progress: Progress, seed: int, count: int) -> Progress:
    """Progress whose stages say which seed they belong to, where there are several."""
    if count == 1:
        return progress
    return lambda stage, done, total: progress(f"seed {seed}: {stage}", done, total)


def summary(runs: Sequence[Score]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every figure and role, and the seeds' own.

    Figures that no seed has are None; so are deviations of a single one.
    """
    seeds = [run.to_json() for run in runs]
    rows = [{**{name: seed[name] for name in FIGURES}, **seed["roles"]} for seed in seeds]
    means: dict[str, Any] = {}
    deviations: dict[str, Any] = {}
    for name in rows[0]:
        known = [row[name] for row in rows if row[name] is not None]
        values = torch.tensor(known, dtype=torch.float64)
        means[name] = float(values.mean()) if known else None
        deviations[name] = float(values.std()) if len(known) > 1 else None
    return {"mean": means, "std": deviations, "seeds": seeds}


def save_comparison(
    scores: Mapping[str, Sequence[Score]], result: Mapping[str, Any], out: str | os.PathLike[str]
) -> list[Path]:
    """Write ``planted.json`` and ``planted.png`` into a folder, made if absent.

    Args:
        scores, result: what :func:`compare_seeds` returns.
        out (path): the folder.

    Returns:
        list of Path: the files written.

    Raises:
        OSError: a file cannot be written; an old one is left as it was.
    """
    from pathways.report import recovery_figure, save_figure
    from pathways.runs import write_json

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / JSON, dict(result))
    figures = {name: [vars(run) for run in runs] for name, runs in scores.items()}
    save_figure(recovery_figure(figures), out / FIGURE)
    return [out / JSON, out / FIGURE]

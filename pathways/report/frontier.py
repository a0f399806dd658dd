"""Sweeps as tables and pictures: the frontier of size and faithfulness, and ablations."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathways.report.figures import BLUE, GREY, VERMILION, _figure, _styled, save_figure
from pathways.runs import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a pathway should reach to be called faithful and free of leaks: our choice.
LIMITS = {"agreement": 0.95, "wrong_class_flip": 0.05}
# Figure, its words in a picture, which way is better.
SHOWN = (
    ("kept", "share of neurons kept", "lower"),
    ("agreement", "agreement", "higher"),
    ("wrong_class_flip", "wrong-class flip", "lower"),
    ("blank_hit", "blank hit", "lower"),
)
_KINDS = (
    (False, BLUE, "o", "with the leak term"),
    (True, VERMILION, "^", "plain objective (specificity 0)"),
)


def sweep_summary(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Figures of every variant over its seeds.

    Args:
        points (sequence of mapping): ``Point.to_json()`` of a sweep.

    Returns:
        list of dict, in the order of the variants: ``name``, ``sparsity``, ``specificity``,
        ``plain``, ``baseline``, ``seeds``, and ``figures``: per figure ``mean``, ``std`` (with
        n - 1), ``min``, ``max``, ``values`` (by seed), and ``difference`` and ``difference_std``:
        mean and std over the seeds of this variant minus the first one. None where fewer seeds
        have the figure than it takes: one, or two for a std.

    Example:
        >>> settings = {"sparsity": 1.0, "specificity": 0.0}
        >>> point = {"variant": "a", "baseline": "zero", "settings": settings}
        >>> points = [{**point, "seed": s, "figures": {"kept": 0.1 * s}} for s in (1, 3)]
        >>> round(sweep_summary(points)[0]["figures"]["kept"]["std"], 4)
        0.1414
    """
    names = list(dict.fromkeys(point["variant"] for point in points))
    found = []
    for name in names:
        own = [point for point in points if point["variant"] == name]
        first = {p["seed"]: p["figures"] for p in points if p["variant"] == names[0]}
        settings = own[0]["settings"]
        figures = {}
        for figure in own[0]["figures"]:
            values = [point["figures"][figure] for point in own]
            known = [value for value in values if value is not None]
            moved = [
                point["figures"][figure] - first[point["seed"]][figure]
                for point in own
                if None not in (point["figures"][figure], first[point["seed"]][figure])
            ]
            figures[figure] = {
                "mean": statistics.fmean(known) if known else None,
                "std": statistics.stdev(known) if len(known) > 1 else None,
                "min": min(known, default=None),
                "max": max(known, default=None),
                "values": values,
                "difference": statistics.fmean(moved) if moved else None,
                "difference_std": statistics.stdev(moved) if len(moved) > 1 else None,
            }
        found.append(
            {
                "name": name,
                "sparsity": settings["sparsity"],
                "specificity": settings["specificity"],
                "plain": settings["specificity"] == 0,
                "baseline": own[0]["baseline"],
                "seeds": [point["seed"] for point in own],
                "figures": figures,
            }
        )
    return found


def frontier_figure(summary: Sequence[Mapping[str, Any]], num_classes: int) -> Figure:
    """The frontier: agreement (left) and leaks (right) over the share of neurons kept.

    One line per objective through the means over seeds, each marked with its sparsity weight; small
    dots are single seeds and bands reach from the least to the greatest of them.

    Args:
        summary (sequence of mapping): :func:`sweep_summary` of a sweep over the sparsity weight.
        num_classes (int): K, for the chance level of the blank hit.

    Raises:
        ValueError: no variants.
    """
    if not summary:
        raise ValueError("frontier_figure: summary must hold at least one variant, got none")
    seeds = max(len(entry["seeds"]) for entry in summary)
    with _styled():
        figure = _figure(10.0, 4.9)
        left, right = figure.subplots(1, 2, sharex=True)
        for plain, color, marker, words in _KINDS:
            chosen = [entry for entry in summary if entry["plain"] == plain]
            chosen.sort(key=lambda entry: _mean(entry, "kept"))
            if not chosen:
                continue
            _line(left, chosen, "agreement", color, marker, words)
            _line(right, chosen, "wrong_class_flip", color, marker, words)
            right.plot(
                [_mean(entry, "kept") for entry in chosen],
                [_mean(entry, "blank_hit") for entry in chosen],
                color=color, lw=1.0, ls=":", label=f"blank hit, {words.partition(' (')[0]}",
            )  # fmt: skip
            for axes, name in ((left, "agreement"), (right, "wrong_class_flip")):
                _weights(axes, chosen, name, color)
        _limit(left, LIMITS["agreement"], "above", f"at least {LIMITS['agreement']:g}")
        _limit(
            right, LIMITS["wrong_class_flip"], "below", f"at most {LIMITS['wrong_class_flip']:g}"
        )
        left.set_title("prediction stays, pathway alone: higher is better", loc="left")
        left.set_ylabel("agreement")
        right.set_title("wrong class's pathway decides: lower is better", loc="left")
        right.set_ylabel("wrong-class flip, blank hit")
        for axes in (left, right):
            axes.set_xlabel("share of neurons kept")
            axes.set_ylim(-0.03, 1.05)
            axes.grid(alpha=0.25)
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        band = f"mean of {seeds} seeds; bands: least to greatest" if seeds > 1 else "one seed"
        figure.suptitle(
            f"Pathways by weight of sparsity (numbers at the marks); {band}; "
            f"blank hit by chance {1 / num_classes:.2g}",
            fontsize=10,
        )
        return figure


def variants_figure(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """Ablations: size, agreement and leaks of every variant, a dot per seed.

    The mark is the mean over seeds, the bar reaches from the least to the greatest; a dashed line
    carries the mean of the first variant down for comparison.

    Args:
        summary (sequence of mapping): :func:`sweep_summary`.

    Raises:
        ValueError: no variants.
    """
    if not summary:
        raise ValueError("variants_figure: summary must hold at least one variant, got none")
    with _styled():
        figure = _figure(11.0, 1.7 + 0.42 * len(summary))
        panels = figure.subplots(1, len(SHOWN), sharey=True)
        rows = range(len(summary))
        for axes, (name, words, better) in zip(panels, SHOWN, strict=True):
            for row, entry in enumerate(summary):
                color = VERMILION if entry["plain"] else BLUE
                values = _known(entry, name)
                if not values:
                    continue
                axes.plot([min(values), max(values)], [row, row], color=color, lw=3.0, alpha=0.3)
                axes.plot(values, [row] * len(values), ".", color=color, ms=5, alpha=0.7)
                axes.plot(_mean(entry, name), row, "D", color=color, ms=6, mfc="white", mew=1.6)
            axes.axvline(_mean(summary[0], name), color=GREY, lw=1.0, ls="--", zorder=0)
            axes.set_title(f"{words}\n({better} is better)", fontsize=10)
            axes.grid(axis="x", alpha=0.25)
            axes.margins(x=0.12)
            axes.locator_params(axis="x", nbins=4)
        panels[0].set_yticks(rows, [entry["name"] for entry in summary])
        panels[0].set_ylim(len(summary) - 0.5, -0.5)
        return figure


def _line(
    axes: Axes,
    chosen: Sequence[Mapping[str, Any]],
    name: str,
    color: str,
    marker: str,
    label: str,
) -> None:
    kept = [_mean(entry, "kept") for entry in chosen]
    axes.plot(
        kept, [_mean(entry, name) for entry in chosen],
        color=color, marker=marker, ms=5, lw=1.5, label=label,
    )  # fmt: skip
    lows, highs = (
        [limit(_known(e, name), default=math.nan) for e in chosen] for limit in (min, max)
    )
    axes.fill_between(kept, lows, highs, color=color, alpha=0.18, lw=0)
    for entry in chosen:
        pairs = zip(
            entry["figures"]["kept"]["values"], entry["figures"][name]["values"], strict=True
        )
        for x, y in pairs:
            if len(entry["seeds"]) > 1 and x is not None and y is not None:
                axes.plot(x, y, ".", color=color, ms=3.5, alpha=0.6)


def _weights(axes: Axes, chosen: Sequence[Mapping[str, Any]], name: str, color: str) -> None:
    """The sparsity weight at every mark."""
    for entry in chosen:
        place = (_mean(entry, "kept"), _mean(entry, name))
        if all(map(math.isfinite, place)):
            axes.annotate(
                f"{entry['sparsity']:g}",
                place,
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=color,
            )


def _limit(axes: Axes, value: float, side: str, words: str) -> None:
    axes.axhline(value, color=GREY, lw=1.0, ls="--", zorder=0)


def _mean(entry: Mapping[str, Any], name: str) -> float:
    value = entry["figures"][name]["mean"]
    return math.nan if value is None else float(value)


def _known(entry: Mapping[str, Any], name: str) -> list[float]:
    return [value for value in entry["figures"][name]["values"] if value is not None]


def save_sweep(
    points: Sequence[Mapping[str, Any]],
    num_classes: int,
    out: str | os.PathLike[str],
    *,
    ablation: bool = False,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a sweep's ``frontier.json`` and ``frontier.png``.

    Args:
        points (sequence of mapping): ``Point.to_json()`` of the sweep.
        num_classes (int): K.
        out (path): folder.
        ablation (bool): draw variants (:func:`variants_figure`) instead of the frontier.
        about (mapping or None): further JSON-able entries of the file.

    Returns:
        dict: contents of ``frontier.json``: ``about``, ``variants`` (:func:`sweep_summary`) and
            ``points``.

    Raises:
        ValueError: no points.
        OSError: a file cannot be written; an old one is left as it was.
    """
    summary = sweep_summary(points)
    figure = variants_figure(summary) if ablation else frontier_figure(summary, num_classes)
    value = {**(about or {}), "variants": summary, "points": list(points)}
    write_json(Path(out) / "frontier.json", value)
    save_figure(figure, Path(out) / "frontier.png")
    return value

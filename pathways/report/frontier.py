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
# Marks closer than this in both directions get one label.
_NEAR = 0.02
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
        ``plain``, ``baseline``, ``granularity``, ``seeds``, and ``figures``: per figure ``mean``,
        ``std`` (with n - 1), ``min``, ``max``, ``values`` (by seed), and ``difference`` and
        ``difference_std``: mean and std over the seeds of this variant minus the first one. None
        where fewer seeds have the figure than it takes: one, or two for a std.

    Example:
        >>> settings = {"sparsity": 1.0, "specificity": 0.0}
        >>> about = {"baseline": "zero", "granularity": "channel", "settings": settings}
        >>> point = {"variant": "a", **about}
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
        for figure in dict.fromkeys(key for point in own for key in point["figures"]):
            values = [point["figures"].get(figure) for point in own]
            known = [value for value in values if value is not None]
            others = [first[point["seed"]].get(figure) for point in own]
            pairs = zip(values, others, strict=True)
            moved = [value - other for value, other in pairs if None not in (value, other)]
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
                "granularity": own[0]["granularity"],
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
    with _styled():
        figure = _figure(10.5, 5.2)
        left, right = figure.subplots(1, 2, sharex=True)
        for plain, color, marker, words in _KINDS:
            chosen = [entry for entry in summary if entry["plain"] == plain]
            chosen.sort(key=lambda entry: _mean(entry, "kept"))
            if not chosen:
                continue
            kept = [_mean(entry, "kept") for entry in chosen]
            blanks = [_mean(entry, "blank_hit") for entry in chosen]
            for axes, name in ((left, "agreement"), (right, "wrong_class_flip")):
                _band(axes, kept, chosen, name, color)
                means = [_mean(entry, name) for entry in chosen]
                axes.plot(kept, means, color=color, marker=marker, ms=5, lw=1.5, label=words)
                beside = (7, 0) if plain else (0, 9 if axes is left else -10)
                _weights(axes, chosen, name, color, beside)
            label = f"blank hit (chance {1 / num_classes:.2g}), {words}"
            right.plot(kept, blanks, color=color, lw=1.0, ls=":", marker="x", ms=4, label=label)
        low = min((value for entry in summary for value in _known(entry, "agreement")), default=0)
        left.set_ylim(max(-0.03, min(0.88, low - 0.05)), 1.05)
        left.set_title("prediction stays, pathway alone: higher is better", loc="left")
        left.set_ylabel("agreement")
        right.set_ylim(-0.03, 1.05)
        right.set_title("wrong class's pathway decides: lower is better", loc="left")
        right.set_ylabel("wrong-class flip, blank hit")
        for axes, name, bound in (
            (left, "agreement", "at least"),
            (right, "wrong_class_flip", "at most"),
        ):
            axes.axhline(LIMITS[name], color=GREY, lw=1.0, ls="--", zorder=0)
            axes.annotate(
                f"{bound} {LIMITS[name]:.2f}", (1, LIMITS[name]),
                xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                va="center", fontsize=8, color="dimgrey",
            )  # fmt: skip
            axes.set_xlabel("share of neurons kept")
            axes.margins(x=0.08)
            axes.locator_params(axis="x", nbins=6)
            axes.grid(alpha=0.25)
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(f"{_spread_words(summary)}; numbers: weight of sparsity", fontsize=10)
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
        figure = _figure(11.0, 2.0 + 0.42 * len(summary))
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
        words = _spread_words(summary).replace("bands", "bars")
        words += f"; dashed: mean of {summary[0]['name']}"
        if any(entry["plain"] for entry in summary):
            words += "; orange: specificity 0"
        figure.suptitle(words, fontsize=10)
        return figure


def _spread_words(summary: Sequence[Mapping[str, Any]]) -> str:
    seeds = max(len(entry["seeds"]) for entry in summary)
    if seeds == 1:
        return "Marks: one seed"
    return f"Marks: mean of {seeds} seeds; bands: least to greatest; dots: single seeds"


def _band(
    axes: Axes, kept: list[float], chosen: Sequence[Mapping[str, Any]], name: str, color: str
) -> None:
    """Least to greatest of the seeds at the mean share kept, and the seeds themselves."""
    low = [min(_known(entry, name), default=math.nan) for entry in chosen]
    high = [max(_known(entry, name), default=math.nan) for entry in chosen]
    axes.fill_between(kept, low, high, color=color, alpha=0.18, lw=0)
    for entry in chosen:
        x, y = (entry["figures"][figure]["values"] for figure in ("kept", name))
        if len(x) > 1:
            seen = [(math.nan if v is None else v for v in values) for values in (x, y)]
            axes.plot(*map(list, seen), ".", color=color, ms=3.5, alpha=0.6)


def _weights(
    axes: Axes,
    chosen: Sequence[Mapping[str, Any]],
    name: str,
    color: str,
    offset: tuple[float, float],
) -> None:
    """The sparsity weight at every mark; marks at nearly one place share a list of them."""
    from matplotlib.patheffects import withStroke

    groups: list[tuple[float, float, list[float]]] = []
    for entry in sorted(chosen, key=lambda entry: float(entry["sparsity"])):
        x, y = _mean(entry, "kept"), _mean(entry, name)
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        for other_x, other_y, weights in groups:
            if abs(x - other_x) < _NEAR and abs(y - other_y) < _NEAR:
                weights.append(entry["sparsity"])
                break
        else:
            groups.append((x, y, [entry["sparsity"]]))
    for x, y, weights in groups:
        axes.annotate(
            ", ".join(f"{weight:g}" for weight in weights),
            (x, y),
            xytext=offset,
            textcoords="offset points",
            ha="left" if offset[0] else "center",
            va="center",
            fontsize=8,
            color=color,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


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

"""Figure of a comparison with planted truth: what every method finds, and how much it leaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pathways.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, _figure, _styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    (
        "the planted circuit (1 is best)",
        (("recall", "recall", BLUE), ("precision", "precision", GREEN)),
    ),
    (
        "the prediction (1 is best)",
        (
            ("agreement", "agreement", PURPLE),
            ("transfer", "class pathways of one image, new images", GREY),
        ),
    ),
    (
        "leaks (0 is best)",
        (("flip", "wrong class's pathway decides", VERMILION), ("blank_hit", "blank hit", ORANGE)),
    ),
)


def recovery_figure(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Bars per method: recall and precision; agreement and transfer; flips and blank hits.

    Args:
        scores (mapping): per method the figures of every seed, by name, in [0, 1]; bars are means,
            dots the seeds. NaN is left out.

    Returns:
        matplotlib Figure: save it with :func:`pathways.report.save_figure`.

    Raises:
        ValueError: no methods, or a method without figures.

    Example:
        >>> names = ("recall", "precision", "agreement", "transfer", "flip", "blank_hit")
        >>> figure = recovery_figure({"truth": [dict.fromkeys(names, 1.0)]})
        >>> [axes.get_title() for axes in figure.axes][0]
        'the planted circuit (1 is best)'
    """
    if not scores or not all(scores.values()):
        raise ValueError("recovery_figure: scores must hold figures of at least one method")
    with _styled():
        from matplotlib.patches import Patch

        figure = _figure(10.5, 0.42 * len(scores) + 1.9)
        panels = figure.subplots(1, len(_PANELS), sharey=True)
        names = list(scores)
        for axes, (title, bars) in zip(panels, _PANELS, strict=True):
            height = 0.8 / len(bars)
            for number, (key, _, color) in enumerate(bars):
                for row, name in enumerate(names):
                    seeds = [v for v in (s[key] for s in scores[name]) if not math.isnan(v)]
                    if not seeds:
                        continue
                    y = row + (number - (len(bars) - 1) / 2) * height
                    axes.barh(y, sum(seeds) / len(seeds), height * 0.92, color=color)
                    # Zero has no bar, and without a mark it looks like a missing figure.
                    axes.plot(seeds, [y] * len(seeds), "o", color="black", markersize=2.2)
            axes.set_xlim(-0.02, 1.04)
            axes.set_title(title)
            axes.grid(axis="x", alpha=0.25)
            axes.legend(
                handles=[Patch(color=color, label=label) for _, label, color in bars],
                loc="upper center",
                # In points below the axis, as tall as its labels, whatever the figure's height.
                bbox_to_anchor=(0.5, -22 / (72 * 0.42 * (len(names) + 1))),
                frameon=False,
                fontsize=9,
            )
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        return figure

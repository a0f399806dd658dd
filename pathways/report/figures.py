"""Figures, made without pyplot: they are returned, belong to the caller, and are never shown."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pathways.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pathways.evaluation.transfer import TransferPoint

# Okabe and Ito's palette: told apart with every common colour vision deficiency.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#999999",
)
_STYLE: Any = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
# More cells than this are drawn without numbers in them, more names than that without names.
_MAX_NUMBERS = 12
_MAX_NAMES = 40


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "figures need matplotlib; pip install 'pathways[report]'", name="matplotlib"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _styled() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 130) -> None:
    """Write a figure as PNG in one step.

    Raises:
        OSError: the file cannot be written; an old one is left as it was.
    """
    with _styled(), replace_file(path) as temporary:
        # Tight: constrained layout alone can leave labels outside the page.
        figure.savefig(temporary, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.12)


def explanation_figure(
    image: Tensor,
    described: Mapping[str, Any],
    heat: Tensor | None = None,
    gradient: Tensor | None = None,
    *,
    heat_class: str | None = None,
    title: str = "",
) -> Figure:
    """Picture of one explanation.

    Upper row: input, Grad-CAM under the pathway, pathway gradient. Below: the share kept at every
    site and the most important neurons.

    Args:
        image (Tensor[C, H, W]): the input as it looks, uint8 or float in [0, 1], 1 or 3 channels.
        described (mapping): the input's entry of :func:`pathways.report.describe`.
        heat (Tensor[h, w] or None): ``explainer.grad_cam``, in [0, 1].
        gradient (Tensor[h, w] or None): :func:`pathways.maps.collapse_gradient`, in [-1, 1].
        heat_class (str or None): class the maps are for, when it is not the predicted one.
        title (str): shown above, for example the file's name.

    Returns:
        matplotlib Figure: save it with :func:`save_figure`.
    """
    with _styled():
        sites = described["sites"]
        lower = max(2.2, 0.24 * min(len(sites), 60) + 0.9)
        figure = _figure(9.0, 3.3 + lower)
        parts: Any = figure.subfigures(2, 1, height_ratios=[3.3, lower])
        upper_part, lower_part = parts
        upper_part.suptitle(_headline(described, title), fontsize=11.5)
        panels = upper_part.subplots(1, 3)
        pixels = _pixels(image)
        _image_panel(panels[0], pixels, "input")
        about = "" if heat_class is None else f" for {heat_class}"
        _heat_panel(panels[1], pixels, heat, f"Grad-CAM of the pathway{about}")
        _gradient_panel(panels[2], gradient, f"pathway gradient{about}")
        bars = lower_part.subplots(1, 2, width_ratios=[1.0, 1.0])
        _kept_bars(bars[0], sites, described["kept"])
        _top_bars(bars[1], described["top"])
        return figure


def _headline(described: Mapping[str, Any], title: str) -> str:
    predicted, gated = described["predicted"], described["gated"]
    parts = [
        f"predicted {predicted['name']} ({100 * predicted['probability']:.1f} %)",
        f"pathway alone {gated['name']} ({100 * gated['probability']:.1f} %)",
        f"{described['neurons']['kept']} of {described['neurons']['total']} neurons "
        f"({100 * described['kept']:.0f} %)",
    ]
    text = "   |   ".join(parts)
    return f"{title}\n{text}" if title else text


def _pixels(image: Tensor) -> np.ndarray[Any, Any]:
    values = image.detach().cpu().float()
    values = values / 255 if image.dtype == torch.uint8 else values
    values = values.clamp(0, 1)
    # Other numbers of channels have no colours of their own.
    values = values if len(values) in (1, 3) else values.mean(0, keepdim=True)
    return values.permute(1, 2, 0).expand(-1, -1, 3).numpy()


def _image_panel(axes: Axes, pixels: np.ndarray[Any, Any], title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    _bare(axes, title)


def _bare(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(GREY)


def _heat_panel(axes: Axes, pixels: np.ndarray[Any, Any], heat: Tensor | None, title: str) -> None:
    if heat is None:
        _absent(axes, title, "no site with a map")
        return
    from matplotlib.cm import ScalarMappable

    grey = pixels.mean(2, keepdims=True)
    size = list(grey.shape[:2])
    map_ = F.interpolate(heat.detach().cpu().float()[None, None], size=size, mode="bilinear")
    drawn = ScalarMappable(cmap="viridis")
    drawn.set_clim(0, 1)
    # Colour is the heat, brightness the image: both can be read, and the colour bar stays true.
    colours = drawn.to_rgba(map_[0, 0].numpy())[:, :, :3]
    axes.imshow(colours * (0.45 + 0.55 * grey), interpolation="nearest")
    _bare(axes, title)
    axes.figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 0.5, 1])


def _gradient_panel(axes: Axes, gradient: Tensor | None, title: str) -> None:
    if gradient is None:
        _absent(axes, title, "no image input")
        return
    drawn = axes.imshow(
        gradient.detach().cpu().float().numpy(),
        cmap="PuOr",
        vmin=-1,
        vmax=1,
        interpolation="nearest",
    )
    _bare(axes, title)
    axes.figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03, ticks=[-1, 0, 1])


def _absent(axes: Axes, title: str, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=GREY)
    _bare(axes, title)


def _kept_bars(axes: Axes, sites: Sequence[Mapping[str, Any]], kept: float) -> None:
    if len(sites) > 60:  # names would be too small to read
        axes.step(range(len(sites)), [site["kept"] for site in sites], where="mid", color=BLUE)
        axes.set_xlabel("site, shallow to deep")
        axes.set_ylabel("share kept")
        axes.set_ylim(0, 1.02)
    else:
        rows = range(len(sites))
        axes.barh(rows, [site["kept"] for site in sites], color=BLUE, height=0.7)
        axes.set_yticks(rows, [_shortened(site["site"], 26) for site in sites])
        axes.invert_yaxis()
        for row, site in enumerate(sites):
            counts = f"{site['neurons']['kept']}/{site['neurons']['total']}"
            axes.text(1.03, row, counts, va="center", fontsize=8.5, clip_on=False)
        axes.set_xlim(0, 1)
        axes.axvline(kept, color=ORANGE, linestyle="--", linewidth=1.5, label=f"all {kept:.2f}")
        axes.set_xlabel("share of neurons kept")
    axes.set_title(f"kept at each site (all: {kept:.2f})", loc="left")


def _top_bars(axes: Axes, top: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("most important neurons", loc="left")
    if not top:
        _absent(axes, "most important neurons", "none")
        return
    names = []
    for entry in top:
        place = "".join(f",{coordinate}" for coordinate in entry.get("position", ()))
        names.append(f"{_shortened(entry['site'], 22)}  ch {entry['channel']}{place}")
    rows = range(len(top))
    values = [entry["importance"] for entry in top]
    axes.barh(rows, values, color=GREEN, height=0.7)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *values), max(1.0, *values))
    axes.set_xlabel("importance")


def _shortened(text: str, length: int) -> str:
    """The end of a long name: that is where module paths differ."""
    return text if len(text) <= length else "…" + text[1 - length :]


def heatmap_figure(
    matrices: Mapping[str, Any],
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    label: str = "IoU",
    title: str = "",
) -> Figure:
    """Heat maps side by side on one colour scale from 0 to 1.

    Args:
        matrices (mapping of str to array [N, M]): title and values; NaN cells stay white.
        rows (sequence of str): N names.
        columns (sequence of str or None): M names; None is ``rows``.
        label (str): of the colour bar.
        title (str): above all.
    """
    columns = rows if columns is None else columns
    with _styled():
        longest = max(map(len, [*rows, *columns, ""]))
        side = min(9.0, max(3.4, 0.42 * max(len(rows), len(columns)) + 0.07 * min(longest, 20)))
        figure = _figure(side * len(matrices) + 1.0, side + (0.9 if title else 0.5))
        if title:
            figure.suptitle(title)
        panels = np.atleast_1d(figure.subplots(1, len(matrices)))
        for position, (axes, (name, values)) in enumerate(
            zip(panels, matrices.items(), strict=True)
        ):
            matrix = np.asarray(values, dtype=float)
            drawn = axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
            axes.set_title(name)
            _names(axes, rows if position == 0 else None, columns)
            if max(matrix.shape, default=0) <= _MAX_NUMBERS:
                _numbers(axes, matrix)
        figure.colorbar(drawn, ax=list(panels), fraction=0.05, pad=0.02, label=label)
        return figure


def _names(axes: Axes, rows: Sequence[str] | None, columns: Sequence[str]) -> None:
    if len(columns) <= _MAX_NAMES:
        turned = max(map(len, columns), default=0) > 2
        axes.set_xticks(
            range(len(columns)),
            [_shortened(name, 20) for name in columns],
            rotation=90 if turned else 0,
        )
    if rows is None:
        axes.set_yticks([])
    elif len(rows) <= _MAX_NAMES:
        axes.set_yticks(range(len(rows)), [_shortened(name, 20) for name in rows])


def _numbers(axes: Axes, matrix: np.ndarray[Any, Any]) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            # viridis is dark below and light above.
            axes.text(
                column,
                row,
                f"{value:.2f}".lstrip("0") if value < 1 else "1",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value < 0.6 else "black",
            )


def overlap_figure(
    class_overlap: Tensor, class_pathway_iou: Tensor, classes: Sequence[str]
) -> Figure:
    """Overlap of an evaluation's pathways by class.

    Args:
        class_overlap (Tensor[K, K]): mean IoU of the pathways of single inputs, per pair of classes
            (``Evaluation.class_overlap``).
        class_pathway_iou (Tensor[K, K]): IoU of the class pathways.
        classes (sequence of str): K names.
    """
    matrices = {
        "single inputs (mean IoU)": class_overlap.cpu().numpy(),
        "class pathways (IoU)": class_pathway_iou.cpu().numpy(),
    }
    return heatmap_figure(matrices, classes, title="Overlap of pathways within and across classes")


# Column in log/metrics.csv, title, whether it is a share, which way is better.
_CURVES = (
    ("kl", "KL of gated from clean output (nats)", False, "lower"),
    ("kept", "share of neurons kept", True, "lower"),
    ("agreement", "agreement with the clean prediction", True, "higher"),
    ("flip", "foreign pathway decides the class", True, "lower"),
)


def training_figure(log: str | os.PathLike[str]) -> Figure:
    """Training curves from a run's ``log/metrics.csv``: kl, kept, agreement and flip over steps.

    Args:
        log (path): the file; what resumed trainings set aside (``metrics.1.csv``, ...) is read too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds none of the curves.
    """
    log = Path(log)
    parts = sorted(
        log.parent.glob(f"{log.stem}.*.csv"), key=lambda file: (len(file.name), file.name)
    )
    parts += [log] if log.is_file() else []
    if not parts:
        raise FileNotFoundError(f"there is no training log {log}")
    entries = []
    for part in parts:
        with open(part, newline="") as file:
            entries += list(csv.DictReader(file))
    curves = {
        name: sorted(_points(entries, name))
        for curve, *_ in _CURVES
        for name in (curve, f"val_{curve}")
    }
    if not any(curves.values()):
        raise ValueError(f"{log} holds no training curves ({', '.join(c[0] for c in _CURVES)})")
    with _styled():
        figure = _figure(9.0, 5.6)
        panels = figure.subplots(2, 2, sharex=True)
        for axes, (name, title, share, better) in zip(panels.flat, _CURVES, strict=True):
            for points, color, label in (
                (curves[name], BLUE, "training"),
                (curves[f"val_{name}"], VERMILION, "validation"),
            ):
                if points:
                    steps, values = zip(*points, strict=True)
                    marker = "o" if label == "validation" else None
                    axes.plot(
                        steps, values, color=color, label=label, marker=marker, ms=3.5, lw=1.3
                    )
            axes.set_title(f"{title}, {better} is better", loc="left", fontsize=10)
            axes.set_ylim(bottom=0)
            if share:
                axes.set_ylim(0, 1.03)
            axes.grid(alpha=0.25)
        for axes in panels[1]:
            axes.set_xlabel("step")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
        return figure


def _points(entries: Sequence[Mapping[str, str]], name: str) -> list[tuple[int, float]]:
    # Lightning writes one line per kind of entry, empty where the kind has no value.
    # After a crash steps are run again: the later file is right.
    return list({int(row["step"]): float(row[name]) for row in entries if row.get(name)}.items())


def transfer_figure(curve: Sequence[TransferPoint]) -> Figure:
    """Transfer curve: agreement of class pathways made from j images per class, with the controls.

    Args:
        curve (sequence of TransferPoint): ``Evaluation.transfer``.

    Raises:
        ValueError: no points.
    """
    if not curve:
        raise ValueError("transfer_figure: curve must hold at least one point, got none")
    with _styled():
        figure = _figure(6.4, 4.2)
        axes = figure.subplots()
        x = [max(point.images_per_class, 1.0) for point in curve]
        for name, label, color, marker in (
            ("instance", "the image's own pathway", ORANGE, "d"),
            ("own", "own class", BLUE, "o"),
            ("agnostic", "one pathway for all classes", GREEN, "s"),
            ("wrong_class", "another class", VERMILION, "^"),
            ("random", "random, same size", GREY, "x"),
        ):
            values = [getattr(point, name).agreement for point in curve]
            axes.plot(x, values, color=color, marker=marker, label=label)
        kept = [point.own.kept for point in curve]
        axes.plot(x, kept, color=BLUE, linestyle=":", label="kept by own class pathway")
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:.0f}" for value in x])
        axes.minorticks_off()
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("images per class that the pathway is made from")
        axes.set_ylabel("agreement on other images")
        axes.grid(alpha=0.25)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        return figure

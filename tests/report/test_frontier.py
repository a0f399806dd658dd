"""Sweeps as summary and picture, from points worked out by hand."""

import json
import math
import statistics
import warnings

import matplotlib
import pytest

from pathways.report import (
    frontier_figure,
    save_figure,
    save_sweep,
    sweep_summary,
    variants_figure,
)


def point(variant, seed, kept, agreement, flip, *, sparsity=1.0, specificity=2.0, blank=0.1):
    return {
        "variant": variant, "seed": seed, "fingerprint": "f",
        "baseline": "zero", "granularity": "channel",
        "settings": {"sparsity": sparsity, "specificity": specificity},
        "figures": {
            "kept": kept, "agreement": agreement, "wrong_class_flip": flip, "blank_hit": blank,
            "seconds": 1.5,
        },
    }  # fmt: skip


def swept():
    """Two weights of each objective, two seeds."""
    return [
        point("s1", 0, 0.8, 0.99, 0.02), point("s1", 1, 0.6, 0.97, 0.04),
        point("s2", 0, 0.5, 0.90, 0.06, sparsity=2.0), point("s2", 1, 0.4, 0.96, 0.1, sparsity=2.0),
        point("p1", 0, 0.1, 0.99, 1.0, specificity=0.0),
        point("p1", 1, 0.1, 1.0, 0.9, specificity=0.0),
        point("p2", 0, 0.1, 0.99, 1.0, sparsity=2.0, specificity=0.0),
        point("p2", 1, 0.1, 1.0, 0.9, sparsity=2.0, specificity=0.0),
    ]  # fmt: skip


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def lines(axes):
    """Points of every line that the legend names."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def saved(figure, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of missing glyphs and failed layouts
        save_figure(figure, path)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_summary_by_hand():
    first, second, *plain = sweep_summary(swept())
    assert (first["name"], second["sparsity"], second["seeds"]) == ("s1", 2.0, [0, 1])
    assert [entry["plain"] for entry in (first, *plain)] == [False, True, True]
    kept = second["figures"]["kept"]
    assert kept["mean"] == pytest.approx(0.45) and kept["values"] == [0.5, 0.4]
    assert (kept["min"], kept["max"]) == (0.4, 0.5)
    assert kept["std"] == pytest.approx(0.1 / math.sqrt(2))
    # Seed by seed: 0.5 - 0.8 and 0.4 - 0.6.
    assert kept["difference"] == pytest.approx(-0.25)
    assert kept["difference_std"] == pytest.approx(statistics.stdev([-0.3, -0.2]))
    assert first["figures"]["kept"]["difference"] == 0
    assert list(first["figures"]) == list(swept()[0]["figures"])


def test_differences_are_between_equal_seeds():
    points = [point("a", 1, 0.9, 1, 0), point("a", 0, 0.1, 1, 0)]
    points += [point("b", 0, 0.2, 1, 0), point("b", 1, 1.0, 1, 0)]
    kept = sweep_summary(points)[1]["figures"]["kept"]
    assert kept["difference"] == pytest.approx(0.1) and kept["difference_std"] < 1e-12


def test_missing_figures_are_left_out():
    points = [point("a", 0, 0.5, 0.9, None), point("a", 1, 0.5, 0.9, 0.2)]
    points += [point("b", 0, 0.5, 0.9, 0.3), point("b", 1, 0.5, 0.9, None)]
    flips = [entry["figures"]["wrong_class_flip"] for entry in sweep_summary(points)]
    assert [flip["mean"] for flip in flips] == [0.2, 0.3]
    assert flips[0]["std"] is None and flips[1]["difference"] is None
    assert flips[0]["values"] == [None, 0.2]
    (alone,) = sweep_summary([point("a", 0, 0.5, 0.9, None)])
    assert alone["figures"]["wrong_class_flip"]["mean"] is None
    assert alone["figures"]["kept"]["std"] is None
    assert sweep_summary([]) == []
    points[2]["figures"]["told"] = points[3]["figures"]["told"] = 0.25  # of the second variant only
    first, second = sweep_summary(points)
    assert "told" not in first["figures"]
    assert second["figures"]["told"]["mean"] == 0.25
    assert second["figures"]["told"]["difference"] is None


def test_frontier_shows_means_bands_and_limits(tmp_path):
    figure = frontier_figure(sweep_summary(swept()), 10)
    left, right = figure.axes
    names = ["with the leak term", "plain objective (specificity 0)"]
    assert list(lines(left)) == names
    x, y = lines(left)[names[0]]
    assert x == pytest.approx([0.45, 0.7]) and y == pytest.approx([0.93, 0.98])
    assert lines(right)[names[0]][1] == pytest.approx([0.08, 0.03])
    assert lines(right)[names[1]][1] == pytest.approx([0.95, 0.95])
    assert lines(right)[f"blank hit (chance 0.1), {names[0]}"][1] == [0.1, 0.1]
    band = left.collections[0].get_paths()[0].vertices
    for corner in ((0.45, 0.90), (0.45, 0.96), (0.7, 0.97), (0.7, 0.99)):
        assert min(math.dist(corner, vertex) for vertex in band.tolist()) < 1e-9
    colors = {line.get_color() for line in left.get_lines() if line.get_label() in names}
    assert len(colors) == 2
    found = texts(figure)
    # The plain marks are at one place, with one label.
    assert {"1", "2", "1, 2", "at least 0.95", "at most 0.05", "share of neurons kept"} <= set(
        found
    )
    assert any("mean of 2 seeds; bands: least to greatest" in text for text in found)
    saved(figure, tmp_path / "f.png")


def test_frontier_of_one_seed_without_the_plain_objective(tmp_path):
    points = [point("a", 0, 0.5, 0.3, None), point("b", 0, 0.4, 0.97, 0.1, sparsity=4.0)]
    figure = frontier_figure(sweep_summary(points), 3)
    assert list(lines(figure.axes[0])) == ["with the leak term"]
    assert any(text.startswith("Marks: one seed") for text in texts(figure))
    assert figure.axes[0].get_ylim()[0] <= 0.3
    saved(figure, tmp_path / "f.png")


def test_variants_are_dots_with_their_spread(tmp_path):
    figure = variants_figure(sweep_summary(swept()))
    assert [axes.get_title().partition("\n")[0] for axes in figure.axes] == [
        "share of neurons kept", "agreement", "wrong-class flip", "blank hit",
    ]  # fmt: skip
    assert {"s1", "s2", "p1", "p2", "wrong-class flip\n(lower is better)"} <= set(texts(figure))
    kept = figure.axes[0].get_lines()
    bar, dots, mark = kept[:3]
    assert list(bar.get_xdata()) == [0.6, 0.8] and list(dots.get_xdata()) == [0.8, 0.6]
    assert mark.get_xdata() == pytest.approx([0.7]) and list(mark.get_ydata()) == [0]
    assert kept[-1].get_xdata() == pytest.approx([0.7, 0.7])  # the first variant's mean, all down
    assert any("dashed: mean of s1; orange: specificity 0" in text for text in texts(figure))
    without = variants_figure(sweep_summary(swept()[:4]))
    assert not any("orange" in text for text in texts(without))
    saved(figure, tmp_path / "v.png")


def test_nothing_to_draw():
    for draw in (lambda: frontier_figure([], 3), lambda: variants_figure([])):
        with pytest.raises(ValueError, match="at least one variant, got none"):
            draw()


@pytest.mark.parametrize("ablation", [False, True])
def test_a_sweep_is_saved(tmp_path, ablation):
    value = save_sweep(swept(), 10, tmp_path, ablation=ablation, about={"run": "r"})
    assert json.loads((tmp_path / "frontier.json").read_text()) == value
    assert list(value) == ["run", "variants", "points"] and value["points"] == swept()
    assert (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"

"""The figure of a comparison with planted truth."""

import math

import matplotlib
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from pathways.report import recovery_figure, save_figure

NAMES = ("recall", "precision", "agreement", "transfer", "flip", "blank_hit")


def figures(**values):
    return dict.fromkeys(NAMES, 0.5) | values


def bars(axes):
    return [patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)]


def test_bars_are_means_and_dots_are_seeds():
    figure = recovery_figure(
        {
            "truth": [figures(recall=1.0), figures(recall=1.0)],
            "mct": [figures(recall=0.2), figures(recall=0.6)],
            "poor": [figures(recall=math.nan), figures(recall=0.25)],
        }
    )
    circuit, prediction, leaks = figure.axes
    assert bars(circuit)[:3] == pytest.approx([1.0, 0.4, 0.25])
    assert len(bars(circuit)) == len(bars(prediction)) == len(bars(leaks)) == 6
    assert [list(line.get_xdata()) for line in circuit.lines][1:3] == [[0.2, 0.6], [0.25]]
    shown = {text.get_text() for text in figure.findobj(matplotlib.text.Text)}
    assert {"truth", "mct", "poor", "recall", "blank hit", "leaks (0 is best)"} <= shown
    handles = circuit.get_legend().get_patches()
    assert handles[0].get_facecolor() == circuit.patches[0].get_facecolor()
    assert handles[1].get_facecolor() == circuit.patches[3].get_facecolor()


def test_a_figure_without_values_has_no_bar():
    figure = recovery_figure({"truth": [figures(transfer=math.nan)]})
    assert len(bars(figure.axes[1])) == 1


@pytest.mark.parametrize("methods", [1, 3, 13])
def test_nothing_is_cut_off(methods, tmp_path):
    scores = {f"generator_plain_{i}": [figures()] for i in range(methods)}
    save_figure(recovery_figure(scores), tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as image:
        pixels = torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8)
        pixels = pixels.view(image.height, image.width)
    assert (torch.cat([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) == 255).all()


@pytest.mark.parametrize("scores", [{}, {"mct": []}])
def test_no_figures(scores):
    with pytest.raises(ValueError, match="must hold figures of at least one method"):
        recovery_figure(scores)

"""Figures: returned, complete, nothing clipped; and the images they come from."""

import warnings

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pathways.evaluation.transfer import Scores, TransferPoint
from pathways.preprocessing import Preprocessing
from pathways.report import (
    collapse_gradient,
    explain_images,
    explanation_figure,
    fit_to_run,
    heatmap_figure,
    overlap_figure,
    save_figure,
    training_figure,
    transfer_figure,
)


def described(sites=4, top=6, name="layer1.0.relu"):
    return {
        "predicted": {"name": "ankle boot", "probability": 0.998},
        "gated": {"name": "ankle boot", "probability": 0.91},
        "kept": 0.5,
        "neurons": {"kept": 96, "total": 192},
        "sites": [
            {"site": f"{name}{i}#0", "kept": i / sites, "neurons": {"kept": i, "total": sites}}
            for i in range(sites)
        ],
        "top": [
            {"site": f"{name}{i}#0", "channel": 10 * i, "importance": 0.9 - 0.1 * i}
            for i in range(top)
        ],
    }


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def saved(figure, path):
    """Size in pixels of the written file, whose border must be blank: nothing was cut off."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of missing glyphs and failed layouts
        save_figure(figure, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8)
        pixels = pixels.view(image.height, image.width)
    border = torch.cat([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert bool((border == 255).all())
    return tuple(pixels.shape)


def test_collapse_takes_the_largest_magnitude_with_its_sign():
    gradient = torch.tensor([[[[1.0, 0.0]], [[-4.0, 0.0]], [[2.0, -1.0]]]])
    assert collapse_gradient(gradient).tolist() == [[[-1.0, -0.25]]]
    assert collapse_gradient(torch.zeros(2, 3, 4, 4)).abs().max() == 0
    with pytest.raises(ValueError, match=r"must be \[N, C, H, W\], got \(3, 4\)"):
        collapse_gradient(torch.zeros(3, 4))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_explanation_figure_shows_every_part(tmp_path, channels):
    heat, gradient = torch.rand(8, 8), torch.rand(8, 8) * 2 - 1
    figure = explanation_figure(
        torch.rand(channels, 16, 16), described(), heat, gradient, title="photo.png"
    )
    assert isinstance(figure, Figure)
    found = " ".join(texts(figure))
    for part in (
        "photo.png", "predicted ankle boot (99.8 %)", "pathway alone ankle boot (91.0 %)",
        "96 of 192 neurons (50 %)", "input", "Grad-CAM of the pathway", "pathway gradient",
        "kept at each site", "most important neurons", "layer1.0.relu3#0  ch 30", "3/4",
    ):  # fmt: skip
        assert part in found
    height, width = saved(figure, tmp_path / "e.png")
    assert height > 500
    assert width > 800


def test_explanation_figure_without_maps_and_with_many_sites(tmp_path):
    few = explanation_figure(torch.rand(1, 8, 8), described(1, 0), heat_class="trouser")
    assert {"no site with a map", "no image input", "none"} <= set(texts(few))
    assert "Grad-CAM of the pathway for trouser" in texts(few)
    saved(few, tmp_path / "few.png")
    many = explanation_figure(
        (torch.rand(3, 8, 8) * 255).to(torch.uint8),
        described(90, 3, "features.denseblock3.denselayer12.relu"),
        torch.rand(4, 4),
        torch.rand(8, 8),
    )
    assert "site, shallow to deep" in texts(many)
    saved(many, tmp_path / "many.png")
    names = explanation_figure(
        torch.rand(3, 8, 8), described(33, 8, "features.denseblock3.denselayer12.relu")
    )
    assert any(text.startswith("…") for text in texts(names))
    saved(names, tmp_path / "names.png")


def test_units_show_their_position():
    entry = described(1, 1)
    entry["top"][0]["position"] = [3, 5]
    figure = explanation_figure(torch.rand(1, 8, 8), entry)
    assert any(text.endswith("ch 0,3,5") for text in texts(figure))


def test_heat_maps_name_and_number_small_matrices(tmp_path):
    matrix = [[1.0, 0.25], [float("nan"), 0.5]]
    figure = heatmap_figure({"one": matrix, "two": matrix}, ["first class", "second"], ["x", "y"])
    found = texts(figure)
    assert {"first class", "second", "x", "y", ".25", "1", ".50", "one", "two"} <= set(found)
    assert "nan" not in " ".join(found)
    saved(figure, tmp_path / "small.png")
    large = heatmap_figure({"one": torch.rand(60, 60)}, [f"class {i}" for i in range(60)])
    assert "class 3" not in texts(large)
    saved(large, tmp_path / "large.png")


def test_overlap_figure(tmp_path):
    classes = ["T-shirt/top", "Trouser", "Ankle boot"]
    figure = overlap_figure(torch.rand(3, 3), torch.eye(3), classes)
    assert {"single inputs (mean IoU)", "class pathways (IoU)", *classes} <= set(texts(figure))
    saved(figure, tmp_path / "o.png")


def test_training_figure_reads_every_part_of_the_log(tmp_path):
    log = tmp_path / "metrics.csv"
    head = "agreement,flip,kept,kl,step,val_agreement,val_kl\n"
    (tmp_path / "metrics.1.csv").write_text(
        head + "0.5,0.1,0.9,1.0,9,,\n,,,,9,0.4,1.1\n0.1,0.1,0.8,2.0,19,,\n"
    )
    log.write_text(head + "0.9,0.0,0.7,0.5,19,,\n0.95,0.0,0.6,0.4,29,,\n")
    figure = training_figure(log)
    kl = figure.axes[0].get_lines()[0]
    # Step 19 was run again after the interruption: the later value counts.
    assert kl.get_xdata().tolist() == [9, 19, 29]
    assert kl.get_ydata().tolist() == [1.0, 0.5, 0.4]
    assert figure.axes[0].get_lines()[1].get_ydata().tolist() == [1.1]
    found = " ".join(texts(figure))
    for part in (
        "KL of gated from clean",
        "share of neurons kept",
        "agreement",
        "higher is better",
    ):
        assert part in found
    assert {"training", "validation", "step"} <= set(texts(figure))
    saved(figure, tmp_path / "t.png")


def test_training_figure_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no training log"):
        training_figure(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="holds no training curves"):
        training_figure(tmp_path / "other.csv")


def test_transfer_figure(tmp_path):
    def point(shots, value):
        scores = Scores(value, 0.1, 0.1, 0.5)
        return TransferPoint(shots, float(shots), 1.0, scores, scores, scores, scores, scores)

    figure = transfer_figure([point(1, 0.7), point(5, 0.9), point(30, 0.95)])
    expected = {"own class", "another class", "random, same size", "the image's own pathway", "30"}
    assert expected <= set(texts(figure))
    saved(figure, tmp_path / "t.png")
    with pytest.raises(ValueError, match="at least one point"):
        transfer_figure([])


def test_a_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    path.write_bytes(b"old")

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    figure = heatmap_figure({"one": [[1.0]]}, ["x"])
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.png"]


def test_pictures_of_equal_stems_have_different_names():
    from pathways.report.images import _unique

    assert _unique(["a", "a", "b", "a-2", "a", "a-2"]) == ["a", "a-2", "b", "a-2-2", "a-3", "a-2-3"]


def test_explain_images_checks_its_arguments(tmp_path):
    with pytest.raises(ValueError, match="names must be 1, got 0"):
        explain_images(None, None, [torch.zeros(1, 4, 4)], [], ("a",), tmp_path / "x")
    with pytest.raises(ValueError, match=r"class must be in \[0, 1\), got 1"):
        explain_images(None, None, [], [], ("a",), tmp_path / "x", about=1)
    assert not (tmp_path / "x").exists()


def test_images_are_fitted_to_the_run():
    plain = Preprocessing((0.5,), (0.5,))
    photo = (torch.rand(1, 20, 30) * 255).to(torch.uint8)
    assert fit_to_run(photo, (1, 16, 16), plain).shape == (1, 16, 16)
    assert fit_to_run(photo, (1, 10, 16), plain).shape == (1, 10, 16)
    assert fit_to_run(photo, (1, 10, 16), plain).dtype == torch.uint8
    assert fit_to_run(photo, (1, 20, 30), plain) is photo
    resizing = Preprocessing((0.5,), (0.5,), size=(10, 16))
    assert fit_to_run(photo, (1, 10, 16), resizing) is photo

"""Preprocessing: values by hand, resizing, channel order, JSON, scripting, refusals."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from pathways import Preprocessing


def test_values_by_hand():
    p = Preprocessing(mean=[0.5, 0.25, 0.0], std=[0.5, 0.25, 2.0])
    images = torch.tensor([1.0, 0.5, 0.5]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    out = p(images)
    assert out.shape == (2, 3, 4, 5)
    assert out[1, :, 2, 3].tolist() == [1.0, 1.0, 0.25]
    assert p.channels == 3


def test_scale_and_channel_order():
    p = Preprocessing((100.0, 0.0, 0.0), (1.0, 2.0, 1.0), scale=255.0, channel_order="bgr")
    images = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1)
    expected = [0.6 * 255 - 100, 0.4 * 255 / 2, 0.2 * 255]
    assert p(images).flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_defaults_change_nothing():
    images = torch.rand(2, 1, 3, 4)
    assert torch.equal(Preprocessing()(images), images)


def test_resizing():
    images = torch.rand(2, 3, 10, 8)
    p = Preprocessing((0.0,) * 3, (1.0,) * 3, size=(5, 12))
    expected = F.interpolate(images, (5, 12), mode="bilinear", align_corners=False, antialias=True)
    assert torch.equal(p(images), expected)
    same = torch.rand(2, 3, 5, 12)
    assert torch.equal(p(same), same)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types(dtype):
    out = Preprocessing((0.5,), (0.5,))(torch.ones(1, 1, 2, 2, dtype=dtype))
    assert out.unique().tolist() == [1.0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "size": (7, 9)},
        {"mean": (1.0,) * 3, "std": (2.0,) * 3, "scale": 255, "channel_order": "bgr"},
    ],
)
def test_json_round_trip(settings):
    p = Preprocessing(**settings)
    again = Preprocessing(**json.loads(json.dumps(p.to_json())))
    images = torch.rand(2, p.channels, 8, 8)
    assert torch.equal(again(images), p(images))
    assert again.to_json() == p.to_json()


def test_scripted():
    for size in (None, (6, 5)):
        p = Preprocessing((0.5,) * 3, (0.25,) * 3, size=size, channel_order="bgr")
        scripted = torch.jit.script(p)
        images = torch.rand(2, 3, 9, 9)
        assert torch.equal(scripted(images), p(images))
        with pytest.raises(torch.jit.Error, match="images must be"):
            scripted(torch.rand(2, 1, 9, 9))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_blanks_are_black_the_mean_and_white(order, scale):
    mean = [value * scale for value in (0.5, 0.25, 0.125)]
    p = Preprocessing(mean, [scale] * 3, scale=scale, channel_order=order)
    blanks = p.blanks(4, 6)
    assert blanks.shape == (3, 3, 4, 6)
    black, gray, white = blanks.flatten(2).unbind(0)
    assert black[:, 0].tolist() == pytest.approx([-0.5, -0.25, -0.125])
    assert gray.abs().max().item() == pytest.approx(0, abs=1e-6)
    assert white[:, 0].tolist() == pytest.approx([0.5, 0.75, 0.875])
    assert torch.equal(blanks, blanks[:, :, :1, :1].expand_as(blanks))


def test_blanks_are_resized_too():
    assert Preprocessing(size=(5, 7)).blanks(20, 20).shape == (3, 1, 5, 7)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mean": (0.5, 0.5), "std": (1.0,)}, "one value per channel, got 2 and 1"),
        ({"mean": (), "std": ()}, "one value per channel, got 0 and 0"),
        ({"std": (0.0,)}, "std and scale must be positive"),
        ({"std": (-1.0,)}, "std and scale must be positive"),
        ({"std": (math.nan,)}, "std and scale must be positive and all numbers finite"),
        ({"mean": (math.inf,)}, r"all numbers finite, got mean=\[inf\]"),
        ({"scale": 0.0}, "std and scale must be positive"),
        ({"channel_order": "gbr"}, "channel_order must be rgb or bgr, got 'gbr'"),
        ({"size": (4,)}, r"size must be \(height, width\), got \(4,\)"),
        ({"size": (4, 0)}, r"size must be \(height, width\), got \(4, 0\)"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=f"Preprocessing: .*{message}"):
        Preprocessing(**settings)


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.rand(2, 1, 4, 4), r"images must be \[N, 3, H, W\], got .*2, 1, 4, 4"),
        (torch.rand(3, 4, 4), r"images must be \[N, 3, H, W\], got .*3, 4, 4"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"must be floating point in \[0, 1\]"),
    ],
)
def test_images_that_do_not_fit(images, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing((0.0,) * 3, (1.0,) * 3)(images)

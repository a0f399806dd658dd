"""Insertion and deletion: curves by hand, the laws of areas, refusals."""

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from pathways.evaluation.insertion_deletion import PixelCurve, deletion, insertion
from pathways.evaluation.pixels import gaussian_blur, pixel_ranks
from pathways.target import GatedTarget

SHAPE = (2, 5, 3)


def evidence_target(weight, granularity="channel"):
    """Class 0 has the weighted sum of all values as logit (where positive), class 1 has 0."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.numel(), 2, bias=False), nn.ReLU())
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([weight.flatten(), torch.zeros(weight.numel())]))
    return GatedTarget(net, torch.zeros(1, *weight.shape), granularity=granularity)


@pytest.fixture
def weight():
    # Both channels of a pixel weigh the same, no two pixels do.
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0)).view(1, 5, 3)
    return (order + 1.0).expand(SHAPE) / 100


@pytest.fixture
def target(weight):
    return evidence_target(weight)


@pytest.fixture
def images():
    return 1 + torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(1))


def contributions(weight, images):
    return (weight * images).sum(1)


@pytest.mark.parametrize("granularity", ["channel", "unit"])
@pytest.mark.parametrize("steps", [1, 4, 15, 99])
def test_deletion_of_a_linear_target(weight, images, granularity, steps):
    maps = contributions(weight, images)
    curve = deletion(evidence_target(weight, granularity), images, maps, steps=steps)
    points = min(steps, 15)
    left = maps.flatten(1).sort(descending=True).values.double()
    for step in range(points + 1):
        gone = step * 15 // points
        assert curve.shares[step].item() == pytest.approx(gone / 15)
        expected = left[:, gone:].sum(1).sigmoid()
        torch.testing.assert_close(curve.probabilities[:, step], expected, rtol=1e-5, atol=0)
    p = curve.probabilities
    trapezoid = torch.trapezoid(p, dx=1 / points, dim=1)
    torch.testing.assert_close(curve.auc, trapezoid)
    torch.testing.assert_close(curve.mean, p.mean(0))


def test_deletion_onto_a_substrate(target, weight, images):
    maps = contributions(weight, images)
    colour = torch.tensor([0.5, 2.0]).view(2, 1, 1)
    curve = deletion(target, images, maps, steps=15, substrate=colour)
    other = images.clone()
    order = maps.flatten(1).argsort(1, descending=True)
    for step in range(16):
        for row in range(7):
            for pixel in order[row, :step].tolist():
                other[row, :, pixel // 3, pixel % 3] = colour[:, 0, 0]
        expected = target(other).double().softmax(1)[:, 0]
        torch.testing.assert_close(curve.probabilities[:, step], expected)
    same = deletion(target, images, maps, steps=15, substrate=colour.expand(SHAPE))
    assert torch.equal(same.probabilities, curve.probabilities)
    assert torch.equal(
        deletion(target, images, maps, steps=3, substrate=0.0).probabilities,
        deletion(target, images, maps, steps=3).probabilities,
    )


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_insertion_step_by_step(target, weight, images, steps):
    maps = contributions(weight, images)
    curve = insertion(target, images, maps, steps=steps)
    # The window of 11 pixels is five to each side, truncated there.
    blurred = torch.from_numpy(
        gaussian_filter(images.numpy(), 5.0, mode="nearest", radius=5, axes=(2, 3))
    )
    order = maps.flatten(1).argsort(1, descending=True)
    for step in range(steps + 1):
        mixed = blurred.clone()
        for row in range(7):
            for pixel in order[row, : step * 15 // steps].tolist():
                mixed[row, :, pixel // 3, pixel % 3] = images[row, :, pixel // 3, pixel % 3]
        expected = target(mixed).double().softmax(1)[:, 0]
        torch.testing.assert_close(curve.probabilities[:, step], expected, rtol=1e-5, atol=0)


def test_constant_target(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(30, 4), nn.ReLU())
    nn.init.zeros_(net[1].weight)
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([0.0, 2.0, 1.0, 0.0]))
    target = GatedTarget(net, images)
    maps = torch.rand(7, 5, 3)
    expected = torch.tensor([0.0, 2, 1, 0]).double().softmax(0)[1].expand(7)
    for measure in (deletion, insertion):
        torch.testing.assert_close(measure(target, images, maps, steps=6).auc, expected)


def test_true_maps_beat_random_and_inverted_ones(target, weight, images):
    true = contributions(weight, images)
    drawn = torch.rand(true.shape, generator=torch.Generator().manual_seed(2))
    falling = [deletion(target, images, maps, steps=15).auc for maps in (true, drawn, -true)]
    assert bool((falling[0] < falling[1]).all())
    assert bool((falling[1] < falling[2]).all())
    # With an image of few bright pixels, the blur has less evidence than they have.
    bright = torch.zeros(7, *SHAPE)
    bright[:, :, 1, 1] = 50.0
    true = contributions(weight, bright)
    rising = [insertion(target, bright, maps, steps=15).auc for maps in (true, drawn, -true)]
    assert bool((rising[0] > rising[1]).all())
    assert bool((rising[1] > rising[2]).all())


def test_equal_pixels_go_in_the_order_of_reading(target, images):
    reading = -torch.arange(15.0).view(1, 5, 3).expand(7, 5, 3)
    for measure in (deletion, insertion):
        constant = measure(target, images, torch.ones(7, 5, 3), steps=5)
        assert torch.equal(
            constant.probabilities, measure(target, images, reading, steps=5).probabilities
        )
    ranks = pixel_ranks(torch.tensor([[[0.0, 1.0, 0.0], [2.0, 1.0, 0.0]]]))
    assert ranks.tolist() == [[[3, 1, 4], [0, 2, 5]]]


def test_batches_and_known_logits_change_nothing(target, images):
    maps = torch.rand(7, 5, 3, generator=torch.Generator().manual_seed(3))
    for measure in (deletion, insertion):
        expected = measure(target, images, maps, steps=4)
        for batch_size in (1, 3, 200):
            found = measure(target, images, maps, steps=4, batch_size=batch_size)
            torch.testing.assert_close(found.probabilities, expected.probabilities)
        found = measure(target, images, maps, target(images), steps=4)
        assert torch.equal(found.probabilities, expected.probabilities)
        alone = measure(target, images[2:3], maps[2:3], steps=4)
        torch.testing.assert_close(alone.auc, expected.auc[2:3])


def test_runs_are_as_many_as_promised(target, images, monkeypatch):
    rows = []
    run = GatedTarget.__call__

    def counted(self, batch):
        rows.append(len(batch))
        return run(self, batch)

    monkeypatch.setattr(GatedTarget, "__call__", counted)
    maps, logits = torch.rand(7, 5, 3), run(target, images)
    for measure in (deletion, insertion):
        for given, cost in ((logits, 4), (None, 5)):
            rows.clear()
            measure(target, images, maps, given, steps=4, batch_size=6)
            assert sum(rows) == 7 * cost
            assert max(rows) == 6


def test_no_images(target, images):
    for measure in (deletion, insertion):
        curve = measure(target, images[:0], torch.zeros(0, 5, 3), steps=4)
        assert isinstance(curve, PixelCurve)
        assert curve.auc.shape == (0,)
        assert curve.mean.isnan().all()
        assert curve.mean.shape == (5,)


def test_blur():
    x = torch.rand(2, 3, 9, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for size, sigma in ((11, 5.0), (3, 0.7), (1, 2.0)):
        expected = gaussian_filter(x.numpy(), sigma, mode="nearest", radius=size // 2, axes=(2, 3))
        torch.testing.assert_close(gaussian_blur(x, size, sigma), torch.from_numpy(expected))
    with pytest.raises(ValueError, match="size must be odd and at least 1, got 4"):
        gaussian_blur(x, 4)
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        gaussian_blur(x, 3, 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": torch.ones(7, 30)}, r"images must be \[N, C, H, W\], got \(7, 30\)"),
        ({"maps": torch.ones(7, 3, 5)}, r"maps must be \[7, 5, 3\], got \(7, 3, 5\)"),
        ({"maps": torch.ones(7, 2, 5, 3)}, r"maps must be \[7, 5, 3\], got \(7, 2, 5, 3\)"),
        (
            {"maps": torch.full((7, 5, 3), float("nan"))},
            "maps must hold finite floating-point.*, got NaN or inf",
        ),
        (
            {"maps": torch.ones(7, 5, 3).long()},
            r"maps must hold finite floating-point.*, got torch\.int64",
        ),
        ({"logits": torch.ones(7, 3)}, r"logits must be \[7, 2\], got \(7, 3\)"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_refusals(target, images, change, message):
    arguments = {"images": images, "maps": torch.ones(7, 5, 3)} | change
    for measure in (deletion, insertion):
        with pytest.raises(ValueError, match=f"{measure.__name__}: {message}"):
            measure(target, **arguments)
    with pytest.raises(ValueError, match=r"broadcast to \(2, 5, 3\), got \(4, 1, 1\)"):
        deletion(target, images, torch.ones(7, 5, 3), substrate=torch.ones(4, 1, 1))


def test_many_equal_pixels_go_in_the_order_of_reading():
    """However many there are: few values are sorted in order by any algorithm."""
    reading = torch.arange(30 * 21).view(30, 21)
    constant = pixel_ranks(torch.zeros(2, 30, 21))
    assert torch.equal(constant, reading.expand(2, -1, -1))
    halves = torch.cat([torch.zeros(1, 15, 21), torch.ones(1, 15, 21)], dim=1)
    assert torch.equal(pixel_ranks(halves), (reading - 15 * 21).remainder(30 * 21).unsqueeze(0))

"""ROAD: imputation against a direct solution, laws of the scores, refusals."""

import pytest
import torch
from torch import nn

from pathways.evaluation.road import Road, impute, road
from pathways.target import GatedTarget


def direct(image, missing):
    """The linear system written out pixel by pixel, solved densely in float64."""
    _, height, width = image.shape
    image = image.double()
    matrix = torch.eye(height * width, dtype=torch.float64)
    right = image.flatten(1).T.clone()
    for y, x in missing.nonzero().tolist():
        row = y * width + x
        matrix[row] = 0
        right[row] = 0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                inside = 0 <= y + dy < height and 0 <= x + dx < width
                if (dy, dx) != (0, 0) and inside:
                    weight = 1 / 12 if dy and dx else 1 / 6
                    matrix[row, row] += weight
                    matrix[row, (y + dy) * width + x + dx] -= weight
    return torch.linalg.solve(matrix, right).T.reshape(image.shape)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_imputation_is_the_direct_solution(share, offset):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, 13, 9, generator=generator) + offset
    order = torch.rand(3, 13 * 9, generator=generator).argsort(1)
    missing = (order < int(share * 117)).view(3, 13, 9)
    filled = impute(images, missing, noise=0.0)
    for image, hole, found in zip(images, missing, filled, strict=True):
        torch.testing.assert_close(found, direct(image, hole).float(), rtol=2e-6, atol=2e-4)
    known = ~missing.unsqueeze(1).expand_as(images)
    assert torch.equal(filled[known], images[known])
    exact = impute(images.double(), missing, noise=0.0, tolerance=1e-12)
    torch.testing.assert_close(exact[1], direct(images[1], missing[1]), rtol=1e-9, atol=1e-9)


def test_a_ramp_comes_back_up_to_the_noise():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(28.0), indexing="ij")
    ramp = torch.stack([0.1 * y - 0.05 * x, 0.02 * x]).unsqueeze(0)
    missing = torch.zeros(1, 32, 28, dtype=torch.bool)
    missing[:, 1:-1, 1:-1] = True  # all but the frame
    torch.testing.assert_close(impute(ramp, missing, noise=0.0), ramp, rtol=0, atol=2e-4)
    noisy = impute(ramp, missing, noise=0.5, seed=3)
    difference = (noisy - ramp)[missing.unsqueeze(1).expand_as(ramp)]
    assert difference.std().item() == pytest.approx(0.5, rel=0.05)
    assert abs(difference.mean().item()) < 0.05
    assert torch.equal(noisy, impute(ramp, missing, noise=0.5, seed=3))
    assert not torch.equal(noisy, impute(ramp, missing, noise=0.5, seed=4))


def test_constant_images_and_nothing_missing():
    images = torch.tensor([-3.0, 0.0, 7.7]).view(3, 1, 1, 1).expand(3, 2, 6, 7).contiguous()
    missing = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(1)) < 0.8
    torch.testing.assert_close(impute(images, missing, noise=0.0), images)
    nothing = torch.zeros_like(missing)
    assert torch.equal(impute(images, nothing), images)
    assert impute(images[:0], missing[:0]).shape == (0, 2, 6, 7)
    assert impute(images.bfloat16(), missing).dtype == torch.bfloat16


def test_an_image_does_not_depend_on_those_beside_it():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 1, 11, 11, generator=generator)
    # Quickly solved ones beside a slow one.
    levels = torch.tensor([0.05, 0.95, 0.5, 0.3]).view(4, 1, 1)
    missing = torch.rand(4, 11, 11, generator=generator) < levels
    together = impute(images, missing)
    for row in range(4):
        alone = impute(images[row : row + 1], missing[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)


def test_large_regions_of_large_images():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    # Re z^3 solves Laplace's equation, and this system up to the pixels' size.
    image = (x**3 - 3 * x * y**2).view(1, 1, 96, 96)
    missing = (x**2 + y**2 < 0.8).unsqueeze(0)
    filled = impute(image, missing, noise=0.0)
    torch.testing.assert_close(filled, image, rtol=0, atol=2e-3)


# --------------------------------------------------------- scores


def patch_target(granularity="channel"):
    """Class 0 where the middle is rough, class 1 where it is not: |right - left| against 1."""
    net = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 9 * 8, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[[[-1.0, 1.0]]], [[[1.0, -1.0]]]]))
        net[0].bias.zero_()
        weight = torch.zeros(2, 2, 9, 8)
        weight[0, :, 3:6, 3:5] = 1.0
        net[3].weight.copy_(weight.flatten(1))
        net[3].bias.copy_(torch.tensor([0.0, 1.0]))
    return GatedTarget(net, torch.zeros(1, 1, 9, 9), granularity=granularity)


def patch_images(count=6):
    images = 0.02 * torch.randn(count, 1, 9, 9, generator=torch.Generator().manual_seed(5))
    images[:, :, 3:6, 4] += 1.0
    return images


def patch_maps(count=6):
    maps = torch.rand(count, 9, 9, generator=torch.Generator().manual_seed(6)) / 10
    maps[:, 3:6, 4] += 1.0
    return maps


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_true_maps_beat_random_and_inverted_ones(granularity):
    target, images, maps = patch_target(granularity), patch_images(), patch_maps()
    drawn = torch.rand(6, 9, 9, generator=torch.Generator().manual_seed(7))
    true, random, inverted = (road(target, images, m) for m in (maps, drawn, -maps))
    assert bool((true.confidence > random.confidence).all())
    assert bool((random.confidence > inverted.confidence).all())
    assert bool((true.accuracy >= 0.4).all())
    assert bool((inverted.accuracy <= -0.4).all())
    # Without the line, the middle is smooth: another class.
    assert not true.morf_stays.any()
    assert true.percentiles == (10, 20, 30, 40, 50, 60, 70, 80, 90)


def test_scores_percentile_by_percentile():
    target, images, maps = patch_target(), patch_images(), patch_maps()
    result = road(target, images, maps, percentiles=(5, 33.3, 70), noise=0.0)
    order = maps.flatten(1).argsort(1, descending=True)
    for column, count in enumerate((4, 26, 56)):  # of 81 pixels
        for pixels, p, stays in (
            (order[:, :count], result.morf_confidence, result.morf_stays),
            (order[:, 81 - count :], result.lerf_confidence, result.lerf_stays),
        ):
            missing = torch.zeros(6, 81, dtype=torch.bool).scatter_(1, pixels, True)
            filled = torch.stack(
                [direct(i, m).float() for i, m in zip(images, missing.view(6, 9, 9), strict=True)]
            )
            logits = target(filled).double()
            torch.testing.assert_close(p[:, column], logits.softmax(1)[:, 0], rtol=0, atol=1e-4)
            assert torch.equal(stays[:, column], logits.argmax(1) == 0)
    expected = (result.lerf_confidence - result.morf_confidence).mean(1) / 2
    torch.testing.assert_close(result.confidence, expected)
    by_hand = [(sum(le) - sum(mo)) / 6 for le, mo in zip(
        result.lerf_stays.tolist(), result.morf_stays.tolist(), strict=True)]  # fmt: skip
    assert result.accuracy.tolist() == pytest.approx(by_hand)


def test_constant_target_scores_zero():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.zeros_(net[0].weight)
    target = GatedTarget(net, torch.zeros(1, 1, 9, 9))
    result = road(target, patch_images(), patch_maps())
    assert result.confidence.abs().max() == 0
    assert result.accuracy.abs().max() == 0


def test_batches_and_known_logits_change_nothing():
    target, images, maps = patch_target(), patch_images(), patch_maps()
    expected = road(target, images, maps, percentiles=(20, 60))
    for batch_size in (1, 5, 500):
        found = road(target, images, maps, percentiles=(20, 60), batch_size=batch_size)
        torch.testing.assert_close(found.morf_confidence, expected.morf_confidence)
        torch.testing.assert_close(found.lerf_confidence, expected.lerf_confidence)
    found = road(target, images, maps, target(images), percentiles=(20, 60))
    assert torch.equal(found.lerf_stays, expected.lerf_stays)
    empty = road(target, images[:0], maps[:0], percentiles=(20, 60))
    assert isinstance(empty, Road)
    assert empty.confidence.shape == empty.accuracy.shape == (0,)


def test_refusals():
    target, images, maps = patch_target(), patch_images(), patch_maps()
    for wrong in ((), (0, 50), (100,), (50, float("nan"))):
        with pytest.raises(ValueError, match=r"percentiles must be in \(0, 100\), got \["):
            road(target, images, maps, percentiles=wrong)
    with pytest.raises(ValueError, match=r"road: maps must be \[6, 9, 9\], got \(5, 9, 9\)"):
        road(target, images, maps[1:])
    with pytest.raises(ValueError, match="road: batch_size must be at least 1, got 0"):
        road(target, images, maps, batch_size=0)
    missing = torch.zeros(6, 9, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"missing must be bool \[6, 9, 9\], got torch.float32"):
        impute(images, missing.float())
    with pytest.raises(ValueError, match=r"must be floating point \[N, C, H, W\], got torch.int"):
        impute(images.long(), missing)
    with pytest.raises(ValueError, match="got noise=-1 and tolerance=1e-05"):
        impute(images, missing, noise=-1)
    with pytest.raises(ValueError, match=r"got noise=0\.01 and tolerance=0"):
        impute(images, missing, tolerance=0)
    missing[4] = True
    with pytest.raises(ValueError, match="must have a known pixel, image 4 has none"):
        impute(images, missing)

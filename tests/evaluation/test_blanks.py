"""Content-free inputs: their number, range and variety, and what they show on planted masks."""

import pytest
import torch

from pathways.class_pathways import ClassPathways
from pathways.evaluation import blank_hit, default_blanks, unseen_blanks


def test_default_blanks():
    images = torch.stack([torch.full((2, 3, 3), -1.0), torch.full((2, 3, 3), 3.0)])
    images[:, 1] *= 2
    blanks = default_blanks(images)
    assert blanks.shape == (3, 2, 3, 3)
    assert blanks[:, 0, 0, 0].tolist() == [-1, 1, 3]
    assert blanks[:, 1, 2, 2].tolist() == [-2, 2, 6]
    assert (blanks.amax((2, 3)) == blanks.amin((2, 3))).all()
    with pytest.raises(ValueError, match="at least one input"):
        default_blanks(images[:0])


def data(channels: int, *space: int) -> torch.Tensor:
    """Two inputs; channel c spans [-1 - c, 3 + c]."""
    low = torch.stack([torch.full(space, -1.0 - c) for c in range(channels)])
    return torch.stack([low, low + 4 + 2 * torch.arange(channels).view(-1, *[1] * len(space))])


@pytest.mark.parametrize("space", [(), (1,), (9,), (7, 7), (5, 12), (1, 1), (4, 5, 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_range_number_and_seed(channels, space):
    images = data(channels, *space)
    blanks = unseen_blanks(images, seed=1)
    assert blanks.shape == (24, channels, *space)
    assert blanks.dtype == images.dtype
    for c in range(channels):
        assert blanks[:, c].min() >= -1 - c
        assert blanks[:, c].max() <= 3 + c
    assert torch.equal(blanks, unseen_blanks(images, seed=1))
    more = unseen_blanks(images, count=30, seed=1)
    assert len(more) == 30
    if space:
        fixed = 18 if len(space) == 3 else 16 if len(space) == 2 else 12
        assert torch.equal(more[:fixed], blanks[:fixed])
        assert not torch.equal(unseen_blanks(images, seed=2)[fixed:], blanks[fixed:])


def test_patterns_by_hand():
    blanks = unseen_blanks(data(1, 4, 8)).squeeze(1)
    part = (blanks + 1) / 4
    assert part[:4].amax((1, 2)).tolist() == part[:4].amin((1, 2)).tolist()
    assert part[:4, 0, 0].tolist() == [0.125, 0.375, 0.625, 0.875]
    rows = torch.tensor([0, 1 / 3, 2 / 3, 1]).unsqueeze(1).expand(4, 8)
    columns = (torch.arange(8) / 7).expand(4, 8)
    for i, ramp in enumerate((rows, columns, (rows + columns) / 2)):
        assert torch.allclose(part[4 + 2 * i], ramp, atol=1e-6)
        assert torch.allclose(part[5 + 2 * i], 1 - ramp, atol=1e-6)
    # Squares of 4, 2 and 1 pixels on 4 by 8.
    assert part[10].tolist() == [[0] * 4 + [1] * 4] * 4
    assert part[12, 1].tolist() == [0, 0, 1, 1] * 2
    assert part[12, 2].tolist() == [1, 1, 0, 0] * 2
    assert part[14, 3].tolist() == [1, 0] * 4
    assert torch.equal(part[11::2][:3], 1 - part[10::2][:3])


def test_noise_is_smooth_and_coloured():
    noise = unseen_blanks(data(3, 32, 32))[16:]
    part = (noise + torch.tensor([1.0, 2, 3]).view(3, 1, 1)) / torch.tensor([4.0, 6, 8]).view(
        3, 1, 1
    )
    # Interpolated over 31 / 3 pixels: neighbours differ by less than a tenth of the range.
    assert part.diff(dim=2).abs().max() < 0.1
    assert part.diff(dim=3).abs().max() < 0.1
    assert part.std((2, 3)).min() > 0.05
    assert not torch.allclose(part[:, 0], part[:, 1], atol=0.1)


def test_all_are_different_and_none_is_a_default_blank():
    images = torch.rand(6, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    blanks = torch.cat([default_blanks(images), unseen_blanks(images)]).flatten(1)
    assert torch.cdist(blanks, blanks).fill_diagonal_(1).min() > 0.05


def test_leaking_pathways_are_caught(leaking, doing_nothing, images):
    blanks = unseen_blanks(images)
    assert blanks.unique(dim=0).shape == (24, 4)
    for explainer, rate in ((leaking, 1), (doing_nothing, 1 / 4)):
        e = explainer(images)
        classes = ClassPathways.from_pathways(e.pathway, e.predictions, num_classes=4)
        found = blank_hit(explainer.target, classes, blanks)
        assert found.rate == rate
        assert found.chance == 1 / 4
        assert found.hits.shape == (4, 24)


def test_chance_counts_the_classes_that_have_a_pathway(leaking):
    e = leaking(torch.eye(4)[:2])
    classes = ClassPathways.from_pathways(e.pathway, e.predictions, num_classes=4)
    assert blank_hit(leaking.target, classes, torch.zeros(3, 4)).chance == 1 / 2


def test_refusals():
    images = data(1, 3, 3)
    with pytest.raises(ValueError, match="unseen_blanks: at least one input is needed, got none"):
        unseen_blanks(images[:0])
    with pytest.raises(ValueError, match="count must be at least 24, got 23"):
        unseen_blanks(images, count=23)
    for wrong in (torch.zeros(1, 1, 2, 2, 2, 2), torch.zeros(3), torch.zeros(2, 4).long()):
        with pytest.raises(ValueError, match=r"must be floating \[N, C\] with at most 3 spatial"):
            unseen_blanks(wrong)

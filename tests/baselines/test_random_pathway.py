"""RandomPathway: sizes, determinism, floors and refusals."""

import math

import pytest
import torch
from torch import nn

from pathways.baselines import RandomPathway
from pathways.target import GatedTarget


@pytest.fixture(scope="module")
def target() -> GatedTarget:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 3))
    return GatedTarget(net, torch.zeros(1, 6))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(9, 6, generator=torch.Generator().manual_seed(1))


def test_explanation_is_consistent(target, images):
    e = RandomPathway(target, kept=0.5)(images)
    assert torch.equal(e.logits, target(images))
    assert torch.equal(e.gated_logits, target.gated(images, e.pathway.gates()))
    assert e.importance.shape == (9, 40)
    assert e.pathway.fingerprint == target.fingerprint
    # The kept neurons are those of the highest importance at every site.
    for scores, mask in zip(
        target.sites.split(e.importance), target.sites.split(e.pathway.mask()), strict=True
    ):
        assert (scores.masked_fill(~mask, 2).amin(1) > scores.masked_fill(mask, -1).amax(1)).all()


@pytest.mark.parametrize(("kept", "sizes"), [(0.0, [0, 0]), (0.26, [8, 2]), (1.0, [30, 10])])
def test_given_share_per_site(target, images, kept, sizes):
    pathway = RandomPathway(target, kept=kept)(images).pathway
    assert pathway.sizes(per_site=True).tolist() == [sizes] * 9


def test_given_share_over_all_sites(target, images):
    pathway = RandomPathway(target, kept=0.3, per_site=False)(images).pathway
    assert pathway.sizes().tolist() == [12] * 9
    assert len({tuple(row) for row in pathway.sizes(per_site=True).tolist()}) > 1


@pytest.mark.parametrize("per_site", [True, False])
def test_matches_another_method_input_by_input(target, images, per_site):
    class Varying:
        def __init__(self):
            self.target = target
            self.sites = target.sites

        def __call__(self, batch):
            e = RandomPathway(target, kept=0.5)(batch)
            strong = batch[:, :1] > 0
            e.pathway = type(e.pathway).from_mask(
                e.pathway.mask() & (strong | (torch.arange(40) % 2 == 0)),
                target.sites,
                target.fingerprint,
            )
            return e

    expected = Varying()(images).pathway
    e = RandomPathway(target, like=Varying(), per_site=per_site, seed=3)(images)
    assert torch.equal(e.pathway.sizes(), expected.sizes())
    same = torch.equal(e.pathway.sizes(per_site=True), expected.sizes(per_site=True))
    assert same is per_site
    assert len(set(e.pathway.sizes().tolist())) > 1
    assert torch.equal(e.logits, target(images))


def test_batches_and_order_do_not_matter(target, images):
    method = RandomPathway(target, kept=0.5)
    whole = method(images).pathway
    assert type(whole).cat([method(images[i : i + 2]).pathway for i in range(0, 9, 2)]) == whole
    assert method(images.flip(0)).pathway == whole[torch.arange(8, -1, -1)]
    assert method(images).pathway == whole
    assert RandomPathway(target, kept=0.5, seed=1)(images).pathway != whole
    assert (whole.pairwise_iou() < 1).sum() == 72


@pytest.mark.parametrize("per_site", [True, False])
def test_floor(target, images, per_site):
    method = RandomPathway(target, kept=0.0, per_site=per_site, min_keep=0.11)
    assert method(images).pathway.sizes(per_site=True).tolist() == [[4, 2]] * 9
    method = RandomPathway(target, kept=0.5, per_site=per_site, min_keep=0.11)
    sizes = method(images).pathway.sizes(per_site=True)
    assert sizes.sum(1).tolist() == [20] * 9
    assert (sizes >= torch.tensor([4, 2])).all()


def test_every_neuron_is_drawn(target):
    images = torch.arange(300.0).reshape(300, 1).expand(300, 6)
    counts = RandomPathway(target, kept=0.5)(images).pathway.mask().double().mean(0)
    assert (counts - 0.5).abs().max() < 5 * math.sqrt(0.25 / 300)


def test_no_inputs(target, images):
    e = RandomPathway(target, kept=0.5)(images[:0])
    assert len(e.pathway) == 0


def test_refusals(target):
    with pytest.raises(ValueError, match="exactly one of like and kept"):
        RandomPathway(target)
    with pytest.raises(ValueError, match="exactly one of like and kept"):
        RandomPathway(target, kept=0.5, like=RandomPathway(target, kept=0.5))
    with pytest.raises(ValueError, match=r"kept must be in \[0, 1\], got 1.5"):
        RandomPathway(target, kept=1.5)
    with pytest.raises(ValueError, match=r"min_keep must be in \[0, 1\], got -1"):
        RandomPathway(target, kept=0.5, min_keep=-1)
    other = GatedTarget(target.model, torch.zeros(1, 6))
    with pytest.raises(ValueError, match="like must explain the same target"):
        RandomPathway(target, like=RandomPathway(other, kept=0.5))

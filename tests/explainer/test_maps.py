"""Maps of any pathway method: gradient and Grad-CAM as functions of target and pathway."""

import pytest
import torch
from torch import nn

from pathways import Explainer, GatedTarget, GenCNP, Pathway
from pathways.baselines import NeuronMCT, RandomPathway
from pathways.maps import check_sites, grad_cam, map_site, pathway_gradient


def make_target(granularity="channel"):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return GatedTarget(net, torch.zeros(1, 2, 7, 5), granularity=granularity)


@pytest.fixture
def images():
    return torch.randn(5, 2, 7, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("granularity", ["channel", "unit"])
@pytest.mark.parametrize("make", [NeuronMCT, RandomPathway])
def test_any_method_has_maps(images, granularity, make):
    target = make_target(granularity)
    e = make(target, kept=0.5)(images)
    gradient = pathway_gradient(target, images, e.pathway)
    cam = grad_cam(target, images, e.pathway, e.predictions)
    # The gradient of the gated logit by finite differences, in float64, at a few entries.
    mask = e.pathway.mask()
    double = GatedTarget(target.model.double(), images.double(), granularity=granularity)
    for row, channel, y, x in [(0, 0, 3, 2), (1, 1, 0, 0), (4, 0, 6, 4)]:
        step = torch.zeros_like(images, dtype=torch.float64)
        step[row, channel, y, x] = 1e-6
        ends = [double.gated(images.double() + s * step, mask)[row] for s in (1, -1)]
        slope = (ends[0] - ends[1])[e.predictions[row]] / 2e-6
        assert gradient[row, channel, y, x].item() == pytest.approx(slope.item(), abs=1e-4)
    assert cam.shape == (5, 7, 5)
    assert 0 <= cam.min() <= cam.max() <= 1
    assert cam.max() > 0.9


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_masks_and_pathways_are_alike(images, granularity):
    target = make_target(granularity)
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(5, target.sites.num_neurons, generator=generator) < 0.6
    pathway = Pathway.from_mask(mask, target.sites)
    classes = torch.tensor([0, 1, 2, 0, 1])
    for make in (pathway_gradient, grad_cam):
        expected = make(target, images, pathway, classes)
        assert torch.equal(make(target, images, mask, classes), expected)
        assert torch.equal(make(target, images, mask.float(), classes), expected)
        one = make(target, images, pathway[2], classes)
        torch.testing.assert_close(one[2], expected[2])
        assert not torch.equal(one, expected)
        with torch.inference_mode():
            inside = make(target, images.clone(), mask.float(), classes.clone())
        assert torch.equal(inside, expected)


def test_grad_cam_by_hand():
    """Two channels copy the input's; the class has weights 2 and -1 for their means."""
    net = nn.Sequential(
        nn.Conv2d(2, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
        net[4].weight.copy_(torch.tensor([[2.0, -1.0], [-3.0, 0.0]]))
        net[0].bias.zero_(), net[4].bias.zero_()
    target = GatedTarget(net, torch.zeros(1, 2, 2, 2))
    images = torch.tensor([[[4.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [3.0, 6.0]]]).unsqueeze(0)
    both, first = torch.ones(1, 2), torch.tensor([[1.0, 0.0]])
    zero, one = torch.tensor([0]), torch.tensor([1])
    # 2 a - b is 8, 2, -3, -4: what speaks against the class is not shown.
    assert grad_cam(target, images, both, zero).tolist() == [[[1.0, 0.25], [0.0, 0.0]]]
    assert grad_cam(target, images, first, zero).tolist() == [[[1.0, 0.25], [0.0, 0.25]]]
    assert grad_cam(target, images, both, one).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_the_explainers_are_the_same(images):
    target = make_target()
    explainer = Explainer(target, GenCNP(target.sites, 3, width=8))
    e = explainer(images)
    gradient = pathway_gradient(target, images, e.pathway)
    assert torch.equal(gradient, explainer.pathway_gradient(images))
    assert torch.equal(grad_cam(target, images, e.pathway), explainer.grad_cam(images))


def test_full_mask_is_the_plain_gradient(images):
    target = make_target()
    x = images.clone().requires_grad_()
    (plain,) = torch.autograd.grad(target.model(x).max(1).values.sum(), x)
    torch.testing.assert_close(pathway_gradient(target, images, torch.ones(1, 7)), plain)
    assert pathway_gradient(target, images, torch.zeros(1, 7)).abs().max() == 0


def test_refusals(images):
    target, units = make_target(), make_target("unit")
    wrong = Pathway.from_mask(torch.ones(1, units.sites.num_neurons), units.sites)
    for make in (pathway_gradient, grad_cam):
        with pytest.raises(ValueError, match=r"must have the target's sites .*unit neurons"):
            make(target, images, wrong)
        with pytest.raises(ValueError, match=r"classes must be in \[0, 3\), got 3"):
            make(target, images, torch.ones(1, 7), torch.full((5,), 3))
        assert make(target, images[:0], torch.ones(1, 7)).shape[0] == 0
    with pytest.raises(ValueError, match="must have the target's sites"):
        check_sites(units.sites, target)
    with pytest.raises(ValueError, match=r"site must be one with a 2-D map \(1#0, 3#0\), got 5"):
        map_site(target.sites, 5)

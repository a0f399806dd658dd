"""Randomised weights: unchanged at stage 0, changed after; the target is left alone."""

import copy
import sys

import pytest
import torch
from baseline_networks import Residual
from scipy.stats import spearmanr
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from pathways import Explainer, GenCNP
from pathways.baselines import NeuronMCT, RandomPathway, TopActivation
from pathways.evaluation.randomization import Randomization, randomization, spearman, ssim
from pathways.maps import collapse_gradient, grad_cam, pathway_gradient
from pathways.target import GatedTarget

FIGURES = ("iou", "importance", "gradient", "gradient_ssim", "cam", "cam_ssim")


def make_target(granularity="channel"):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip
    return GatedTarget(net, torch.zeros(1, 2, 7, 6), granularity=granularity)


@pytest.fixture
def images():
    return torch.randn(9, 2, 7, 6, generator=torch.Generator().manual_seed(1))


def mct(target):
    return NeuronMCT(target, kept=0.4)


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_nothing_randomised_is_unchanged(images, granularity):
    target = make_target(granularity)
    torch.manual_seed(2)
    generator = GenCNP(target.sites, 4, width=8)
    for make in (mct, lambda t: Explainer(t, generator)):
        result = randomization(target, make, images, stages=(0,), batch_size=4)
        assert result.stages == (0,)
        assert result.agreement.tolist() == [1.0]
        for figure in FIGURES:
            assert getattr(result, figure).item() == pytest.approx(1.0), figure


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_everything_randomised_is_changed(images, granularity):
    target = make_target(granularity)
    result = randomization(target, mct, images)
    assert result.layers == ("6", "3", "1", "0")
    assert result.stages == (1, 2, 3, 4)
    last = {figure: getattr(result, figure)[-1].item() for figure in FIGURES}
    assert last["iou"] < 0.75
    assert abs(last["importance"]) < 0.6
    assert abs(last["gradient"]) < 0.5
    assert last["gradient_ssim"] < 0.6
    assert result.agreement[-1] < 0.7
    assert 0.2 < result.iou_chance[-1] < 0.5


def test_what_does_not_look_at_the_weights_does_not_change(images):
    target = make_target()
    # Random pathways are drawn by input: the check must catch them.
    result = randomization(target, lambda t: RandomPathway(t, kept=0.5), images)
    assert result.iou.tolist() == [1.0] * 4
    assert result.importance.tolist() == pytest.approx([1.0] * 4)
    # Activations of the sites stay until a layer below them is shuffled: the last of all.
    result = randomization(target, lambda t: TopActivation(t, kept=0.5), images, stages=(1, 4))
    assert result.iou[0] == 1
    assert result.iou[1] < 1
    assert result.agreement[0] < 1


@pytest.mark.parametrize("reads", [True, False])
def test_above_all_sites_a_generator_follows_the_logits_alone(images, reads):
    target = make_target()
    torch.manual_seed(2)
    generator = GenCNP(target.sites, 4, width=8, reads_logits=reads)
    result = randomization(target, lambda t: Explainer(t, generator), images, stages=(1, 4))
    assert (result.importance[0] < 1) == reads
    assert result.importance[1] < 1


def test_the_target_is_left_alone(images):
    target = make_target()
    target.model.train()
    before = copy.deepcopy(target.model.state_dict())
    fingerprint, logits = target.fingerprint, target(images)
    randomization(target, mct, images, stages=(1, 4))
    assert target.fingerprint == fingerprint
    assert torch.equal(target(images), logits)
    assert all(torch.equal(value, before[key]) for key, value in target.model.state_dict().items())
    for module in target.model.modules():
        assert module.training
        assert not module._forward_hooks


def test_weights_keep_their_distribution_and_stages_are_nested(images):
    target, seen = make_target(), []

    def make(t):
        seen.append(copy.deepcopy(t.model.state_dict()))
        return mct(t)

    first = randomization(target, make, images, stages=(1, 2, 4), seed=5)
    clean, one, two, four = seen
    for key, value in clean.items():
        for state in (one, two, four):
            assert torch.equal(state[key].flatten().sort()[0], value.flatten().sort()[0])
    for key, changes in {"6.weight": 1, "3.weight": 2, "0.weight": 4}.items():
        same = [torch.equal(state[key], clean[key]) for state in (one, two, four)]
        assert same == [stage < changes for stage in (1, 2, 4)]
    assert torch.equal(two["6.weight"], four["6.weight"])
    # A stage by itself is the same as within a cascade.
    alone = randomization(target, mct, images, stages=(2,), seed=5)
    other = randomization(target, mct, images, stages=(2,), seed=6)
    for figure in FIGURES:
        assert getattr(alone, figure)[0] == getattr(first, figure)[1]
    assert any(getattr(alone, figure)[0] != getattr(other, figure)[0] for figure in FIGURES)


def test_reused_modules_and_batches():
    target = GatedTarget(Residual(), torch.zeros(1, 1, 6, 6))
    images = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    result = randomization(target, mct, images)
    assert result.layers == ("head", "third", "second", "norm", "first")
    again = randomization(target, mct, images, batch_size=2)
    for figure in FIGURES:
        torch.testing.assert_close(getattr(again, figure), getattr(result, figure))
    some = randomization(target, mct, images, max_images=2)
    assert torch.equal(some.iou, randomization(target, mct, images[:2]).iou)


def test_maps_are_of_the_class_that_the_target_predicts(images):
    target = make_target()
    done = []

    def make(randomised):
        done.append(mct(randomised))
        return done[-1]

    result = randomization(target, make, images, stages=(4,))
    clean, other = done[0](images), done[1](images)
    assert (clean.predictions != other.predictions).any()
    maps = [
        pathway_gradient(method.target, images, e.pathway, clean.predictions)
        for method, e in zip(done, (clean, other), strict=True)
    ]
    a, b = (collapse_gradient(gradient).abs().flatten(1) for gradient in maps)
    assert result.gradient.item() == pytest.approx(spearman(a, b).nanmean().item())
    cams = [
        grad_cam(method.target, images, e.pathway, clean.predictions).flatten(1)
        for method, e in zip(done, (clean, other), strict=True)
    ]
    assert result.cam.item() == pytest.approx(spearman(*cams).nanmean().item())


def test_inference_mode_changes_nothing(images):
    target = make_target()
    expected = randomization(target, mct, images, stages=(1, 4))
    with torch.inference_mode():
        inside = randomization(target, mct, images.clone(), stages=(1, 4))
    for figure in FIGURES:
        torch.testing.assert_close(getattr(inside, figure), getattr(expected, figure))


def test_layers_that_attention_reads_itself_are_randomised():
    """The output layer of attention is never called as a module, yet it has weights."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3, affine=False)  # has nothing to randomise
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.act, self.head = nn.ReLU(), nn.Linear(4, 3)

        def forward(self, x):
            x = self.norm(x)
            return self.head(self.act(self.attention(x, x, x)[0]).mean(1))

    torch.manual_seed(0)
    target = GatedTarget(Attention(), torch.zeros(1, 3, 4))
    shuffled = []

    def make(randomised):
        shuffled.append(
            [n for n, p in randomised.model.named_parameters()
             if not torch.equal(p, dict(target.model.named_parameters())[n])]
        )  # fmt: skip
        return mct(randomised)

    result = randomization(target, make, torch.randn(4, 3, 4))
    assert result.layers == ("head", "attention.out_proj", "attention")
    assert set(shuffled[2]) == {"head.weight", "head.bias", "attention.out_proj.weight"}


def test_inputs_that_are_not_images():
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    target = GatedTarget(net, torch.zeros(1, 6))
    result = randomization(target, mct, torch.randn(5, 6), stages=(0, 2))
    assert isinstance(result, Randomization)
    assert result.iou[0] == 1
    for figure in ("gradient", "gradient_ssim", "cam", "cam_ssim"):
        assert getattr(result, figure).isnan().all()


def test_refusals(images):
    target = make_target()
    for stages in ((), (1, 1), (2, 1), (-1,), (5,)):
        with pytest.raises(ValueError, match=r"stages must ascend within \[0, 4\], got \["):
            randomization(target, mct, images, stages=stages)
    with pytest.raises(ValueError, match="must be at least 1, got 0, 64 and 64"):
        randomization(target, mct, images[:0])
    with pytest.raises(ValueError, match="must be at least 1, got 9, 0 and 64"):
        randomization(target, mct, images, max_images=0)
    bare = GatedTarget(nn.Sequential(nn.Flatten(), nn.ReLU()), torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="must call modules with parameters, got none"):
        randomization(bare, mct, torch.ones(1, 1, 2, 2))


# --------------------------------------------------------- similarities


def test_spearman_is_scipys():
    generator = torch.Generator().manual_seed(4)
    a = torch.randint(0, 5, (6, 31), generator=generator).float()
    b = a + torch.randint(0, 4, (6, 31), generator=generator)
    expected = [spearmanr(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert spearman(a, b).tolist() == pytest.approx(expected)
    assert spearman(a, a).tolist() == pytest.approx([1.0] * 6)
    assert spearman(a, -a).tolist() == pytest.approx([-1.0] * 6)
    assert spearman(a, torch.ones_like(a)).isnan().all()
    assert spearman(a[:0], b[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"must be \[N, D\], got \(6, 31\) and \(5, 31\)"):
        spearman(a, b[1:])


def test_ranks_are_made_a_few_rows_at_a_time(monkeypatch):
    source = sys.modules[Randomization.__module__]  # a function of the package has its name
    generator = torch.Generator().manual_seed(6)
    a, b = torch.rand(2, 7, 30, generator=generator)
    expected, seen = spearman(a, b), []
    ranks = source._ranks
    monkeypatch.setattr(source, "_ranks", lambda x: seen.append(len(x)) or ranks(x))
    for values, rows in ((60, [2] * 6 + [1] * 2), (29, [1] * 14)):
        monkeypatch.setattr(source, "_VALUES", values)
        seen.clear()
        assert torch.equal(spearman(a, b), expected)
        assert seen == rows


def test_ssim():
    generator = torch.Generator().manual_seed(5)
    a = torch.rand(4, 40, 33, generator=generator)
    b = (a + 0.3 * torch.rand(4, 40, 33, generator=generator)).clamp(0, 1)
    # Away from the border, which both repeat or mirror: the same nothing.
    flat_border = torch.zeros(4, 60, 53)
    x, y = flat_border.clone(), flat_border.clone()
    x[:, 10:-10, 10:-10], y[:, 10:-10, 10:-10] = a, b
    _, full = structural_similarity_index_measure(
        y.unsqueeze(1), x.unsqueeze(1), data_range=1.0, reduction="none", return_full_image=True
    )
    expected = full.double().mean((1, 2, 3))
    torch.testing.assert_close(ssim(x, y), expected, rtol=1e-4, atol=1e-5)
    assert ssim(a, a).tolist() == pytest.approx([1.0] * 4)
    assert bool((ssim(a, 1 - a) < 0).all())
    assert ssim(a[:, :2, :3], b[:, :2, :3]).shape == (4,)
    with pytest.raises(ValueError, match=r"must be \[N, H, W\], got \(4, 40, 33\) and \(40, 33\)"):
        ssim(a, b[0])

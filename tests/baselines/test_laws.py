"""What every baseline that scores neurons must keep: sizes, batches, the target, refusals."""

import subprocess
import sys

import pytest
import torch
from baseline_networks import Residual, Tokens
from torch import nn

from pathways.baselines import NeuronMCT, RandomPathway, ScoredMethod
from pathways.pathway import Pathway
from pathways.target import GatedTarget


def state(target):
    model = target.model
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad is None for parameter in model.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        target.fingerprint,
    )


def test_explanation_is_consistent(make, target, images):
    e = make(target, kept=0.4)(images)
    assert torch.equal(e.logits, target(images))
    assert torch.equal(e.gated_logits, target.gated(images, e.pathway.gates()))
    assert e.importance.shape == (5, target.sites.num_neurons)
    assert e.importance.dtype == torch.float32
    assert (e.importance >= 0).all()
    assert e.pathway.fingerprint == target.fingerprint
    assert not any(value.requires_grad for value in (e.logits, e.gated_logits, e.importance))


@pytest.mark.parametrize("kept", [0.0, 0.13, 0.5, 1.0])
def test_share_of_all_neurons(make, target, images, kept):
    e = make(target, kept=kept, per_site=False)(images)
    assert e.pathway.sizes().tolist() == [round(kept * target.sites.num_neurons)] * 5
    mask = e.pathway.mask()
    least = e.importance.masked_fill(~mask, torch.inf).amin(1)
    assert (least >= e.importance.masked_fill(mask, -1).amax(1)).all()


@pytest.mark.parametrize("kept", [0.0, 0.26, 1.0])
def test_share_of_every_site(make, target, images, kept):
    e = make(target, kept=kept, per_site=True)(images)
    assert e.pathway.sizes(True).tolist() == [[round(kept * n) for n in target.sites.sizes]] * 5
    for scores, mask in zip(
        target.sites.split(e.importance), target.sites.split(e.pathway.mask()), strict=True
    ):
        least = scores.masked_fill(~mask, torch.inf).amin(1)
        assert (least >= scores.masked_fill(mask, -1).amax(1)).all()


@pytest.mark.parametrize("per_site", [True, False])
def test_floor_of_every_site(make, target, images, per_site):
    e = make(target, kept=0.3, per_site=per_site, min_keep=0.3)(images)
    floors = torch.tensor([-(-3 * size // 10) for size in target.sites.sizes])
    assert (e.pathway.sizes(True) >= floors).all()
    wanted = max(round(0.3 * target.sites.num_neurons), int(floors.sum()))
    assert per_site or e.pathway.sizes().tolist() == [wanted] * 5


class Energetic(ScoredMethod):
    """Keeps more neurons of inputs with more in them, the last ones."""

    def importance(self, images):
        row = torch.arange(1.0, self.sites.num_neurons + 1)
        return self.target(images), row.expand(len(images), -1)

    def sizes(self, images):
        return (images.flatten(1).abs().mean(1) * 3).clamp_max(10).long()


@pytest.mark.parametrize("per_site", [True, False])
def test_size_of_another_method(make, target, images, per_site):
    images[3] *= 3
    like = Energetic(target, kept=0.5)
    expected = like.sizes(images)
    e = make(target, like=like, per_site=per_site)(images)
    assert e.pathway.sizes().tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 1


@pytest.mark.parametrize("matched", [False, True])
def test_batch_equals_single_inputs(make, target, images, matched):
    if matched:  # sizes that differ within the batch
        images[0, :, 2:] = 0
        images[3] *= 5
        method = make(target, like=Energetic(target, kept=0.5))
        assert len(set(method(images).pathway.sizes().tolist())) > 1
    else:
        method = make(target, kept=0.4)
    e = method(images)
    parts = [method(image) for image in images.split(1)]
    torch.testing.assert_close(torch.cat([part.importance for part in parts]), e.importance)
    assert Pathway.cat([part.pathway for part in parts]) == e.pathway
    flipped = method(images.flip(0))
    assert flipped.pathway == e.pathway[torch.arange(4, -1, -1)]
    assert method(images).pathway == e.pathway


def test_no_inputs(make, target, images):
    e = make(target, kept=0.4)(images[:0])
    assert (len(e), len(e.pathway)) == (0, 0)
    assert e.importance.shape == (0, target.sites.num_neurons)


def test_target_is_left_as_found(make, target, images):
    target.model.train()
    target.model.norm.eval()
    target.model.first.weight.requires_grad_(False)
    before = state(target)
    make(target, kept=0.4)(images)
    assert state(target) == before
    with pytest.raises((RuntimeError, ValueError)):
        make(target, kept=0.4)(images.expand(-1, 2, -1, -1))
    assert state(target) == before
    assert images.grad is None


def test_works_where_gradients_are_off(make, target, images):
    expected = make(target, kept=0.4)(images).pathway
    with torch.no_grad():
        assert make(target, kept=0.4)(images).pathway == expected
    with torch.inference_mode():
        assert make(target, kept=0.4)(images.clone()).pathway == expected
    assert make(target, kept=0.4)(images.clone().requires_grad_()).pathway == expected


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_channels_in_the_last_dimension(make, granularity):
    torch.manual_seed(0)
    target = GatedTarget(Tokens(), torch.zeros(1, 4, 2, 3), granularity=granularity)
    e = make(target, kept=0.25)(torch.randn(2, 4, 2, 3))
    count = target.sites.num_neurons // 4
    assert e.pathway.sizes().tolist() == [count, count]
    assert len(e.importance[0].unique()) > 1


def test_baseline_values_other_than_zero(make, images):
    torch.manual_seed(0)
    target = GatedTarget(Residual(), images[:1])
    target.baseline = target.mean_baseline([images])
    e = make(target, kept=0.5)(images)
    assert torch.equal(e.gated_logits, target.gated(images, e.pathway.gates()))


def test_site_without_influence(make):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            torch.relu(x)
            return self.head(torch.relu(self.body(x)))

    torch.manual_seed(0)
    method = make(GatedTarget(Aside(), torch.zeros(1, 3)), kept=0.5)
    assert len(method(torch.randn(4, 3)).pathway) == 4


def test_not_finite_inputs_are_refused(make, target, images):
    if isinstance(make(target, kept=0.5), RandomPathway):
        pytest.skip("a random pathway does not look at activations")
    images[1:3] = torch.nan
    with pytest.raises(ValueError, match="scores must be finite, got others for 2 of 5 inputs"):
        make(target, kept=0.5)(images)


def test_bad_sizes_are_refused(make, target):
    method = make(target, kept=0.5)
    name = type(method).__name__
    with pytest.raises(ValueError, match=f"{name}: .* one of like and kept must be given, got bo"):
        make(target, kept=0.5, like=method)
    with pytest.raises(ValueError, match=rf"{name}: kept must be in \[0, 1\], got 1.5"):
        make(target, kept=1.5)
    with pytest.raises(ValueError, match=r"min_keep must be in \[0, 1\], got -1"):
        make(target, kept=0.5, min_keep=-1)
    other = GatedTarget(target.model, torch.zeros(1, 1, 5, 5))
    with pytest.raises(ValueError, match=f"{name}: like must explain the same target"):
        make(target, like=NeuronMCT(other, kept=0.5))
    with pytest.raises(TypeError, match="unexpected keyword argument 'share'"):
        make(target, kept=0.5, share=1)


@pytest.mark.parametrize("method", [NeuronMCT, RandomPathway])
def test_methods_without_a_size_of_their_own_need_one(method, target):
    with pytest.raises(ValueError, match="exactly one of like and kept must be given, got none"):
        method(target)


def test_import_is_lazy():
    code = (
        "import sys, pathways, pathways.baselines.registry as r; r.check_baselines(['mct'])\n"
        "loaded = [m for m in sys.modules if m.startswith('pathways.baselines.')]\n"
        "assert loaded == ['pathways.baselines.registry'], loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ImportError, match="cannot import name 'Oracle'"):
        from pathways.baselines import Oracle  # noqa: F401

"""The extracted network gives the logits of the gated target, on every kind of architecture."""

import copy

import pytest
import torch
from export_nets import NETS, make_target
from torch import nn
from torch.nn import functional as F

import pathways
from pathways import ClassPathways, GatedTarget, Pathway
from pathways.extraction import ExtractedNetwork
from pathways.models import resnet20, vgg

SHARES = (0.7, 0.4, 0.15, 0.0)


def images_of(name, count=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *NETS[name][1], generator=generator).to(dtype)


def double(name):
    """The target in float64, where nothing but a mistake can be seen."""
    target = make_target(name)
    return GatedTarget(
        target.model.double(),
        torch.zeros(1, *NETS[name][1]).double(),
        sites=lambda site: site in set(target.sites),
        output_fn=target.output_fn,
    )


def random_mask(target, share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, target.sites.num_neurons, generator=generator) < share


def random_baseline(target, dtype):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(site.channels, generator=generator).to(dtype) for site in target.sites]


def check(target, mask, images, tolerance):
    small = pathways.extract(target, mask)
    gates = target.sites.gates(mask.to(images.dtype))
    wanted = target.gated(images.clone(), gates)
    kept = images.clone()
    found = small(images)
    assert torch.equal(images, kept)
    assert found.dtype == images.dtype
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert small.extraction.largest_difference < 100 * tolerance
    return small


@pytest.mark.parametrize("baseline", [False, True], ids=["zeros", "constants"])
@pytest.mark.parametrize("name", NETS)
def test_random_pathways(name, baseline):
    target = double(name)
    if baseline:
        target.baseline = random_baseline(target, torch.float64)
    images = images_of(name, dtype=torch.float64)
    sizes = []
    for seed, share in enumerate(SHARES):
        mask = random_mask(target, share, seed)
        small = check(target, mask, images, 1e-10)
        sizes.append(small.extraction.multiplications)
        if seed < 2:  # one after the other, as all together cancel a mistake less likely
            for site in range(len(target.sites)):
                alone = torch.ones_like(mask)
                gates = target.sites.gates(alone)
                gates[site][:] = target.sites.gates(mask)[site]
                check(target, alone, images, 1e-10)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


@pytest.mark.parametrize("name", NETS)
def test_float32(name):
    target = make_target(name)
    target.baseline = random_baseline(target, torch.float32)
    for share in (0.6, 0.3):
        check(target, random_mask(target, share), images_of(name), 1e-5)


@pytest.mark.parametrize("name", NETS)
def test_all_ones_give_the_model_itself(name):
    target = make_target(name)
    mask = torch.ones(target.sites.num_neurons)
    small = pathways.extract(target, mask)
    images = images_of(name)
    if name == "tokens":  # PyTorch's fused attention, which eager targets avoid
        torch.testing.assert_close(small(images), target(images))
    else:
        assert torch.equal(small(images), target(images))
    extraction = small.extraction
    assert extraction.parameters == extraction.parameters_before
    assert extraction.multiplications == extraction.multiplications_before
    assert extraction.channels == extraction.channels_before == target.sites.num_neurons


@pytest.mark.parametrize("share", [0.4, 0.0])
@pytest.mark.parametrize("name", NETS)
def test_scripted_copied_and_exported(name, share):
    target = make_target(name)
    target.baseline = random_baseline(target, torch.float32)
    small = pathways.extract(target, random_mask(target, share))
    images = images_of(name)
    with torch.no_grad():
        wanted = small(images)
        with torch.jit.optimized_execution(False):
            torch.testing.assert_close(torch.jit.script(small)(images), wanted)
        twin = copy.deepcopy(small)
        assert torch.equal(twin(images), wanted)
        assert twin.extraction == small.extraction
    if name == "shape_controlled":  # its graph, exported once, does not go through again
        return
    batch = ({0: torch.export.Dim.DYNAMIC},)
    run = torch.export.export(small, (images,), dynamic_shapes=batch).module()
    for count in (1, 4):
        torch.testing.assert_close(run(images[:count]), wanted[:count])


@pytest.mark.parametrize("name", ["vgg", "resnet_reused_inplace", "norm_after_relu", "densenet"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.0])
def test_images_of_another_size(name, share):
    """What constants add at the borders follows the size of the image."""
    target = double(name)
    target.baseline = random_baseline(target, torch.float64)
    mask = random_mask(target, share)
    small = pathways.extract(target, mask)
    images = torch.randn(2, 3, 20, 28).double()
    wanted = target.gated(images, target.sites.gates(mask.double()))
    torch.testing.assert_close(small(images), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("share", [0.5, 0.3, 0.1])
@pytest.mark.parametrize("baseline", [False, True], ids=["zeros", "constants"])
def test_resnet_with_padded_shortcuts(share, baseline):
    target = GatedTarget(resnet20().double(), torch.zeros(1, 3, 32, 32).double())
    if baseline:
        target.baseline = random_baseline(target, torch.float64)
    images = torch.randn(2, 3, 32, 32).double()
    small = check(target, random_mask(target, share), images, 1e-10)
    assert small.extraction.multiplications < 1.5 * share**2 * 40_551_040


def test_state_dict_goes_into_a_fresh_extraction():
    target = make_target("resnet_reused_inplace")
    target.baseline = random_baseline(target, torch.float32)
    mask = random_mask(target, 0.4)
    one, other = pathways.extract(target, mask), pathways.extract(target, mask)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.1)
    images = images_of("resnet_reused_inplace")
    assert not torch.allclose(one(images), other(images))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(images), other(images))


@pytest.mark.parametrize("name", ["vgg", "resnet_reused_inplace", "squeeze_excitation", "convnext"])
def test_the_result_can_be_trained(name):
    target = make_target(name)
    target.baseline = random_baseline(target, torch.float32)
    small = pathways.extract(target, random_mask(target, 0.5)).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05)
    images, labels = images_of(name, 8), torch.arange(8) % 5
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(small(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_names_are_those_of_the_target():
    target = make_target("resnet_reused_inplace")
    small = pathways.extract(target, random_mask(target, 0.7))
    names = {name.removeprefix("network.") for name, _ in small.named_parameters()}
    assert names <= {name for name, _ in target.model.named_parameters()}
    assert "blocks.0.conv2.weight" in names


@pytest.mark.parametrize("name", ["resnet_reused_inplace", "shape_controlled"])
def test_target_is_left_as_found_and_nothing_is_shared(name):
    target = make_target(name)
    target.model.train()
    next(target.model.parameters()).requires_grad_(False)
    flags = [(module, module.training) for module in target.model.modules()]
    gradients = [parameter.requires_grad for parameter in target.model.parameters()]
    values = {key: value.clone() for key, value in target.model.state_dict().items()}
    small = pathways.extract(target, random_mask(target, 0.8))
    assert all(module.training == training for module, training in flags)
    assert gradients == [parameter.requires_grad for parameter in target.model.parameters()]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m, _ in flags)
    assert all(torch.equal(values[key], v) for key, v in target.model.state_dict().items())
    own = {value.untyped_storage().data_ptr() for value in target.model.state_dict().values()}
    assert not own & {v.untyped_storage().data_ptr() for v in small.state_dict().values()}
    assert not any(module.training for module in small.modules())
    all_kept = pathways.extract(target, torch.ones(1, target.sites.num_neurons))
    assert not own & {v.untyped_storage().data_ptr() for v in all_kept.state_dict().values()}


def test_every_way_to_name_a_pathway():
    model = vgg(3, 5, (8, 8)).eval()
    example = torch.zeros(1, 3, 16, 16)
    target = GatedTarget(model, example)
    masks = torch.rand(6, target.sites.num_neurons) < 0.5
    pathway = Pathway.from_mask(masks, target.sites, target.fingerprint)
    classes = ClassPathways.from_pathways(pathway, torch.tensor([0, 0, 3, 3, 3, 1]))
    images = torch.randn(2, 3, 16, 16)
    row = classes[3]
    wanted = target.gated(images, row.gates())
    flat = row.mask()
    for given in (row, flat, flat[0], flat.float(), list(row.gates()), [g[0] for g in row.gates()]):
        for model_or_target, options in ((target, {}), (model, {"example_input": example})):
            small = pathways.extract(model_or_target, given, **options)
            assert isinstance(small, ExtractedNetwork)
            torch.testing.assert_close(small(images), wanted)


def test_only_the_sites_of_the_pathway():
    """A pathway of some sites leaves the others alone, also where a plain model is given."""
    model = vgg(3, 5, (8, 8, 8)).eval()
    target = GatedTarget(model, torch.zeros(1, 3, 16, 16), sites=["5"])
    mask = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 1]])
    pathway = Pathway.from_mask(mask, target.sites, target.fingerprint)
    images = torch.randn(2, 3, 16, 16)
    for small in (
        pathways.extract(target, pathway),
        pathways.extract(model, pathway, example_input=images),
    ):
        torch.testing.assert_close(small(images), target.gated(images, [mask.float()]))
        kept = [(layer.inputs, layer.outputs) for layer in small.extraction.layers]
        assert kept == [(3, 8), (8, 3), (3, 8), (8, 5)]


def test_half_precision_and_bfloat16():
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        target = GatedTarget(
            vgg(3, 5, (8, 8)).eval().to(dtype), torch.zeros(1, 3, 16, 16).to(dtype)
        )
        target.baseline = random_baseline(target, dtype)
        images = torch.randn(2, 3, 16, 16).to(dtype)
        mask = random_mask(target, 0.5)
        small = pathways.extract(target, mask)
        wanted = target.gated(images, target.sites.gates(mask.to(dtype)))
        assert small(images).dtype == dtype
        torch.testing.assert_close(small(images), wanted, rtol=tolerance, atol=tolerance)


class Bytes(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = vgg(3, 5, (8, 8))

    def forward(self, x):
        return self.body(x.to(torch.float32) / 255)


def test_images_of_integers():
    example = torch.randint(0, 255, (2, 3, 16, 16))
    target = GatedTarget(Bytes().eval(), example)
    mask = random_mask(target, 0.5)
    wanted = target.gated(example, target.sites.gates(mask.float()))
    small = pathways.extract(target, mask)
    torch.testing.assert_close(small(example), wanted)
    small = pathways.extract(target.model, mask, example_input=example)
    torch.testing.assert_close(small(example), wanted)


def test_output_fn_becomes_part_of_the_network():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = vgg(3, 5, (8, 8))

        def forward(self, x):
            return {"other": x, "logits": self.body(x)}

    target = GatedTarget(
        Pair().eval(), torch.zeros(1, 3, 16, 16), output_fn=lambda output: output["logits"] * 2
    )
    check(target, random_mask(target, 0.5), torch.randn(2, 3, 16, 16), 1e-5)

"""GatedTarget on many small networks: the laws every gated run obeys."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pathways.target import GatedTarget

GRANULARITIES = ("channel", "unit")


@pytest.fixture(autouse=True)
def _pytorch_without_fused_transformer_layers():
    """The model's own logits, which the tests compare with, on the way a training step takes."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def random_mask(target, rows, seed=0, kept=0.5):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, target.sites.num_neurons, generator=generator) < kept


def state(model):
    """Everything a run must leave as it was found."""
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [
            len(hooks)
            for module in model.modules()
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._forward_hooks_always_called,
            )
        ],
        {name: value.clone() for name, value in model.state_dict().items()},
    )


def assert_same_state(found, left):
    assert found[:3] == left[:3]
    for name, value in found[3].items():
        assert torch.equal(value, left[3][name]), name


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_all_ones_gates_give_the_logits_of_the_model_bit_for_bit(case, granularity):
    x = case.images()
    target = GatedTarget(case.model, case.images(2, seed=5), granularity=granularity)
    # Frozen, as in every run of the target: a matrix product may round differently where a weight
    # requires a gradient.
    case.model.eval().requires_grad_(False)
    with torch.no_grad():
        expected = case.model(x.clone())
    case.model.train().requires_grad_(True)
    assert torch.equal(target(x), expected)
    assert torch.equal(target.features(x)[0], expected)
    ones = torch.ones(3, target.sites.num_neurons)
    for gates in (ones, ones.bool(), ones[:1], ones.double(), target.sites.gates(ones)):
        assert torch.equal(target.gated(x, gates), expected)
        with torch.no_grad():
            assert torch.equal(target.gated(x, gates), expected)
    tracked = target.gated(x, ones.clone().requires_grad_())
    assert torch.equal(tracked, expected)
    assert tracked.requires_grad


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_model_and_images_are_left_as_found(case, granularity):
    x = case.images()
    kept = x.clone()
    for i, module in enumerate(case.model.modules()):
        module.training = i % 3 != 0
    for i, parameter in enumerate(case.model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    found = state(case.model)
    target = GatedTarget(case.model, x[:2], granularity=granularity)
    assert_same_state(found, state(case.model))
    gates = random_mask(target, 3).float().requires_grad_()
    target(x), target.features(x), target.gated(x, gates).sum().backward()
    assert_same_state(found, state(case.model))
    assert all(parameter.grad is None for parameter in case.model.parameters())
    assert torch.equal(x, kept)


def test_dropout_and_batchnorm_in_train_mode_do_not_act(make_case):
    case = make_case("after-activation")
    case.model.train()
    x = case.images()
    target = GatedTarget(case.model, x)
    gates = random_mask(target, 3)
    assert torch.equal(target.gated(x, gates), target.gated(x, gates))
    assert torch.equal(target(x), target(x))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gated_run_with_gradient_equals_the_one_without(case, granularity):
    x = case.images()
    target = GatedTarget(case.model, x[:2], granularity=granularity)
    gates = torch.rand(3, target.sites.num_neurons, generator=torch.Generator().manual_seed(2))
    gates[random_mask(target, 3)] = 0
    with torch.no_grad():
        expected = target.gated(x, gates)
    torch.testing.assert_close(target.gated(x, gates), expected)
    torch.testing.assert_close(target.gated(x, gates.clone().requires_grad_()), expected)
    single = [target.gated(x[i : i + 1], gates[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(single), expected)
    mask = random_mask(target, 3)
    torch.testing.assert_close(target.gated(x, mask), target.gated(x, mask.float()))


def test_gradients_into_gates(case):
    case.model.double()
    x = case.images(2).double()
    target = GatedTarget(case.model, x)
    generator = torch.Generator().manual_seed(4)
    gates = torch.rand(2, target.sites.num_neurons, generator=generator, dtype=torch.float64)
    gates = (0.1 + 0.8 * gates).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: target.gated(x, g), gates, fast_mode=True)


@pytest.mark.parametrize("name", ["reused", "pre-activation", "halves", "token-mlp", "on-input"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_into_gates_and_images(make_case, name, granularity):
    case = make_case(name)
    case.model.double()
    x = case.images(1).double().requires_grad_()
    target = GatedTarget(case.model, x.detach(), granularity=granularity)
    generator = torch.Generator().manual_seed(4)
    gates = torch.rand(1, target.sites.num_neurons, generator=generator, dtype=torch.float64)
    gates = (0.1 + 0.8 * gates).requires_grad_()
    assert torch.autograd.gradcheck(target.gated, (x, gates), fast_mode=True)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_features_are_the_activations_observed_under_open_gates(case, granularity):
    x = case.images()
    target = GatedTarget(case.model, x[:2], granularity=granularity)
    logits, features = target.features(x)
    observed = {}
    ones = torch.ones(3, target.sites.num_neurons)
    target.gated(x, ones, observe=lambda site, z: observed.setdefault(site, z.clone()))
    assert len(features) == len(observed) == len(target.sites)
    for i, (site, feature) in enumerate(zip(target.sites, features, strict=True)):
        assert feature.shape == (3, *site.shape)
        assert not feature.requires_grad
        z = observed[i]
        assert torch.equal(feature, z.movedim(-1, 1) if site.channel_dim == -1 else z)
    assert torch.equal(logits, target(x))


def test_features_outlive_later_writes(make_case):
    case = make_case("overwritten")
    x = case.images()
    target = GatedTarget(case.model, x)
    _, (relu, gelu) = target.features(x)
    case.model.eval()
    with torch.no_grad():
        stem = case.model.stem(x)
        assert torch.equal(relu, F.relu(stem))
        assert torch.equal(gelu, F.gelu(stem))


# --------------------------------------------------------- gated runs written out by hand


def _expand(mask):
    return mask[:, :, None, None].float()


def _reused(model, x, masks):
    x = model.stem(x)
    for block, (first, second) in zip(model.body, (masks[:2], masks[2:]), strict=True):
        out = F.relu(block.bn1(block.conv1(x))) * _expand(first)
        x = F.relu(block.bn2(block.conv2(out)) + x) * _expand(second)
    return model.linear(x.mean((2, 3)))


def _pre_activation(model, x, masks):
    x = F.relu(model.stem(x)) * _expand(masks[0])  # the shortcut sees it too
    out = F.relu(model.body.conv1(x)) * _expand(masks[1])
    return model.linear((model.body.conv2(out) + x).mean((2, 3)))


def _halves(model, x, masks):
    x = model.stem(x)
    x = torch.cat(
        [F.relu(x[:, :3]) * _expand(masks[0]), F.silu(x[:, 3:]) * _expand(masks[1])], dim=1
    )
    return model.linear(model.body.conv(x).mean((2, 3)))


def _overwritten(model, x, masks):
    x = model.stem(x)
    y = F.relu(x) * _expand(masks[0])
    z = model.body.conv(F.gelu(x) * _expand(masks[1]))
    return model.linear(((y + z) / 2).mean((2, 3)))


def _convnext(model, x, masks):
    x, block = model.stem(x), model.body
    y = block.norm(block.depthwise(x).permute(0, 2, 3, 1))
    y = F.gelu(block.up(y)) * masks[0][:, None, None, :].float()
    return model.linear((x + block.down(y).permute(0, 3, 1, 2)).mean((2, 3)))


def _token_mlp(model, x, masks):
    tokens = model.patch(x).flatten(2).transpose(1, 2)
    hidden = F.relu(model.norm(model.up(tokens)) + model.bias) * masks[0][:, None, :].float()
    return model.down(hidden).mean(1)


@pytest.mark.parametrize(
    "name, by_hand",
    [
        ("reused", _reused),
        ("pre-activation", _pre_activation),
        ("halves", _halves),
        ("overwritten", _overwritten),
        ("convnext", _convnext),
        ("token-mlp", _token_mlp),
    ],
)
@pytest.mark.parametrize("tracked", [False, True], ids=["inference", "gradient"])
def test_gated_run_equals_the_network_written_out(make_case, name, by_hand, tracked):
    case = make_case(name)
    x = case.images()
    target = GatedTarget(case.model, x)
    mask = random_mask(target, 3, seed=7)
    case.model.eval()
    with torch.no_grad():
        expected = by_hand(case.model, x, target.sites.split(mask))
        gates = mask.float()
    with torch.set_grad_enabled(tracked):
        logits = target.gated(x, gates.requires_grad_(tracked))
    torch.testing.assert_close(logits.detach(), expected)
    assert not torch.allclose(logits, target(x))


def test_unit_gates_reach_single_positions():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(2, 1, 2, 2)
    target = GatedTarget(net, x, granularity="unit")
    gate = torch.ones(2, 2, 2, 2)
    gate[0, 1, 0, 1] = 0
    with torch.no_grad():
        expected = net[3](net[2](net[1](net[0](x)) * gate))
    torch.testing.assert_close(target.gated(x, [gate]).detach(), expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["conv1d", "mlp", "F.gelu", "F.silu-inplace"])
def test_all_zeros_gates_leave_the_constant_of_the_biases(make_case, name, granularity):
    case = make_case(name)
    target = GatedTarget(case.model, case.images(2), granularity=granularity)
    zeros = torch.zeros(4, target.sites.num_neurons)
    images = torch.cat([case.images(2, seed=1), case.images(2, seed=2)])
    logits = target.gated(images, zeros)
    assert torch.equal(logits, logits[:1].expand(4, -1))
    # What a linear head makes of zeros is its bias.
    if name != "F.gelu" and name != "F.silu-inplace":
        assert torch.equal(logits[0], list(case.model.children())[-1].bias)


def test_closed_gates_hide_what_was_not_a_number():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    target = GatedTarget(net, torch.zeros(2, 3))
    x = torch.tensor([[float("nan"), 1.0, 2.0], [float("inf"), 0.0, 1.0]])
    assert torch.equal(target.gated(x, torch.zeros(1, 4)), net[2].bias.expand(2, -1))


# --------------------------------------------------------- baseline values


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    "name", ["reused", "F.gelu", "F.silu-inplace", "token-mlp", "mlp", "convnext", "conv1d"]
)
def test_baseline_replaces_gated_off_activations(make_case, name, granularity):
    case = make_case(name)
    x = case.images()
    target = GatedTarget(case.model, x, granularity=granularity)
    clean = target(x)
    target.baseline = target.mean_baseline([x[:2], x[2:]])
    observed = {}

    def observe(site, z):
        observed[site] = (z.movedim(-1, 1) if target.sites[site].channel_dim == -1 else z).clone()

    mask = random_mask(target, 3).float()
    plain = target.gated(x, mask, observe=observe)
    tracked = target.gated(x, mask.clone().requires_grad_())
    torch.testing.assert_close(tracked, plain)
    gate = target.sites.gates(mask)[0].reshape(3, *target.sites.mask_shape(0))
    shape = (*gate.shape, *[1] * (observed[0].dim() - gate.dim()))
    _, features = target.features(x)
    value = target.baseline[0].view(1, *shape[1:])
    gate = gate.view(shape)
    torch.testing.assert_close(observed[0], gate * features[0] + (1 - gate) * value)
    assert torch.equal(target.gated(x, torch.ones_like(mask)), clean)
    assert torch.equal(target(x), clean)
    target.baseline = None
    assert not torch.equal(target.gated(x, mask), plain)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_mean_baseline_is_the_mean_over_the_data(make_case, granularity):
    case = make_case("convnext")
    x = case.images(5)
    target = GatedTarget(case.model, x, granularity=granularity)
    _, (feature,) = target.features(x)
    dims = (0,) if granularity == "unit" else (0, 2, 3)
    (mean,) = target.mean_baseline(x.split(2))
    assert mean.shape == target.sites.mask_shape(0)
    torch.testing.assert_close(mean, feature.mean(dims))


def test_baseline_given_at_construction_equals_one_set_later(make_case):
    case = make_case("mlp")
    x = case.images()
    later = GatedTarget(case.model, x)
    later.baseline = later.mean_baseline([x])
    early = GatedTarget(case.model, x, baseline=later.baseline)
    mask = random_mask(early, 3)
    assert torch.equal(early.gated(x, mask), later.gated(x, mask))


# --------------------------------------------------------- layouts, types, surroundings


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["reused", "depthwise", "concat"])
def test_channels_last(make_case, name, granularity):
    case = make_case(name)
    x = case.images()
    target = GatedTarget(case.model, x, granularity=granularity)
    mask = random_mask(target, 3)
    expected = target.gated(x, mask)
    images = x.to(memory_format=torch.channels_last)
    case.model.to(memory_format=torch.channels_last)
    layouts = []
    logits = target.gated(
        images,
        mask,
        observe=lambda _, z: layouts.append(z.is_contiguous(memory_format=torch.channels_last)),
    )
    torch.testing.assert_close(logits, expected)
    assert all(layouts)
    assert torch.equal(target.gated(images, torch.ones_like(mask)), target(images))


def test_double_precision(make_case):
    case = make_case("reused")
    case.model.double()
    x = case.images().double()
    target = GatedTarget(case.model, x)
    mask = random_mask(target, 3)
    logits = target.gated(x, mask.float())
    assert logits.dtype == torch.float64
    assert torch.equal(logits, target.gated(x, mask))


def test_autocast_of_the_target(make_case):
    case = make_case("reused")
    x = case.images()
    target = GatedTarget(case.model, x)
    gates = torch.ones(3, target.sites.num_neurons, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = target.gated(x, gates)
        assert torch.equal(logits, target(x))
    logits.float().sum().backward()
    assert gates.grad.dtype == torch.float32
    assert gates.grad.abs().sum() > 0


def test_inference_mode(make_case):
    case = make_case("overwritten")
    with torch.inference_mode():
        x = case.images()
        target = GatedTarget(case.model, x)
        mask = random_mask(target, 3)
        inside = target.gated(x, mask)
    x = case.images()
    torch.testing.assert_close(target.gated(x, mask.clone()), inside.clone())
    assert target._overwritten == {0}


def test_empty_batch(make_case):
    case = make_case("reused")
    target = GatedTarget(case.model, case.images(2))
    x = case.images(2)[:0]
    logits, features = target.features(x)
    assert logits.shape == (0, 4)
    assert features[0].shape == (0, 6, 8, 8)
    assert target.gated(x, torch.zeros(0, target.sites.num_neurons)).shape == (0, 4)


def test_other_image_sizes_with_channel_granularity(make_case):
    case = make_case("reused")
    target = GatedTarget(case.model, case.images(2))
    x = torch.randn(2, 2, 11, 9)
    ones = torch.ones(1, target.sites.num_neurons)
    assert torch.equal(target.gated(x, ones), target(x))
    assert target.features(x)[1][0].shape == (2, 6, 11, 9)


def test_gates_may_be_of_one_row_for_all_inputs(make_case):
    case = make_case("reused")
    x = case.images()
    for granularity in GRANULARITIES:
        target = GatedTarget(case.model, x, granularity=granularity)
        mask = random_mask(target, 1).float()
        assert torch.equal(target.gated(x, mask), target.gated(x, mask.expand(3, -1)))


def test_observer_sees_what_decides_the_logits(make_case):
    """The gradient to an observed activation is right although the model writes into it later."""
    case = make_case("overwritten")
    x = case.images().requires_grad_()
    target = GatedTarget(case.model, x.detach())
    seen = {}
    ones = torch.ones(3, target.sites.num_neurons)
    logits = target.gated(x, ones, observe=lambda site, z: seen.setdefault(site, z))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), seen[0])
    # y enters as mean((y + z) / 2): each of 64 positions with weight 1 / 128.
    expected = case.model.linear.weight[1].detach() / 128
    torch.testing.assert_close(gradient, expected.view(1, 6, 1, 1).expand_as(gradient))
    assert torch.equal(seen[0].detach(), F.relu(case.model.stem(x)).detach())


def test_observer_of_an_activation_in_place(make_case):
    case = make_case("F.relu_")
    x = case.images().requires_grad_()
    target = GatedTarget(case.model, x.detach())
    seen = []
    ones = torch.ones(3, target.sites.num_neurons)
    logits = target.gated(x, ones, observe=lambda _, z: seen.append(z))
    (gradient,) = torch.autograd.grad(logits.sum(), seen[0])
    assert gradient.abs().sum() > 0


# --------------------------------------------------------- several targets, threads


def test_a_target_may_run_inside_a_run_of_another(make_case):
    outer, inner = make_case("reused"), make_case("F.gelu")
    x = outer.images()
    a, b = GatedTarget(outer.model, x), GatedTarget(inner.model, x)
    expected = b(x)
    mask = random_mask(a, 3)
    plain = a.gated(x, mask)
    results = []
    nested = a.gated(x, mask, observe=lambda *_: results.append(b(x)))
    assert torch.equal(nested, plain)
    assert len(results) == 4
    assert all(torch.equal(result, expected) for result in results)


def test_two_targets_of_one_model_may_be_nested(make_case):
    case = make_case("after-activation")
    case.model.train()
    x = case.images()
    a = GatedTarget(case.model, x)
    b = GatedTarget(case.model, x, sites="body.0")
    expected, mask = a(x), random_mask(a, 3)
    plain = a.gated(x, mask)
    results = []
    found = state(case.model)
    assert torch.equal(a.gated(x, mask, observe=lambda *_: results.append(b(x))), plain)
    assert all(torch.equal(result, expected) for result in results)
    assert_same_state(found, state(case.model))


def test_threads_share_a_target(make_case):
    """Overlapping runs: the first one to end must not put the model back into train mode."""
    case = make_case("after-activation")
    case.model.train()
    x = case.images()
    target = GatedTarget(case.model, x)
    mask = random_mask(target, 3)
    expected = target.gated(x, mask)
    found = state(case.model)
    first_is_inside, first_may_end = threading.Event(), threading.Event()

    def first(*_):
        first_is_inside.set()
        assert first_may_end.wait(20)

    def second(*_):
        first_may_end.set()
        one.result(20)  # the first run has ended; this one goes on

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(target.gated, x, mask, observe=first)
        assert first_is_inside.wait(20)
        two = pool.submit(target.gated, x, mask, observe=second)
        results = one.result(20), two.result(20)
    assert all(torch.equal(result, expected) for result in results)
    assert_same_state(found, state(case.model))


def test_two_targets_run_side_by_side(make_case):
    """What one thread intercepts is no business of the other."""
    cases = [make_case("reused"), make_case("reused-not-inplace")]
    x = cases[0].images()
    targets = [GatedTarget(case.model, x) for case in cases]
    masks = [random_mask(target, 3) for target in targets]
    expected = [target.gated(x, mask) for target, mask in zip(targets, masks, strict=True)]
    both_are_inside = threading.Barrier(2, timeout=20)

    def run(i):
        # Both stop at each of their first two sites until the other has come as far.
        return targets[i].gated(
            x, masks[i], observe=lambda site, _: both_are_inside.wait() if site < 2 else None
        )

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, range(2)))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_copies_are_independent(make_case):
    case = make_case("reused")
    x = case.images()
    target = GatedTarget(case.model, x)
    clone = copy.deepcopy(target)
    with torch.no_grad():
        for parameter in clone.model.parameters():
            parameter.zero_()
    assert torch.equal(clone(x), torch.zeros(3, 4))
    assert not torch.equal(target(x), torch.zeros(3, 4))
    assert clone.fingerprint != target.fingerprint

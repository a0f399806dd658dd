"""GatedTarget: which sites it finds and how it names them; exported and traced models."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from pathways.models import ResNet20, digits_net, vgg
from pathways.target import GatedTarget


def keys(target):
    return [site.key for site in target.sites]


def test_a_reused_relu_has_one_site_per_call(make_case):
    case = make_case("reused")
    target = GatedTarget(case.model, case.images(2))
    assert keys(target) == [f"body.{i}.relu#{call}" for i in (0, 1) for call in (0, 1)]
    assert [site.shape for site in target.sites] == [(6, 8, 8)] * 4
    assert target.num_classes == 4


def test_a_reused_block_counts_on(make_case):
    case = make_case("shared-block")
    target = GatedTarget(case.model, case.images(2))
    assert keys(target) == ["body.block#0", "body.block#1", "body.block#2"]


def test_resnet20_has_a_site_per_relu_call():
    target = GatedTarget(ResNet20(), torch.zeros(2, 3, 32, 32))
    assert len(target.sites) == 19
    assert keys(target)[:3] == ["#0", "layer1.0#0", "layer1.0#1"]
    assert target.sites.num_neurons == 7 * 16 + 6 * 32 + 6 * 64


@pytest.mark.parametrize(
    "name, activation, shape, channel_dim",
    [
        ("F.relu", "relu", (6, 8, 8), 1),
        ("F.relu6-inplace", "relu6", (6, 8, 8), 1),
        ("hardtanh-0-6", "relu6", (6, 8, 8), 1),
        ("conv3d", "relu6", (3, 3, 4, 2), 1),
        ("conv1d", "relu", (5, 9), 1),
        ("mlp", "relu", (9,), 1),
        ("convnext", "gelu", (9, 8, 8), -1),
        ("token-mlp", "relu", (10, 4), -1),
        ("transformer", "gelu", (12, 5), -1),
        ("F.gelu-tanh", "gelu", (6, 8, 8), 1),
        ("F.hardswish-inplace", "hardswish", (6, 8, 8), 1),
        ("torch.celu", "celu", (6, 8, 8), 1),
        ("F.celu_", "celu", (6, 8, 8), 1),
        ("F.selu_", "selu", (6, 8, 8), 1),
        ("F.elu_", "elu", (6, 8, 8), 1),
        ("F.leaky_relu_", "leaky_relu", (6, 8, 8), 1),
        ("F.mish", "mish", (6, 8, 8), 1),
        ("F.prelu", "prelu", (6, 8, 8), 1),
        ("F.silu", "silu", (6, 8, 8), 1),
    ],
)
def test_activation_shape_and_layout(make_case, name, activation, shape, channel_dim):
    case = make_case(name)
    site = GatedTarget(case.model, case.images(2)).sites[0]
    assert (site.activation, site.shape, site.channel_dim) == (activation, shape, channel_dim)


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0, 1), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.PReLU(),
        nn.LeakyReLU(), nn.RReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.Mish(),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_every_activation_module_is_a_site(module):
    net = nn.Sequential(nn.Linear(3, 5), module, nn.Linear(5, 2))
    target = GatedTarget(net, torch.randn(2, 3))
    assert keys(target) == ["1#0"]
    x = torch.randn(4, 3)
    assert torch.equal(target.gated(x, torch.ones(1, 5)), target(x))
    assert torch.equal(target.gated(x, torch.zeros(1, 5)), net[2].bias.expand(4, -1))


def test_a_symmetric_hardtanh_is_no_site():
    net = nn.Sequential(nn.Linear(3, 5), nn.Hardtanh(), nn.Linear(5, 4), nn.ReLU())
    assert keys(GatedTarget(net, torch.randn(2, 3))) == ["3#0"]


def test_units(make_case):
    case = make_case("reused")
    target = GatedTarget(case.model, case.images(2), granularity="unit")
    assert target.sites.sizes == [6 * 8 * 8] * 4
    assert target.sites.mask_shape(0) == (6, 8, 8)


def test_activations_of_something_else_than_inputs_are_no_sites():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 4))
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x):
            x = F.relu(x @ F.relu(self.weight) * F.relu(self.scale))
            return F.gelu(x.unsqueeze(1).expand(-1, 3, -1).flatten(0, 1)).view(-1, 3, 4).sum(1)

    target = GatedTarget(Model(), torch.randn(3, 5))
    assert keys(target) == ["#2"]
    x = torch.randn(2, 5)
    assert torch.equal(target.gated(x, torch.ones(2, 4)), target(x))


def test_batch_folded_into_another_dimension_is_no_site():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)
            self.linear = nn.Linear(3, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            frames = F.relu(self.conv(x.flatten(0, 1))).mean((2, 3))
            hidden = self.linear(frames).view(*x.shape[:2], -1).mean(1)
            return self.head(F.relu(hidden))

    target = GatedTarget(Frames(), torch.randn(2, 4, 1, 5, 5))
    assert keys(target) == ["#1"]


# --------------------------------------------------------- selectors


def test_selectors(make_case):
    case = make_case("reused")
    x = case.images(2)
    for selector, expected in [
        ("body.0.*", ["body.0.relu#0", "body.0.relu#1"]),
        ("*#1", ["body.0.relu#1", "body.1.relu#1"]),
        (["body.1.relu#0", "body.0.relu#0"], ["body.0.relu#0", "body.1.relu#0"]),
        (lambda site: site.call == 0, ["body.0.relu#0", "body.1.relu#0"]),
    ]:
        assert keys(GatedTarget(case.model, x, sites=selector)) == expected


def test_activations_that_were_not_selected_are_not_gated(make_case):
    case = make_case("reused")
    x = case.images()
    every = GatedTarget(case.model, x)
    one = GatedTarget(case.model, x, sites="body.1.relu#0")
    gates = torch.ones(3, 24)
    gates[:, 12:18] = 0
    assert torch.equal(one.gated(x, torch.zeros(1, 6)), every.gated(x, gates))
    assert [feature.shape for feature in one.features(x)[1]] == [(3, 6, 8, 8)]


@pytest.mark.parametrize(
    "selector, message",
    [
        ("layer9.*", r"selector 'layer9\.\*' matches none of the sites body\.0\.relu#0, .*"),
        (["body.*", "nothing"], "selector 'nothing' matches none of the sites"),
        ([], "selector must name at least one site, got none"),
        (lambda site: False, "the selector function accepts none of the sites"),
    ],
)
def test_selector_that_matches_nothing(make_case, selector, message):
    case = make_case("reused")
    with pytest.raises(ValueError, match=message):
        GatedTarget(case.model, case.images(2), sites=selector)


# --------------------------------------------------------- activations of the model's own making


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class SquaredReLU(nn.Module):
    def forward(self, x):
        return F.relu(x) ** 2


class ReLU(nn.Module):
    """Not what its name says."""

    def forward(self, x):
        return torch.tanh(x) - 0.5


@pytest.mark.parametrize("kind", [Swish, SquaredReLU, ReLU])
def test_activation_modules(kind):
    net = nn.Sequential(nn.Linear(3, 5), kind(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 3)
    target = GatedTarget(net, x, activation_modules=[kind])
    assert keys(target) == ["1#0", "3#0"]
    ones = torch.ones(1, 9)
    assert torch.equal(target.gated(x, ones), target(x))
    assert torch.equal(target.gated(x, ones.requires_grad_()), target(x))
    gates = ones.detach().clone()
    gates[0, 2] = 0
    with torch.no_grad():
        hidden = net[1](net[0](x)) * gates[:, :5]
        torch.testing.assert_close(target.gated(x, gates), net[4](net[3](net[2](hidden))))
    assert torch.equal(target.features(x)[1][0], net[1](net[0](x)))
    assert all(not module._forward_hooks for module in net.modules())
    assert all(not module._forward_pre_hooks for module in net.modules())


def test_activation_modules_on_tokens():
    net = nn.Sequential(nn.Linear(3, 5), Swish(), nn.Linear(5, 4))
    target = GatedTarget(
        net, torch.randn(2, 7, 3), activation_modules=[Swish], output_fn=lambda y: y.mean(1)
    )
    assert target.sites[0].shape == (5, 7)
    assert target.sites[0].channel_dim == -1


def test_activation_module_must_return_a_tensor():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return F.relu(self.pair(x)[0])

    model = Model()
    with pytest.raises(TypeError, match="activation_modules must return tensors, Pair returned"):
        GatedTarget(model, torch.randn(2, 3), activation_modules=[Pair])
    assert all(not module._forward_hooks for module in model.modules())


# --------------------------------------------------------- outputs, wrappers


def test_output_fn_picks_the_logits():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            return {"logits": self.linear(F.relu(x)), "loss": None}

    x = torch.randn(2, 3)
    with pytest.raises(TypeError, match=r"must return logits \[N, K\], got dict; pass output_fn"):
        GatedTarget(Model(), x)
    target = GatedTarget(Model(), x, output_fn=lambda output: output["logits"])
    assert target(x).shape == (2, 4)
    with pytest.raises(ValueError, match=r"logits must be \[N, K\], got shape \(2,\)"):
        GatedTarget(Model(), x, output_fn=lambda output: output["logits"].sum(1))


def test_tuples_and_maps_as_output():
    class Model(nn.Module):
        def forward(self, x):
            return F.relu(x), x

    x = torch.randn(2, 3)
    target = GatedTarget(Model(), x, output_fn=lambda output: output[0])
    assert torch.equal(target(x), x.relu())


def test_data_parallel_is_taken_off(make_case):
    case = make_case("reused")
    x = case.images()
    plain = GatedTarget(case.model, x)
    wrapped = GatedTarget(nn.DataParallel(case.model), x)
    assert wrapped.model is case.model
    assert wrapped.sites == plain.sites
    assert wrapped.fingerprint == plain.fingerprint


# --------------------------------------------------------- traced graphs


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(self.relu(x) + F.gelu(x)))


class Blocks(nn.Module):
    """Reused modules, functional calls and tokens, for the tracers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU6())
        self.block = Block()
        self.up = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.block(self.block(self.stem(x)))
        tokens = x.flatten(2).transpose(1, 2)
        return self.head(F.relu(self.up(tokens)).mean(1))


@pytest.fixture
def blocks():
    return Blocks().eval(), torch.randn(3, 1, 6, 6)


def exported(model, x, tmp_path, dynamic=True):
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    return torch.export.load(tmp_path / "model.pt2").module()


def test_exported_program(blocks, tmp_path):
    model, x = blocks
    module = exported(model, x, tmp_path)
    for granularity in ("channel", "unit"):
        eager = GatedTarget(model, x, granularity=granularity)
        target = GatedTarget(module, x, granularity=granularity)
        assert target.sites == eager.sites
        assert keys(target)[:4] == ["stem.2#0", "block.relu#0", "block#0", "block.relu#1"]
        mask = torch.rand(3, target.sites.num_neurons) < 0.5
        torch.testing.assert_close(target(x), eager(x))
        torch.testing.assert_close(target.gated(x, mask), eager.gated(x, mask))
        gates = mask.float().requires_grad_()
        torch.testing.assert_close(target.gated(x, gates), eager.gated(x, mask))
        target.gated(x, gates).sum().backward()
        assert gates.grad.abs().sum() > 0
        ones = torch.ones_like(mask)
        assert torch.equal(target.gated(x, ones), target(x))
        assert torch.equal(target.gated(x[:1], ones[:1]), target(x[:1]))
    assert all(parameter.grad is None for parameter in module.parameters())


def test_exported_program_with_a_fixed_batch(blocks, tmp_path):
    model, x = blocks
    target = GatedTarget(exported(model, x, tmp_path, dynamic=False), x)
    assert torch.equal(target.gated(x, torch.ones(1, target.sites.num_neurons)), target(x))


def test_exported_program_of_every_activation(make_case, tmp_path):
    class Every(nn.Module):
        def __init__(self):
            super().__init__()
            self.prelu = nn.PReLU()
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            for function in (F.silu, F.gelu, F.hardswish, F.mish, F.selu, F.celu, F.relu6):
                x = function(x) + 0.1
            x = F.elu_(F.leaky_relu_(self.prelu(x) - 0.2, 0.3) - 0.1) + 0.3
            return self.linear(F.relu_(x))

    x = torch.randn(3, 5)
    model = Every().eval()
    eager = GatedTarget(model, x)
    target = GatedTarget(exported(model, x, tmp_path), x)
    assert len(target.sites) == 11
    assert target.sites == eager.sites
    mask = torch.rand(3, 55) < 0.8
    torch.testing.assert_close(target.gated(x, mask), eager.gated(x, mask))


def test_model_traced_by_fx(blocks):
    model, x = blocks
    target, eager = GatedTarget(fx.symbolic_trace(model), x), GatedTarget(model, x)
    assert target.sites == eager.sites
    mask = torch.rand(3, target.sites.num_neurons) < 0.5
    assert torch.equal(target.gated(x, mask), eager.gated(x, mask))


def test_traced_part_of_a_model(blocks):
    model, x = blocks
    eager = GatedTarget(model, x).sites
    model.block = fx.symbolic_trace(model.block)
    assert GatedTarget(model, x).sites == eager


# --------------------------------------------------------- fingerprint


def test_fingerprint_follows_weights_buffers_sites_and_baseline_only(make_case):
    case = make_case("after-activation")
    x = case.images(2)
    fingerprint = GatedTarget(case.model, x).fingerprint
    assert len(fingerprint) == 64
    assert set(fingerprint) <= set("0123456789abcdef")
    # the same
    target = GatedTarget(case.model.eval(), case.images(3, seed=9))
    target.features(x), target.gated(x, torch.ones(1, target.sites.num_neurons))
    case.model.requires_grad_(False)
    assert target.fingerprint == fingerprint
    same = make_case("after-activation")
    assert GatedTarget(same.model, x).fingerprint == fingerprint
    # another
    target.baseline = target.mean_baseline([x])
    assert target.fingerprint != fingerprint
    target.baseline = None
    assert target.fingerprint == fingerprint
    assert GatedTarget(case.model, x, granularity="unit").fingerprint != fingerprint
    assert GatedTarget(case.model, x, sites="body.0").fingerprint != fingerprint
    assert GatedTarget(case.model, torch.randn(2, 2, 6, 6)).fingerprint != fingerprint
    for change in (
        lambda model: model.linear.weight.data[0, 0].add_(1e-6),
        lambda model: model.body[1].running_mean[0].add_(1e-6),
        lambda model: model.double(),
    ):
        other = make_case("after-activation")
        change(other.model)
        images = x.to(other.model.linear.weight.dtype)
        assert GatedTarget(other.model, images).fingerprint != fingerprint


def test_fingerprint_of_unusual_state():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("flag", torch.tensor(True))
            self.register_buffer("bfloat16s", torch.ones(3, dtype=torch.bfloat16))
            self.register_buffer("nothing", torch.zeros(0))
            self.register_buffer("slice", torch.arange(12).view(3, 4)[:, ::2])

        def get_extra_state(self):
            return {"anything": object()}

        def set_extra_state(self, state):
            pass

        def forward(self, x):
            return self.linear(F.relu(x))

    torch.manual_seed(0)
    first = GatedTarget(Model(), torch.zeros(2, 3)).fingerprint
    torch.manual_seed(0)
    assert GatedTarget(Model(), torch.zeros(2, 3)).fingerprint == first


def test_repr_and_device():
    target = GatedTarget(digits_net(), torch.zeros(2, 1, 16, 16))
    assert repr(target) == ("GatedTarget(Sequential, 4 sites, 192 channel neurons, 10 classes)")
    assert target.device == torch.device("cpu")
    bare = GatedTarget(nn.Sequential(nn.ReLU()), torch.zeros(2, 3))
    assert bare.device == torch.device("cpu")


# --------------------------------------------------------- the package's own models


def test_vgg_and_digits_net():
    model = vgg(in_channels=3, num_classes=7, widths=(4, 5, 6))
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    target = GatedTarget(model, torch.zeros(2, 3, 16, 16))
    assert target.sites.sizes == [4, 5, 6]
    assert sum(p.numel() for p in vgg().parameters()) == 288_170
    assert sum(p.numel() for p in digits_net().parameters()) < 70_000


def test_resnet20_takes_the_published_parameter_names():
    names = set(ResNet20(num_classes=5).state_dict())
    assert {"conv1.weight", "layer2.0.bn1.running_mean", "linear.bias"} <= names
    assert not any("shortcut" in name for name in names)
    assert sum(p.numel() for p in ResNet20().parameters()) == 269_722

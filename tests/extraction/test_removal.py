"""What is removed: by hand, with constants at borders, and through every kind of operation."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pathways
from pathways import GatedTarget


def small_of(model, example, kept, baseline=None, **options):
    """The extracted network of a mask per site, checked on random images in float64."""
    model = model.double().eval()
    target = GatedTarget(model, example.double(), **options)
    if baseline is not None:
        target.baseline = [torch.tensor(values).double() for values in baseline]
    masks = [torch.tensor(mask).bool() for mask in kept]
    small = pathways.extract(target, masks)
    images = torch.randn(3, *example.shape[1:]).double()
    wanted = target.gated(images.clone(), [mask[None] for mask in masks])
    torch.testing.assert_close(small(images), wanted, rtol=1e-11, atol=1e-11)
    # The second way would hide a mistake in the first.
    assert small.extraction.captured_by == "torch.fx"
    return small


def layers_of(small):
    return {layer.name: (layer.inputs, layer.outputs) for layer in small.extraction.layers}


def ops_of(small):
    return [node for node in small.network.graph.nodes if node.op.startswith("call_")]


def random_(model):
    """Statistics and slopes that are not those of a fresh layer."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.normal_()
                    module.bias.normal_()
    return model


IMAGE = torch.zeros(1, 3, 8, 8)


# ---------------------------------------------------------------------- by hand


def test_linear_by_hand():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
        model[0].bias.copy_(torch.tensor([1.0, 2, 3]))
        model[2].weight.copy_(torch.tensor([[1.0, 10, 100], [2, 20, 200]]))
        model[2].bias.copy_(torch.tensor([0.5, 0.25]))
    target = GatedTarget(model, torch.zeros(1, 2))
    small = pathways.extract(target, torch.tensor([0, 1, 0]))
    state = {name: value.tolist() for name, value in small.state_dict().items()}
    assert state == {
        "network.0.weight": [[3, 4]],
        "network.0.bias": [2],
        "network.2.weight": [[10], [20]],
        "network.2.bias": [0.5, 0.25],
    }
    # Neurons that are off count as 7 and -1: 7 * (1, 2) - 1 * (100, 200) goes into the bias.
    target.baseline = [torch.tensor([7.0, 0, -1])]
    bias = pathways.extract(target, torch.tensor([0, 1, 0])).network.get_parameter("2.bias")
    assert bias.tolist() == [0.5 + 7 - 100, 0.25 + 14 - 200]
    extraction = small.extraction
    assert (extraction.parameters, extraction.parameters_before) == (7, 17)
    assert (extraction.multiplications, extraction.multiplications_before) == (4, 12)
    assert (extraction.channels, extraction.channels_before) == (1, 3)
    assert small.summary().splitlines() == [
        "layer  kind    inputs  outputs  multiplications",
        "0      Linear  2 of 2   1 of 3           33.3 %",
        "2      Linear  1 of 3   2 of 2           33.3 %",
        "channels: 1 of 3 (33.3 %)",
        "parameters: 7 of 17 (41.2 %)",
        "multiplications: 4 of 12 (33.3 %)",
    ]
    assert extraction.to_json()["layers"][0]["outputs_before"] == 3


def test_constants_at_a_border_by_hand():
    """A constant 2 under a kernel of ones, padded: 4, 6 or 9 taps of it, 8, 12 or 18."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1, bias=False), nn.Flatten()
    )
    with torch.no_grad():
        model[2].weight.fill_(1)
        model[0].weight.fill_(1)
        model[0].bias.fill_(0)
    target = GatedTarget(model, torch.zeros(1, 1, 3, 3))
    target.baseline = [torch.tensor([0.0, 2])]
    small = pathways.extract(target, torch.tensor([1, 0]))
    images = torch.zeros(1, 1, 3, 3)
    assert small(images).tolist() == [[8, 12, 8, 12, 18, 12, 8, 12, 8]]
    assert small.network.get_parameter("2.weight").shape == (1, 1, 3, 3)
    # Without padding there is no border: the constant becomes a bias.
    model[2].padding = (0, 0)
    target = GatedTarget(model, torch.zeros(1, 1, 3, 3))
    target.baseline = [torch.tensor([0.0, 2])]
    small = pathways.extract(target, torch.tensor([1, 0]))
    assert small.network.get_parameter("2.bias").tolist() == [18]
    assert len(ops_of(small)) == 4


# ---------------------------------------------------------------------- constants


@pytest.mark.parametrize(
    "padding", [0, 1, (2, 0), "same", "valid"], ids=lambda padding: f"padding {padding}"
)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("kept", [[1, 0, 1, 0], [0, 0, 0, 0]])
def test_norm_after_activation_before_a_padded_convolution(padding, mode, kept):
    """The norm makes beta - mean * gamma / std of every zero, which a border does not continue."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4),
        nn.Conv2d(4, 5, 3, padding=padding, padding_mode=mode), nn.Sigmoid(), nn.Flatten(),
    )  # fmt: skip
    small = small_of(random_(model), IMAGE, [kept])
    bordered = mode == "zeros" and padding not in (0, "valid")
    names = {str(node.target) for node in ops_of(small) if node.op == "call_module"}
    assert ("3_constant" in names) == bordered


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_border_with_stride_dilation_and_groups(stride, dilation):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=2, stride=stride, dilation=dilation, groups=2),
        nn.BatchNorm2d(6), nn.Flatten(),
    )  # fmt: skip
    small_of(random_(model), IMAGE, [[1, 0, 0, 0]], baseline=[[1.0, 2, 3, -4]])


@pytest.mark.parametrize("pool", [
    nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2),
    nn.AvgPool2d(3, padding=1), nn.AvgPool2d(3, padding=1, count_include_pad=False),
    nn.AvgPool2d(2, divisor_override=3), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(3),
    nn.Upsample(scale_factor=2), nn.Upsample(size=(5, 5), mode="bilinear"),
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("baseline", [0.0, 1.5])
def test_pools(pool, baseline):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(4, 2, 3, padding=1), nn.Flatten()
    )
    small = small_of(model, IMAGE, [[0, 1, 1, 0]], baseline=[[baseline] * 4])
    uneven = baseline and (
        (getattr(pool, "padding", 0) and getattr(pool, "count_include_pad", False))
        or getattr(pool, "divisor_override", None)
    )
    # Where a pool makes something uneven of a constant, the channel lives on behind it.
    assert layers_of(small)["3"] == (4 if uneven else 2, 2)
    assert layers_of(small)["0"] == (3, 2)


@pytest.mark.parametrize("baseline", [0.0, -0.7])
def test_activations_and_prelu(baseline):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.PReLU(4), nn.Tanh(), nn.Softplus(), nn.PReLU(),
        nn.Dropout(), nn.Identity(), nn.Hardsigmoid(inplace=True), nn.GELU(), nn.ELU(inplace=True),
        nn.Conv2d(4, 2, 3, padding=1), nn.Flatten(),
    )  # fmt: skip
    with torch.no_grad():
        model[2].weight.uniform_(0.1, 0.9)
    ones = [1] * 4
    small = small_of(
        model, IMAGE, [[1, 1, 0, 1], [0, 1, 1, 1], ones, [1, 0, 1, 1], ones],
        baseline=[[baseline] * 4] * 5,
    )  # fmt: skip
    assert layers_of(small) == {"0": (3, 1), "11": (1, 2)}


# ---------------------------------------------------------------------- layers


def test_depthwise():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.Conv2d(12, 4, 1), nn.Flatten(),
    )  # fmt: skip
    random_(model)
    first, both = [1, 0, 1, 1, 0, 1], [1] * 12
    small = small_of(model, IMAGE, [first, both])
    # Four groups of one channel and two results; what the norm makes of 0 goes into the last bias.
    assert layers_of(small) == {"0": (3, 4), "3": (4, 8), "6": (8, 4)}
    assert small.network.get_submodule("3").groups == 4
    # A group of which no result is kept takes its channel with it.
    second = [1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    small = small_of(model, IMAGE, [first, second])
    assert layers_of(small) == {"0": (3, 3), "3": (3, 6), "6": (6, 4)}
    # Of a group one result is kept: it is computed with two, one of weights 0, and left out.
    second = [1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    small = small_of(model, IMAGE, [first, second])
    assert layers_of(small) == {"0": (3, 3), "3": (3, 5), "6": (5, 4)}
    assert small.network.get_parameter("3.weight").shape == (6, 1, 3, 3)
    assert not small.network.get_parameter("3.weight")[1].any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("baseline", [0.0, 1.0])
def test_grouped_with_groups_of_different_sizes(seed, baseline):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(16, 4, 3, padding=1), nn.Flatten(),
    )  # fmt: skip
    kept = [
        (torch.rand(size, generator=generator) < 0.1 + 0.15 * seed).tolist() for size in (24, 16)
    ]
    small = small_of(model, IMAGE, kept, baseline=[[baseline] * 24, [baseline] * 16])
    if any(kept[0]) and any(kept[1]):
        alive = layers_of(small)["2"]
        assert 0 < alive[1] <= sum(kept[1]) or alive == (0, 0)


def test_one_and_three_dimensions():
    model = random_(nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(4, 5, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(10, 3),
    ))  # fmt: skip
    small = small_of(
        model, torch.zeros(1, 3, 8), [[1, 0, 1, 0], [1, 1, 0, 0, 1]], [[0.5] * 4, [1.0] * 5]
    )
    assert layers_of(small) == {"0": (3, 2), "4": (2, 3), "8": (6, 3)}
    model = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(2),
        nn.Conv3d(4, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2),
    )  # fmt: skip
    small = small_of(model, torch.zeros(1, 2, 4, 4, 4), [[1, 0, 1, 0], [1, 0, 0]])
    assert layers_of(small) == {"0": (2, 2), "4": (2, 1), "7": (8, 2)}


def test_norm_of_linear_features_and_layers_without_affine():
    model = random_(nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.BatchNorm1d(8),
        nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 3),
    ))  # fmt: skip
    small = small_of(model, torch.zeros(1, 6), [[1, 0, 1, 0, 1, 1, 0, 0], [0, 1, 1, 0]])
    assert layers_of(small) == {"0": (6, 4), "4": (4, 2), "6": (2, 3)}
    assert small.network.get_submodule("4").bias is not None


def test_a_reused_layer_becomes_one_per_use():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            x = F.relu(self.conv(x))
            x = F.relu(self.conv(x))
            return self.head(x.mean((2, 3)))

    small = small_of(Twice(), IMAGE, [[1, 0, 1], [0, 1, 1]])
    assert [layer.outputs for layer in small.extraction.layers] == [2, 2, 2]
    assert sum(name.startswith("network.conv") for name in small.state_dict()) == 4
    small = small_of(Twice(), IMAGE, [[1, 1, 1], [1, 1, 1]])
    assert sum(name.startswith("network.conv") for name in small.state_dict()) == 2


def test_unused_results_of_a_shared_map_are_selected():
    """Two layers read the same map; one of them through a site of its own."""

    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3)
            self.one = nn.Conv2d(6, 4, 1)
            self.two = nn.Conv2d(6, 4, 1)

        def forward(self, x):
            x = self.stem(x)
            return (self.one(F.relu(x)) * self.two(F.silu(x))).mean((2, 3))

    small = small_of(Fork(), IMAGE, [[1, 0, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0]])
    assert layers_of(small) == {"stem": (3, 3), "one": (2, 4), "two": (2, 4)}


# ---------------------------------------------------------------------- several tensors


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.head(F.relu(x + y).mean((2, 3)))


def test_residual():
    model = random_(Residual())
    # Channel 0 is read by the sum alone, 1 by the block as well, 3 of the sum comes from y only.
    small = small_of(model, IMAGE, [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
    assert layers_of(small) == {
        "stem": (3, 2), "conv1": (2, 2), "conv2": (2, 2), "head": (2, 2)
    }  # fmt: skip
    functions = [getattr(node.target, "__name__", node.target) for node in ops_of(small)]
    assert "index_add_" in functions  # into the memory of the norm, without a copy
    for baseline in (0.0, 1.25):
        for mask in ([0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]):
            small_of(
                model, IMAGE, [mask, [1, 0, 0, 1], [1, 1, 0, 1]], baseline=[[baseline] * 4] * 3
            )
            small_of(model, IMAGE, [mask, [0] * 4, [1, 1, 0, 1]], baseline=[[baseline] * 4] * 3)


def test_sum_of_two_parts_that_are_both_incomplete():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(3, 5, 3, padding=1)
            self.two = nn.Conv2d(3, 5, 3, padding=1)
            self.conv = nn.Conv2d(5, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(F.relu(self.one(x)) + F.silu(self.two(x))).flatten(1)

    for baseline in (0.0, 0.5):
        small = small_of(
            Sum(), IMAGE, [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]], baseline=[[baseline] * 5] * 2
        )
        assert layers_of(small) == {"one": (3, 2), "two": (3, 2), "conv": (3, 2)}
        small_of(Sum(), IMAGE, [[0] * 5, [0, 1, 1, 0, 0]], baseline=[[baseline] * 5] * 2)
        small_of(Sum(), IMAGE, [[0] * 5, [0] * 5], baseline=[[baseline] * 5] * 2)


class Arithmetic(nn.Module):
    """Numbers, vectors, maps and gates, on either side."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.place = nn.Parameter(torch.randn(1, 4, 8, 8))
        self.field = nn.Parameter(torch.randn(8, 8))
        self.squeeze = nn.Conv2d(4, 4, 1)
        self.next = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        y = 2 * F.relu(self.conv(x)) - 0.5
        y = self.scale * y / 3 + 1
        gate = torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(y, 1)))
        z = y * gate * y.mean(1, keepdim=True)
        z = 1 - (z + self.place) * self.field + y
        return self.next(F.silu(z)).flatten(1)


@pytest.mark.parametrize("baseline", [0.0, 0.25, 0.8])
def test_arithmetic(baseline):
    for first in ([1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]):
        for second in ([0, 1, 1, 0], [0, 0, 0, 0]):
            small = small_of(
                Arithmetic(), IMAGE, [first, second], baseline=[[baseline] * 4, [0.3] * 4]
            )
            if any(second):
                assert layers_of(small)["next"][0] == sum(second)


def test_squeeze_and_excitation_loses_its_gates():
    class Excited(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3)
            self.down = nn.Conv2d(6, 3, 1)
            self.up = nn.Conv2d(3, 6, 1)
            self.conv = nn.Conv2d(6, 2, 3)

        def forward(self, x):
            x = F.silu(self.stem(x))
            gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
            return self.conv(x * gate).mean((2, 3))

    small = small_of(Excited(), IMAGE, [[1, 0, 1, 0, 0, 0], [1, 0, 1]])
    assert layers_of(small) == {
        "stem": (3, 2), "down": (2, 2), "up": (2, 2), "conv": (2, 2)
    }  # fmt: skip


class Concatenated(nn.Module):
    def __init__(self, dim=1):
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(8 if dim == 1 else 4)
        self.conv = nn.Conv2d(8 if dim == 1 else 4, 2, 3, padding=1)
        self.dim = dim

    def forward(self, x):
        x = torch.cat([F.relu(self.one(x)), F.relu6(self.two(x))], self.dim)
        return self.conv(self.norm(x)).flatten(1)


@pytest.mark.parametrize("baseline", [0.0, 0.4])
@pytest.mark.parametrize("dim", [1, 2, -1])
def test_concatenation(dim, baseline):
    model = random_(Concatenated(dim))
    for kept in ([[1, 0, 1, 0], [0, 0, 1, 0]], [[0] * 4, [0, 1, 1, 1]], [[0] * 4] * 2):
        small = small_of(model, IMAGE, kept, baseline=[[baseline] * 4, [0.4] * 4])
        if dim == 1:
            ones = sum(map(sum, kept))
            assert layers_of(small).get("conv", (0, 2)) == (ones, 2)


# ---------------------------------------------------------------------- shapes


class Shapes(nn.Module):
    """Views, permutations, slices and parts, and sizes that are asked for on the way."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.next = nn.Conv2d(6, 4, 1)
        self.linear = nn.Linear(4, 6)
        self.head = nn.Linear(6 * 16, 2)

    def forward(self, x):
        x = F.relu(self.conv(x))
        n, c = x.shape[:2]
        x = x[:, 1:-1, ::2, 1 : x.size(3) - 1 : 2]
        x = F.pad(x, (1, 0, 0, 0))
        one, two = x.chunk(2, 1)
        first, rest = torch.split(one, [1, 2], dim=1)
        x = torch.cat([two, rest, first], 1)
        x = F.silu(self.next(x))
        x = x.permute(0, 2, 3, 1).unsqueeze(1).squeeze(1)
        x = F.gelu(self.linear(x))
        x = x.transpose(1, 3).contiguous()
        x = x.view(n, x.size(1), -1).reshape(n, -1)
        return self.head(x) * (c / 8)


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_shapes(baseline):
    for first in ([1, 1, 0, 1, 0, 0, 1, 0], [0] * 8):
        for second in ([1, 0, 1, 0], [0] * 4):
            for third in ([0, 1, 1, 0, 1, 0], [0] * 6):
                small = small_of(
                    Shapes(), IMAGE, [first, second, third], [[baseline] * 8, [0.0] * 4, [0.1] * 6]
                )
                kept = layers_of(small)
                assert kept["conv"] == ((3, 3) if any(first) and any(second) and any(third)
                                        else (0, 0))  # fmt: skip
                # Constants that are padded with zeros are no longer the same everywhere.
                reached = any(second) and (any(first) or baseline)
                assert kept["head"][0] == (16 * sum(third) if reached else 0)


class MoreShapes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.next = nn.Conv2d(5, 4, 1)
        self.register_buffer("mean", torch.rand(4))
        self.head = nn.Linear(24, 2)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = torch.narrow(x, 1, 1, 5)
        x = self.next(x[..., 2:])[:, :, 0:6:2]
        x = F.interpolate(x, size=(x.shape[2], 2 * x.ndim - 2))
        x = x - self.mean.reshape(1, self.mean.shape[0], 1, 1).to(x.dtype)
        x = x + torch.ones(1, device=x.device, dtype=x.dtype)
        x = x.permute(0, 2, 3, 1)[:, :2, :3].flatten(1)
        return self.head(F.silu(x))


def test_more_shapes_and_a_site_behind_a_view():
    """The site has features: places of channels, some of which are kept."""
    for first in ([0, 1, 0, 0, 1, 1], [0] * 6):
        for second in ([0, 1, 1, 0] * 3 + [0, 1, 0, 0] * 3, [0] * 24):
            small = small_of(MoreShapes(), IMAGE, [first, second], [[0.5] * 6, [0.2] * 24])
            # What is made of ones is not known to be the same in every run.
            assert layers_of(small)["head"][0] == sum(second)
            assert layers_of(small)["conv"][1] == (3 if any(first) and any(second) else 0)


def test_channels_shuffled_in_a_way_that_is_not_followed():
    """Every channel is kept around it; the sites are gated exactly all the same."""

    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.next = nn.Conv2d(6, 6, 3)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            x = F.relu(self.conv(x))
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            x = F.relu(self.next(x))
            return self.head(x.amax(-1).amax(dim=-1))

    small = small_of(
        Shuffled(), IMAGE, [[1, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1]], baseline=[[0.5] * 6] * 2
    )
    assert layers_of(small) == {"conv": (3, 3), "next": (6, 2), "head": (2, 2)}


@pytest.mark.parametrize(
    "layer",
    [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.ConvTranspose2d(4, 4, 2), nn.Softmax2d(),
     nn.LPPool2d(2, 2), nn.LocalResponseNorm(2), nn.ChannelShuffle(2), nn.PixelShuffle(2)],
    ids=repr,
)  # fmt: skip
def test_layers_that_are_not_followed(layer):
    channels = 1 if isinstance(layer, nn.PixelShuffle) else 4
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), layer, nn.Conv2d(channels, 4, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    small = small_of(
        model, IMAGE, [[1, 0, 1, 0], [0, 0, 1, 1]], baseline=[[0.0, 1, 0, -1], [0.5] * 4]
    )
    assert layers_of(small) == {"0": (3, 2), "3": (channels, 2), "7": (2, 2)}


def test_a_pool_over_the_last_dimension_of_tokens_mixes_their_channels():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            x = F.avg_pool1d(F.relu(self.linear(x)), 3, 1, 1)
            return self.head(F.max_pool1d(x, 3, 1, 1).mean(1))

    small_of(Tokens(), torch.zeros(1, 3, 5), [[1, 0, 1, 1, 0, 0, 0, 1]], [[0.5] * 8])


def test_layers_along_another_dimension_than_the_channels():
    class Across(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.rows = nn.Linear(8, 8)
            self.columns = nn.Conv2d(8, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.rows(F.relu(self.conv(x)))  # along the width
            x = self.columns(F.gelu(x).transpose(1, 2)) + x.mean(3, keepdim=True)[:, :4]
            return self.head(x.mean((2, 3)))

    kept = [[1, 0, 1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 0, 1, 1, 1]]
    target = GatedTarget(Across(), IMAGE)
    assert [site.channel_dim for site in target.sites] == [1, -1]
    small_of(Across(), IMAGE, kept, [[0.5] * 8, [0.25] * 8])


def test_a_result_that_is_read_twice_is_not_overwritten():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            y = F.relu(x) + x
            return (x + y + F.silu(y)).mean((2, 3))

    small_of(Twice(), IMAGE, [[1] * 4, [1] * 4])
    small_of(Twice(), IMAGE, [[1, 0, 1, 1], [1, 1, 0, 0]], [[1.0] * 4, [0.5] * 4])


def test_a_module_with_a_hook_stays_whole():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].register_forward_hook(lambda module, args, output: output + 1)
    small = small_of(model, torch.zeros(1, 3), [[1, 0, 0, 1], [1, 1, 0, 0]])
    assert [layer.name for layer in small.extraction.layers] == ["0", "4"]
    assert small.network.get_parameter("2.weight").shape == (4, 4)


def test_weights_that_are_computed_from_parameters_are_folded():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = F.layer_norm(self.weight, self.weight.shape[1:])
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    model = nn.Sequential(
        Standardised(3, 4, 3, padding=1), nn.ReLU(), Standardised(4, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 2, 1), nn.Flatten(),
    )  # fmt: skip
    small = small_of(model, IMAGE, [[1, 0, 1, 0], [1, 1, 1, 0]])
    assert [(layer.inputs, layer.outputs) for layer in small.extraction.layers] == [
        (3, 2), (2, 3), (3, 2)
    ]  # fmt: skip


def test_weights_that_are_read_twice_and_names_that_are_taken():
    """``graph`` is what a GraphModule calls its graph; ``constant`` and ``index`` are ours."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.index = nn.Linear(4, 6)
            self.graph = nn.ModuleDict({"constant": nn.Linear(6, 4, bias=False)})
            self.constant = nn.Linear(4, 2)
            self.code = nn.Parameter(torch.randn(4))

        def forward(self, x):
            y = F.relu(self.index(x))
            x = F.gelu(self.graph.constant(y)) * self.code
            x = x + F.relu(F.linear(x, self.index.weight)) @ self.index.weight
            return self.constant(F.relu(x)) + self.constant.weight.sum()

    masks = [[1, 0, 1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [0, 1, 1, 0]]
    small = small_of(Tied(), torch.zeros(1, 4), masks, [[0.5] * 6, [1.0] * 4, [0.2] * 6, [0.3] * 4])
    names = set(small.state_dict())
    assert {"network.index.weight", "network.model.graph.constant.weight"} <= names
    assert {"network.model.code", "network.constant.bias"} <= names
    torch.jit.script(small)


def test_parametrised_weights():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(2)
    small = small_of(model, torch.zeros(1, 3), [[1, 0, 0, 1]])
    assert layers_of(small) == {"0": (3, 2), "2": (2, 2)}


# ---------------------------------------------------------------------- nothing kept


@pytest.mark.parametrize("empty", range(3))
def test_an_empty_site(empty):
    model = random_(nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2),
    ))  # fmt: skip
    kept = [[1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]]
    kept[empty] = [0] * 4
    for baseline in (0.0, 1.0):
        small = small_of(model, IMAGE, kept, baseline=[[baseline] * 4] * 3)
        logits = small(torch.randn(5, 3, 8, 8).double())
        assert logits.shape == (5, 2)
        assert (logits == logits[0]).all()  # no way leads around an empty site
        assert small(torch.zeros(0, 3, 8, 8).double()).shape == (0, 2)
        first = small.extraction.layers[0]
        assert (first.name, first.outputs, first.multiplications) == ("0", 0, 0)


def test_logits_that_are_a_site_are_filled_in():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU())
    small = small_of(
        model, torch.zeros(1, 3), [[1, 0, 0, 1], [0, 1, 0]], baseline=[[0.0] * 4, [5.0, 6, 7]]
    )
    logits = small(torch.randn(2, 3).double())
    assert logits[:, 0].tolist() == [5, 5] and logits[:, 2].tolist() == [7, 7]

"""The rewritten graph: numbering, exactness, what it shares, what it refuses."""

import functools

import pytest
import torch
from export_nets import IMAGE, NETS, DataControlled, make_target
from torch import nn
from torch.nn import functional as F

from pathways import GatedTarget
from pathways.export import ExportError, gated_graph
from pathways.export.runtime import run_site


def images_of(name, count=3):
    return torch.randn(count, *NETS[name][1])


@functools.cache
def rewritten(name, granularity="channel"):
    target = make_target(name, granularity)
    return target, gated_graph(target)


def site_calls(graph):
    return [node for node in graph.graph.graph.nodes if node.target is run_site]


@pytest.mark.parametrize("granularity", ["channel", "unit"])
@pytest.mark.parametrize("name", NETS)
def test_all_ones_and_features_are_exact(name, granularity):
    target, graph = rewritten(name, granularity)
    images = images_of(name)
    gates = target.sites.gates(torch.ones(3, target.sites.num_neurons))
    logits, features = target.features(images)
    found_logits, found = graph.clean(images)
    assert len(found) == len(features) == len(target.sites)
    pairs = [(graph(images), logits), (graph.gated(images, gates), logits), (found_logits, logits)]
    for one, other in [*pairs, *zip(found, features, strict=True)]:
        if name == "tokens":  # PyTorch's fused attention, which eager targets avoid
            torch.testing.assert_close(one, other)
        else:
            assert torch.equal(one, other)
    assert torch.equal(graph(images), graph.gated(images, gates))
    assert graph.captured_by == ("torch.export" if name == "shape_controlled" else "torch.fx")


@pytest.mark.parametrize("name", NETS)
def test_one_closed_site_at_a_time(name):
    """Only the right gate at the right site gives the eager logits: the numbering is the same."""
    target, graph = rewritten(name)
    images = images_of(name)
    seen = []
    for closed in range(len(target.sites)):
        gates = target.sites.gates(torch.ones(3, target.sites.num_neurons))
        gates[closed][:, closed % 2 :: 2] = 0
        expected = target.gated(images.clone(), gates)
        torch.testing.assert_close(graph.gated(images.clone(), gates), expected)
        seen.append(expected)
    distinct = {tuple(logits.flatten().tolist()) for logits in seen}
    assert len(distinct) == len(seen)


@pytest.mark.parametrize("name", ["preactivation_inplace", "tokens", "squeeze_excitation"])
@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_fractional_gates_and_baseline(name, granularity):
    target = make_target(name, granularity)
    target.baseline = target.mean_baseline([images_of(name, 6)])
    graph = gated_graph(target)
    images = images_of(name)
    gates = target.sites.gates(torch.rand(3, target.sites.num_neurons).round(decimals=1))
    expected = target.gated(images.clone(), gates)
    torch.testing.assert_close(graph.gated(images.clone(), gates), expected)
    differentiable, _ = graph.gated_with_gradient(images.clone(), gates)
    torch.testing.assert_close(differentiable, expected)
    closed = [torch.zeros_like(gate) for gate in gates]
    torch.testing.assert_close(
        graph.gated(images.clone(), closed), target.gated(images.clone(), closed)
    )


@pytest.mark.parametrize("name", ["resnet_reused_inplace", "shape_controlled"])
def test_target_is_left_as_found_and_nothing_is_shared(name):
    target = make_target(name)
    target.model.train()
    next(target.model.parameters()).requires_grad_(False)
    flags = [(m, m.training) for m in target.model.modules()]
    gradients = [p.requires_grad for p in target.model.parameters()]
    values = {key: value.clone() for key, value in target.model.state_dict().items()}
    graph = gated_graph(target)
    assert all(module.training == training for module, training in flags)
    assert gradients == [p.requires_grad for p in target.model.parameters()]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m, _ in flags)
    assert all(torch.equal(values[k], v) for k, v in target.model.state_dict().items())
    own = {p.data_ptr() for p in target.model.state_dict().values()}
    assert not own & {p.data_ptr() for p in graph.state_dict().values()}
    assert not any(p.requires_grad for p in graph.parameters())
    assert not any(m.training for m in graph.modules())


@pytest.mark.parametrize("name", ["resnet_reused_inplace", "shape_controlled"])
def test_parameters_are_there_once(name):
    target, graph = rewritten(name)
    count = sum(p.numel() for p in target.model.parameters())
    assert sum(p.numel() for p in torch.jit.script(graph).parameters()) == count


def test_unselected_activations_stay_as_they_are():
    target = make_target("preactivation_inplace", sites=["act"])
    graph = gated_graph(target)
    assert len(site_calls(graph)) == 1
    images = images_of("preactivation_inplace")
    gates = [torch.rand(3, 8).round()]
    torch.testing.assert_close(
        graph.gated(images.clone(), gates), target.gated(images.clone(), gates)
    )


def test_fused_and_reused_where_nothing_can_tell():
    _, graph = rewritten("resnet_reused_inplace")
    calls = site_calls(graph)
    # (activation, reuse): every ReLU is in place and nobody reads what it overwrites.
    assert [(call.args[8], call.args[10]) for call in calls] == [("relu", True)] * 7
    assert "copy_" not in graph.graph.code


def test_write_back_stays_where_the_overwritten_tensor_is_read():
    _, graph = rewritten("preactivation_inplace")
    assert graph.graph.code.count(".copy_(") == 3


def test_transcendental_activations_are_not_fused():
    """Their compiled forms may differ from torch in the last bit."""
    _, graph = rewritten("squeeze_excitation")
    assert [call.args[8] for call in site_calls(graph)] == ["none", "relu", "none", "none"]


def test_gate_zero_keeps_nan_out():
    target, graph = rewritten("vgg")
    images = images_of("vgg", 1)
    images[0, 0, 0, 0] = float("inf")
    closed = [torch.ones(1, site.channels) for site in target.sites]
    closed[0].zero_()
    for logits in (graph.gated(images, closed), graph.gated_with_gradient(images, closed)[0]):
        assert torch.isfinite(logits).all()


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


def test_activation_modules():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), Swish(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 12 * 12, 5),
    )  # fmt: skip
    target = GatedTarget(net, torch.zeros(1, *IMAGE), activation_modules=[Swish, nn.Tanh])
    graph = gated_graph(target)
    assert len(site_calls(graph)) == 3
    images = torch.randn(3, *IMAGE)
    gates = target.sites.gates(torch.rand(3, target.sites.num_neurons).round())
    torch.testing.assert_close(graph.gated(images, gates), target.gated(images, gates))


class InPlaceInside(nn.Module):
    """An activation module whose own ReLU writes into a tensor that it reads again."""

    def forward(self, x):
        y = F.relu(x + 0.0, inplace=True)
        z = y * 0.5
        return F.relu_(z.sub_(0.1))


def test_activation_calls_inside_activation_modules_are_part_of_them():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), InPlaceInside(), nn.Flatten(), nn.Linear(784, 5))
    target = GatedTarget(net, torch.zeros(1, *IMAGE), activation_modules=[InPlaceInside])
    graph = gated_graph(target)
    (call,) = site_calls(graph)
    assert (call.args[8], call.args[10]) == ("none", False)
    images = torch.randn(3, *IMAGE)
    gates = [torch.tensor([[1.0, 0, 0.5, 1]])]
    torch.testing.assert_close(graph.gated(images, gates), target.gated(images, gates))


class Aliased(nn.Module):
    """Relies on ``+=`` writing into a tensor with two names; torch.fx makes it an addition."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x)
        shortcut = x
        x += 1.0
        return self.head((F.relu(x) + shortcut).mean((2, 3)))


def test_difference_of_the_first_capture_is_noticed():
    target = GatedTarget(Aliased(), torch.zeros(1, *IMAGE))
    graph = gated_graph(target)
    assert graph.captured_by == "torch.export"
    images = torch.randn(3, *IMAGE)
    assert torch.equal(graph(images), target(images))


class ConstantActivation(nn.Module):
    """An activation of a parameter: it leaves no node in a traced graph, but it is counted."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        scale = F.relu(self.scale) + 0.5
        x = F.relu(self.conv(x)) * scale.view(1, -1, 1, 1)
        return self.head(F.leaky_relu(x - 0.2).mean((2, 3)))


def test_activation_of_a_constant_is_counted():
    target = GatedTarget(ConstantActivation(), torch.zeros(1, *IMAGE))
    assert [site.key for site in target.sites] == ["#1", "#2"]
    graph = gated_graph(target)
    images = torch.randn(3, *IMAGE)
    gates = [torch.tensor([[1.0, 0, 1, 1]]), torch.tensor([[0.0, 1, 1, 0]])]
    torch.testing.assert_close(graph.gated(images, gates), target.gated(images, gates))


class Methods(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.weight = nn.Parameter(torch.full((4,), 0.3))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x).relu()
        x = (x - 0.1).relu_()
        x = (x - 0.2).prelu(self.weight)
        F.elu_(x)
        torch.selu_(x)
        F.leaky_relu_(x)
        x = F.relu(input=x - 0.1, inplace=True)
        return self.head(F.relu6(x, True).mean((2, 3)))


def test_every_spelling():
    target = GatedTarget(Methods(), torch.zeros(1, *IMAGE))
    assert len(target.sites) == 8
    graph = gated_graph(target)
    torch.jit.script(graph)
    images = torch.randn(3, *IMAGE)
    ones = [torch.ones(1, 4)] * 8
    assert torch.equal(graph.gated(images, ones), target(images))
    for closed in range(8):
        gates = [torch.ones(1, 4) for _ in range(8)]
        gates[closed][:, 1] = 0
        torch.testing.assert_close(graph.gated(images, gates), target.gated(images, gates))


def test_torch_export_program_as_target(tmp_path):
    """Its operations are ATen overloads, in place ones among them, which TorchScript must find."""
    model = NETS["preactivation_inplace"][0]().eval()
    program = torch.export.export(
        model, (torch.randn(2, *IMAGE),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    target = GatedTarget(loaded, torch.zeros(2, *IMAGE))
    assert len(target.sites) == 3
    graph = gated_graph(target)
    images = torch.randn(3, *IMAGE)
    assert torch.equal(graph(images), target(images))
    for closed in range(3):
        gates = [torch.ones(3, 8) for _ in range(3)]
        gates[closed][:, closed % 2 :: 2] = 0
        torch.testing.assert_close(graph.gated(images, gates), target.gated(images, gates))


class OverwritesInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return F.silu(self.conv(F.relu(x, inplace=True))).mean((2, 3))


def test_input_that_the_model_overwrites_is_kept():
    target = GatedTarget(OverwritesInput(), torch.randn(1, *IMAGE))
    graph = gated_graph(target)
    images = torch.randn(3, *IMAGE)
    kept = images.clone()
    gates = [torch.tensor([[1.0, 0, 1]]), torch.ones(1, 5)]
    expected = target.gated(images, gates)
    torch.testing.assert_close(graph.gated(images, gates), expected)
    assert torch.equal(graph.clean(images)[0], target(images))
    assert torch.equal(images, kept)


def test_control_flow_on_values_is_refused_with_module_and_line():
    net = nn.Sequential(nn.Identity(), DataControlled())
    target = GatedTarget(net, torch.zeros(1, *IMAGE))
    with pytest.raises(ExportError) as caught:
        gated_graph(target)
    sentence = str(caught.value)
    assert sentence.startswith(
        "export: Sequential cannot be rewritten as a graph: torch.fx stopped"
    )
    assert sentence.count("module '1' (DataControlled) at export_nets.py:") == 2
    assert sentence.count("`if x.mean() > 1e6:`") == 2
    assert "\n" not in sentence
    assert not any(module._forward_hooks for module in net.modules())


def unscriptable(x, table):
    return x + table["shift"]


torch.fx.wrap("unscriptable")


class Unscriptable(nn.Module):
    """torch.fx captures it, TorchScript does not take it, and torch.export stops at its branch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = unscriptable(x, {"shift": 1.0, "other": None})
        return self.head(x.mean((2, 3)))


def test_graph_that_does_not_script_falls_back_to_export():
    graph = gated_graph(GatedTarget(Unscriptable(), torch.zeros(1, *IMAGE)))
    assert graph.captured_by == "torch.export"


class FixedBatch(nn.Module):
    """Looks right on one batch size only, and keeps both captures from following."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = unscriptable(F.relu(self.conv(x)), {"shift": 1.0, "other": None})
        rows = [row.mean((1, 2)) for row in x] if x.shape[0] < 10**6 else []
        return self.head(torch.stack(rows))


def test_reasons_of_both_ways_are_named():
    with pytest.raises(
        ExportError, match=r"torch\.fx .*test_rewrite\.py:.*; torch\.export stopped"
    ):
        gated_graph(GatedTarget(FixedBatch(), torch.zeros(1, *IMAGE)))


class Lying(nn.Module):
    """Behaves differently while it is traced; the comparison with the model must notice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        traced = isinstance(x, torch.fx.Proxy) or torch.compiler.is_exporting()
        x = F.relu(self.conv(x)) * (2.0 if traced else 1.0)
        return self.head(x.mean((2, 3)))


class FixedRows(Lying):
    def forward(self, x):
        if isinstance(x, torch.fx.Proxy):
            x = x.reshape(2, 3, 16, 16)
        elif torch.compiler.is_exporting():
            raise RuntimeError("not today")
        return super().forward(x)


def test_graph_of_one_batch_size_is_refused():
    with pytest.raises(ExportError, match=r"fails on another batch size: .*not today"):
        gated_graph(GatedTarget(FixedRows(), torch.zeros(1, *IMAGE)))


def test_graph_that_differs_from_the_model_is_refused():
    with pytest.raises(ExportError, match="other clean logits than the model"):
        gated_graph(GatedTarget(Lying(), torch.zeros(1, *IMAGE)))

"""Models that write into their tensors, and graphs of ``torch.export``."""

import pytest
import torch
from export_nets import IMAGE, NETS, DataControlled, make_target
from torch import fx, nn
from torch.nn import functional as F

import pathways
from pathways import ExtractionError, GatedTarget
from pathways.extraction.calls import CannotFollow, make_functional
from pathways.models import resnet20


def check(model, kept, baseline=0.5):
    target = GatedTarget(model.double().eval(), torch.zeros(1, *IMAGE).double())
    target.baseline = [torch.full((site.channels,), baseline).double() for site in target.sites]
    masks = [torch.tensor(mask).bool() for mask in kept]
    small = pathways.extract(target, masks)
    images = torch.randn(3, *IMAGE).double()
    wanted = target.gated(images.clone(), [mask[None] for mask in masks])
    torch.testing.assert_close(small(images), wanted, rtol=1e-11, atol=1e-11)
    return small


class Net(nn.Module):
    """Two convolutions and a head; what is between them is given."""

    def __init__(self, between):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.next = nn.Conv2d(4, 4, 3)
        self.drop = nn.Dropout()
        self.bounded = nn.Hardsigmoid(inplace=True)
        self.between = between

    def forward(self, x):
        return self.next(self.between(self, self.conv(x))).mean((2, 3))


def overwritten(net, x):
    y = F.relu_(x)
    return x + y


def through_a_dropout(net, x):
    F.relu(net.drop(x), inplace=True)
    return x + 1


def methods(net, x):
    y = F.relu(x) * 2
    y.add_(x).mul_(0.5)
    y.clamp_(min=-0.3)
    return F.leaky_relu_(y) - y


def module(net, x):
    y = net.bounded(F.relu(x))
    return y * x


def functions(net, x):
    y = F.silu(x)
    z = torch.sigmoid_(y) + y
    F.threshold_(z, 0.2, 0.1)
    return F.hardtanh(z, 0.0, 0.9, True) + F.elu(z, 1.0, True) * z


@pytest.mark.parametrize(
    "between",
    [overwritten, through_a_dropout, methods, module, functions],
    ids=lambda f: f.__name__,
)
def test_writes(between):
    sites = len(GatedTarget(Net(between).eval(), torch.zeros(1, *IMAGE)).sites)
    kept = [[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]]
    for baseline in (0.0, 0.5):
        check(Net(between), kept[:sites], baseline)


@pytest.mark.parametrize("name, sites", [
    ("preactivation_inplace", ["act"]), ("preactivation_inplace", ["#1"]),
    ("resnet_reused_inplace", ["*#1"]), ("densenet", ["layers.*"]), ("squeeze_excitation", ["#0"]),
])  # fmt: skip
def test_activations_in_place_that_are_no_sites(name, sites):
    target = make_target(name, sites=sites)
    for share in (0.5, 0.0, 1.0):
        mask = torch.rand(1, target.sites.num_neurons) < share
        images = torch.randn(3, *IMAGE)
        wanted = target.gated(images.clone(), target.sites.gates(mask.float()))
        small = pathways.extract(target, mask)
        torch.testing.assert_close(small(images), wanted, rtol=1e-5, atol=1e-5)
        assert small.extraction.captured_by == "torch.fx"


def test_positional_in_place_arguments_of_activations_that_are_no_sites():
    def positional(net, x):
        F.relu(x, True)
        F.leaky_relu(x, 0.2, True)
        return F.silu(x) * x

    target = GatedTarget(Net(positional).eval(), torch.zeros(1, *IMAGE), sites=["#2"])
    images = torch.randn(3, *IMAGE)
    small = pathways.extract(target, torch.tensor([1, 0, 1, 0]))
    wanted = target.gated(images, [torch.tensor([[1.0, 0, 1, 0]])])
    torch.testing.assert_close(small(images), wanted)


def through_a_view(net, x):
    y = x.flatten(2)
    F.relu_(y)
    return x


def assigned(net, x):
    x = F.relu(x)
    x[:, :1] = 0
    return x


@pytest.mark.parametrize("between, words", [
    (through_a_view, r"writes into memory that conv\w* shares"),
    (assigned, r"setitem assigns to a part of relu|torch.fx stopped"),
], ids=["view", "part"])  # fmt: skip
def test_writes_that_are_not_followed_are_refused(between, words):
    net = Net(between).eval()
    target = GatedTarget(net, torch.zeros(1, *IMAGE))
    with pytest.raises(ExtractionError, match=words) as caught:
        pathways.extract(target, torch.tensor([1, 0, 1, 0]))
    sentence = str(caught.value)
    assert sentence.startswith("extract: Net cannot be made smaller: ")
    assert "; in the graph of torch.export, " in sentence and "\n" not in sentence


def test_write_into_an_argument_out():
    class Out(nn.Module):
        def forward(self, x):
            y = x + 1
            torch.add(x, 1, out=y)
            return y

    with pytest.raises(CannotFollow, match="writes into its argument out"):
        make_functional(fx.symbolic_trace(Out()))


def test_in_place_operators_of_a_graph_are_followed():
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.relu, (x,))
    import operator

    graph.call_function(operator.iadd, (y, 1.0))
    graph.output(y)
    module = fx.GraphModule(nn.Module(), graph)
    make_functional(module)
    module.recompile()
    assert module(torch.tensor([-1.0, 2])).tolist() == [1, 3]


@pytest.mark.parametrize(
    "name", ["vgg", "densenet", "mobilenet", "squeeze_excitation", "norm_after_relu", "resnet20"]
)
def test_program_of_torch_export_as_target(name):
    """Its operations have other names, and parameters of their own."""
    model = (resnet20() if name == "resnet20" else NETS[name][0]()).eval()
    program = torch.export.export(
        model, (torch.randn(2, *IMAGE),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    target = GatedTarget(program.module(), torch.zeros(2, *IMAGE))
    twin = GatedTarget(model, torch.zeros(2, *IMAGE))
    mask = torch.rand(1, target.sites.num_neurons) < 0.5
    small, other = pathways.extract(target, mask), pathways.extract(twin, mask)
    assert small.extraction.parameters == other.extraction.parameters
    assert small.extraction.multiplications == other.extraction.multiplications
    images = torch.randn(3, *IMAGE)
    wanted = target.gated(images, target.sites.gates(mask.float()))
    torch.testing.assert_close(small(images), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(small(images), other(images), rtol=1e-5, atol=1e-5)


def test_control_flow_on_values_is_refused_with_module_and_line():
    target = GatedTarget(nn.Sequential(nn.Identity(), DataControlled()), torch.zeros(1, *IMAGE))
    with pytest.raises(ExtractionError) as caught:
        pathways.extract(target, torch.ones(8))
    sentence = str(caught.value)
    assert sentence.startswith("extract: Sequential cannot be made smaller: torch.fx stopped in ")
    assert sentence.count("module '1' (DataControlled) at export_nets.py:") == 2
    assert "\n" not in sentence


class Lying(nn.Module):
    """Behaves differently while it is traced; the comparison with the gated model must notice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        traced = isinstance(x, torch.fx.Proxy) or torch.compiler.is_exporting()
        x = F.relu(self.conv(x)) * (2.0 if traced else 1.0)
        return self.head(x.mean((2, 3)))


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


def test_a_network_that_differs_is_not_given():
    target = GatedTarget(Lying(), torch.zeros(1, *IMAGE))
    with pytest.raises(
        ExtractionError,
        match=r"torch.fx gave a network that gives other logits than the gated model \(largest",
    ):
        pathways.extract(target, torch.tensor([1, 0, 1, 0]))
    small = check(Aliased(), [[1, 0, 1, 0]])
    assert small.extraction.captured_by == "torch.export"


class FixedRows(nn.Module):
    """A graph for three rows alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        if isinstance(x, torch.fx.Proxy):
            x = x.reshape(3, *IMAGE)
        elif torch.compiler.is_exporting():
            raise RuntimeError("not today")
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def test_a_network_of_one_batch_size_is_not_given():
    target = GatedTarget(FixedRows(), torch.zeros(1, *IMAGE))
    with pytest.raises(ExtractionError, match=r"that fails on a batch of 2: .*not today"):
        pathways.extract(target, torch.tensor([1, 0, 1, 0]))

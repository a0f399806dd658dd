"""GatedTarget: what it refuses, in which words, and that nothing is left behind when it does."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pathways.target import GatedTarget


def hooks(model):
    return sum(
        len(found)
        for module in model.modules()
        for found in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._forward_hooks_always_called,
            module._forward_hooks_with_kwargs,
            module._backward_hooks,
        )
    )


@pytest.fixture
def net():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2),
    )  # fmt: skip


X = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------- models


def test_scripted_and_traced_models(net):
    for scripted in (torch.jit.script(net), torch.jit.trace(net.eval(), X)):
        with pytest.raises(TypeError, match=r"model must be an eager nn\.Module, got the scripted"):
            GatedTarget(scripted, X)
    net[0] = torch.jit.script(net[0])
    with pytest.raises(
        TypeError, match=r"submodule '0' must be an eager nn\.Module, got the script"
    ):
        GatedTarget(net, X)


def test_compiled_models(net):
    with pytest.raises(
        TypeError, match=r"model must be an eager nn\.Module, got a compiled module"
    ):
        GatedTarget(torch.compile(net, backend="eager"), X)
    net[0].compile(backend="eager")
    with pytest.raises(
        TypeError, match=r"submodule '0' must be an eager nn\.Module, got a compiled"
    ):
        GatedTarget(net, X)


def test_compiled_part_and_compiled_wrapper(net):
    net[4] = torch.compile(net[4], backend="eager")
    with pytest.raises(TypeError, match=r"submodule '4' must be .* got a compiled module"):
        GatedTarget(net, X)
    with pytest.raises(TypeError, match=r"submodule '4' must be .* got a compiled module"):
        GatedTarget(nn.DataParallel(net), X)


@pytest.mark.parametrize("model", [lambda x: x, "resnet18", None, nn.ReLU])
def test_not_a_module(model):
    with pytest.raises(TypeError, match=r"GatedTarget: model must be an nn\.Module, got "):
        GatedTarget(model, X)


def test_uninitialised_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.ReLU(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="'3' must have its parameters, got an uninitialised Lazy"):
        GatedTarget(model, X)
    assert model[1].weight.requires_grad
    model(X)
    assert GatedTarget(model, X).num_classes == 2


def test_without_activations():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Sigmoid(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"Sequential must have at least one activation .* found"):
        GatedTarget(model, X)
    assert hooks(model) == 0


def test_unknown_granularity(net):
    with pytest.raises(ValueError, match="granularity must be one of channel, unit, got 'layer'"):
        GatedTarget(net, X, granularity="layer")


@pytest.mark.parametrize("example", [None, [1.0], "image", torch.tensor(1.0)])
def test_example_input(net, example):
    with pytest.raises(TypeError, match="example_input must be a batched tensor, got "):
        GatedTarget(net, example)


# --------------------------------------------------------- gates


@pytest.fixture
def target(net):
    return GatedTarget(net, X)


def test_wrong_shapes(target):
    good = [torch.ones(2, 3), torch.ones(2, 4)]
    for gates, message in [
        (good[:1], r"gates must hold one tensor per site \(2\), got 1"),
        ([*good, good[0]], r"gates must hold one tensor per site \(2\), got 3"),
        ([], r"gates must hold one tensor per site \(2\), got 0"),
        (
            [good[0], torch.ones(2, 3)],
            r"gate of site 5#0 must be \[2, 4\] or \[1, 4\], got \(2, 3\)",
        ),
        (
            [torch.ones(3, 3), good[1]],
            r"gate of site 1#0 must be \[2, 3\] or \[1, 3\], got \(3, 3\)",
        ),
        ([torch.ones(3), good[1]], r"gate of site 1#0 must be .*, got \(3,\)"),
        ([torch.ones(2, 3, 4, 4), good[1]], r"gate of site 1#0 must be .*, got \(2, 3, 4, 4\)"),
        (torch.ones(2, 8), r"last dimension must be 7 neurons, got shape \(2, 8\)"),
        (torch.ones(7), r"gate of site 1#0 must be \[2, 3\] or \[1, 3\], got \(3,\)"),
        (torch.ones(4, 7), r"gate of site 1#0 must be .*, got \(4, 3\)"),
        (torch.tensor(1.0), r"last dimension must be 7 neurons, got shape \(\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            target.gated(X, gates)


def test_wrong_unit_shapes(net):
    target = GatedTarget(net, X, granularity="unit")
    with pytest.raises(ValueError, match=r"site 1#0 must be \[2, 3, 4, 4\] or \[1, 3, 4, 4\], got"):
        target.gated(X, [torch.ones(2, 3), torch.ones(2, 4)])
    with pytest.raises(ValueError, match=r"images must be \[N, 1, 6, 6\] like example_input, got"):
        target.gated(torch.randn(2, 1, 7, 7), torch.ones(2, 52))
    with pytest.raises(ValueError, match=r"images must be \[N, 1, 6, 6\] like example_input, got"):
        target.features(torch.randn(2, 1, 7, 7))


@pytest.mark.parametrize(
    "gate, got",
    [
        (torch.ones(2, 3, dtype=torch.int64), "torch.int64"),
        (torch.ones(2, 3, dtype=torch.uint8), "torch.uint8"),
        (torch.ones(2, 3, dtype=torch.complex64), "torch.complex64"),
        ([[1.0] * 3] * 2, "list"),
        (None, "NoneType"),
    ],
)
def test_wrong_types(target, gate, got):
    message = f"gate of site 1#0 must be a floating or bool tensor, got {got}"
    with pytest.raises(TypeError, match=message):
        target.gated(X, [gate, torch.ones(2, 4)])


def test_wrong_device(target):
    gates = torch.ones(2, 7, device="meta")
    with pytest.raises(ValueError, match=r"same device \(got gate=meta, images=cpu\)"):
        target.gated(X, gates)


@pytest.mark.parametrize("images", [None, [1.0], "x", torch.tensor(1.0)])
def test_images_must_be_a_batch(target, images):
    for run in (target, target.features, lambda x: target.gated(x, torch.ones(2, 7))):
        with pytest.raises(TypeError, match="GatedTarget: images must be a batched tensor, got "):
            run(images)


# --------------------------------------------------------- baseline values


def test_wrong_baseline(target):
    for baseline, message in [
        ([torch.zeros(3)], r"baseline must be a list of one tensor per site \(2\), got 1"),
        ("mean", r"baseline must be a list of one tensor per site \(2\), got str"),
        (torch.zeros(2, 3), r"baseline must be a list of one tensor per site \(2\), got Tensor"),
        ([torch.zeros(3), torch.zeros(5)], r"site 5#0 must have shape \(4,\), got \(5,\)"),
        ([torch.zeros(3, 4, 4), torch.zeros(4)], r"site 1#0 must have shape \(3,\), got"),
    ]:
        with pytest.raises(ValueError, match=message):
            target.baseline = baseline
    assert target.baseline is None
    with pytest.raises(ValueError, match="mean_baseline: expected at least one batch, got none"):
        target.mean_baseline([])


# --------------------------------------------------------- control flow


class DataDependent(nn.Module):
    """Other activations for other images."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.wide, self.narrow = nn.Linear(36, 5), nn.Linear(36, 4)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        x = x.flatten(1)
        if x.sum() < 0:
            return self.head(F.relu(self.wide(x)))
        if self.kind == "more":
            return self.head(F.relu(F.relu(self.wide(x))))
        if self.kind == "fewer":
            return self.head(self.wide(x))
        if self.kind == "other":
            return self.head(F.gelu(self.wide(x)))
        return self.head(F.pad(F.relu(self.narrow(x)), [0, 1]))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("more", "call 1 is relu"),
        ("fewer", "0 activation calls"),
        ("other", "call 0 is gelu"),
        ("channels", r"site #0 has \(2, 4\) activations, not 5 channels of 2 inputs"),
    ],
)
def test_data_dependent_control_flow(kind, message):
    model = DataDependent(kind)
    target = GatedTarget(model, -X.abs())
    model.train()
    runs = (target, target.features, lambda x: target.gated(x, torch.ones(2, 5)))
    for run in runs:
        with pytest.raises(
            RuntimeError, match=f"the same 1 activation calls .*{message}; data-dep"
        ):
            run(X.abs())
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert hooks(model) == 0


def test_activation_of_another_batch_than_the_images():
    """An example of one input does not tell a row of weights from a row of activations."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt = nn.Parameter(torch.randn(1, 3))

        def forward(self, x):
            return x * F.relu(self.prompt)

    target = GatedTarget(Model(), torch.randn(1, 3))
    with pytest.raises(RuntimeError, match=r"has \(1, 3\) activations, not 3 channels of 2 inputs"):
        target.gated(torch.randn(2, 3), torch.ones(2, 3))


class WithoutGradient(nn.Module):
    """A part of the model runs under no_grad or is checkpointed."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)

    def part(self, x):
        return F.relu(self.second(x))

    def forward(self, x):
        x = F.gelu(self.first(x))
        if self.kind == "no_grad":
            with torch.no_grad():
                return self.head(self.part(x))
        if self.kind == "plain":
            return self.head(self.part(x))
        return self.head(checkpoint(self.part, x, use_reentrant=self.kind == "reentrant"))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", ["no_grad", "reentrant", "checkpoint"])
def test_gradients_that_would_be_wrong(kind):
    """Checkpointing runs a part again in the backward pass, where nothing is gated."""
    torch.manual_seed(0)
    model = WithoutGradient(kind)
    x, gates = torch.randn(3, 4), torch.full((3, 11), 0.5)
    target = GatedTarget(model, x)
    message = "no gradient can reach the gate of site #1, the model runs it under torch.no_grad"
    with pytest.raises(RuntimeError, match=message):
        target.gated(x, gates.clone().requires_grad_())
    with pytest.raises(RuntimeError, match=message):
        target.gated(x.clone().requires_grad_(), gates)
    model.kind = "plain"
    expected = target.gated(x, gates)
    model.kind = kind
    torch.testing.assert_close(target.gated(x, gates), expected)  # nothing is recorded
    with torch.no_grad():
        torch.testing.assert_close(target.gated(x, gates.requires_grad_()), expected)


# --------------------------------------------------------- exceptions


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.linear = nn.Linear(3, 2)
        self.fail = False

    def forward(self, x):
        x = self.act(self.linear(x))
        if self.fail:
            raise ArithmeticError("broken on purpose")
        return x


@pytest.mark.parametrize("run", ["clean", "features", "gated", "discovery", "observer", "output"])
def test_everything_is_put_back_after_an_exception(run):
    model = Failing()
    model.act.eval()
    model.linear.bias.requires_grad_(False)
    x = torch.randn(2, 3)
    target = GatedTarget(model, x, output_fn=lambda y: y if run != "output" else y / len(y))

    def found():
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            hooks(model),
        )

    before = found()

    def observe(*_):
        raise ArithmeticError("broken on purpose")

    def fail(*_):
        raise ArithmeticError("broken on purpose")

    if run == "output":
        target.output_fn = fail
    model.fail = run not in ("observer", "output")
    with pytest.raises(ArithmeticError, match="broken on purpose"):
        if run == "clean":
            target(x)
        elif run == "features":
            target.features(x)
        elif run in ("gated", "output"):
            target.gated(x, torch.ones(2, 2))
        elif run == "discovery":
            GatedTarget(model, x)
        else:
            target.gated(x, torch.ones(2, 2), observe=observe)
    assert found() == before
    # Nothing is intercepted any more.
    assert torch.equal(F.relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    assert torch.overrides._get_current_function_mode_stack() == []
    model.fail = False
    target.output_fn = None
    assert torch.equal(target.gated(x, torch.ones(2, 2)), target(x))


def test_wrong_arguments_leave_no_hooks(target, net):
    with pytest.raises(ValueError):
        target.gated(X, torch.ones(2, 9))
    with pytest.raises(RuntimeError):
        target.gated(torch.randn(2, 3, 6, 6), torch.ones(2, 7))
    assert hooks(net) == 0
    assert net.training


def test_a_target_keeps_nothing_alive(net):
    """Neither activations nor the model outlive their users."""
    target = GatedTarget(net, X)
    seen = []
    logits = target.gated(
        X, torch.ones(2, 7).requires_grad_(), observe=lambda _, z: seen.append(weakref.ref(z))
    )
    del logits
    gc.collect()
    assert [reference() for reference in seen] == [None, None]
    model = weakref.ref(net[0])
    target_reference = weakref.ref(target)
    del target
    gc.collect()
    assert target_reference() is None
    assert model() is not None


def test_memory_does_not_grow(target):
    gates = torch.ones(2, 7, requires_grad=True)

    def tensors():
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    target.gated(X, gates), target.features(X), target(X)
    before = tensors()
    for _ in range(5):
        target.gated(X, gates), target.features(X), target(X)
    assert tensors() == before


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.long), TypeError, r"must be floating point .* torch\.int64"),
        (torch.zeros(4), ValueError, r"must have 2 dimensions like example_input, got \(4,\)"),
    ],
)
def test_images_of_another_kind_than_the_example(images, error, message):
    target = GatedTarget(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(1, 4))
    with pytest.raises(error, match=message):
        target(images)

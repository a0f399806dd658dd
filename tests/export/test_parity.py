"""The scripted explainer gives what the eager one gives, on every kind of architecture."""

import pytest
import torch
from export_nets import NETS, make_class_pathways, make_explainer

from pathways.export import ScriptedExplainer

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# These run with TorchScript's optimiser, the default in C++; it compiles for seconds per method.
OPTIMISED = {("vgg", "channel"), ("preactivation_inplace", "unit"), ("tokens", "channel")}
CASES = [(name, "channel") for name in NETS] + [
    (name, "unit")
    for name in ("resnet_reused_inplace", "preactivation_inplace", "convnext", "mlp", "tokens")
]


def images_of(name, count):
    return torch.randn(count, *NETS[name][1], generator=torch.Generator().manual_seed(count))


def repeats():
    """The optimiser runs other code in every call: profiled, then compiled, then as compiled."""
    return range(3 if torch._C._get_graph_executor_optimize() else 1)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request):
    name, granularity = request.param
    explainer = make_explainer(name, granularity)
    class_pathways = make_class_pathways(explainer, images_of(name, 8))
    scripted = torch.jit.script(ScriptedExplainer(explainer, class_pathways=class_pathways))
    with torch.jit.optimized_execution(request.param in OPTIMISED):
        yield name, explainer, class_pathways, scripted


@pytest.mark.parametrize("count", [1, 5])
def test_explanation(case, count):
    name, explainer, _, scripted = case
    images = images_of(name, count)
    expected = explainer(images.clone())
    for _ in repeats():
        logits, gated_logits, importance, words = scripted(images.clone())
        torch.testing.assert_close(logits, expected.logits, **TOLERANCE)
        torch.testing.assert_close(gated_logits, expected.gated_logits, **TOLERANCE)
        torch.testing.assert_close(importance, expected.importance, **TOLERANCE)
        assert torch.equal(words, expected.pathway.words)
    kept = expected.pathway.kept()
    assert kept.min() > 0.05 and kept.max() < 0.95  # else the gated run would prove nothing
    assert not torch.allclose(expected.gated_logits, expected.logits)


def test_importance(case):
    name, explainer, _, scripted = case
    for found, expected in zip(
        scripted.importance(images_of(name, 3)),
        explainer.importance(images_of(name, 3)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_transfer(case):
    name, explainer, class_pathways, scripted = case
    images = images_of(name, 4)
    classes = torch.tensor([3, 0, 1, 0])
    expected = explainer.transfer(images.clone(), class_pathways, classes)
    torch.testing.assert_close(scripted.transfer(images.clone(), classes), expected, **TOLERANCE)


@pytest.mark.parametrize("count", [1, 5])
def test_pathway_gradient(case, count):
    name, explainer, class_pathways, scripted = case
    images = images_of(name, count)
    classes = torch.arange(count) % 5
    stored = class_pathways[1]
    for _ in repeats():
        found = scripted.pathway_gradient(images.clone())
        expected = explainer.pathway_gradient(images.clone())
        torch.testing.assert_close(found, expected, **TOLERANCE)
        found = scripted.pathway_gradient(images.clone(), classes, stored.words)
        expected = explainer.pathway_gradient(images.clone(), stored, classes)
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_grad_cam(case):
    name, explainer, _, scripted = case
    images = images_of(name, 3)
    classes = torch.tensor([0, 1, 2])
    maps = [i for i, site in enumerate(explainer.sites) if len(site.space) == 2]
    if not any(max(site.space, default=1) > 1 for site in explainer.sites) or not maps:
        with pytest.raises(torch.jit.Error, match="must have a site with a 2-D map, got none"):
            scripted.grad_cam(images)
        return
    for site in [None, *maps]:
        expected = explainer.grad_cam(images.clone(), classes=classes, site=site)
        for _ in repeats() if site is None else range(1):
            found = scripted.grad_cam(images.clone(), classes, None, -1 if site is None else site)
            torch.testing.assert_close(found, expected, **TOLERANCE)


def test_gradients_without_grad_mode(case):
    name, explainer, _, scripted = case
    images = images_of(name, 2)
    with torch.no_grad():
        found = scripted.pathway_gradient(images.clone())
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, explainer.pathway_gradient(images.clone()), **TOLERANCE)
    assert all(not parameter.requires_grad for parameter in scripted.parameters())


def test_gradients_are_not_trivially_equal():
    """Some pathways cut every way through a net; most must not, or equality would show nothing."""
    alive = []
    for name in NETS:
        explainer = make_explainer(name)
        alive.append(explainer.pathway_gradient(images_of(name, 5)).abs().max() > 0)
    assert sum(alive) >= len(alive) - 2


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_plain_module_equals_scripted(granularity):
    """The module itself runs in Python as well, as torch.export needs it."""
    explainer = make_explainer("resnet_reused_inplace", granularity)
    images = images_of("resnet_reused_inplace", 4)
    class_pathways = make_class_pathways(explainer, images)
    module = ScriptedExplainer(explainer, class_pathways=class_pathways)
    with torch.jit.optimized_execution(False):
        scripted = torch.jit.script(module)
        words = class_pathways[2].words
        classes = torch.tensor([1, 0, 3, 2])
        for one, other in [
            *zip(module(images), scripted(images), strict=True),
            *zip(module.importance(images), scripted.importance(images), strict=True),
            (module.transfer(images, classes), scripted.transfer(images, classes)),
            (module.pathway_gradient(images), scripted.pathway_gradient(images)),
            (module.grad_cam(images, None, words), scripted.grad_cam(images, None, words)),
            (module.grad_cam(images, classes), scripted.grad_cam(images, classes)),
        ]:
            assert torch.equal(one, other)


def test_plain_module_goes_through_torch_export():
    """One program with a free batch size, as other file formats need it."""
    explainer = make_explainer("vgg")
    module = ScriptedExplainer(explainer)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        module, (images_of("vgg", 2),), dynamic_shapes=(batch,), strict=False
    )
    run = program.module()
    for count in (1, 5):
        images = images_of("vgg", count)
        for one, other in zip(run(images), module(images), strict=True):
            torch.testing.assert_close(one, other)

"""Explainer: explanations, batches, transfer, gradients and Grad-CAM by hand, refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pathways import ClassPathways, Explainer, Explanation, GatedTarget, GenCNP, Pathway
from pathways.export import ScriptedExplainer


def make_net():
    """Two maps and a hidden layer, everything differentiable by hand."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    for layer in (net[2], net[6], net[8]):
        nn.init.normal_(layer.weight, std=0.7)
        nn.init.constant_(layer.bias, 0.3)
    return net


@pytest.fixture
def target():
    return GatedTarget(make_net(), torch.zeros(2, 1, 8, 8))


@pytest.fixture
def explainer(target):
    torch.manual_seed(1)
    generator = GenCNP(target.sites, 3, width=8, min_keep=0.2)
    for head in generator.decoders.heads:  # masks that differ between inputs and neurons
        nn.init.normal_(head.project.weight, std=2.0)
        nn.init.normal_(head.project.bias)
    for adapter in generator.embedders.adapters:
        adapter.norm.momentum = 1.0
    logits, features = target.features(torch.randn(64, 1, 8, 8))
    generator.train()(features, logits)
    return Explainer(target, generator)


@pytest.fixture
def images():
    return torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def pathway(target):
    mask = torch.rand(7, 12, generator=torch.Generator().manual_seed(3)) < 0.7
    return Pathway.from_mask(mask, target.sites, target.fingerprint)


def class_pathways(target, kept=((1, 2), (3,), (5, 6, 7)), fingerprint=None):
    mask = torch.ones(3, 12)
    for c, neurons in enumerate(kept):
        mask[c, list(neurons)] = 0
    pathway = Pathway.from_mask(mask, target.sites, fingerprint or target.fingerprint)
    return ClassPathways.from_pathways(pathway, torch.arange(3), num_classes=3)


# --------------------------------------------------------- explanations


def test_explanation(explainer, target, images):
    e = explainer(images)
    assert isinstance(e, Explanation)
    assert len(e) == 7
    assert torch.equal(e.logits, target(images))
    assert torch.equal(e.predictions, target(images).argmax(1))
    logits, features = target.features(images)
    torch.testing.assert_close(e.importance, explainer.generator(features, logits)[0])
    assert e.importance.shape == (7, 12)
    assert torch.equal(e.pathway.mask().float(), explainer.generator.masks(e.importance))
    assert torch.equal(e.gated_logits, target.gated(images, e.pathway.gates()))
    assert torch.equal(e.gated_predictions, e.gated_logits.argmax(1))
    assert e.pathway.fingerprint == target.fingerprint
    assert not e.logits.requires_grad
    assert not e.importance.requires_grad
    assert len({tuple(row) for row in e.pathway.mask().tolist()}) > 1
    assert explainer.sites is target.sites
    assert not explainer.generator.training


def test_batch_equals_single(explainer, images):
    together = explainer(images)
    for i in range(len(images)):
        alone = explainer(images[i : i + 1])
        torch.testing.assert_close(alone.logits, together.logits[i : i + 1])
        torch.testing.assert_close(alone.importance, together.importance[i : i + 1])
        assert alone.pathway == together.pathway[i]


def test_explain_in_batches(explainer, images):
    expected = explainer(images)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, torch.zeros(7)), batch_size=3
    )
    for found in (
        explainer.explain(images, batch_size=3),
        explainer.explain(images.split(2)),
        explainer.explain(iter(images.split(5))),
        explainer.explain(loader),
    ):
        torch.testing.assert_close(found.importance, expected.importance)
        assert found.pathway == expected.pathway
        torch.testing.assert_close(found.gated_logits, expected.gated_logits)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        explainer.explain(images, batch_size=0)
    with pytest.raises(ValueError, match="expected at least one explanation, got none"):
        explainer.explain([])


def test_no_images(explainer, images):
    e = explainer(images[:0])
    assert (len(e), len(e.pathway)) == (0, 0)
    assert len(explainer.explain(images[:0])) == 0
    assert explainer.pathway_gradient(images[:0]).shape == (0, 1, 8, 8)


def test_inference_mode(explainer, images):
    expected = explainer(images), explainer.pathway_gradient(images), explainer.grad_cam(images)
    with torch.inference_mode():
        e = explainer(images.clone())
        gradient = explainer.pathway_gradient(images.clone())
        cam = explainer.grad_cam(images.clone())
    torch.testing.assert_close(e.importance.clone(), expected[0].importance)
    torch.testing.assert_close(gradient.clone(), expected[1])
    torch.testing.assert_close(cam.clone(), expected[2])


def test_model_is_left_as_found(explainer, target, images):
    target.model.train()
    explainer(images), explainer.pathway_gradient(images), explainer.grad_cam(images)
    for module in target.model.modules():
        assert module.training
        assert not module._forward_hooks
    assert all(p.requires_grad and p.grad is None for p in target.model.parameters())
    assert all(p.grad is None for p in explainer.generator.parameters())
    assert not images.requires_grad


def test_generator_must_fit(target):
    other = GatedTarget(make_net(), torch.zeros(2, 1, 8, 8), sites="1")
    with pytest.raises(
        ValueError, match=r"built for the target's sites Sites\(3 sites.*Sites\(1 s"
    ):
        Explainer(target, GenCNP(other.sites, 3))
    with pytest.raises(ValueError, match="must have 3 classes like the target, got 4"):
        Explainer(target, GenCNP(target.sites, 4))


# --------------------------------------------------------- transfer


def test_transfer_applies_the_pathway_of_the_predicted_class(explainer, target, images):
    classes = class_pathways(target)
    predictions = target(images).argmax(1)
    expected = torch.cat(
        [
            target.gated(images[i : i + 1], classes[int(predictions[i])].gates())
            for i in range(len(images))
        ]
    )
    torch.testing.assert_close(explainer.transfer(images, classes), expected)
    chosen = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    given = explainer.transfer(images, classes, chosen)
    alone = target.gated(images[2:3], classes[2].gates())
    torch.testing.assert_close(given[2:3], alone)


def test_transfer_does_not_run_the_generator(explainer, target, images, monkeypatch):
    monkeypatch.setattr(explainer.generator, "forward", None)
    assert explainer.transfer(images, class_pathways(target)).shape == (7, 3)


def test_transfer_refuses(explainer, target, images):
    classes = class_pathways(target)
    with pytest.raises(ValueError, match=r"must be in \[0, 3\), got 3"):
        explainer.transfer(images, classes, torch.tensor([0, 1, 2, 3, 0, 0, 0]))
    some = ClassPathways.from_pathways(classes.pathway[:2], torch.arange(2), num_classes=3)
    with pytest.raises(ValueError, match="class 2 is empty"):
        explainer.transfer(images, some, torch.full((7,), 2))
    with pytest.raises(ValueError, match=r"must belong to this target .* got one of target other"):
        explainer.transfer(images, class_pathways(target, fingerprint="other"))
    narrow = GatedTarget(target.model, images, sites="1")
    wrong = Pathway.from_mask(torch.ones(3, 3), narrow.sites)
    wrong = ClassPathways.from_pathways(wrong, torch.arange(3))
    with pytest.raises(
        ValueError, match=r"must have the target's sites Sites\(3 sites.*, got Sites"
    ):
        explainer.transfer(images, wrong)


# --------------------------------------------------------- gradients by hand


def by_hand(net, x, mask):
    """The gated run written out, with every intermediate result."""
    a = F.relu(net[0](x)) * mask[:, :3, None, None]
    b = F.relu(net[2](a)) * mask[:, 3:7, None, None]
    c = F.relu(net[6](b.mean((2, 3)))) * mask[:, 7:]
    return a, b, net[8](c)


def test_pathway_gradient(explainer, target, images, pathway):
    x = images.clone().requires_grad_()
    classes = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    _, _, logits = by_hand(target.model, x, pathway.mask().float())
    (expected,) = torch.autograd.grad(logits[torch.arange(7), classes].sum(), x)
    torch.testing.assert_close(explainer.pathway_gradient(images, pathway, classes), expected)
    assert expected.abs().sum() > 0


def test_pathway_gradient_defaults_to_its_own_pathway_and_prediction(explainer, images):
    e = explainer(images)
    expected = explainer.pathway_gradient(images, e.pathway, e.predictions)
    assert torch.equal(explainer.pathway_gradient(images), expected)
    assert torch.equal(explainer.pathway_gradient(images, e.pathway), expected)
    one = explainer.pathway_gradient(images, e.pathway[0])
    torch.testing.assert_close(one[:1], expected[:1])


def test_empty_pathway_has_no_gradient(explainer, target, images):
    nothing = Pathway.from_mask(torch.zeros(1, 12), target.sites)
    assert explainer.pathway_gradient(images, nothing).abs().sum() == 0
    assert explainer.grad_cam(images, nothing).abs().sum() == 0


@pytest.mark.parametrize("site, position", [("1", 0), ("3#0", 1), (0, 0), (1, 1), (None, 1)])
def test_grad_cam(explainer, target, images, pathway, site, position):
    classes = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    x = images.clone().requires_grad_()
    *maps, logits = by_hand(target.model, x, pathway.mask().float())
    z = maps[position]
    (gradient,) = torch.autograd.grad(logits[torch.arange(7), classes].sum(), z)
    cam = (gradient.mean((2, 3), keepdim=True) * z).sum(1, keepdim=True).relu()
    cam = F.interpolate(cam, (8, 8), mode="bilinear", align_corners=False)[:, 0].detach()
    for row in range(7):
        if cam[row].max() > 0:
            cam[row] /= cam[row].max()
    found = explainer.grad_cam(images, pathway, classes, site)
    assert found.shape == (7, 8, 8)
    assert not found.requires_grad
    assert 0 <= found.min() <= found.max() <= 1
    torch.testing.assert_close(found, cam, rtol=1e-4, atol=1e-5)
    assert found.max() > 0.99


def test_grad_cam_of_gated_off_channels_is_empty(explainer, target, images):
    mask = torch.ones(1, 12)
    mask[:, 3:7] = 0
    closed = Pathway.from_mask(mask, target.sites)
    assert explainer.grad_cam(images, closed, site="3").abs().sum() == 0


def test_grad_cam_of_a_site_that_reaches_no_logit():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
            self.first, self.second = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            self.first(self.a(x))
            return self.second(self.b(x)).mean((2, 3))

    x = torch.randn(2, 1, 6, 6)
    target = GatedTarget(Branch(), x)
    explainer = Explainer(target, GenCNP(target.sites, 2, width=8))
    assert explainer.grad_cam(x, site="first").abs().sum() == 0
    assert explainer.grad_cam(x, site="second").shape == (2, 6, 6)


def test_grad_cam_where_the_model_overwrites_its_activation():
    class Adds(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.linear = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)
            self.inplace = inplace

        def forward(self, x):
            z = F.relu(self.conv(x))
            if self.inplace:
                z *= z.detach() + 1
            else:
                z = z * (z.detach() + 1)
            return self.linear(z.mean((2, 3)))

    x = torch.randn(3, 1, 6, 6)
    cams = []
    for inplace in (True, False):
        target = GatedTarget(Adds(inplace), x)
        torch.manual_seed(1)
        explainer = Explainer(target, GenCNP(target.sites, 2, width=8))
        cams.append(explainer.grad_cam(x, classes=torch.tensor([0, 1, 0])))
    torch.testing.assert_close(cams[0], cams[1])
    assert cams[0].max() > 0


def test_grad_cam_of_tokens_and_flat_sites():
    flat = GatedTarget(
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.zeros(2, 4)
    )
    explainer = Explainer(flat, GenCNP(flat.sites, 3, width=8))
    with pytest.raises(ValueError, match="must have a site with a 2-D map, got none"):
        explainer.grad_cam(torch.randn(2, 4))
    assert explainer.pathway_gradient(torch.randn(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("site", ["7", "7#0", 2, -1, 9])
def test_grad_cam_refuses_sites_without_a_map(explainer, images, site):
    with pytest.raises(ValueError, match=r"site must be one with a 2-D map \(1#0, 3#0\), got"):
        explainer.grad_cam(images, site=site)


def test_grad_cam_refuses_unknown_sites(explainer, images):
    with pytest.raises(ValueError, match="'layer9' is not one of the sites 1#0, 3#0, 7#0"):
        explainer.grad_cam(images, site="layer9")


@pytest.mark.parametrize(
    "classes, error, message",
    [
        (torch.tensor([0, 1]), ValueError, r"classes must be int64 of shape \(7,\), got \(2,\)"),
        (torch.zeros(7, 1).long(), ValueError, r"of shape \(7,\), got \(7, 1\)"),
        (torch.full((7,), 3), ValueError, r"classes must be in \[0, 3\), got 3"),
        (torch.full((7,), -1), ValueError, r"classes must be in \[0, 3\), got -1"),
        (torch.zeros(7), TypeError, r"of shape \(7,\), got torch\.float32"),
        ([0] * 7, TypeError, r"of shape \(7,\), got list"),
        (1, TypeError, r"of shape \(7,\), got int"),
    ],
)
def test_classes_are_checked(explainer, images, pathway, classes, error, message):
    for run in (explainer.pathway_gradient, explainer.grad_cam):
        for given in (None, pathway):
            with pytest.raises(error, match=message):
                run(images, given, classes)


def test_pathways_are_checked(explainer, target, images):
    other = Pathway.from_mask(torch.ones(1, 12), target.sites, "another")
    unknown = Pathway.from_mask(torch.ones(1, 12), target.sites)
    units = GatedTarget(target.model, images, granularity="unit").sites
    wrong = Pathway.from_mask(torch.ones(1, units.num_neurons), units)
    rows = Pathway.from_mask(torch.ones(3, 12), target.sites)
    for run in (explainer.pathway_gradient, explainer.grad_cam):
        run(images, unknown)
        with pytest.raises(
            ValueError, match=r"must belong to this target .*got one of target anoth"
        ):
            run(images, other)
        with pytest.raises(ValueError, match=r"must have the target's sites .*unit neurons"):
            run(images, wrong)
        with pytest.raises(ValueError, match=r"must be \[7, 3\] or \[1, 3\], got \(3, 3\)"):
            run(images, rows)


def test_units(images):
    target = GatedTarget(make_net(), images[:2], granularity="unit")
    explainer = Explainer(target, GenCNP(target.sites, 3, width=8))
    e = explainer(images)
    assert e.importance.shape == (7, 3 * 64 + 4 * 16 + 5)
    assert explainer.grad_cam(images).shape == (7, 8, 8)
    assert explainer.transfer(
        images, ClassPathways.from_pathways(e.pathway, torch.arange(7) % 3)
    ).shape == (7, 3)


def test_a_model_that_detaches_has_no_gradient(images):
    class Detaching(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach()

    net = Detaching(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    target = GatedTarget(net, images)
    explainer = Explainer(target, GenCNP(target.sites, 2, width=8).eval())
    for method in (explainer.pathway_gradient, explainer.grad_cam):
        with pytest.raises(ValueError, match="no gradient of the logits reaches the images"):
            method(images)
    scripted = torch.jit.script(ScriptedExplainer(explainer))
    for method in (scripted.pathway_gradient, scripted.grad_cam):
        with pytest.raises(torch.jit.Error, match="no gradient of the logits reaches the images"):
            method(images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_targets_of_another_dtype(images, dtype):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)).to(dtype)
    images = images.to(dtype)
    target = GatedTarget(net, images)
    explainer = Explainer(target, GenCNP(target.sites, 2, width=8).eval())
    explanation = explainer(images)
    assert explanation.importance.dtype == torch.float32
    assert explanation.logits.dtype == explanation.gated_logits.dtype == dtype
    assert explainer.pathway_gradient(images).dtype == dtype
    scripted = torch.jit.script(ScriptedExplainer(explainer))
    logits, gated_logits, importance, _ = scripted(images)
    assert logits.dtype == gated_logits.dtype == dtype
    torch.testing.assert_close(importance, explanation.importance, rtol=0, atol=1e-5)
    assert scripted.pathway_gradient(images).dtype == dtype

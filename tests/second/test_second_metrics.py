"""Our metrics and maps beside those of Quantus and captum, where they mean the same."""

import importlib.util
import warnings

import pytest
import torch
from torch import nn

from pathways import GatedTarget
from pathways.baselines import NeuronIntGrad, NeuronMCT
from pathways.maps import grad_cam, pathway_gradient

SIDE = 12


def need(*packages):
    for name in packages:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; run `make second`")


@pytest.fixture
def quantus():
    need("quantus", "torchmetrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        import quantus
    return quantus


def make_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 36, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    for layer in net:
        if hasattr(layer, "weight"):
            nn.init.normal_(layer.weight, std=2.0 / layer.weight[0].numel() ** 0.5)
    nn.init.constant_(net[5].bias, 1.0)  # no input switches all of these off
    return net.eval()


@pytest.fixture
def images():
    x = torch.rand(20, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    x[:, :, 0, 0] = 0.0  # Quantus calls an image's smallest value black
    return x


@pytest.fixture
def target(images):
    net = make_net()
    with torch.no_grad():  # all classes are near each other, and a few pixels decide
        net[7].bias.sub_(net(images).mean(0))
    return GatedTarget(net, images)


@pytest.fixture
def maps(target, images):
    everything = torch.ones(1, target.sites.num_neurons)
    found = pathway_gradient(target, images, everything).abs().squeeze(1)
    assert all(len(row.unique()) == SIDE * SIDE for row in found)  # equal ones have no order there
    return found


def call(metric, target, images, maps):
    """A Quantus metric of the predicted classes; it takes numpy arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metric(
            model=target.model,
            x_batch=images.numpy(),
            y_batch=target(images).argmax(1).numpy(),
            a_batch=maps.unsqueeze(1).numpy(),
            device="cpu",
            batch_size=len(images),
        )


@pytest.mark.parametrize("pixels", [1, 9, 48])
def test_deletion_is_pixel_flipping(quantus, target, images, maps, pixels):
    from pathways.evaluation.insertion_deletion import deletion

    metric = quantus.PixelFlipping(
        features_in_step=pixels, normalise=False, perturb_baseline="black", disable_warnings=True
    )
    theirs = torch.tensor(call(metric, target, images, maps))
    curve = deletion(target, images, maps, steps=SIDE * SIDE // pixels)
    # Theirs begins after the first step.
    torch.testing.assert_close(curve.probabilities[:, 1:].float(), theirs, rtol=0, atol=1e-5)
    assert curve.probabilities.std(1).min() > 0.01


def test_road_is_quantus_road(quantus, target, images, maps):
    from pathways.evaluation.pixels import pixel_ranks
    from pathways.evaluation.road import PERCENTILES, road

    metric = quantus.ROAD(
        percentages=list(PERCENTILES), noise=0.0, normalise=False, disable_warnings=True
    )
    ours = road(target, images, maps, noise=0.0)
    theirs = call(metric, target, images, maps)
    assert list(theirs) == list(PERCENTILES)
    found = ours.morf_stays.double().mean(0).tolist()
    assert found == pytest.approx(list(theirs.values()))
    assert min(found) < 0.7
    # Least important first: the place in the order is a map that points the other way.
    negative = call(metric, target, images, pixel_ranks(maps).float())
    found = ours.lerf_stays.double().mean(0).tolist()
    assert found == pytest.approx(list(negative.values()))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_imputation_is_quantus_imputation(quantus, share):
    from quantus.functions.perturb_func import noisy_linear_imputation

    from pathways.evaluation.road import impute

    generator = torch.Generator().manual_seed(2)
    image = torch.randn(3, 17, 17, generator=generator)
    pixels = torch.randperm(17 * 17, generator=generator)[: int(share * 17 * 17)].sort().values
    missing = torch.zeros(17 * 17, dtype=torch.bool)
    missing[pixels] = True
    theirs = noisy_linear_imputation(image.double().numpy(), pixels.numpy(), noise=0.0)
    ours = impute(image.unsqueeze(0), missing.view(1, 17, 17), noise=0.0)[0]
    torch.testing.assert_close(ours.double(), torch.from_numpy(theirs), rtol=0, atol=2e-4)


# --------------------------------------------------------- captum


def test_gradient_of_the_whole_network_is_saliency(target, images):
    need("captum")
    from captum.attr import Saliency

    classes = target(images).argmax(1)
    theirs = Saliency(target.model).attribute(images.clone(), classes, abs=False)
    ours = pathway_gradient(target, images, torch.ones(1, target.sites.num_neurons), classes)
    torch.testing.assert_close(ours, theirs)
    assert ours.abs().max() > 0


@pytest.mark.parametrize("layer", [1, 3])
def test_grad_cam_of_the_whole_network_is_captums(target, images, layer):
    need("captum")
    from captum.attr import LayerAttribution, LayerGradCam

    classes = torch.arange(20) % 3
    theirs = LayerGradCam(target.model, target.model[layer]).attribute(
        images, classes, relu_attributions=True
    )
    theirs = LayerAttribution.interpolate(theirs, (SIDE, SIDE), "bilinear").squeeze(1).detach()
    peak = theirs.amax((1, 2), keepdim=True)
    theirs = torch.where(peak > 0, theirs / peak, 0.0)
    everything = torch.ones(1, target.sites.num_neurons)
    ours = grad_cam(target, images, everything, classes, site=str(layer))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (peak > 0).float().mean() > 0.5


def unit_target(images):
    net = make_net()
    for layer in (net[0], net[2], net[5]):  # kinks between no activation and the activation
        nn.init.normal_(layer.bias, std=0.3)
    return GatedTarget(net, images, granularity="unit")


def by_site(target, attribute):
    """What an attribution gives at every site, flat; ``attribute`` takes a module's index."""
    found = [attribute(int(site.name)) for site in target.sites]
    return torch.cat([part.detach().flatten(1) for part in found], dim=1)


def test_contributions_of_units_are_gradient_times_activation(images):
    need("captum")
    from captum.attr import LayerGradientXActivation

    target = unit_target(images)
    classes, net = target(images).argmax(1), target.model
    theirs = by_site(
        target, lambda i: LayerGradientXActivation(net, net[i]).attribute(images, classes)
    )
    _, ours = NeuronMCT(target, kept=0.5).importance(images)
    torch.testing.assert_close(ours, theirs.abs(), rtol=1e-4, atol=1e-6)


def test_integrated_gradients_of_units(images):
    need("captum")
    from captum.attr import IntegratedGradients

    target = unit_target(images)
    classes, net = target(images).argmax(1), target.model
    # From no activation to the activation, in the part of the network above the site. Captum's
    # points are the middles of intervals, ours their ends: both are fine enough to meet.
    theirs = by_site(
        target,
        lambda i: IntegratedGradients(net[i + 1 :]).attribute(
            net[: i + 1](images).detach(), target=classes, n_steps=64, method="riemann_middle"
        ),
    )
    _, ours = NeuronIntGrad(target, steps=64, kept=0.5).importance(images)
    largest = theirs.abs().max()
    assert (ours - theirs.abs()).abs().max() < 0.02 * largest
    # One step is something else.
    _, coarse = NeuronMCT(target, kept=0.5).importance(images)
    assert (coarse - theirs.abs()).abs().max() > 0.1 * largest


@pytest.mark.parametrize("rescale", [False, True])
def test_infidelity_is_captums(target, images, rescale):
    need("captum", "torchmetrics")
    from captum.metrics import infidelity as theirs

    from pathways.evaluation.infidelity import infidelity

    classes = target(images).argmax(1)
    everything = torch.ones(1, target.sites.num_neurons)
    slope = pathway_gradient(target, images, everything, classes)
    generator = torch.Generator().manual_seed(3)

    def perturb(inputs):
        # Captum repeats every input; the same steps as ours, sample by sample.
        assert inputs.shape[0] == images.shape[0]
        step = 0.1 * torch.randn(images.shape, generator=generator)
        return step, inputs - step

    expected = theirs(
        target.model, perturb, images, slope, target=classes, n_perturb_samples=10,
        max_examples_per_batch=len(images), normalize=rescale,
    ).detach()  # fmt: skip
    found = infidelity(target, images, slope, classes, rescale=rescale, seed=3)
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-6)
    assert found.min() > 0


def test_sensitivity_is_captums(target, images):
    need("captum", "torchmetrics")
    from captum.metrics import sensitivity_max as theirs

    from pathways.evaluation.infidelity import sensitivity_max

    classes = target(images).argmax(1)
    everything = torch.ones(1, target.sites.num_neurons)
    generator = torch.Generator().manual_seed(4)

    def explain(inputs):
        return pathway_gradient(target, inputs, everything, classes)

    def as_tuple(inputs):  # captum would take the rows of a tensor for several inputs
        return (explain(inputs[0] if isinstance(inputs, tuple) else inputs),)

    def perturb(inputs):
        return inputs + 0.02 * (2 * torch.rand(images.shape, generator=generator) - 1)

    expected = theirs(
        as_tuple, images, perturb, n_perturb_samples=10, max_examples_per_batch=len(images)
    )
    found = sensitivity_max(explain, images, batch_size=len(images), seed=4)
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-4, atol=1e-6)
    assert found.max() > 0

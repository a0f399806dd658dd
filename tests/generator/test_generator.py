"""GenCNP and its parts: shapes, floors, start, gradients, scripting, files."""

import itertools
import math

import pytest
import torch
from torch import nn

from pathways import GatedTarget, GenCNP, Site, Sites
from pathways.files import read_safetensors, write_safetensors
from pathways.generator import FeatureEmbedders, PathwayDecoders, PathwayDistillation
from pathways.generator.distiller import _reading
from pathways.generator.embedder import summarize
from pathways.generator.gen_cnp import FORMAT_VERSION

# Maps of every rank and odd sizes; a single channel; a single cell.
SHAPES = [(3, 9, 7), (1, 4, 4), (5,), (4, 11), (2, 3, 4, 5), (6, 1, 1), (7, 1, 5)]


def make_sites(shapes, granularity="channel"):
    return Sites([Site(f"s{i}", 0, "relu", shape) for i, shape in enumerate(shapes)], granularity)


def make_features(sites, rows=4, scale=1.0):
    return [torch.randn(rows, *site.shape).relu() * scale for site in sites]


def make_run(sites, classes, rows=4, scale=1.0):
    """What the generator reads of a run: features of all sites and logits."""
    return make_features(sites, rows, scale), torch.randn(rows, classes)


@pytest.fixture(params=["channel", "unit"])
def granularity(request):
    return request.param


@pytest.mark.parametrize("shapes", [SHAPES, *[[shape] for shape in SHAPES], SHAPES[::-1]])
def test_any_number_and_shape_of_sites(shapes, granularity):
    sites = make_sites(shapes, granularity)
    generator = GenCNP(sites, num_classes=3, width=8, heads=2)
    run = make_run(sites, 3)
    for training in (True, False):
        importance, logits = generator.train(training)(*run)
        assert importance.shape == (4, sites.num_neurons)
        assert importance.dtype == torch.float32
        assert logits.shape == (4, 3)
        assert importance.min() > 0
        assert importance.max() < 1
        mask = generator.masks(importance)
        assert mask.shape == importance.shape
        assert set(mask.unique().tolist()) <= {0.0, 1.0}


def test_image_sizes_may_differ_with_channel_granularity():
    sites = make_sites([(3, 8, 8), (5, 4, 4)])
    generator = GenCNP(sites, 2, width=8).eval()
    importance, _ = generator(
        [torch.randn(2, 3, 13, 6), torch.randn(2, 5, 2, 9)], torch.randn(2, 2)
    )
    assert importance.shape == (2, 8)


def test_nearly_everything_starts_on(granularity):
    sites = make_sites(SHAPES, granularity)
    for seed in range(3):
        torch.manual_seed(seed)
        generator = GenCNP(sites, 3, min_keep=0.0)
        importance, _ = generator(*make_run(sites, 3, scale=100.0))
        assert generator.masks(importance).mean() > 0.99
        # Spread, so that the neurons of a chain are not switched off in the same step.
        assert importance.logit().mean().item() == pytest.approx(1.0, abs=0.3)
        assert importance.logit().std().item() > 0.2
        generator.eval()
        importance, _ = generator(*make_run(sites, 3))
        assert generator.masks(importance).mean() > 0.99


def test_results_in_eval_mode_do_not_depend_on_the_batch(granularity):
    sites = make_sites(SHAPES, granularity)
    generator = GenCNP(sites, 3, width=16)
    features, seen = make_run(sites, 3, rows=5)
    generator(features, seen)  # running statistics of their own
    generator.eval()
    with torch.no_grad():
        importance, logits = generator(features, seen)
        for row in range(5):
            one = generator([feature[row : row + 1] for feature in features], seen[row : row + 1])
            torch.testing.assert_close(one[0], importance[row : row + 1])
            torch.testing.assert_close(one[1], logits[row : row + 1])
    none = generator([feature[:0] for feature in features], seen[:0])
    assert none[0].shape == (0, sites.num_neurons)


def test_gradients_reach_all_parameters(granularity):
    sites = make_sites(SHAPES, granularity)
    generator = GenCNP(sites, 3, width=8, layers=2, reads_logits=True)
    importance, logits = generator(*make_run(sites, 3))
    weights = torch.randn_like(importance)
    (generator.masks(importance) * weights).sum().backward(retain_graph=True)
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_masks_alone_train_everything_but_the_auxiliary_head(granularity):
    sites = make_sites([(4, 6, 6), (5,)], granularity)
    generator = GenCNP(sites, 3, width=8)
    importance, _ = generator(*make_run(sites, 3))
    (generator.masks(importance) * torch.randn_like(importance)).sum().backward()
    without = {name for name, p in generator.named_parameters() if p.grad is None}
    assert without == {"distillation.auxiliary.weight", "distillation.auxiliary.bias"}


# --------------------------------------------------------- masks


@pytest.mark.parametrize("min_keep", [0.0, 0.05, 0.07, 0.1, 0.5, 1.0])
def test_floor(min_keep):
    sites = make_sites([(100, 2, 2), (7,), (1,), (30, 1, 1)])
    generator = GenCNP(sites, 2, width=8, min_keep=min_keep)
    expected = [max(1, math.ceil(round(min_keep * 100) * size / 100)) for size in sites.sizes]
    importance = torch.rand(6, sites.num_neurons) * 0.49  # all of it below the threshold
    mask = generator.masks(importance)
    for part, scores, floor in zip(
        sites.split(mask), sites.split(importance), expected, strict=True
    ):
        assert part.sum(1).tolist() == [floor] * 6
        lowest_kept = scores.masked_fill(part == 0, 2.0).amin(1)
        assert (lowest_kept >= scores.masked_fill(part == 1, -1.0).amax(1)).all()


def test_floor_adds_and_never_removes():
    sites = make_sites([(10,), (10,)])
    generator = GenCNP(sites, 2, width=8, min_keep=0.3)
    importance = torch.full((1, 20), 0.1)
    importance[0, :8] = torch.linspace(0.6, 0.9, 8)
    importance[0, 12] = 0.4
    mask = generator.masks(importance)[0]
    assert mask[:10].tolist() == [1.0] * 8 + [0.0] * 2
    assert mask[10:].sum() == 3
    assert mask[12] == 1


def test_masks_are_the_quantiser_with_its_gradient_everywhere():
    sites = make_sites([(4,), (6,)])
    generator = GenCNP(sites, 2, width=8, min_keep=0.5, sigma=1.0, gamma=2.0)
    importance = torch.rand(3, 10, requires_grad=True)
    mask = generator.masks(importance)
    assert torch.equal(mask >= 1, (importance > 0.5) | (mask == 1))
    mask.sum().backward()
    t = torch.minimum(importance, 1 - importance).detach().double()
    kappa = math.exp(-1)
    expected = 2 / (2 * math.sinh(2)) * (
        (torch.exp(-t) + kappa * torch.exp(-(1 - t)))
        / (torch.exp(-t) - kappa * torch.exp(-(1 - t)))
    )  # fmt: skip
    torch.testing.assert_close(importance.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_sigma_and_gamma_reach_the_quantiser():
    sites = make_sites([(6,)])
    importance = torch.rand(2, 6)
    gradients = []
    for sigma, gamma in itertools.product((1.0, 2.0), (2.0, 3.0)):
        generator = GenCNP(sites, 2, width=8, sigma=sigma, gamma=gamma)
        x = importance.clone().requires_grad_()
        generator.masks(x).sum().backward()
        gradients.append(x.grad)
    assert len({tuple(gradient.flatten().tolist()) for gradient in gradients}) == 4


def test_other_quantizers():
    sites = make_sites([(40,)])
    importance = torch.rand(50, 40, requires_grad=True)
    weight = torch.randn(50, 40)
    hard = (importance > 0.5).float()

    straight = GenCNP(sites, 2, min_keep=0.0, quantizer="ste")
    mask = straight.masks(importance)
    assert torch.equal(mask, hard.scatter(1, importance.argmax(1, keepdim=True), 1.0))
    (gradient,) = torch.autograd.grad((weight * mask).sum(), importance)
    assert torch.equal(gradient, weight)

    concrete = GenCNP(sites, 2, min_keep=0.0, quantizer="hard_concrete")
    assert torch.equal(concrete.eval().masks(importance), mask)
    drawn = concrete.train().masks(importance)
    assert drawn.min() == 0
    assert drawn.max() == 1
    assert ((drawn > 0) & (drawn < 1)).any()
    assert not torch.equal(drawn, concrete.masks(importance))
    (gradient,) = torch.autograd.grad(drawn.sum(), importance)
    assert (gradient >= 0).all()
    # On average, and away from the ends, more important neurons are more often on.
    even = torch.full((4000, 2), 0.5).index_fill_(1, torch.tensor([1]), 0.8)
    rates = GenCNP(make_sites([(2,)]), 2, min_keep=0.0, quantizer="hard_concrete").masks(even)
    assert rates[:, 1].mean() > rates[:, 0].mean() + 0.1
    # Exactly 0 where sigmoid(1.5 logit(u)) <= 1/12: u <= 1 / (1 + 11^(2/3)) = .168.
    zeros = (rates[:, 0] == 0).double().mean().item()
    assert zeros == pytest.approx(1 / (1 + 11 ** (2 / 3)), abs=0.03)


@pytest.mark.parametrize("quantizer", ["daq", "ste", "hard_concrete"])
def test_importance_that_is_not_a_number_is_refused(quantizer):
    generator = GenCNP(make_sites([(3,)]), 2, width=8, quantizer=quantizer)
    for scripted in (False, True):
        module = torch.jit.script(generator) if scripted else generator
        with pytest.raises(RuntimeError, match="importance must not contain NaN"):
            module.masks(torch.tensor([[0.2, float("nan"), 0.9]]))


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 2), (2, 3, 1)])
def test_importance_of_another_shape_is_refused(shape):
    generator = GenCNP(make_sites([(3,)]), 2, width=8)
    with pytest.raises(ValueError, match=r"GenCNP: importance must be \[N, 3\], got \["):
        generator.masks(torch.rand(shape))


def test_another_number_of_features_is_refused():
    sites = make_sites([(3,), (4,)])
    generator = GenCNP(sites, 2, width=8)
    features, logits = make_run(sites, 2)
    for wrong in (features[:1], features + features[:1], []):
        with pytest.raises(ValueError, match=rf"one map per site \(2\), got {len(wrong)}"):
            generator(wrong, logits)


@pytest.mark.parametrize("shape", [(4, 3), (1, 2), (5, 2), (4,), (4, 2, 1)])
def test_logits_of_another_shape_are_refused(shape):
    sites = make_sites([(3,), (4,)])
    with pytest.raises(ValueError, match=r"logits must be \[4, 2\], one row per input, got \["):
        GenCNP(sites, 2, width=8)(make_features(sites), torch.randn(shape))


# --------------------------------------------------------- scripting


def test_scripted_generator_gives_the_same(granularity):
    sites = make_sites(SHAPES, granularity)
    generator = GenCNP(sites, 3, width=8, layers=2, min_keep=0.3, start=0.0, reads_logits=True)
    features, seen = make_run(sites, 3)
    generator(features, seen)
    generator.eval()
    scripted = torch.jit.script(generator)
    for rows in (4, 1):
        batch = [feature[:rows] for feature in features]
        with torch.no_grad():
            importance, logits = generator(batch, seen[:rows])
            for _ in range(2):  # the second run is the optimised one
                again = scripted(batch, seen[:rows])
            torch.testing.assert_close(again[0], importance, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(again[1], logits, rtol=1e-5, atol=1e-6)
            assert torch.equal(scripted.masks(importance), generator.masks(importance))


# --------------------------------------------------------- files


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def target():
    torch.manual_seed(0)
    return GatedTarget(Net(), torch.zeros(2, 4))


@pytest.mark.parametrize("settings", [{}, {"reads_logits": True, "activity": False}])
def test_file_round_trip(tmp_path, granularity, settings):
    sites = make_sites(SHAPES, granularity)
    generator = GenCNP(
        sites, 3, width=8, heads=2, pool=3, min_keep=0.2, sigma=1.5, start=1.0, **settings
    )
    run = make_run(sites, 3)
    generator(*run)  # running statistics are saved too
    generator.save(tmp_path / "g.safetensors")
    loaded = GenCNP.load(tmp_path / "g.safetensors")
    assert not loaded.training
    assert loaded.sites == sites
    assert loaded.config == generator.config
    with torch.no_grad():
        expected = generator.eval()(*run)
        found = loaded(*run)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_generator_of_another_target_is_refused(target, tmp_path):
    path = tmp_path / "g.safetensors"
    GenCNP(target.sites, 3, width=8).save(path, target.fingerprint)
    assert GenCNP.load(path, target).sites == target.sites
    other = GatedTarget(Net(), torch.zeros(2, 4))
    with pytest.raises(ValueError) as error:
        GenCNP.load(path, other)
    assert target.fingerprint in str(error.value)
    assert other.fingerprint in str(error.value)
    GenCNP(target.sites, 3, width=8).save(path)
    with pytest.raises(ValueError, match="records no target"):
        GenCNP.load(path, target)


def test_files_that_are_no_generators(target, tmp_path):
    path = tmp_path / "g.safetensors"
    with pytest.raises(FileNotFoundError):
        GenCNP.load(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        GenCNP.load(path)
    generator = GenCNP(target.sites, 3, width=8)
    generator.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="damaged"):
        GenCNP.load(path)
    path.write_bytes(whole[:-4] + b"\x00\x01\x02\x03")
    with pytest.raises(ValueError, match="damaged"):
        GenCNP.load(path)
    write_safetensors(path, {}, kind="pathway", version=1, header={})
    with pytest.raises(ValueError, match="must be a generator file, got a pathway file"):
        GenCNP.load(path)
    write_safetensors(path, generator.state_dict(), kind="generator", version=99, header={})
    with pytest.raises(ValueError, match="format version 3 or older, got 99"):
        GenCNP.load(path)
    write_safetensors(path, generator.state_dict(), kind="generator", version=2, header={})
    with pytest.raises(ValueError, match=r"format version 3, got 2, .* fit it again"):
        GenCNP.load(path)


@pytest.mark.parametrize(
    "header, tensors",
    [
        ({"sites": None}, True),
        ({"sites": "{}"}, True),
        ({"sites": "no json"}, True),
        ({"config": None}, True),
        ({"config": "no json"}, True),
        ({"config": "[]"}, True),
        ({"config": "{}"}, True),
        ({"config": '{"num_classes": 3, "width": 7}'}, True),
        ({"config": '{"num_classes": 3, "width": 8, "depth": 2}'}, True),
        ({"config": '{"num_classes": 4, "width": 8}'}, True),
        ({}, False),
    ],
)
def test_incomplete_generator_files(target, tmp_path, header, tensors):
    path = tmp_path / "g.safetensors"
    generator = GenCNP(target.sites, 3, width=8)
    generator.save(path)
    _, good = read_safetensors(path, kind="generator", version=FORMAT_VERSION)
    header = {key: value for key, value in {**good, **header}.items() if value is not None}
    contents = generator.state_dict() if tensors else {}
    write_safetensors(path, contents, kind="generator", version=FORMAT_VERSION, header=header)
    with pytest.raises(ValueError, match="is not a complete generator file"):
        GenCNP.load(path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"width": 0}, "width must be a positive multiple of heads, got width=0, heads=4"),
        ({"width": 10}, "width must be a positive multiple of heads, got width=10, heads=4"),
        ({"heads": 0}, "width must be a positive multiple of heads, got width=64, heads=0"),
        ({"layers": 0}, "layers and pool must be at least 1, got layers=0, pool=4"),
        ({"pool": 0}, "layers and pool must be at least 1, got layers=1, pool=0"),
        ({"min_keep": -0.1}, r"min_keep must be in \[0, 1\], got -0.1"),
        ({"min_keep": 1.5}, r"min_keep must be in \[0, 1\], got 1.5"),
        ({"min_keep": math.nan}, r"min_keep must be in \[0, 1\], got nan"),
        ({"sigma": 0.0}, "sigma and gamma must be positive, got sigma=0.0, gamma=2.0"),
        ({"quantizer": "round"}, "quantizer must be one of daq, ste, hard_concrete, got 'round'"),
        ({"reads_logits": "no"}, "must be bool, got activity=True, reads_logits='no'"),
        ({"activity": 1}, "must be bool, got activity=1, reads_logits=False"),
        ({"gamma": -1.0}, "sigma and gamma must be positive, got sigma=1.0, gamma=-1.0"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GenCNP(make_sites([(3,)]), **{"num_classes": 2, **settings})


def test_no_sites():
    with pytest.raises(ValueError, match="sites must hold at least one site, got none"):
        GenCNP(Sites([]), 2)


# --------------------------------------------------------- parts


def test_deep_features_reach_shallow_importance_and_the_other_way_round():
    """Class information of deep sites must reach shallow ones, and shallow patterns deep ones."""
    sites = make_sites([(4, 8, 8), (5, 4, 4), (6,)])
    generator = GenCNP(sites, 3, width=16).eval()
    features = [feature.requires_grad_() for feature in make_features(sites, rows=1)]
    importance, logits = generator(features, torch.randn(1, 3))
    for part in [*sites.split(importance), logits]:
        for gradient in torch.autograd.grad(part.std(), features, retain_graph=True):
            assert gradient.abs().sum() > 0


def test_position_reaches_unit_scores_only():
    shape = (2, 8, 8)
    feature = torch.zeros(1, *shape)
    feature[0, 0, 1, 6] = 5.0
    seen = torch.zeros(1, 2)
    unit = GenCNP(make_sites([shape], "unit"), 2, width=8, start=0.0).eval()
    moved = unit([feature.transpose(2, 3)], seen)[0]
    change = (unit([feature], seen)[0] - moved).abs().view(shape)
    assert (change[:, 1, 6] > 5 * change.flatten(1).median(1)[0]).all()
    moved = GenCNP(make_sites([shape]), 2, width=8, pool=1, start=0.0).eval()
    torch.testing.assert_close(moved([feature], seen)[0], moved([feature.roll(3, 2)], seen)[0])


def test_a_run_may_keep_summaries_instead_of_activations(granularity):
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3, stride=2), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(7 * 5 * 5, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    x = torch.randn(4, 2, 14, 14)
    target = GatedTarget(net, x, granularity=granularity)
    generator = GenCNP(target.sites, 3, width=8, pool=3)
    logits, features = target.features(x)
    generator(features, logits)
    generator.eval()
    alone, summaries = target.features(x, reduce=generator.summary)
    assert torch.equal(alone, logits)
    if granularity == "channel":
        shapes = [(4, 10, 3, 3), (4, 14, 3, 3), (4, 12, 1, 1)]
        assert [tuple(summary.shape) for summary in summaries] == shapes
    from_summaries = generator.from_summaries(summaries, alone)
    for found, wanted in zip(from_summaries, generator(features, logits), strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match=r"one map per site \(3\), got 2"):
        generator.from_summaries(summaries[:2], alone)


@pytest.mark.parametrize("pool", [0, 2])
def test_sites_of_one_shape_are_computed_together_but_apart(pool):
    """Each site by the weights of its own, in the order of the sites."""
    shapes = [(3, 4, 4), (3, 8, 8), (5,), (3, 4, 4), (2, 4, 4), (5,)]
    embed = FeatureEmbedders(shapes, 8, pool)
    assert [adapter.sites for adapter in embed.adapters] == [[1], [0, 3], [4], [2, 5]]
    summaries = [summarize(torch.randn(3, *shape), pool) for shape in shapes]
    embed(summaries)
    embed.eval()
    codes, activity, maps = embed(summaries)
    cells = []
    for site, summary in enumerate(summaries):
        (adapter,) = [adapter for adapter in embed.adapters if site in adapter.sites]
        place, width = adapter.sites.index(site), summary.shape[1]
        own = slice(place * width, (place + 1) * width)
        x = nn.functional.batch_norm(
            summary, adapter.norm.running_mean[own], adapter.norm.running_var[own]
        )
        own_activity = x.clamp(-3, 3) if pool == 0 else x.flatten(2).mean(2).clamp(-3, 3)
        torch.testing.assert_close(activity[site], own_activity)
        weight = adapter.weight[place].unsqueeze(2).unsqueeze(3)
        x = nn.functional.gelu(nn.functional.conv2d(x, weight, adapter.bias[place, 0]))
        if pool == 0:
            torch.testing.assert_close(maps[site], x)
        while x.shape[2] > 1:
            x = embed.block(x)
        cells.append(x.flatten(1))
    torch.testing.assert_close(codes, embed._carried(torch.stack(cells)))


def test_maps_that_were_of_one_size_must_stay_so():
    generator = GenCNP(make_sites([(3, 8, 8), (3, 8, 8)]), 2, width=8)
    with pytest.raises(ValueError, match=r"sites 0 and 1 .* one size.*\[4, 4\] and \[3, 3\]"):
        generator([torch.randn(2, 3, 8, 8), torch.randn(2, 3, 3, 3)], torch.randn(2, 2))


def test_codes_and_states_are_those_of_the_recurrences_step_by_step():
    embed = FeatureEmbedders([(3,), (4,), (5,)], 8, pool=2)
    decode = PathwayDecoders([3, 4, 5], 8, False)
    cells = torch.randn(3, 2, 8)
    codes = [embed.norm(cells[0])]
    for cell in cells[1:]:
        codes.append(embed.norm(cell + embed.carry(torch.cat([cell, codes[-1]], dim=1))))
    torch.testing.assert_close(embed._carried(cells), torch.stack(codes, dim=1))
    state = class_code = torch.randn(2, 8)
    deep_first = torch.randn(2, 3, 8)
    for i, found in enumerate(decode._states(deep_first, class_code)):
        state = decode.cell(deep_first[:, i], state)
        torch.testing.assert_close(found, state)


@pytest.mark.parametrize("unit", [False, True])
def test_a_score_is_bias_plus_gain_times_the_neurons_own_activity(unit):
    width, channels = 4, 3
    decode = PathwayDecoders([channels], width, unit, start=1.0)
    (head,) = decode.heads
    place = (2, 5) if unit else ()
    activity = torch.randn(2, channels if unit else 2 * channels, *place)
    other = activity.clone()
    other[:, 1] += 1.0  # of the mean only, where there are mean and maximum
    codes, class_code = torch.randn(2, 1, width), torch.randn(2, width)
    maps = [torch.zeros(2, width, *place)] if unit else []
    (scores,) = decode(codes, class_code, [activity], maps)
    (others,) = decode(codes, class_code, [other], maps)
    change = (others - scores).view(2, channels, *place)
    assert change[:, [0, 2]].abs().max() == 0
    state = decode._states(codes, class_code)[0]
    if not unit:
        torch.testing.assert_close(change[:, 1], head.gain(state)[:, 1])
        mean, maximum = (activity * head.gain(state)).view(2, 2, channels).unbind(1)
        torch.testing.assert_close(scores, head.project(state) + mean + maximum)
    else:
        grown = state.view(2, width, 1, 1)
        for _ in range(3):  # 1 -> 2 -> 4 -> 8 covers 2 x 5
            grown = decode.growth(grown)
        grown = nn.functional.interpolate(grown, size=place, mode="bilinear", align_corners=False)
        torch.testing.assert_close(change[:, 1], head.gain(grown)[:, 1])


@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_without_activity_only_the_codes_count(granularity):
    torch.manual_seed(0)
    sites = make_sites([(3, 4, 4), (5,)], granularity)
    run = [torch.randn(2, 3, 4, 4), torch.randn(2, 5)], torch.randn(2, 2)
    with_it = GenCNP(sites, 2, width=8).eval()
    without = GenCNP(sites, 2, width=8, activity=False).eval()
    without.load_state_dict(with_it.state_dict())
    assert not torch.equal(with_it(*run)[0], without(*run)[0])
    for head in with_it.decoders.heads:
        nn.init.zeros_(head.gain.weight)
        nn.init.zeros_(head.gain.bias)
    assert torch.equal(with_it(*run)[0], without(*run)[0])
    scripted = torch.jit.script(without)
    torch.testing.assert_close(scripted(*run)[0], without(*run)[0])


def test_reading_by_hand():
    """Log-probabilities, cut at e**-10 and divided by five, and the winner's one-hot."""
    found = _reading(torch.tensor([[0.0, math.log(3.0), -50.0]]))
    expected = [math.log(0.25) / 5, math.log(0.75) / 5, -2.0, 0.0, 1.0, 0.0]
    torch.testing.assert_close(found, torch.tensor([expected]))
    shifted = _reading(torch.tensor([[100.0, 100.0 + math.log(3.0), 50.0]]))
    torch.testing.assert_close(shifted, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "logits",
    [
        torch.tensor([[0.010, 0.0100000005, 0.0]]),
        torch.tensor([[10.0, 10.0000001, -5.0]], dtype=torch.float64),
    ],
)
def test_the_winner_is_the_targets_prediction_however_close(logits):
    assert logits.argmax(1).item() == 1
    assert _reading(logits)[0, 3:].tolist() == [0.0, 1.0, 0.0]


def test_reading_in_other_precisions_and_out_of_range():
    half = torch.tensor([[0.5, 0.1, -5.0]], dtype=torch.float16)
    assert torch.equal(_reading(half), _reading(half.float()))
    for certain in ([math.inf, 0.0, -math.inf], [3e38, -3e38, 0.0]):
        assert _reading(torch.tensor([certain])).tolist() == [[0.0, -2.0, -2.0, 1.0, 0.0, 0.0]]
    double = torch.tensor([[1e300, 0.0, -1e300]], dtype=torch.float64)
    assert _reading(double).tolist() == [[0.0, -2.0, -2.0, 1.0, 0.0, 0.0]]


def test_scores_follow_the_logits(granularity):
    sites = make_sites([(3, 4, 4), (5,)], granularity)
    generator = GenCNP(sites, 3, width=8, reads_logits=True).eval()
    features = make_features(sites, rows=1)

    def scores(*logits):
        return generator(features, torch.tensor([logits]))[0]

    close = scores(0.01, 0.0, -5.0)
    assert (scores(0.0, 0.01, -5.0) - close).abs().max() > 1e-3
    assert (scores(3.0, 0.0, -5.0) - close).abs().max() > 1e-3


def test_logits_are_read_by_the_class_query_alone():
    """Codes of sites meet it in the attention only."""
    distill = PathwayDistillation(2, 8, 3, layers=1, heads=2, reads_logits=True)
    codes, seen = torch.randn(1, 2, 8), []
    handle = distill.encoder[0].register_forward_pre_hook(lambda _, tokens: seen.append(tokens[0]))
    distill(codes, torch.tensor([[1.0, 0.0, 0.0]]))
    distill(codes, torch.tensor([[0.0, 0.0, 4.0]]))
    handle.remove()
    assert torch.equal(seen[0][:, 1:], seen[1][:, 1:])
    assert not torch.equal(seen[0][:, 0], seen[1][:, 0])


def test_logits_that_are_not_read_do_not_count(granularity):
    sites = make_sites([(3, 4, 4), (5,)], granularity)
    features, logits = make_run(sites, 3)
    without = GenCNP(sites, 3, width=8).eval()
    found = without(features, logits)[0]
    assert torch.equal(found, without(features, logits.flip(1))[0])
    with_it = GenCNP(sites, 3, width=8, reads_logits=True).eval()
    with_it.load_state_dict(without.state_dict(), strict=False)
    nn.init.zeros_(with_it.distillation.reading.weight)
    nn.init.zeros_(with_it.distillation.reading.bias)
    torch.testing.assert_close(with_it(features, logits)[0], found)
    for generator in (with_it, without):
        scripted = torch.jit.script(generator)(features, logits)[0]
        torch.testing.assert_close(scripted, generator(features, logits)[0])


def test_parts_stand_alone():
    shapes = [(3, 9, 5), (4,)]
    features = [torch.randn(2, *shape) for shape in shapes]
    summaries = [summarize(feature, pool=2) for feature in features]
    assert [tuple(summary.shape) for summary in summaries] == [(2, 6, 2, 2), (2, 8, 1, 1)]
    features_of_units = [summarize(feature, 0) for feature in features]
    codes, activity, maps = FeatureEmbedders(shapes, width=8, pool=0)(features_of_units)
    assert codes.shape == (2, 2, 8)
    assert [tuple(own.shape) for own in activity] == [(2, 3, 9, 5), (2, 4, 1, 1)]
    assert [tuple(m.shape) for m in maps] == [(2, 8, 9, 5), (2, 8, 1, 1)]
    codes, activity, maps = FeatureEmbedders(shapes, width=8, pool=2)(summaries)
    assert [tuple(own.shape) for own in activity] == [(2, 6), (2, 8)]
    assert maps == []
    distill = PathwayDistillation(2, 8, 5, layers=1, heads=2)
    codes, class_code, logits = distill(codes, torch.randn(2, 5))
    assert (codes.shape, class_code.shape, logits.shape) == ((2, 2, 8), (2, 8), (2, 5))
    decode = PathwayDecoders([3, 4], 8, unit=False, start=7.0)
    scores = decode(codes, class_code, activity, maps)
    assert [tuple(score.shape) for score in scores] == [(2, 3), (2, 4)]
    assert 3 < torch.cat(scores, 1).min() < torch.cat(scores, 1).max() < 11
    negative = PathwayDecoders([3, 4], 8, unit=True, start=-7.0)
    assert -11 < negative.heads[0].project.bias.min() < negative.heads[0].project.bias.max() < -3

"""One method at several sizes: names, sizes, and rankings that are made once."""

import pytest
import torch
from baseline_networks import Residual

from pathways.baselines import (
    ClassAgnosticMask,
    EffectivePath,
    GeneratorRanking,
    GreedyPruning,
    NeuronMCT,
    RandomPathway,
)
from pathways.baselines.registry import BaselineContext, make_sizes
from pathways.baselines.scored import ScoredMethod, site_floors
from pathways.explainer import Explainer
from pathways.generator import GenCNP
from pathways.sites import Site, Sites
from pathways.target import GatedTarget


@pytest.fixture(scope="module")
def context():
    torch.manual_seed(0)
    target = GatedTarget(Residual(), torch.zeros(1, 1, 5, 5))
    generator = GenCNP(target.sites, num_classes=3, width=8, min_keep=0.2)
    with torch.no_grad():  # pathways that differ by input and by site
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter))
    return BaselineContext(Explainer(target, generator), torch.randn(8, 1, 5, 5), seed=3)


def test_rankings_are_made_once(context):
    target, images = context.explainer.target, context.images
    ranked = []

    class Spied(NeuronMCT):
        def importance(self, images):
            ranked.append(len(images))
            return super().importance(images)

    first = Spied(target, kept=0.5)
    first(images)
    first(images)
    assert ranked == [8, 8]  # nothing is remembered for a single size
    second = first.resized(0.25)
    third = second.resized(0.75)
    found = [method(images) for method in (second, first, third, second)]
    assert ranked == [8, 8, 8]
    for e, share in zip(found, (0.25, 0.5, 0.75, 0.25), strict=True):
        alone = NeuronMCT(target, kept=share)(images)
        assert e.pathway == alone.pathway
        assert torch.equal(e.gated_logits, alone.gated_logits)
    other = images + 1
    assert second(other).pathway == NeuronMCT(target, kept=0.25)(other).pathway
    second(images[:4])
    assert ranked == [8, 8, 8, 8, 4]


def test_rankings_that_do_not_fit_into_memory_are_made_anew(context, monkeypatch):
    target, images = context.explainer.target, context.images
    neurons = target.sites.num_neurons
    ranked = []

    class Spied(NeuronMCT):
        def importance(self, images):
            ranked.append(len(images))
            return super().importance(images)

    # Room for logits and importance of six inputs, float32.
    monkeypatch.setattr("pathways.baselines.scored._REMEMBERED", 6 * 4 * (neurons + 3))
    first = Spied(target, kept=0.5)
    second = first.resized(0.25)
    for method in (first, second):
        for batch in images.split(4):
            share = NeuronMCT(target, kept=method.kept)(batch)
            assert method(batch).pathway == share.pathway
    assert ranked == [4, 4, 4]


def test_a_method_of_its_own_size_does_not_rank_for_others(context):
    """EffectivePath of a theta looks no further than that pathway goes."""
    target, images = context.explainer.target, context.images
    own = EffectivePath(target, theta=0.2)
    large = own.resized(0.9)
    before = own(images).pathway
    assert large(images).pathway == EffectivePath(target, kept=0.9)(images).pathway
    assert own(images).pathway == before
    importance = [method(images).importance for method in (own, large)]
    assert not torch.equal(*importance)


def test_rankings_are_of_inputs_and_not_of_bytes(context):
    """Equal bytes of another type or shape are another input."""

    class Shapes(ScoredMethod):
        def importance(self, images):
            score = images.float().sum() + images.shape[2]
            return images.new_zeros(2, 3).float(), score.expand(2, self.sites.num_neurons)

    method = Shapes(context.explainer.target, kept=0.5).resized(0.25)
    images = torch.ones(2, 1, 5, 4)
    inputs = (images, images.view(torch.int32), images.view(2, 1, 4, 5))
    found = [method._ranked(x, None)[1][0, 0].item() for x in (*inputs, *inputs)]
    assert len(set(found[:3])) == 3 and found[:3] == found[3:]


def test_floors_are_those_of_the_generator():
    """7 % of 100 channels are 7, whoever counts; in floating point they are a little more."""
    sites = Sites([Site("a", 0, "relu", (100, 2, 2)), Site("b", 0, "relu", (50,))])
    for min_keep in (0.0, 0.05, 0.07, 0.14, 0.28, 0.55, 0.561, 1.0):
        generator = GenCNP(sites, num_classes=2, width=8, min_keep=min_keep)
        assert site_floors(sites, min_keep) == generator.floors
    assert site_floors(sites, 0.07) == [7, 4]


def test_a_ranking_that_depends_on_the_size_is_made_anew(context):
    target, images = context.explainer.target, context.images
    first = GreedyPruning(target, kept=0.5, rounds=4)
    small = first.resized(0.2)
    assert small(images).pathway == GreedyPruning(target, kept=0.2, rounds=4)(images).pathway
    assert first(images).pathway == GreedyPruning(target, kept=0.5, rounds=4)(images).pathway


def test_resized_refuses_other_shares(context):
    with pytest.raises(ValueError, match=r"NeuronMCT: kept must be in \[0, 1\], got 2"):
        NeuronMCT(context.explainer.target, kept=0.5).resized(2)


def test_generator_ranking_keeps_the_most_important(context):
    explainer, images = context.explainer, context.images
    method = GeneratorRanking(explainer, kept=0.5)
    e = method(images)
    importance = explainer.importance(images)[1]
    count = round(0.5 * explainer.sites.num_neurons)
    wanted = torch.zeros_like(importance).scatter_(1, importance.topk(count, dim=1)[1], 1.0)
    assert torch.equal(e.pathway.mask(), wanted.bool())
    own = GeneratorRanking(explainer, like=explainer)(images)
    assert torch.equal(own.pathway.sizes(), explainer(images).pathway.sizes())


@pytest.mark.parametrize("name", ["generator", "mct", "random", "agnostic", "active", "greedy"])
def test_sizes_by_name(context, name):
    methods = make_sizes(name, context, [0.4, 0.75])
    own = [] if name == "generator" else [name]
    assert list(methods) == [*own, f"{name}@0.4", f"{name}@0.75"]
    neurons = context.explainer.sites.num_neurons
    for full_name, method in methods.items():
        pathway = method(context.images).pathway
        if "@" in full_name:
            share = float(full_name.partition("@")[2])
            # Per site, shares are rounded at every site.
            wanted = pytest.approx(share * neurons, abs=0.5 * len(context.explainer.sites))
            assert pathway.sizes().double().mean().item() == wanted


def test_agnostic_mask_has_the_generators_mean_size(context):
    mean = context.explainer(context.images).pathway.kept().mean().item()
    kept = make_sizes("agnostic", context, [])["agnostic"](context.images).pathway.kept()
    half = 0.5001 / context.explainer.sites.num_neurons  # of a neuron; a mean may lie right between
    assert kept.mean().item() == pytest.approx(mean, abs=half)


@pytest.mark.parametrize("kept", [0.2, 0.5])
def test_agnostic_mask_is_trained_at_its_size(kept):
    """It agrees more than any of ten masks drawn by lot: all of its neurons were chosen."""
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 40), torch.nn.ReLU(), torch.nn.Linear(40, 30), torch.nn.ReLU(),
        torch.nn.Linear(30, 4),
    )  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            bound = 3 / (p.shape[1] if p.dim() > 1 else 20) ** 0.5
            p.copy_(bound * (2 * torch.rand(p.shape, generator=generator) - 1))
    target, images = GatedTarget(net, torch.zeros(1, 6)), torch.randn(64, 6, generator=generator)
    mask = ClassAgnosticMask(target, kept=kept).fit(images, steps=150)
    e = mask(images)
    assert e.pathway.kept()[0].item() == pytest.approx(kept, abs=0.01)
    agreement = (e.gated_predictions == e.predictions).double().mean()
    drawn = [RandomPathway(target, kept=kept, seed=seed)(images) for seed in range(10)]
    by_lot = torch.stack([(e.gated_predictions == e.predictions).double().mean() for e in drawn])
    assert agreement > by_lot.max() + 0.1


def test_agnostic_mask_spends_a_given_size_well():
    """Four of eight neurons carry the output: half of all are enough, and are found."""
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 8, bias=False), torch.nn.ReLU(), torch.nn.Linear(8, 4, bias=False)
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.cat([torch.eye(4), torch.eye(4)]))
        net[2].weight.copy_(5 * torch.cat([torch.eye(4), torch.zeros(4, 4)], dim=1))
    images = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    target = GatedTarget(net, torch.zeros(1, 4))
    for seed in range(3):
        mask = ClassAgnosticMask(target, kept=0.5).fit(images, learning_rate=0.3, seed=seed)
        assert mask(images).pathway[0].mask()[0].tolist() == [True] * 4 + [False] * 4
    assert ClassAgnosticMask(target, kept=0.0).fit(images, steps=1)(images).pathway.sizes()[0] == 1
    with pytest.raises(ValueError, match=r"kept must be in \[0, 1\], got -0.5"):
        ClassAgnosticMask(target, kept=-0.5)

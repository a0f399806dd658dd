"""One method at several sizes: names, sizes, and rankings that are made once."""

import pytest
import torch
from baseline_networks import Residual

from pathways.baselines import ClassAgnosticMask, GeneratorRanking, GreedyPruning, NeuronMCT
from pathways.baselines.registry import BaselineContext, make_sizes
from pathways.explainer import Explainer
from pathways.generator import GenCNP
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
    assert kept.mean().item() == pytest.approx(mean, abs=0.5 / context.explainer.sites.num_neurons)


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

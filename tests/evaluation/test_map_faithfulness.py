"""Maps of pathway methods, measured: the parts, and a method that looks where the class is."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from baseline_networks import planted
from torch import nn

from pathways.baselines import NeuronMCT, RandomPathway
from pathways.evaluation.insertion_deletion import deletion, insertion
from pathways.evaluation.map_faithfulness import MapFaithfulness, map_faithfulness
from pathways.evaluation.road import road
from pathways.explainer import Explanation
from pathways.maps import grad_cam, pathway_gradient
from pathways.pathway import Pathway
from pathways.target import GatedTarget


@dataclass
class Fixed:
    """A method that keeps the same neurons of every input."""

    target: GatedTarget
    mask: torch.Tensor

    @property
    def sites(self):
        return self.target.sites

    def __call__(self, images):
        pathway = Pathway.from_mask(self.mask.expand(len(images), -1), self.sites)
        gated = self.target.gated(images, pathway.gates())
        return Explanation(self.target(images), gated, self.mask.expand(len(images), -1), pathway)


def colour_target(granularity="channel"):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    nn.init.normal_(net[6].weight, std=3.0)
    return GatedTarget(net, torch.zeros(1, 3, 9, 7), granularity=granularity)


@pytest.fixture
def images():
    return torch.randn(5, 3, 9, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("granularity", ["channel", "unit"])
@pytest.mark.parametrize("make", [NeuronMCT, RandomPathway])
def test_figures_are_those_of_the_parts(images, granularity, make):
    target = colour_target(granularity)
    method = make(target, kept=0.5)
    results = map_faithfulness(method, images, batch_size=2, steps=4, percentiles=(20, 60), seed=3)
    pathway = method(images).pathway
    maps = {
        "gradient": pathway_gradient(target, images, pathway).abs().amax(1),
        "grad_cam": grad_cam(target, images, pathway),
    }
    assert list(results) == list(maps)
    for kind, result in results.items():
        rising = insertion(target, images, maps[kind], steps=4).auc.mean()
        falling = deletion(target, images, maps[kind], steps=4).auc.mean()
        removed = road(target, images, maps[kind], percentiles=(20, 60), seed=3)
        assert result.insertion == pytest.approx(rising.item(), abs=1e-6)
        assert result.deletion == pytest.approx(falling.item(), abs=1e-6)
        assert result.insertion_minus_deletion == pytest.approx((rising - falling).item(), abs=1e-6)
        assert result.road == pytest.approx(removed.confidence.mean().item(), abs=1e-6)
        assert result.road_accuracy == pytest.approx(removed.accuracy.mean().item(), abs=1e-6)
        assert result.images == 5
        assert result.curves[2].percentiles == (20, 60)


def test_the_pathway_that_sees_beats_the_one_that_does_not():
    # Bright left half: channel 0 of both sites sees it; the dead channel sees nothing.
    target = GatedTarget(planted(), torch.zeros(1, 1, 4, 4))
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(2)) / 10
    images[:, :, :, :2] += 1
    assert target(images).argmax(1).tolist() == [0] * 8
    seeing, blind = torch.zeros(2, 1, 12)
    seeing[0, [0, 6]] = 1
    blind[0, [5, 11]] = 1
    kinds = ("gradient", "random")
    right = map_faithfulness(Fixed(target, seeing), images, kinds=kinds)
    wrong = map_faithfulness(Fixed(target, blind), images, kinds=kinds)
    assert right["gradient"].deletion < right["random"].deletion - 0.1
    assert right["gradient"].road > wrong["gradient"].road
    assert right["random"].deletion == wrong["random"].deletion
    # No gradient: a constant map, pixels in the order of reading.
    constant = deletion(target, images, torch.ones(8, 4, 4), steps=10).auc.mean()
    assert wrong["gradient"].deletion == pytest.approx(constant.item(), abs=1e-6)
    assert right["gradient"].deletion < wrong["gradient"].deletion


def test_cost(images, monkeypatch):
    rows = []
    for name in ("__call__", "gated", "features"):
        run = getattr(GatedTarget, name)

        def counted(self, batch, *args, run=run, **kwargs):
            rows.append(len(batch))
            return run(self, batch, *args, **kwargs)

        monkeypatch.setattr(GatedTarget, name, counted)
    method = Fixed(colour_target(), torch.ones(1, 8))
    map_faithfulness(method, images, batch_size=3)
    # Explanation 2, maps 2, then 30 for each of two kinds; one run of one input to see whether
    # gradients pass.
    assert sum(rows) == 5 * 64 + 1
    assert max(rows) == 3
    e = method(images)
    rows.clear()
    map_faithfulness(method, images, e, batch_size=3)
    assert sum(rows) == 5 * 62 + 1
    rows.clear()
    map_faithfulness(method, images, kinds=("random",), max_images=2)
    assert sum(rows) == 2 * 32


def test_reproducible_and_bounded(images):
    method = Fixed(colour_target(), torch.ones(1, 8))
    first, again, other = (
        map_faithfulness(method, images, kinds=("random",), seed=seed)["random"]
        for seed in (0, 0, 1)
    )
    assert first.insertion == again.insertion
    assert first.insertion != other.insertion
    some = map_faithfulness(method, images, max_images=2)["gradient"]
    alone = map_faithfulness(method, images[:2])["gradient"]
    assert (some.images, some.road) == (2, alone.road)


def test_known_explanations_change_nothing(images):
    method = NeuronMCT(colour_target(), kept=0.5)
    options = {"kinds": ("gradient", "grad_cam", "random"), "steps": 3, "batch_size": 2}
    fresh = map_faithfulness(method, images, max_images=3, **options)
    known = map_faithfulness(method, images, method(images), max_images=3, **options)
    for kind, result in fresh.items():
        before, after = result.to_json(), known[kind].to_json()
        curves, others = before.pop("curves"), after.pop("curves")
        assert after == pytest.approx(before, abs=1e-6)
        for name, curve in curves.items():
            assert others[name] == pytest.approx(curve, abs=1e-6)
    with pytest.raises(ValueError, match="explained must have 5 rows, got 4"):
        map_faithfulness(method, images, method(images[:4]))


def test_json(images):
    result = map_faithfulness(Fixed(colour_target(), torch.ones(1, 8)), images, steps=4)
    values = json.loads(json.dumps(result["gradient"].to_json(), allow_nan=False))
    curves = values.pop("curves")
    assert values["insertion_minus_deletion"] == values["insertion"] - values["deletion"]
    assert values["images"] == 5
    assert curves["shares"] == [0, 15 / 63, 31 / 63, 47 / 63, 1]
    assert curves["deletion"][0] == pytest.approx(curves["insertion"][-1])
    area = sum(curves["deletion"]) - (curves["deletion"][0] + curves["deletion"][-1]) / 2
    assert values["deletion"] == pytest.approx(area / 4)
    lerf, morf = curves["lerf_confidence"], curves["morf_confidence"]
    assert values["road"] == pytest.approx((sum(lerf) - sum(morf)) / 10)
    assert (
        "curves"
        not in map_faithfulness(Fixed(colour_target(), torch.ones(1, 8)), images[:0])[
            "gradient"
        ].to_json()
    )


def test_no_gradient_leaves_only_the_control(images):
    class Detaching(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach()

    class Switched(nn.Sequential):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    for kind in (Detaching, Switched):
        net = kind(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        target = GatedTarget(net, images)
        explanation = Explanation(
            target(images), target(images), torch.zeros(5, 0),
            Pathway.from_mask(torch.ones(5, 4), target.sites),
        )  # fmt: skip
        method = Fixed(target, torch.ones(1, 4))
        results = map_faithfulness(
            method, images, explanation, kinds=("gradient", "grad_cam", "random")
        )
        assert is_empty(results["gradient"])
        assert is_empty(results["grad_cam"])
        assert results["random"].images == 5


def test_other_errors_of_the_model_are_not_taken_for_a_missing_gradient(images):
    class Breaking(nn.Sequential):
        def forward(self, x):
            if x.requires_grad:
                raise RuntimeError("out of memory")
            return super().forward(x)

    net = Breaking(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = Fixed(GatedTarget(net, images), torch.ones(1, 4))
    with pytest.raises(RuntimeError, match="out of memory"):
        map_faithfulness(method, images)


def is_empty(result):
    figures = (result.insertion, result.deletion, result.road, result.road_accuracy)
    nothing = all(map(math.isnan, (*figures, result.insertion_minus_deletion)))
    return isinstance(result, MapFaithfulness) and nothing and result.images == 0


def test_nothing_to_measure(images):
    method = Fixed(colour_target(), torch.ones(1, 8))
    for results in (
        map_faithfulness(method, images, max_images=0),
        map_faithfulness(method, images[:0]),
        map_faithfulness(method, torch.ones(5, 12)),
        map_faithfulness(method, images.long()),
    ):
        assert all(is_empty(result) for result in results.values())
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    target = GatedTarget(flat, torch.zeros(1, 1, 4, 3))
    results = map_faithfulness(Fixed(target, torch.ones(1, 5)), torch.rand(3, 1, 4, 3))
    assert is_empty(results["grad_cam"])
    assert results["gradient"].images == 3


def test_refusals(images):
    method = Fixed(colour_target(), torch.ones(1, 8))
    with pytest.raises(ValueError, match=r"kinds must be among \(.*'random'\), got 'saliency'"):
        map_faithfulness(method, images, kinds=("saliency",))
    with pytest.raises(ValueError, match=r"max_images must be at least 0 .*, got -1 and 64"):
        map_faithfulness(method, images, max_images=-1)
    with pytest.raises(ValueError, match="batch_size at least 1, got 64 and 0"):
        map_faithfulness(method, images, batch_size=0)

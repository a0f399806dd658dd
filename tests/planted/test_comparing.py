"""Methods on planted nets: the truth as its own method, methods that leak, and the file."""

import json
import math
from dataclasses import replace

import pytest
import torch

from pathways.baselines import RandomPathway
from pathways.baselines.registry import BASELINES, BaselineContext, make_baseline
from pathways.evaluation import transfer
from pathways.pathway import Pathway
from pathways.planted import planted
from pathways.planted.comparing import (
    DEFAULT_METHODS,
    METHODS,
    Score,
    TrueCircuit,
    check_methods,
    compare,
)
from pathways.planted.results import compare_seeds, save_comparison, summary

FAST = {"num_classes": 3, "chain": 1, "train": 40, "test": 40}


@pytest.fixture(scope="module")
def net():
    return planted(**FAST)


@pytest.fixture(scope="module")
def scores(net):
    return compare(net, ["active", "agnostic", "dgr", "mct", "random"], batch_size=16)


def test_the_truth_finds_itself_and_does_not_leak(scores, net):
    truth = scores["truth"]
    assert (truth.recall, truth.precision, truth.f1, truth.ranked) == (1, 1, 1, 1)
    assert (truth.agreement, truth.transfer, truth.flip, truth.blank_hit) == (1, 1, 0, 0)
    assert truth.kept == pytest.approx(int(net.truth[0].sum()) / net.truth.shape[1])
    assert {name for name, share in truth.roles.items() if share} == {
        "shared", "chain", "inhibitory",
    }  # fmt: skip


def test_transfer_is_from_a_single_image_per_class(net):
    score = compare(net, ["random"], kept=0.6)["random"]
    target, images = net.target(), net.images.test
    e = RandomPathway(target, kept=0.6, min_keep=0.0)(images)
    rows = (e.pathway[:20], e.predictions[:20], images[20:], e.logits[20:])
    one, every = (transfer(target, *rows, shots=(shots,))[0].own.agreement for shots in (1, None))
    assert one != every
    assert score.transfer == one


def test_images_of_nothing_have_no_circuit_to_be_found(net):
    test = net.images.test.clone()
    test[::4] = 0.5
    other = replace(net, images=replace(net.images, test=test))
    assert (other.target()(test[::4]).argmax(1) == net.num_classes).all()
    truth = compare(other, ["random"])["truth"]
    assert (truth.recall, truth.precision, truth.ranked) == (1, 1, 1)
    circuit = int(net.truth[0].sum()) / net.truth.shape[1]
    assert truth.kept == pytest.approx(0.75 * circuit)  # nothing is kept of them


def test_order_and_equal_sizes(scores):
    assert list(scores) == ["truth", "active", "agnostic", "dgr", "mct", "random"]
    for name in ("dgr", "mct", "random"):
        assert scores[name].kept == pytest.approx(scores["truth"].kept)
        assert scores[name].recall == pytest.approx(scores[name].precision)
    assert scores["mct"].ranked == pytest.approx(scores["mct"].recall)


def test_a_share_instead_of_the_size_of_the_circuit(net):
    found = compare(net, ["mct", "topk"], kept=0.5)
    halves = sum(round(size / 2) for size in net.target().sites.sizes) / len(net.channels)
    assert found["mct"].kept == found["topk"].kept == pytest.approx(halves)
    assert found["truth"].precision == 1
    with pytest.raises(ValueError, match=r"kept must be in \[0, 1\], got 1.5"):
        compare(net, ["mct"], kept=1.5)


def test_what_gradients_of_the_own_logit_cannot_see(scores):
    """Halves of a pair cancel and inhibition acts on other logits: both are blind spots."""
    assert scores["mct"].roles["cancelling"] == 1
    assert scores["mct"].roles["inhibitory"] == 0
    assert scores["mct"].roles["companion"] == scores["mct"].roles["foreign"] == 0


def test_a_method_can_find_nearly_all_and_still_decide(scores):
    """Half a pair in the place of the inhibition: high recall, full agreement, and a leak of 1."""
    assert scores["dgr"].recall > 0.8 and scores["dgr"].agreement == 1
    assert scores["dgr"].roles["cancelling"] == pytest.approx(0.5)
    assert scores["dgr"].flip == scores["dgr"].blank_hit == 1


def test_active_neurons_are_the_circuit_and_much_else(scores):
    active = scores["active"]
    assert active.recall == 1 and active.precision < 0.5
    assert active.roles["texture"] == active.roles["cancelling"] == 1
    assert active.roles["dead"] == 0


def test_seeds_are_reproducible(net):
    methods = ["generator", "random", "agnostic"]
    one, two = (compare(net, methods, steps=3, seed=2) for _ in range(2))
    for name in one:
        assert one[name].to_json() | {"seconds": 0} == two[name].to_json() | {"seconds": 0}


def test_the_control_differs_by_the_leak_term_alone(net):
    names = ["generator", "generator_plain"]
    same = compare(net, names, steps=4, settings={"specificity": 0.0, "batch_size": 8})
    one, two = same["generator"].to_json(), same["generator_plain"].to_json()
    assert one | {"seconds": 0} == two | {"seconds": 0}


@pytest.mark.slow
def test_the_plain_objective_leaks_and_the_leak_term_prevents_it():
    found = compare(
        planted(2, chain=1, dead=0, train=400), ["generator", "generator_plain"], steps=500
    )
    assert found["generator_plain"].agreement > 0.95
    assert found["generator_plain"].flip > 0.9 and found["generator_plain"].recall < 0.7
    assert found["generator"].flip < 0.2 and found["generator"].recall > 0.9


def test_every_method_at_the_size_of_the_truth(net):
    target = net.target()
    oracle = TrueCircuit(net, target)
    context = BaselineContext(oracle, net.images.train, min_keep=0.0)
    images = net.images.test[:6]
    for name in set(BASELINES) - {"active", "agnostic", "dgr_pathwaygrad"}:
        explained = make_baseline(name, context)(images)
        assert explained.pathway.sizes().tolist() == [int(net.truth[0].sum())] * 6
    with pytest.raises(ValueError, match=r"min_keep must be given .*, got TrueCircuit"):
        make_baseline("mct", BaselineContext(oracle, net.images.train))


def test_the_truth_of_an_image_without_content_is_empty(net):
    target = net.target()
    images = torch.cat([net.images.test[:2], torch.zeros(1, *net.images.shape)])
    e = TrueCircuit(net, target)(images)
    assert e.pathway.sizes().tolist()[2] == 0 and e.predictions[2] == net.num_classes
    assert torch.equal(e.pathway.mask()[:2], net.truth[net.images.test_labels[:2]])
    assert torch.equal(e.gated_logits, target.gated(images, e.pathway.gates()))
    assert isinstance(e.pathway, Pathway) and e.pathway.fingerprint == target.fingerprint


def test_methods_are_known():
    assert "dgr_pathwaygrad" in METHODS and "dgr_pathwaygrad" not in DEFAULT_METHODS
    check_methods(DEFAULT_METHODS)
    for names, got in (([], "none"), (["mct", "oracle"], "'oracle'"), (["mct", "mct"], "mct, mct")):
        with pytest.raises(ValueError, match=rf"methods must be distinct and .*; got {got}"):
            check_methods(names)


def score(recall, **roles):
    return Score(recall, 1.0, 0.5, 0.5, 1.0, 0.2, 0.0, 0.0, math.nan, roles, 3.0)


def test_summary_by_hand():
    values = summary([score(0.2, dead=0.0), score(0.6, dead=math.nan)])
    assert values["mean"]["recall"] == pytest.approx(0.4)
    assert values["std"]["recall"] == pytest.approx(math.sqrt(0.08))
    assert values["mean"]["transfer"] is None and values["std"]["transfer"] is None
    assert values["mean"]["dead"] == 0 and values["std"]["dead"] is None
    assert values["seeds"][1]["roles"] == {"dead": None}
    assert summary([score(0.2)])["std"]["recall"] is None
    assert summary([score(0.2)])["mean"]["recall"] == 0.2  # to the last digit


def test_seeds_in_one_comparison_and_the_files(tmp_path):
    stages = []
    scores, result = compare_seeds(
        ["random"], options=FAST, seeds=(3, 4),
        progress=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    assert [len(runs) for runs in scores.values()] == [2, 2]
    assert result["methods"]["random"]["meaning"] == BASELINES["random"].meaning
    assert {stage.partition(":")[0] for stage in stages} == {"seed 3", "seed 4"}
    alone = compare(planted(**FAST, seed=4), ["random"], seed=4)["random"]
    assert result["methods"]["random"]["seeds"][1] == alone.to_json() | {
        "seconds": result["methods"]["random"]["seeds"][1]["seconds"]
    }
    files = save_comparison(scores, result, tmp_path / "new" / "folder")
    assert json.loads(files[0].read_text()) == result
    assert sorted(path.name for path in files[0].parent.iterdir()) == [
        "planted.json",
        "planted.png",
    ]
    for few in ({"train": 1, "test": 4}, {"train": 2, "test": 3}):
        expected = f"at least 2 training and 4 test images, got {few['train']} and {few['test']}"
        with pytest.raises(ValueError, match=expected):
            compare(planted(2, **few), ["random"])
    with pytest.raises(ValueError, match="'colour' is not a setting"):
        compare(planted(**FAST), ["random"], settings={"colour": 1})
    with pytest.raises(ValueError, match=r"seeds must be distinct, at least one, got \[\]"):
        compare_seeds(["random"], seeds=())
    with pytest.raises(ValueError, match=r"seeds must be distinct, at least one, got \[1, 1\]"):
        compare_seeds(["random"], seeds=(1, 1))

"""evaluate: every key, the split into support and query, and what may not change the figures."""

import copy
import json
import math
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from pathways.baselines import NeuronMCT, RandomPathway
from pathways.evaluation import (
    METRICS,
    Evaluation,
    evaluate,
    map_faithfulness,
    milliseconds_per_image,
    necessity,
    ranking_curve,
    sparseness,
)
from pathways.evaluation.quick import TOLD
from pathways.evaluation.runs import gated_logits, with_baseline
from pathways.explainer import Explainer
from pathways.generator import GenCNP
from pathways.target import GatedTarget

KEYS = (
    "target_accuracy agreement kept kept_std kept_effective dead_share kl mic mdc cpr cmd "
    "necessity random_necessity minimality agreement_other_ablation insertion deletion "
    "insertion_minus_deletion random_insertion_minus_deletion road "
    "grad_cam_insertion_minus_deletion grad_cam_road aciou aciou_corrected "
    "between_class_iou transfer_agreement transfer_kept stability core_agreement random_agreement "
    "wrong_class_flip wrong_class_probability blank_hit blank_hit_unseen mask_swap_flip "
    "told_flip told_runner_up_flip told_blank_hit mask_probe_accuracy "
    "ms_per_explanation ms_per_target_forward"
)
TIMES = {"ms_per_explanation", "ms_per_target_forward"}


@pytest.fixture(scope="module")
def convolution():
    """A small random convolutional target, its generator's explainer, and images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    images = torch.randn(60, 1, 8, 8)
    net.eval()
    with torch.no_grad():  # make the random network sure of its classes, and balance them
        net[6].weight.mul_(20)
        net[6].bias.sub_(net(images).mean(0))
    target = GatedTarget(net, images[:1])
    generator = GenCNP(target.sites, 5, width=16, start=0.0, reads_logits=True)
    return Explainer(target, generator), images


def test_the_core_is_without_the_undecided(convolution):
    explainer, images = convolution
    method = NeuronMCT(explainer.target, kept=0.5)
    result = evaluate(method, images, None, ranking_images=0, map_images=0, timing=False)
    assert result.core.agreement != result.possible.agreement
    assert result.core.kept < result.transfer_kept < result.possible.kept
    assert result.core_agreement == result.core.agreement


def test_keys_and_ranges(convolution):
    explainer, images = convolution
    labels = explainer.target(images).argmax(1)
    labels[:6] = (labels[:6] + 1) % 5
    result = evaluate(explainer, images, labels)
    assert isinstance(result, Evaluation)
    metrics = result.metrics()
    assert list(metrics) == list(METRICS)
    assert set(metrics) == set(KEYS.split())
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    signed = {name for name in metrics if name.endswith(("insertion_minus_deletion", "road"))}
    for name in set(metrics) - TIMES - signed - {"kl", "aciou_corrected", "cpr", "cmd"}:
        assert 0 <= metrics[name] <= 1, name
    assert metrics["insertion_minus_deletion"] == metrics["insertion"] - metrics["deletion"]
    assert abs(metrics["road"]) <= 0.5
    assert metrics["target_accuracy"] == pytest.approx(0.9)
    assert metrics["cpr"] > 0
    assert metrics["cmd"] >= abs(1 - metrics["cpr"]) - 1e-12
    assert metrics["kept_effective"] == pytest.approx(
        metrics["kept"] * (1 - metrics["dead_share"]), abs=0.02
    )
    assert metrics["ms_per_explanation"] > 0
    assert metrics["ms_per_target_forward"] > 0


def test_details_are_strict_json(convolution):
    explainer, images = convolution
    result = evaluate(explainer, images, None, shots=(1, 3))
    details = json.loads(json.dumps(result.details(), allow_nan=False))
    assert math.isnan(result.metrics()["target_accuracy"])
    assert details["accuracy"] == {"clean": None, "gated": None, "ratio": None}
    assert details["settings"]["query"] == details["settings"]["support"] == 30
    assert [point["shots"] for point in details["transfer"]] == [1, 3, None]
    assert len(details["classes"]) == 5
    assert sum(row["images"] for row in details["classes"]) == 60
    assert sum(row["support"] for row in details["classes"]) == 30
    assert [row["site"] for row in details["kept_per_site"]] == ["1#0", "4#0"]
    assert len(details["class_overlap"]) == 5
    assert len(details["blanks"]["hits"][0]) == 3
    assert len(details["blanks_unseen"]["hits"][0]) == 24
    assert details["blanks"]["chance"] == details["blanks_unseen"]["chance"] == 1 / 5
    assert details["ranking"]["images"] == details["sparsity"]["images"] == 60
    assert details["ranking"]["agreement"][-1] == 1
    assert details["settings"]["minimality_images"] == 60
    assert len(details["minimality"]["per_site"]) == 2
    assert list(details["maps"]) == ["gradient", "grad_cam", "random"]
    assert details["maps"]["gradient"]["road"] == result.road
    assert details["settings"]["map_images"] == 60
    assert list(details["ablation"]) == ["zero", "mean"]
    assert details["ablation"]["zero"]["agreement"] == pytest.approx(result.agreement)
    assert details["transfer"][-1]["instance"]["agreement"] is not None
    assert details["stability"]["core"]["agreement"] == result.core_agreement
    assert all(row["core_kept"] <= row["class_pathway_kept"] for row in details["classes"])
    assert set(details["macro"]) >= {"agreement", "kl", "mic", "mdc", "mdc_unnormalized", "kept"}


@pytest.mark.parametrize("batch_size", [7, 60])
def test_batch_size_does_not_matter(convolution, batch_size):
    explainer, images = convolution
    labels = torch.zeros(60, dtype=torch.int64)
    for method in (explainer, RandomPathway(explainer.target, kept=0.6)):
        reference = evaluate(method, images, labels, batch_size=16, shots=(2,)).metrics()
        other = evaluate(method, images, labels, batch_size=batch_size, shots=(2,)).metrics()
        for name in set(reference) - TIMES:
            assert other[name] == pytest.approx(reference[name], abs=1e-6, nan_ok=True), name


def test_leaking_explainer_end_to_end(leaking, images, labels, blanks):
    metrics = evaluate(leaking, images, labels, blanks=blanks).metrics()
    expected = {
        "target_accuracy": 1,
        "agreement": 1,
        "kept": 5 / 8,
        "kept_std": 0,
        "mic": 1,
        "mdc": 0,
        "aciou": 1,
        "aciou_corrected": 1,
        # Four shared evidence neurons of six.
        "between_class_iou": 4 / 6,
        "transfer_agreement": 1,
        "transfer_kept": 5 / 8,
        "wrong_class_flip": 1,
        "blank_hit": 1,
        "mask_swap_flip": 1,
        "mask_probe_accuracy": 1,
        # Without the pathway only the constants of the other classes are left.
        "necessity": 1 / (1 + 3 * math.exp(5)),
        # The only site cut off: class 0 wins the tie.
        "minimality": 1 / 4,
        # At their mean all constants are on.
        "agreement_other_ablation": 1,
        # Of four evidence neurons one is active.
        "kept_effective": 2 / 8,
        "dead_share": 3 / 5,
        "stability": 1,
        "core_agreement": 1,
        "blank_hit_unseen": 1,
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value), name
    assert metrics["random_agreement"] < 0.7


def test_doing_nothing_end_to_end(doing_nothing, images, labels, blanks):
    metrics = evaluate(doing_nothing, images, labels, blanks=blanks).metrics()
    expected = {
        "agreement": 1,
        "kept": 1,
        "kl": 0,
        "mic": 0,
        "mdc": 0,
        "aciou": 1,
        "aciou_corrected": 0,
        "between_class_iou": 1,
        "transfer_agreement": 1,
        "random_agreement": 1,
        "wrong_class_flip": 0,
        "blank_hit": 1 / 4,
        "mask_swap_flip": 0,
        "necessity": 1 / 4,
        "random_necessity": 1 / 4,
        "minimality": 1 / 4,
        "agreement_other_ablation": 1,
        "kept_effective": 5 / 8,
        "dead_share": 3 / 8,
        "stability": 1,
        "core_agreement": 1,
        "blank_hit_unseen": 1 / 4,
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name
    assert metrics["mask_probe_accuracy"] < 0.5


class Recorder:
    """An explainer that remembers which inputs a gated run of the target saw after explaining."""

    def __init__(self, explainer):
        self.explainer = explainer
        self.target = explainer.target
        self.sites = explainer.sites
        self.explained = []

    def __call__(self, images):
        self.explained.append(images.clone())
        return self.explainer(images)


def test_first_half_is_support_and_the_rest_is_query(explaining, images, labels):
    half = evaluate(explaining, images, labels)
    assert half.class_pathways.counts.tolist() == [10] * 4
    assert half.transfer[-1].coverage == 1
    assert half.wrong_class.pairs == 40 * 3
    # Sorted by class, the first half holds half of the classes; nothing else is measured on.
    order = labels.argsort(stable=True)
    ordered = evaluate(explaining, images[order], labels[order])
    assert ordered.class_pathways.counts.tolist() == [20, 20, 0, 0]
    assert ordered.transfer[-1].coverage == 0
    assert math.isnan(ordered.transfer_agreement)
    assert ordered.agreement == 1


@pytest.mark.parametrize("with_labels", [False, True])
def test_separate_support(explaining, images, labels, with_labels):
    recorder = Recorder(explaining)
    support = torch.eye(4)[:3] * 3
    argument = (support, torch.arange(3)) if with_labels else support
    result = evaluate(recorder, images, labels, support=argument, batch_size=50)
    assert result.class_pathways.counts.tolist() == [1, 1, 1, 0]
    assert result.transfer[-1].coverage == 0.75
    assert result.wrong_class.pairs == 60 * 2 + 20 * 3
    assert result.settings["separate_support"] is True
    assert torch.equal(torch.cat(recorder.explained[:2]), images)
    assert torch.equal(recorder.explained[2], support)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_figures_of_many_runs_are_bounded(convolution, batch_size):
    explainer, images = convolution
    options = {"batch_size": batch_size, "shots": (1,)}
    part = evaluate(explainer, images, None, ranking_images=10, **options)
    assert part.settings["ranking_images"] == part.settings["minimality_images"] == 10
    e = explainer(images[:10])
    curve = ranking_curve(explainer.target, images[:10], e.logits, e.importance)
    assert part.cpr == pytest.approx(curve.cpr)
    assert part.sweeps.ranking.agreement == pytest.approx(curve.agreement)
    left = necessity(explainer.target, images[:10], e.logits, e.pathway)
    assert part.necessity == pytest.approx(left.probability, abs=1e-6)
    whole = evaluate(explainer, images, None, ranking_images=None, **options)
    assert whole.settings["ranking_images"] == 60
    assert whole.agreement == part.agreement
    nothing = evaluate(explainer, images, None, ranking_images=0, **options)
    assert math.isnan(nothing.cpr)
    assert math.isnan(nothing.agreement_other_ablation)
    assert math.isnan(nothing.sweeps.sparsity.sparseness)
    for result in (part, whole, nothing):
        assert result.sweeps.sparsity.images == 60
        assert result.sweeps.sparsity.kept == pytest.approx(result.kept)
        assert result.kept_effective == pytest.approx(whole.kept_effective)
    expected = sparseness(e.importance).mean()
    assert part.sweeps.sparsity.sparseness == pytest.approx(float(expected))
    assert nothing.agreement == part.agreement


def test_the_other_ablation_of_a_target_with_a_baseline_is_zero(convolution):
    explainer, images = convolution
    target = with_baseline(explainer.target, explainer.target.mean_baseline([images]))
    method = Explainer(target, explainer.generator)
    result = evaluate(method, images, None, shots=(1,))
    assert list(result.sweeps.ablation) == ["own", "zero"]
    assert result.sweeps.ablation["own"].agreement == pytest.approx(result.agreement)
    e = method(images)
    gated = gated_logits(explainer.target, images, e.pathway)
    agreement = (gated.argmax(1) == e.predictions).double().mean()
    assert result.agreement_other_ablation == pytest.approx(float(agreement))


def test_units(convolution):
    explainer, images = convolution
    target = GatedTarget(explainer.target.model, images[:1], granularity="unit")
    method = NeuronMCT(target, kept=0.1)
    result = evaluate(method, images, None, shots=(1,), ranking_images=20)
    metrics = result.metrics()
    assert all(math.isfinite(metrics[name]) for name in set(metrics) - {"target_accuracy", *TOLD})
    # Contributions of inactive units are 0: the tenth that is kept has none of them, a random one
    # about half.
    other = evaluate(RandomPathway(target, kept=0.1), images, None, shots=(1,), ranking_images=20)
    assert metrics["dead_share"] == 0
    assert 0.2 < other.dead_share < 0.8
    assert metrics["cpr"] > other.cpr
    assert metrics["necessity"] < metrics["random_necessity"]


def test_content_free_inputs_of_ones_own(leaking, images):
    result = evaluate(leaking, images, None, unseen=torch.zeros(5, 4))
    assert result.settings["unseen_blanks"] == 5
    assert result.blanks_unseen.hits.shape == (4, 5)


MAPS = ("insertion", "deletion", "insertion_minus_deletion", "road")


def test_maps_are_of_the_first_images(convolution):
    explainer, images = convolution
    result = evaluate(explainer, images, None, map_images=7, shots=(1,), seed=2)
    assert result.settings["map_images"] == 7
    found = map_faithfulness(
        explainer, images[:7], kinds=("gradient", "grad_cam", "random"), seed=2
    )
    for name in MAPS:
        assert getattr(result, name) == pytest.approx(getattr(found["gradient"], name), abs=1e-6)
    cam = found["grad_cam"]
    assert result.grad_cam_insertion_minus_deletion == pytest.approx(
        cam.insertion_minus_deletion, abs=1e-6
    )
    assert result.grad_cam_road == pytest.approx(cam.road, abs=1e-6)
    assert result.random_insertion_minus_deletion == pytest.approx(
        found["random"].insertion_minus_deletion, abs=1e-6
    )
    nothing = evaluate(explainer, images, None, map_images=0, shots=(1,), seed=2)
    assert nothing.settings["map_images"] == 0
    assert all(math.isnan(getattr(nothing, name)) for name in MAPS)
    assert nothing.agreement == result.agreement
    with pytest.raises(ValueError, match="map_images must not be negative, got -1"):
        evaluate(explainer, images, None, map_images=-1)


def test_inputs_without_pixels_have_no_map_figures(doing_nothing, images):
    result = evaluate(doing_nothing, images, None)
    assert all(math.isnan(getattr(result, name)) for name in MAPS)
    assert result.settings["map_images"] == 0
    json.dumps(result.details(), allow_nan=False)


class Counting:
    """A method that counts the inputs its target runs."""

    def __init__(self, explainer):
        self.explainer = explainer
        self.sites = explainer.sites
        self.target = copy.copy(explainer.target)
        self.inputs = 0
        run = self.target._run

        def counted(images, **options):
            self.inputs += len(images)
            return run(images, **options)

        self.target._run = counted

    def __call__(self, images):
        return self.explainer(images)


def test_cost_of_the_figures_of_many_runs(convolution):
    explainer, images = convolution
    runs = {}
    for limit in (0, 60):
        method = Counting(explainer)
        evaluate(method, images, None, ranking_images=limit)
        runs[limit] = method.inputs
    # Seven different sizes of 14 neurons, necessity and its control, two ablation values, three for
    # minimality; the mean of 30 support inputs, of which one is always taken.
    assert runs[60] - runs[0] == 60 * (7 + 2 + 2 + 3) + 30 - 1


def test_cost_of_maps(convolution):
    explainer, images = convolution
    runs = {}
    for limit in (0, 20):
        method = Counting(explainer)
        evaluate(method, images, None, ranking_images=0, map_images=limit)
        runs[limit] = method.inputs
    # 30 runs for each of three kinds, two of them with a gradient; one input to see whether
    # gradients pass.
    assert runs[20] - runs[0] == 20 * (3 * 30 + 2) + 1


def test_progress_is_reported(explaining, images, labels):
    seen = []
    evaluate(explaining, images, labels, batch_size=32, progress=lambda *step: seen.append(step))
    assert [step for step in seen if step[0] == "explaining"] == [
        ("explaining", done, 80) for done in (0, 32, 64, 80)
    ]
    assert seen[-1] == ("done", 80, 80)


def test_target_is_left_as_found(convolution):
    explainer, images = convolution
    model = explainer.target.model
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    modes = [m.training for m in model.modules()]
    evaluate(explainer, images, None, shots=(1,))
    assert [m.training for m in model.modules()] == modes
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_seed_is_reproducible(convolution):
    explainer, images = convolution
    runs = [evaluate(explainer, images, None, seed=s, shots=(1,)).metrics() for s in (4, 4)]
    for name in set(METRICS) - TIMES - {"target_accuracy"}:
        assert runs[0][name] == runs[1][name], name


def test_timing_leaves_out_the_gated_run(convolution):
    explainer, images = convolution
    calls = []
    gated = explainer.target.gated
    explainer.target.gated = lambda *args, **kwargs: calls.append(1) or gated(*args, **kwargs)
    try:
        forward, explanation = milliseconds_per_image(explainer, images, 16)
        assert not calls
        assert forward > 0
        assert explanation > 0
        milliseconds_per_image(RandomPathway(explainer.target, kept=0.5), images, 16)
        assert not calls

        class Plain:
            target = explainer.target

            def __call__(self, images):
                return explainer(images)

        milliseconds_per_image(Plain(), images, 16)
        assert calls
    finally:
        del explainer.target.gated


def test_timing_leaves_out_the_sizes_of_another_method(convolution):
    explainer, images = convolution
    slow = RandomPathway(explainer.target, kept=0.5)
    importance = slow.importance

    def sleeping(images):
        time.sleep(0.1)
        return importance(images)

    slow.importance = sleeping
    alone = milliseconds_per_image(slow, images, 16)[1]
    matched = milliseconds_per_image(RandomPathway(explainer.target, like=slow), images, 16)[1]
    assert alone >= 100 / 16
    assert matched < alone


def test_refusals(explaining, images, labels):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate(explaining, images, labels, batch_size=0)
    with pytest.raises(ValueError, match="at least two inputs, got 1"):
        evaluate(explaining, images[:1], labels[:1])
    with pytest.raises(ValueError, match=r"labels must be \[80\], got \(79,\)"):
        evaluate(explaining, images, labels[1:])
    with pytest.raises(ValueError, match="ranking_images must not be negative, got -1"):
        evaluate(explaining, images, labels, ranking_images=-1)
    with pytest.raises(ValueError, match="support must hold at least one input"):
        evaluate(explaining, images, labels, support=images[:0])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import pathways.pathway; assert 'torchmetrics' not in sys.modules", ""),
        (
            "sys.modules['torchmetrics'] = None; import pathways.evaluation",
            "needs torchmetrics; pip",
        ),
    ],
    ids=["core", "missing"],
)
def test_torchmetrics_is_needed_for_evaluation_only(code, message):
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}"], capture_output=True, text=True, check=False
    )
    assert (run.returncode != 0) == bool(message), run.stderr
    assert message in run.stderr

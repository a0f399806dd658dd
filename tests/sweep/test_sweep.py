"""Sweeps: every point once, resumable, comparable, and nothing of the run is touched."""

import json
import math
import shutil
from dataclasses import replace

import lightning
import pytest
import torch

import pathways.run_training as run_training
import pathways.sweep as sweep
from pathways import Explainer, GenCNP
from pathways.evaluation import evaluate
from pathways.evaluation.quick import TOLD
from pathways.loading import gate
from pathways.measuring import measure
from pathways.report import sweep_summary
from pathways.runs import Run, preprocess
from pathways.sweep import FIGURES, Variant, run_sweep, unfinished

FULL, LEAKY = Variant("full"), Variant("no leak term", {"specificity": 0.0})


class Trainings(lightning.Callback):
    """Counts trainings and their steps, and may interrupt one at a step."""

    def __init__(self, monkeypatch):
        self.count, self.steps, self.stop_at, self.fit = 0, 0, None, run_training.fit
        monkeypatch.setattr(run_training, "fit", self.counted)

    def counted(self, *arguments, **settings):
        self.count += 1
        settings["callbacks"] = [*settings["callbacks"], self]
        return self.fit(*arguments, **settings)

    def on_train_batch_end(self, trainer, *arguments):
        self.steps += 1
        if trainer.global_step == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def trainings(monkeypatch):
    return Trainings(monkeypatch)


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_point_is_trained_written_and_returned(started, toy, tmp_path, trainings):
    run, config, images = started
    before, baseline = tree(toy.run), run.target.baseline
    stages = []
    points = run_sweep(
        run, config, [FULL, LEAKY], [0, 3], tmp_path, images=images, test_images=31,
        progress=lambda *stage: stages.append(stage),
    )  # fmt: skip
    assert trainings.count == 4
    assert [(p.variant, p.seed, p.plain) for p in points] == [
        ("full", 0, False), ("full", 3, False),
        ("no leak term", 0, True), ("no leak term", 3, True),
    ]  # fmt: skip
    for point in points:
        folder = tmp_path / point.variant / f"seed_{point.seed}"
        assert (folder / "generator.safetensors").is_file()
        assert not (folder / "last.ckpt").exists()
        recorded = json.loads((folder / "point.json").read_text())
        assert recorded["settings"] == {
            **config.to_json(), "seed": point.seed,
            "specificity": 0.0 if point.plain else config.specificity,
        }  # fmt: skip
        assert recorded["fingerprint"] == point.fingerprint == run.description.fingerprint
        assert recorded["baseline"] == "zero" and recorded["test_images"] == 31
        assert recorded["figures"] == point.to_json()["figures"]
        assert set(point.figures) == set(FIGURES)
        assert point.figures["seconds"] > 0
    assert points[0].figures != points[1].figures
    assert stages[0] == ("points  full seed 0", 0, 4) and stages[-1] == ("points", 4, 4)
    assert ("training", "full seed 3") in {tuple(s[0].split("  ")[:2]) for s in stages}
    assert tree(toy.run) == before and run.target.baseline is baseline


def test_figures_are_those_of_evaluate(started, tmp_path):
    run, config, images = started
    (point,) = run_sweep(run, config, [FULL], [1], tmp_path, images=images)
    generator = GenCNP.load(tmp_path / "full" / "seed_1" / "generator.safetensors", run.target)
    wanted = measure(Explainer(run.target, generator), run.preprocessing, images).metrics()
    for name in set(FIGURES) - {"seconds"}:
        assert point.figures[name] == pytest.approx(wanted[name], abs=1e-12), name


def test_points_of_generators_that_read_the_logits(started, tmp_path):
    """Their figures are kept when points are read again, whichever of them."""
    run, config, images = started
    settings = {"generator": {**config.generator, "reads_logits": True}}
    variants = [FULL, Variant("told", settings)]
    seeds, swept = [0, 1], {"images": images}
    first = run_sweep(run, config, variants, seeds, tmp_path, **swept)
    shutil.rmtree(tmp_path / "told" / "seed_0")
    again = run_sweep(run, config, variants, seeds, tmp_path, resume=True, **swept)
    for points in (first, again):
        plain, told = sweep_summary([point.to_json() for point in points])
        assert set(told["figures"]) - set(plain["figures"]) == set(TOLD)
        assert len(told["figures"]["told_flip"]["values"]) == 2
        assert told["figures"]["told_flip"]["difference"] is None
    flips = [[p.figures["told_flip"] for p in points[2:]] for points in (first, again)]
    assert flips[0] == pytest.approx(flips[1], nan_ok=True)


def test_equal_seeds_give_equal_points(started, tmp_path):
    run, config, images = started
    first = run_sweep(run, config, [FULL], [0, 1], tmp_path / "a", images=images)
    again = run_sweep(run, config, [FULL], [1], tmp_path / "b", images=images)
    weights = [
        GenCNP.load(tmp_path / folder / "full" / seed / "generator.safetensors", run.target)
        .state_dict()
        .values()
        for folder, seed in (("a", "seed_1"), ("b", "seed_1"), ("a", "seed_0"))
    ]
    assert all(map(torch.equal, weights[0], weights[1]))
    assert not all(map(torch.equal, weights[0], weights[2]))
    figures = [{k: v for k, v in p.figures.items() if k != "seconds"} for p in (first[1], again[0])]
    assert figures[0] == figures[1]


def test_finished_points_are_kept(started, tmp_path, trainings):
    run, config, images = started
    first = run_sweep(run, config, [FULL], [0, 1], tmp_path, images=images)
    before = tree(tmp_path)
    assert unfinished(run, config, [FULL, LEAKY], [0, 2], tmp_path, images=images) == [
        (FULL, 2), (LEAKY, 0), (LEAKY, 2),
    ]  # fmt: skip
    again = run_sweep(run, config, [FULL], [0, 1], tmp_path, images=images)
    assert trainings.count == 2 and again == first and tree(tmp_path) == before
    run_sweep(run, config, [FULL, LEAKY], [1, 2], tmp_path, images=images)
    assert trainings.count == 5
    assert {name: tree(tmp_path)[name] for name in before} == before


def test_other_points_are_refused_before_anything_is_trained(started, tmp_path, trainings):
    run, config, images = started
    run_sweep(run, config, [LEAKY], [0], tmp_path, images=images)
    before = tree(tmp_path)

    def refused(words, *, variants=(FULL, LEAKY), error=ValueError, **changes):
        arguments = {"images": images, **changes}
        settings = arguments.pop("config", config)
        with pytest.raises(error, match=words):
            run_sweep(run, settings, variants, [0], tmp_path, **arguments)
        assert tree(tmp_path) == before

    refused("was made with steps = 4, not 5; replace", config=replace(config, steps=5))
    refused("test_images = None, not 20", test_images=20)
    refused("was made with other images", images=images.subset(train=80))
    mean = Variant(LEAKY.name, {**LEAKY.settings, "baseline": "mean"})
    refused("was made with baseline = 'zero', not 'mean'", variants=[FULL, mean])
    units = Variant(LEAKY.name, {**LEAKY.settings, "granularity": "unit"})
    refused("was made with granularity = 'channel', not 'unit'", variants=[FULL, units])
    refused("already holds a point; go on with --resume", resume=False, error=FileExistsError)
    refused("different names", variants=[FULL, Variant("FULL")])
    refused("different names", variants=[])
    state = torch.get_rng_state()
    for generator, words in (
        ({"colour": 1}, "variant 'bad': .*unexpected keyword argument 'colour'"),
        ({"width": 7}, "variant 'bad': GenCNP: width must be a positive multiple of heads"),
        ({"width": "wide"}, "variant 'bad': "),
    ):
        refused(words, variants=[FULL, Variant("bad", {"generator": generator})])
    assert torch.equal(torch.get_rng_state(), state)
    assert trainings.count == 1

    file = tmp_path / LEAKY.name / "seed_0" / "point.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="is damaged or not a JSON file"):
        run_sweep(run, config, [LEAKY], [0], tmp_path, images=images)
    point = json.loads(before[f"{LEAKY.name}/seed_0/point.json"])
    for other, words in (
        ({"fingerprint": "f" * 64}, "another target"),
        ({"generator_format": 2}, "generator_format = 2, not 3"),
    ):
        file.write_text(json.dumps({**point, **other}))
        with pytest.raises(ValueError, match=words):
            run_sweep(run, config, [LEAKY], [0], tmp_path, images=images)
    for damaged in ({}, [], {**point, "settings": 1}, {**point, "figures": [1]}):
        file.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match="other contents than a point has"):
            run_sweep(run, config, [LEAKY], [0], tmp_path, images=images)


def test_overwrite_replaces_what_differs(started, tmp_path, trainings):
    run, config, images = started
    run_sweep(run, config, [FULL], [0, 1], tmp_path, images=images, test_images=20)
    log = tmp_path / "full" / "seed_0" / "log" / "metrics.1.csv"
    log.write_text("of the old point")
    run_sweep(run, config, [FULL], [0], tmp_path, images=images, overwrite=True)
    assert trainings.count == 3 and not log.exists()
    # With resume, points that can be kept are kept: seed 0 is, seed 1 was measured on fewer images.
    run_sweep(run, config, [FULL], [0, 1], tmp_path, images=images, overwrite=True)
    assert trainings.count == 4
    run_sweep(run, config, [FULL], [0, 1], tmp_path, images=images, overwrite=True, resume=False)
    assert trainings.count == 6


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_bad_seeds(started, tmp_path, seeds):
    run, config, images = started
    with pytest.raises(ValueError, match="seeds must be different and not negative"):
        run_sweep(run, config, [FULL], seeds, tmp_path, images=images)
    assert not list(tmp_path.iterdir())


def test_too_few_test_images(started, tmp_path):
    run, config, images = started
    with pytest.raises(ValueError, match="at least two test images, got 1"):
        run_sweep(run, config, [FULL], [0], tmp_path, images=images.subset(test=1))
    assert not list(tmp_path.iterdir())


def test_the_ablation_value_is_the_variants_own(started, toy, tmp_path):
    run, config, images = started
    mean = Variant("mean", {"baseline": "mean"})
    zero, other = run_sweep(run, config, [FULL, mean], [0], tmp_path, images=images)
    assert run.target.baseline is None and run.target.fingerprint == run.description.fingerprint
    assert (zero.baseline, other.baseline) == ("zero", "mean")
    assert zero.figures["kl"] != other.figures["kl"]
    # The same target as that of a run which was made with means.
    fresh = Run.open(toy.run).target
    inputs = preprocess(images.train, run.preprocessing)
    fresh.baseline = fresh.mean_baseline(inputs.split(256))
    assert other.fingerprint == fresh.fingerprint != zero.fingerprint
    generator = GenCNP.load(tmp_path / "mean" / "seed_0" / "generator.safetensors", fresh)
    order = torch.randperm(len(images.test), generator=torch.Generator().manual_seed(0))
    found = evaluate(
        Explainer(fresh, generator),
        preprocess(images.test[order], run.preprocessing),
        None,
        ranking_images=0,
    )
    assert found.kl == pytest.approx(other.figures["kl"], abs=1e-12)


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_a_variant_may_gate_units(started, tmp_path, baseline):
    run, config, images = started
    units = Variant("units", {"granularity": "unit", "baseline": baseline})
    channels, other = run_sweep(run, config, [FULL, units], [0], tmp_path, images=images)
    assert run.target.sites.granularity == "channel"
    assert run.target.fingerprint == run.description.fingerprint == channels.fingerprint
    description = run.description
    fresh = gate(run.target.model, run.preprocessing, description.image_shape, granularity="unit")
    if baseline == "mean":
        inputs = preprocess(images.train, run.preprocessing)
        fresh.baseline = fresh.mean_baseline(inputs.split(256))
    assert other.fingerprint == fresh.fingerprint
    generator = GenCNP.load(tmp_path / "units" / "seed_0" / "generator.safetensors", fresh)
    assert sum(generator.sizes) == fresh.sites.num_neurons > run.target.sites.num_neurons


def test_an_interrupted_sweep_loses_nothing(started, tmp_path, trainings):
    run, config, images = started
    whole = run_sweep(run, config, [FULL], [0, 1], tmp_path / "whole", images=images)
    out = tmp_path / "out"
    run_sweep(run, config, [FULL], [0], out, images=images)
    finished = tree(out)
    trainings.stop_at, trainings.steps = 3, 0
    with pytest.raises(KeyboardInterrupt):
        run_sweep(run, config, [FULL], [0, 1], out, images=images)
    folder = out / "full" / "seed_1"
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 3
    assert json.loads((folder / "point.json").read_text())["figures"] is None
    trainings.stop_at = None
    points = run_sweep(run, config, [FULL], [0, 1], out, images=images)
    assert {name: tree(out)[name] for name in finished} == finished
    assert trainings.steps == config.steps  # those before the interruption among them
    assert [set(point.figures) for point in points] == [set(FIGURES)] * 2
    assert points[0].figures["kl"] == whole[0].figures["kl"]
    assert math.isnan(points[1].figures["seconds"])
    assert points[1].to_json()["figures"]["seconds"] is None


def test_a_point_interrupted_while_measured_is_not_trained_again(
    started, tmp_path, trainings, monkeypatch
):
    run, config, images = started

    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "quick_figures", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(run, config, [FULL], [0], tmp_path, images=images)
    (point,) = run_sweep(run, config, [FULL], [0], tmp_path, images=images)
    assert trainings.count == 1 and point.figures["agreement"] >= 0


def test_an_interrupted_point_of_other_settings_is_refused(started, tmp_path, trainings):
    run, config, images = started
    trainings.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        run_sweep(run, config, [LEAKY], [0], tmp_path, images=images)
    full = Variant(LEAKY.name)
    with pytest.raises(ValueError, match=r"was made with specificity = 0\.0, not 4\.0"):
        run_sweep(run, config, [full], [0], tmp_path, images=images)

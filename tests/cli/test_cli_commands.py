"""Every command on a toy run: what it prints, what it writes, and that --json is JSON alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pathways import ClassPathways, Pathway
from pathways.extraction import read_info
from pathways.runs import Run


def test_version_and_help(trained):
    import pathways

    assert trained.call("--version").stdout.strip() == f"pathways {pathways.__version__}"
    for name in (
        "demo", "sites", "fit", "evaluate", "frontier", "randomize", "explain", "export", "extract",
        "overlap", "planted",
    ):  # fmt: skip
        result = trained.call(name, "--help")
        assert result.exit_code == 0
        assert "--json" in result.stdout


def test_sites_prints_the_table(trained):
    result = trained.call("sites", "--target", f"{trained.toy}:net", "--shape", "1, 8,8")
    assert result.exit_code == 0
    assert "8x8x8" in result.stdout
    assert result.stdout.strip().splitlines()[-1].split() == ["total", "24"]


def test_sites_as_json_takes_shape_from_data_and_selects(trained):
    value = trained.json(
        "sites", "--target", f"{trained.toy}:net", "--data", f"{trained.toy}:data",
        "--sites", "1", "--sites", "8", "--granularity", "unit",
    )  # fmt: skip
    assert [site["name"] for site in value["sites"]] == ["1", "8"]
    assert value["neurons"] == 8 * 8 * 8 + 8
    assert value["classes"] == 3
    assert value["granularity"] == "unit"


def test_fit_writes_a_run_that_opens(trained):
    run = Run.open(trained.run)
    assert run.classes == ("left", "right", "low")
    assert run.description.image_shape == (1, 8, 8)
    assert run.preprocessing.to_json()["mean"] == [0.5]
    explanation = run.explainer(run.preprocessing(run.example_images()))
    assert explanation.pathway.fingerprint == run.description.fingerprint
    assert (trained.run / "log" / "metrics.csv").is_file()
    assert json.loads((trained.run / "training.json").read_text())["steps"] == 12


def test_fit_as_json(trained, tmp_path):
    value = trained.json(*trained.fit_arguments(tmp_path / "r", steps=2), "--seed", "3")
    assert value["config"]["steps"] == 2
    assert value["config"]["seed"] == 3
    assert value["config"]["generator"] == {"width": 8, "min_keep": 0.1}
    assert value["neurons"] == 24
    assert value["fingerprint"] == Run.open(trained.run).description.fingerprint


def test_fit_on_fewer_images_is_recorded(trained, tmp_path):
    out = tmp_path / "few"
    assert trained.call(*trained.fit_arguments(out, 2), "--train-images", "40").exit_code == 0
    assert len(Run.open(out).images.train) == 40


def test_fit_with_means_instead_of_zeros(trained, tmp_path):
    out = tmp_path / "mean"
    arguments = [*trained.fit_arguments(out, 12), "--baseline", "mean", "--set", "patience=null"]
    assert trained.call(*arguments).exit_code == 0
    run = Run.open(out)
    assert run.description.baseline == "mean"
    assert [tuple(value.shape) for value in run.target.baseline] == [(8,), (8,), (8,)]
    inputs = run.preprocessing(run.images.train[:40].float() / 255)
    expected = run.target.features(run.preprocessing(run.images.train.float() / 255))[1][0]
    torch.testing.assert_close(run.target.baseline[0], expected.mean((0, 2, 3)))
    closed = torch.zeros(1, run.target.sites.num_neurons)
    assert not torch.equal(
        run.target.gated(inputs, closed), Run.open(trained.run).target.gated(inputs, closed)
    )
    assert trained.call("explain", out, "--test", "0").exit_code == 0


def test_fit_with_other_preprocessing(trained, tmp_path):
    out = tmp_path / "r"
    arguments = trained.fit_arguments(out, 1)
    more = ["--scale", "255", "--mean", "127", "--std", "128", "--size", "8x8"]
    assert trained.call(*arguments, *more, "--sparsity", "0.5").exit_code == 0
    values = Run.open(out).description.preprocessing
    assert values == {
        "mean": [127.0], "std": [128.0], "size": [8, 8], "scale": 255.0, "channel_order": "rgb",
    }  # fmt: skip
    assert json.loads((out / "training.json").read_text())["sparsity"] == 0.5


def test_evaluate_with_baselines(project):
    result = project.call("evaluate", project.run, "--baselines", "random,agnostic")
    assert result.exit_code == 0, result.output
    for word in ("wrong_class_flip", "blank_hit", "leak controls", "generator", "agnostic"):
        assert word in result.stdout
    report = json.loads((project.run / "evaluation.json").read_text())
    assert list(report["methods"]) == ["generator", "random", "agnostic"]
    assert report["classes"] == ["left", "right", "low"]
    for name in ("overlap.png", "transfer.png", "training.png", "class_pathways.safetensors"):
        assert (project.run / name).stat().st_size > 0
    classes = ClassPathways.load(project.run / "class_pathways.safetensors")
    assert classes.fingerprint == Run.open(project.run).description.fingerprint


def test_evaluate_with_every_method_that_scores(project):
    names = ["dgr", "mct", "intgrad", "greedy", "effective", "active", "topk", "random"]
    value = project.json(
        "evaluate", project.run, "--test-images", "30", "--baselines", ",".join(names)
    )
    assert list(value["methods"]) == ["generator", *names]
    kept = {name: figures["kept"] for name, figures in value["methods"].items()}
    assert kept["active"] > 0
    for name in set(names) - {"active"}:
        assert kept[name] == pytest.approx(kept["generator"])
        assert value["methods"][name]["wrong_class_flip"] is not None
    report = json.loads((project.run / "evaluation.json").read_text())
    assert report["methods"]["effective"]["settings"]["threshold"] == 0.0
    assert report["methods"]["mct"]["settings"]["threshold"] == 0.5


def test_evaluate_at_equal_sizes(project, tmp_path):
    arguments = ("--test-images", "30", "--ranking-images", "8", "--map-images", "4")
    value = project.json(
        "evaluate", project.run, "--baselines", "random,mct,agnostic", "--kept", "0.25,0.75",
        "--out", tmp_path / "sizes", *arguments,
    )  # fmt: skip
    methods = value["methods"]
    names = ["generator", "random", "mct", "agnostic"]
    wanted = [name + size for name in names for size in ("", "@0.25", "@0.75")]
    # The generator's own size comes first; its ranking at the others has no times.
    assert sorted(methods) == sorted(wanted)
    for name in names:
        assert methods[f"{name}@0.25"]["kept"] < methods[f"{name}@0.75"]["kept"]
        assert methods[f"{name}@0.25"]["ms_per_explanation"] is None
        assert methods[name]["ms_per_explanation"] > 0
        assert methods[f"{name}@0.75"]["wrong_class_flip"] is not None
    assert methods["agnostic"]["aciou"] == 1
    shown = project.call(
        "evaluate", project.run, "--baselines", "random", "--kept", "0.25,0.75",
        "--out", tmp_path / "shown", *arguments,
    )  # fmt: skip
    assert "random@0.75" in shown.stdout
    assert "where the mask decides" in shown.stdout


@pytest.mark.parametrize("kept", ["0", "1.5", "a", "-0.1", "0.5;0.2"])
def test_evaluate_refuses_other_sizes(project, kept):
    result = project.call("evaluate", project.run, "--kept", kept)
    assert result.exit_code == 1
    assert "--kept must be shares in (0, 1]" in result.stderr


def test_evaluate_as_json_into_another_folder(project, tmp_path):
    from pathways.evaluation import METRICS

    out = tmp_path / "results"
    value = project.json("evaluate", project.run, "--out", out, "--test-images", "30")
    assert set(value["methods"]["generator"]) == set(METRICS)
    assert (out / "evaluation.json").is_file()
    assert not (project.run / "evaluation.json").exists()


def test_evaluate_with_another_threshold(project, tmp_path):
    """Class pathways of what any image of the class has, or all have."""
    measured = {}
    for threshold in ("0", "1"):
        out = tmp_path / threshold
        value = project.json(
            "evaluate", project.run, "--baselines", "topk,effective", "--kept", "0.5",
            "--threshold", threshold, "--test-images", "30", "--ranking-images", "0",
            "--map-images", "0", "--out", out,
        )  # fmt: skip
        measured[threshold] = value["methods"]
        assert ClassPathways.load(out / "class_pathways.safetensors").threshold == float(threshold)
    union, intersection = measured["0"], measured["1"]
    assert union["topk@0.5"]["transfer_kept"] > intersection["topk@0.5"]["transfer_kept"]
    assert union["topk@0.5"]["kept"] == intersection["topk@0.5"]["kept"]
    # EffectivePath's are unions whatever is asked for.
    effective = [methods["effective@0.5"]["transfer_kept"] for methods in (union, intersection)]
    assert effective[0] == effective[1]


def test_explain_writes_picture_json_and_pathways(project, image_file):
    value = project.json(
        "explain", project.run, image_file, "--test", "2", "--top", "3", "--class", "low"
    )
    first, second = value["explanations"]
    assert set(first) == {
        "image", "predicted", "gated", "gated_probability_of_predicted", "agrees", "kept",
        "neurons", "sites", "top", "files", "maps_for",
    }  # fmt: skip
    assert set(first["predicted"]) == set(first["gated"]) == {"class", "name", "probability"}
    assert first["predicted"]["name"] in ("left", "right", "low")
    assert set(first["sites"][0]) == {"site", "activation", "shape", "kept", "neurons", "top"}
    assert first["maps_for"] == {"class": 2, "name": "low"}
    assert len(first["top"]) <= 3
    assert second["image"] == "test_0002"
    for entry in value["explanations"]:
        assert json.loads(Path(entry["files"]["json"]).read_text()) == entry
        assert Path(entry["files"]["picture"]).read_bytes()[:4] == b"\x89PNG"
    run = Run.open(project.run)
    saved = Pathway.load(first["files"]["pathways"], run.target)
    assert len(saved) == 2
    assert saved.sizes().tolist() == [e["neurons"]["kept"] for e in value["explanations"]]
    again = run.explainer(run.preprocessing(run.images.test[2:3].float() / 255))
    assert saved[1] == again.pathway


def test_explain_prints_a_table(project, image_file):
    result = project.call("explain", project.run, image_file, image_file)
    assert result.exit_code == 0, result.output
    assert "pathway alone" in result.stdout
    # The second image of the same name must not overwrite the first one's picture.
    assert (project.run / "explanations" / "photo.png").is_file()
    assert (project.run / "explanations" / "photo-2.png").is_file()


@pytest.mark.slow
def test_export_as_native_code(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = project.call("export", project.run, "--format", "aoti")
    assert result.exit_code == 0, result.output
    assert "Wrote explainer.pt2" in result.stdout and "compiling" not in result.stdout
    assert "compiling 5/5  done" in result.stderr
    from pathways.export import load_compiled

    run = Run.open(project.run)
    images = run.images.test[:5].float() / 255
    eager = run.explainer(run.preprocessing(images))
    found = load_compiled("explainer.pt2").explain(images)
    torch.testing.assert_close(found.gated_logits, eager.gated_logits, atol=1e-5, rtol=0)
    assert found.pathway == eager.pathway


def test_export_gives_the_runs_explanations(project, evaluated, tmp_path):
    out = tmp_path / "explainer.pt"
    shutil.copy(evaluated / "class_pathways.safetensors", project.run)
    value = project.json("export", project.run, "--out", out)
    assert value["format"] == "torchscript"
    assert value["class_pathways"] is True
    assert value["bytes"] == out.stat().st_size
    assert value["largest_difference"] < 1e-5
    from pathways.export import load_scripted

    run = Run.open(project.run)
    images = run.images.test[:5].float() / 255
    logits, gated_logits, importance, words = load_scripted(out)(images)
    eager = run.explainer(run.preprocessing(images))
    torch.testing.assert_close(logits, eager.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(gated_logits, eager.gated_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(importance, eager.importance, atol=1e-5, rtol=0)
    assert torch.equal(words, eager.pathway.words)


def test_extract_writes_a_network_that_needs_nothing_of_ours(project, evaluated, tmp_path):
    classes = ClassPathways.load(evaluated / "class_pathways.safetensors")
    members = classes.members.clone()
    members[1, ::3] = 0  # this small run keeps nearly everything
    spare = ClassPathways(members, classes.counts, classes.sites, classes.fingerprint)
    spare.save(project.run / "class_pathways.safetensors")
    out = tmp_path / "small.pt2"
    value = project.json("extract", project.run, "--class", "right", "--out", out)
    assert value["class"] == 1 and value["name"] == "right"
    assert value["file"] == str(out) and value["bytes"] == out.stat().st_size
    assert value["largest_difference"] < 1e-4
    run = Run.open(project.run)
    pathway = run.class_pathways[1]
    assert value["channels"] == int(pathway.sizes()) < 24
    assert value["parameters"] < value["parameters_before"]
    assert read_info(out)["classes"] == ["left", "right", "low"]
    images = run.example_images(5)
    torch.save(images, tmp_path / "images.pt")
    program = (
        "import sys, torch; images = torch.load(sys.argv[1]); "
        "torch.save(torch.export.load(sys.argv[2]).module()(images), sys.argv[1]); "
        "assert 'pathways' not in sys.modules"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "images.pt"), str(out)]
    subprocess.run(arguments, check=True, cwd=tmp_path)
    wanted = run.target.gated(run.preprocessing(images), pathway.gates())
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), wanted, rtol=1e-4, atol=1e-4)


def test_extract_with_a_threshold_prints_what_is_left(project, evaluated, tmp_path):
    shutil.copy(evaluated / "class_pathways.safetensors", project.run)
    arguments = ("extract", project.run, "--class", "0", "--threshold", "1")
    result = project.call(*arguments, "--out", tmp_path / "s.pt2")
    assert result.exit_code == 0, result.output
    kept = int(Run.open(project.run).class_pathways.with_threshold(1.0)[0].sizes())
    assert f"channels: {kept} of 24" in result.stdout
    assert "pathway of class 0 (left) as a network" in result.stdout
    assert "its logits equal those of the gated target to" in " ".join(result.stdout.split())


def test_overlap_of_one_file_and_of_two(project, evaluated, tmp_path):
    file = tmp_path / "class_pathways.safetensors"
    shutil.copy(evaluated / "class_pathways.safetensors", file)
    alone = project.json("overlap", file)
    assert alone["rows"] == ["left", "right", "low"]
    assert alone["same_name_iou"] is None
    matrix = torch.tensor(alone["iou"])
    assert torch.equal(matrix.diagonal(), torch.ones(3))
    off = matrix[~torch.eye(3, dtype=torch.bool)].mean()
    assert alone["different_name_iou"] == pytest.approx(float(off))
    assert [row["site"] for row in alone["sites"]] == ["1#0", "4#0", "8#0"]
    assert (tmp_path / "class_pathways-overlap.png").is_file()

    both = project.json("overlap", file, file, "--out", tmp_path / "o.png")
    assert both["same_name_iou"] == 1.0
    assert both["iou"] == alone["iou"]
    result = project.call("overlap", file, file, "--out", tmp_path / "o.png")
    assert "same name" in result.stdout


def test_overlap_of_single_images(project, tmp_path):
    out = tmp_path / "e"
    project.call("explain", project.run, "--test", "1", "--test", "4", "--out", out)
    value = project.json("overlap", out / "pathways.safetensors")
    assert value["rows"] == ["test_0001", "test_0004"]
    assert value["kind"] == ["pathway"]
    empty = Pathway.load(out / "pathways.safetensors")[:0]
    empty.save(out / "empty.safetensors")
    result = project.call("overlap", out / "empty.safetensors")
    assert result.exit_code == 1
    assert "must hold at least one pathway, got none" in " ".join(result.stderr.split())
    foreign = Pathway.load(out / "pathways.safetensors")
    foreign.fingerprint = "0" * 64
    foreign.save(out / "foreign.safetensors")
    result = project.call("overlap", out / "pathways.safetensors", out / "foreign.safetensors")
    assert result.exit_code == 1
    message = "".join(result.stderr.split())
    assert "0" * 64 in message
    assert empty.fingerprint in message


def test_randomize(project, tmp_path):
    value = project.json(
        "randomize", project.run, "--baselines", "mct,random", "--test-images", "12",
        "--out", tmp_path / "sanity",
    )  # fmt: skip
    written = json.loads((tmp_path / "sanity" / "randomization.json").read_text())
    assert {key: value[key] for key in written} == written
    assert list(value["methods"]) == ["generator", "mct", "random"]
    assert value["images"] == 12
    assert value["stages"][-1] == len(value["layers"])
    for figures in value["methods"].values():
        assert all(len(entries) == len(value["stages"]) for entries in figures.values())
    # Random pathways look at the image alone: no weight changes them.
    assert value["methods"]["random"]["iou"] == [1.0] * len(value["stages"])
    assert value["methods"]["mct"]["importance"][-1] < 1
    shown = project.call("randomize", project.run, "--test-images", "4", "--out", tmp_path / "b")
    assert "lower is better" in shown.stdout
    result = project.call("randomize", project.run, "--baselines", "oracle")
    assert result.exit_code == 1
    assert "baselines must be among" in result.stderr

"""Bad input: one sentence on standard error, exit code 1 (2 for usage), nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import check_metrics
import lightning
import pytest
import torch

import pathways.run_training as run_training
from pathways.console import sentence
from pathways.runs import Run


def fails(project, *arguments, code=1):
    """The sentence of a failing command; also checks what --json prints."""
    result = project.call(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    message = " ".join(result.stderr.split())
    assert message.startswith("error: ")
    as_json = project.call(*arguments, "--json")
    assert as_json.exit_code == code
    assert json.loads(as_json.stdout)["error"] == message.removeprefix("error: ")
    return message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "{run}"], "at least one IMAGE or --test NUMBER is needed"),
        (["fit", "--out", "{run}x"], "--target and --data are needed for a new run"),
        (["fit", "--out", "{run}", "--resume", "--steps", "3"], "cannot be given with --resume"),
        (["evaluate"], "Missing argument"),
        (["frontier", "{run}", "--variants", "v.json", "--sparsity", "1"], "with --variants"),
        (["demo", "--steps", "0"], "--steps"),
    ],
)
def test_usage_errors_exit_with_2(trained, arguments, words):
    result = trained.call(*[a.format(run=trained.run) for a in arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_sites_errors(trained):
    toy = trained.toy
    shape = ["--shape", "1,8,8"]
    assert "input shape must be given by --shape" in fails(
        trained, "sites", "--target", f"{toy}:net"
    )
    assert "--shape must be 3 positive integers like 3,32,32, got '8'" in fails(
        trained, "sites", "--target", f"{toy}:net", "--shape", "8"
    )
    assert "target must be one of" in fails(trained, "sites", "--target", "resnet", *shape)
    assert "there is no file" in fails(trained, "sites", "--target", "no.py:net", *shape)
    assert "there is no module 'nowhere'" in fails(
        trained, "sites", "--target", "nowhere:net", *shape
    )
    assert "has no callable 'other'" in fails(trained, "sites", "--target", f"{toy}:other", *shape)
    assert "making it failed with KeyError: 'no such thing'" in fails(
        trained, "sites", "--target", f"{toy}:broken", *shape
    )
    assert "must return an nn.Module, got int" in fails(
        trained, "sites", "--target", f"{toy}:nothing", *shape
    )
    assert "at least one activation" in fails(trained, "sites", "--target", f"{toy}:linear", *shape)
    assert "selector 'layer9' matches none of the sites" in fails(
        trained, "sites", "--target", f"{toy}:net", *shape, "--sites", "layer9"
    )
    assert "granularity must be one of channel, unit, got 'pixel'" in fails(
        trained, "sites", "--target", f"{toy}:net", *shape, "--granularity", "pixel"
    )
    assert "must accept inputs of shape [N, 3, 8, 8]" in fails(
        trained, "sites", "--target", f"{toy}:net", "--shape", "3,8,8"
    )


def test_fit_errors_leave_nothing_behind(trained, tmp_path):
    out = tmp_path / "r"

    def fit(*more, drop=()):
        base = trained.fit_arguments(out)
        for option in drop:
            place = base.index(option)
            del base[place : place + 2]
        return fails(trained, *base, *more)

    assert "no train-images-idx3-ubyte" in fit("--data", f"fashion-mnist:{tmp_path}")
    assert "data must be one of digits" in fit("--data", "imagenet")
    assert "must accept inputs of shape [N, 3, 8, 8]" in fit("--data", f"{trained.toy}:other_data")
    assert "as many classes as the target" in fit(
        "--data", "digits", "--target", f"{trained.toy}:net"
    )
    assert "must be the same each time it is made" in fit(
        "--target", f"{trained.toy}:random_net", drop=["--weights"]
    )
    assert "there is no weights file" in fit("--weights", str(tmp_path / "no.safetensors"))
    assert "'colour' is not a setting; known are" in fit("--set", "colour=3")
    assert "--set must be NAME=VALUE, got 'steps'" in fit("--set", "steps")
    assert "sparsity must not be negative" in fit("--sparsity", "-1")
    assert "--mean must be one number or 1, got '1,2'" in fit("--mean", "1,2")
    assert "--size must be a side or height x width, got 'big'" in fit("--size", "big")
    assert "--size must be a side or height x width, got '1x2x3'" in fit("--size", "1x2x3")
    assert "channel_order must be rgb or bgr, got 'grb'" in fit("--channel-order", "grb")
    assert "std and scale must be positive" in fit("--scale", "0")
    assert "--std must be one number or 1, got 'wide'" in fit("--std", "wide")
    assert "baseline must be one of zero, mean, got 'median'" in fit("--baseline", "median")
    assert "sparsity_mode must be site or neuron, got 'layer'" in fit(
        "--set", "sparsity_mode=layer"
    )
    if not torch.cuda.is_available():
        assert "this torch sees no CUDA device" in fit("--device", "cuda", "--overwrite")
    assert not (out / "generator.safetensors").exists()


def test_fit_does_not_replace_a_run_unasked(project, evaluated):
    before = (project.run / "generator.safetensors").read_bytes()
    message = fails(project, *project.fit_arguments(project.run))
    assert "already holds a run; go on with --resume, replace it with --overwrite" in message
    assert (project.run / "generator.safetensors").read_bytes() == before
    # Class pathways of the old generator must not end up in an export of the new one.
    shutil.copy(evaluated / "class_pathways.safetensors", project.run)
    assert project.call(*project.fit_arguments(project.run, 3), "--overwrite").exit_code == 0
    assert not (project.run / "class_pathways.safetensors").exists()
    assert json.loads((project.run / "training.json").read_text())["steps"] == 3


def test_run_folder_errors(project, tmp_path):
    assert "there is no run folder" in fails(project, "evaluate", tmp_path / "none")
    assert "is not a run folder (it has no run.json)" in fails(project, "evaluate", tmp_path)
    description = json.loads((project.run / "run.json").read_text())

    def written(value):
        text = value if isinstance(value, str) else json.dumps(value)
        (project.run / "run.json").write_text(text)
        return fails(project, "export", project.run, "--out", tmp_path / "e.pt")

    assert "is damaged or not a JSON file" in written("{")
    assert "no format_version" in written([])
    assert "format version 1 or older, got 9; upgrade pathways" in written(
        description | {"format_version": 9}
    )
    assert "it lacks weights" in written({k: v for k, v in description.items() if k != "weights"})
    message = written(description | {"fingerprint": "0" * 64})
    assert "has changed since the run was made (recorded: 0000" in message
    assert description["fingerprint"] in message


def test_unfinished_training_says_how_to_go_on(project):
    (project.run / "generator.safetensors").unlink()
    message = fails(project, "explain", project.run, "--test", "0")
    assert f"has no trained generator yet; go on with `pathways fit --out {project.run}" in message


def test_generator_of_another_target_is_refused(project, trained, tmp_path):
    """The weights change, so generator, class pathways and checkpoint belong to another target."""
    model_file = trained.folder / "net.safetensors"
    other = tmp_path / "other.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(model_file)
    state["0.bias"] = state["0.bias"] + 1
    save_file(state, other)
    out = tmp_path / "second"
    arguments = trained.fit_arguments(out, 2)
    arguments[arguments.index("--weights") + 1] = str(other)
    assert trained.call(*arguments).exit_code == 0
    first = Run.open(project.run).description.fingerprint
    second = Run.open(out).description.fingerprint
    assert first != second

    shutil.copy(project.run / "generator.safetensors", out)
    message = fails(trained, "explain", out, "--test", "0")
    assert "was made for another target" in message
    assert first in message
    assert second in message

    (out / "generator.safetensors").unlink()
    shutil.copy(project.run / "last.ckpt", out)
    message = fails(trained, "fit", "--out", out, "--resume")
    assert "last.ckpt was made for another target" in message
    assert first in message
    assert second in message


def test_evaluate_errors(project):
    assert "greedy, intgrad, mct, random, topk; got 'oracle'" in fails(
        project, "evaluate", project.run, "--baselines", "oracle"
    )
    assert "images must have 1 channels" in fails(
        project, "evaluate", project.run, "--data", f"{project.toy}:other_data"
    )
    assert "there must be 3 classes" in fails(project, "evaluate", project.run, "--data", "digits")


def test_explain_errors_write_nothing(project, image_file, tmp_path):
    out = tmp_path / "out"
    text = tmp_path / "text.png"
    text.write_text("no image")
    options = ["--out", out]
    assert "there is no image file" in fails(
        project, "explain", project.run, image_file, tmp_path / "no.png", *options
    )
    assert "is not a readable image" in fails(project, "explain", project.run, text, *options)
    assert "--test must be in [0, 48), got 99" in fails(
        project, "explain", project.run, "--test", "99", *options
    )
    assert "class must be a name (left, right, low) or a number in [0, 3), got 'up'" in fails(
        project, "explain", project.run, image_file, "--class", "up", *options
    )
    assert not out.exists()


def test_explain_does_not_overwrite_an_image(project, image_file, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = folder / "one.png"
    shutil.copy(image_file, picture)
    before = picture.read_bytes()
    sentence = fails(project, "explain", project.run, picture, "--out", folder)
    assert f"would overwrite the image {picture}; choose another folder" in sentence
    assert picture.read_bytes() == before and list(folder.iterdir()) == [picture]


def test_overlap_errors(project, evaluated, tmp_path):
    file = evaluated / "class_pathways.safetensors"
    assert "expected a pathway file, found none" in fails(project, "overlap", tmp_path / "no")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(file.read_bytes()[:100])
    assert "is damaged or not a safetensors file" in fails(project, "overlap", damaged)
    assert "must be a pathway file, got a generator file" in fails(
        project, "overlap", project.run / "generator.safetensors"
    )
    assert "that pathways did not write" in fails(
        project, "overlap", project.folder / "net.safetensors"
    )


def test_export_errors(project, tmp_path):
    assert "--format must be one of torchscript, aoti, got 'onnx'" in fails(
        project, "export", project.run, "--format", "onnx"
    )
    message = fails(project, "export", project.run, "--out", tmp_path / "none" / "e.pt")
    assert "e.pt" in message
    message = fails(project, "export", project.run, "--out", "e.pt2", "--format", "torchscript")
    assert "--out must end in .pt for --format torchscript, got 'e.pt2'" in message


@pytest.mark.parametrize("name", ["run.json", "generator.safetensors", "weights"])
def test_files_of_a_run_are_not_written_over(project, name):
    own = project.folder / "net.safetensors" if name == "weights" else project.run / name
    before = own.read_bytes()
    for command in (["export"], ["extract", "--class", "left"]):
        message = fails(project, *command[:1], project.run, *command[1:], "--out", own)
        assert "--out must not be a file of the run itself" in message
    assert own.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_refused_before_long_work(project, monkeypatch):
    def never(*arguments, **settings):
        raise AssertionError("measured for nothing")

    monkeypatch.setattr("pathways.measuring.evaluate_methods", never)
    monkeypatch.setattr("pathways.measuring.check_randomization", never)
    monkeypatch.setattr("pathways.planted.results.compare_seeds", never)
    file = project.run / "run.json"
    for command in (
        ["evaluate", project.run],
        ["randomize", project.run],
        ["planted", "--methods", "random"],
    ):
        for out in (file, file / "deep" / "er"):
            message = fails(project, *command, "--out", out)
            assert message.endswith(f"must be a folder to write to, got {out}: {file} is no folder")
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda path, mode: mode != os.W_OK | os.X_OK)
            message = fails(project, *command, "--out", project.run / "new")
            assert message.endswith(f"{project.run} cannot be written")
    assert not (project.run / "new").exists()


def test_numbers_that_are_none(trained):
    for shots in ("0", "1,,2", "²", "1.5", ""):  # a superscript is a digit to some
        message = fails(trained, "evaluate", trained.run, "--shots", shots)
        assert message.startswith("error: --shots must be positive integers")


def test_demo_does_not_replace_another_run(project):
    message = fails(project, "demo", "--out", project.run)
    assert "holds a run for target" in message
    assert "--overwrite" in message


def test_unexpected_errors_are_sentences_too(monkeypatch, project):
    assert sentence(KeyError("x")) == "unexpected KeyError: 'x' (PATHWAYS_TRACEBACK=1 shows where)"
    assert sentence(ValueError("first\nsecond")) == "first"
    assert sentence(OSError(28, "No space left on device", "f.png")) == (
        "No space left on device: f.png"
    )
    assert "pip install 'pathways[train,report]'" in sentence(
        ModuleNotFoundError("No module named 'x'", name="x")
    )

    def bug(*arguments, **settings):
        raise AttributeError("surprise")

    monkeypatch.setattr("pathways.report.overlap_files", bug)
    monkeypatch.setenv("PATHWAYS_TRACEBACK", "1")
    result = project.call("overlap", "x")
    assert result.exit_code == 1
    assert "in bug" in result.stderr


# ---------------------------------------------------------------------- ctrl-C


class _PressesCtrlC(lightning.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def interrupted_at(monkeypatch, step):
    """From now on somebody presses ctrl-C at a training step."""
    fit = run_training.fit

    def impatient(*arguments, **settings):
        settings["callbacks"] = [*settings["callbacks"], _PressesCtrlC(step)]
        return fit(*arguments, **settings)

    monkeypatch.setattr(run_training, "fit", impatient)


def test_ctrl_c_leaves_a_run_that_goes_on(trained, tmp_path, monkeypatch):
    out = tmp_path / "r"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 7)
        result = trained.call(*trained.fit_arguments(out))
    assert result.exit_code == 130
    assert f"interrupted; go on with: pathways fit --out {out} --resume" in " ".join(
        result.stderr.split()
    )
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 7
    assert not (out / "generator.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    result = trained.call("fit", "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 12
    # The log of both sittings is there.
    assert {path.name for path in (out / "log").glob("*.csv")} == {"metrics.csv", "metrics.1.csv"}
    # A finished run resumes at once and changes nothing.
    before = (out / "generator.safetensors").read_bytes()
    assert trained.call("fit", "--out", out, "--resume").exit_code == 0
    assert (out / "generator.safetensors").read_bytes() == before


def test_ctrl_c_before_the_first_checkpoint_starts_again(trained, tmp_path, monkeypatch):
    out = tmp_path / "r"

    def never(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_training, "fit", never)
        assert trained.call(*trained.fit_arguments(out, 3)).exit_code == 130
    assert trained.call("fit", "--out", out, "--resume").exit_code == 0
    assert (out / "generator.safetensors").is_file()


def test_interrupted_evaluation_goes_on(project, tmp_path, monkeypatch):
    import pathways.measuring as measuring

    out = tmp_path / "e"
    rest = ("--test-images", "30", "--ranking-images", "0", "--map-images", "0", "--kept", "0.5")
    arguments = ("evaluate", project.run, "--baselines", "mct,random", *rest, "--out", out)
    measured, measure = [], measuring.measure

    def impatient(*args, **settings):
        if len(measured) == stop:
            raise KeyboardInterrupt
        measured.append(measure(*args, **settings))
        return measured[-1]

    monkeypatch.setattr(measuring, "measure", impatient)
    stop = 0
    result = project.call(*arguments)
    assert result.exit_code == 130 and "interrupted; nothing was written" in result.stderr
    assert not out.exists()
    stop = 4  # generator, generator@0.5, mct, mct@0.5
    result = project.call(*arguments)
    message = " ".join(result.stderr.split())
    assert result.exit_code == 130
    assert "evaluation.partial.json, go on with the same command and --resume" in message
    assert [file.name for file in out.iterdir()] == ["evaluation.partial.json"]
    partial = json.loads((out / "evaluation.partial.json").read_text())
    assert list(partial["methods"]) == ["generator", "generator@0.5", "mct", "mct@0.5"]

    for other, told in (
        (("--seed", "1"), r"seed = 0, not 1"),
        (("--test-images", "20"), r"limit = 30, not 20"),
    ):
        message = fails(project, *arguments, *other, "--resume")
        assert f"was made with {told}; start anew with --overwrite" in message
    message = fails(project, *arguments)
    assert "go on with --resume, or start anew with --overwrite" in message
    assert json.loads((out / "evaluation.partial.json").read_text()) == partial

    measured.clear()
    stop = None
    value = project.json(*arguments, "--resume")
    assert len(measured) == 3  # the generator again, for its class pathways; random, random@0.5
    names = [name + size for name in ("generator", "mct", "random") for size in ("", "@0.5")]
    assert list(value["methods"]) == names
    assert not (out / "evaluation.partial.json").exists()
    found = json.loads((out / "evaluation.json").read_text())["methods"]
    assert found["mct@0.5"] == partial["methods"]["mct@0.5"]
    whole = project.json(*arguments[:-1], tmp_path / "whole")["methods"]
    timed = ("ms_per_explanation", "ms_per_target_forward")
    for name, figures in value["methods"].items():
        for key in set(figures) - set(timed):
            assert figures[key] == whole[name][key], (name, key)


@pytest.mark.parametrize(
    "contents",
    [
        "",
        "[]",
        '{"settings": {}}',
        '{"settings": 1, "methods": {}}',
        '{"settings": {}, "methods": {"mct": 5}}',
        '{"settings": {}, "methods": {"mct": {}}}',
    ],
)
def test_damaged_partial_evaluations(project, tmp_path, contents):
    (tmp_path / "evaluation.partial.json").write_text(contents)
    message = fails(project, "evaluate", project.run, "--out", tmp_path, "--resume")
    assert "evaluation.partial.json is damaged" in message


def test_interrupted_demo_goes_on(trained, tmp_path, monkeypatch):
    import pathways.demo as demo
    from pathways.training.data import load_images as load

    monkeypatch.setattr(demo, "load_images", lambda *a, **k: load("digits").subset(320, 120))
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 11)
        result = trained.call("demo", "--out", out, "--steps", "12")
    assert result.exit_code == 130
    assert "pathways demo --out" in result.stderr
    target = (out / "target.safetensors").read_bytes()

    value = trained.json("demo", "--out", out, "--steps", "12", "--resume")
    assert (out / "target.safetensors").read_bytes() == target
    metrics = json.loads((out / "metrics.json").read_text())
    assert value["metrics"] == metrics
    assert check_metrics.check(metrics, ["kept<=1", "seconds_total>0"], keys=True) == []
    assert {"explainer.pt", "overlap.png", "run.json", "training.png"} <= {
        path.name for path in out.iterdir()
    }
    assert len(list((out / "images").glob("*.png"))) == 10
    # A demo folder is a run like any other.
    assert trained.json("explain", out, "--test", "0")["explanations"]

    message = fails(trained, "demo", "--out", out, "--steps", "5", "--resume")
    assert "holds a training with steps = 12, it cannot go on with 5" in message


def test_signal_of_a_real_terminal(trained, tmp_path):
    out = tmp_path / "r"
    program = subprocess.Popen(
        [sys.executable, "-m", "pathways.cli", *trained.fit_arguments(out, 100000)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell that runs the tests in the background has made its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "log" / "metrics.csv").is_file() and program.poll() is None:
            assert time.monotonic() < deadline, "the training never started"
            time.sleep(0.1)
        program.send_signal(signal.SIGINT)
        _, stderr = program.communicate(timeout=120)
    finally:
        program.kill()
    assert program.returncode == 130, stderr
    assert "interrupted; go on with: pathways fit" in stderr
    assert "Traceback" not in stderr
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] > 0


def test_extract_errors(project, evaluated, tmp_path):
    out = tmp_path / "small.pt2"
    arguments = ["extract", project.run, "--class", "left", "--out", out]
    assert f"has no class pathways yet; make them by: pathways evaluate {project.run}" in fails(
        project, *arguments
    )
    shutil.copy(evaluated / "class_pathways.safetensors", project.run)
    assert "class must be a name (left, right, low) or a number" in fails(
        project, "extract", project.run, "--class", "cat", "--out", out
    )
    assert "threshold must be in [0, 1], got 2.0" in fails(project, *arguments, "--threshold", "2")
    out.write_text("kept")
    missing = tmp_path / "no" / "small.pt2"
    assert "cannot write" in fails(project, *arguments[:-1], missing)
    assert out.read_text() == "kept"

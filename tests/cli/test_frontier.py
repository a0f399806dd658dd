"""pathways frontier: table, files, JSON; going on, refusing, processes and ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from test_cli_errors import fails, interrupted_at

SHORT = ("--steps", "3", "--test-images", "20")


def written(project):
    return {
        str(path.relative_to(project.run)): path.read_bytes()
        for path in sorted(project.run.rglob("*"))
        if path.is_file()
    }


def test_frontier_as_json(project):
    before = written(project)
    value = project.json("frontier", project.run, *SHORT, "--sparsity", "2,4", "--seeds", "0,7")
    names = ("name", "sparsity", "specificity", "plain")
    assert [tuple(entry[name] for name in names) for entry in value["variants"]] == [
        ("sparsity-2", 2.0, 4.0, False), ("sparsity-4", 4.0, 8.0, False),
        ("plain-sparsity-2", 2.0, 0.0, True), ("plain-sparsity-4", 4.0, 0.0, True),
    ]  # fmt: skip
    assert value["kind"] == "frontier" and value["seeds"] == [0, 7]
    assert value["test_images"] == 20 and value["run"] == str(project.run)
    assert [(p["variant"], p["seed"]) for p in value["points"]][:3] == [
        ("sparsity-2", 0), ("sparsity-2", 7), ("sparsity-4", 0),
    ]  # fmt: skip
    assert all(p["settings"]["steps"] == 3 for p in value["points"])
    out = project.run / "frontier"
    assert value["files"] == [str(out / "frontier.json"), str(out / "frontier.png")]
    assert json.loads((out / "frontier.json").read_text()) == {
        name: entry for name, entry in value.items() if name != "files"
    }
    assert (out / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    shutil.rmtree(out)
    assert written(project) == before


def test_frontier_prints_a_table_and_goes_on(project):
    arguments = ("frontier", project.run, *SHORT, "--sparsity", "1", "--seeds", "0,1")
    result = project.call(*arguments, "--no-plain")
    assert result.exit_code == 0, result.output
    for words in ("mean ± standard deviation", "sparsity-1", "flip", "blank hit", "frontier.png"):
        assert words in result.stdout
    assert "plain" not in result.stdout
    message = fails(project, *arguments)
    assert "already holds a point; go on with --resume, replace it with --overwrite" in message
    result = project.call(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert "plain-sparsity-1" in result.stdout


def test_the_runs_training_need_not_be_finished(project):
    for name in ("generator.safetensors", "last.ckpt"):
        (project.run / name).unlink()
    value = project.json(
        "frontier", project.run, *SHORT, "--sparsity", "1", "--seeds", "0", "--no-plain"
    )
    assert len(value["points"]) == 1 and not (project.run / "generator.safetensors").exists()


def test_variants_are_compared_with_the_first(project, tmp_path):
    file = tmp_path / "v.json"
    file.write_text('{"full": {}, "leaky": {"specificity": 0}, "mean": {"baseline": "mean"}}')
    arguments = ("frontier", project.run, *SHORT, "--variants", file, "--seeds", "0,1")
    result = project.call(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "difference from full, seed by seed" in result.stdout
    assert "+" in result.stdout or "-." in result.stdout
    value = project.json(*arguments, "--out", tmp_path / "out", "--resume")
    assert value["kind"] == "variants"
    assert [v["baseline"] for v in value["variants"]] == ["zero", "zero", "mean"]
    assert [v["granularity"] for v in value["variants"]] == ["channel"] * 3
    assert (tmp_path / "out" / "leaky" / "seed_1" / "point.json").is_file()
    assert not (project.run / "frontier").exists()


def test_errors(project, tmp_path):
    def frontier(*more):
        return fails(project, "frontier", project.run, *SHORT, *more)

    assert "--sparsity must be numbers like 1,2.5,8, got 'much'" in frontier("--sparsity", "much")
    assert "--seeds must be numbers like 0,1,2, got '1.5'" in frontier("--seeds", "1.5")
    assert "seeds must be different and not negative, got [1, 1]" in frontier("--seeds", "1,1")
    assert "sparsities must be positive and different" in frontier("--sparsity", "0,1")
    assert "there is no variants file" in frontier("--variants", tmp_path / "none.json")
    file = tmp_path / "v.json"
    file.write_text('{"wide": {"colour": 1}}')
    assert "variant 'wide': 'colour' is not a setting; known are" in frontier("--variants", file)
    assert "images must have 1 channels" in frontier("--data", f"{project.toy}:other_data")
    assert not (project.run / "frontier").exists()
    (project.run / "training.json").unlink()
    assert "has no training to go on with" in frontier()


def test_a_run_without_data_takes_it(project):
    description = json.loads((project.run / "run.json").read_text())
    (project.run / "run.json").write_text(json.dumps(description | {"data": None}))
    arguments = ("frontier", project.run, *SHORT, "--sparsity", "1", "--seeds", "0", "--no-plain")
    assert "records no data; name it with --data" in fails(project, *arguments)
    assert project.json(*arguments, "--data", f"{project.toy}:data")["points"]


def test_other_settings_are_refused_and_replaced(project):
    arguments = ("frontier", project.run, "--sparsity", "1", "--seeds", "0", "--no-plain")
    assert project.call(*arguments, *SHORT).exit_code == 0
    message = fails(project, *arguments, "--steps", "2", "--test-images", "20", "--resume")
    assert "point.json was made with steps = 3, not 2; replace it with --overwrite" in message
    value = project.json(*arguments, "--steps", "2", "--overwrite")
    assert value["points"][0]["settings"]["steps"] == 2


def test_ctrl_c_says_how_to_go_on(project, monkeypatch):
    arguments = ("frontier", project.run, *SHORT, "--sparsity", "1", "--seeds", "0", "--no-plain")
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        result = project.call(*arguments)
    assert result.exit_code == 130
    assert "go on with the same command and --resume" in " ".join(result.stderr.split())
    assert (project.run / "frontier" / "sparsity-1" / "seed_0" / "last.ckpt").is_file()
    assert project.json(*arguments, "--resume")["points"][0]["figures"]["kept"] is not None


@pytest.mark.slow
def test_processes_give_the_same_points(project, tmp_path):
    arguments = ("frontier", project.run, *SHORT, "--sparsity", "1", "--seeds", "0,1", "--no-plain")
    alone = project.json(*arguments, "--out", tmp_path / "a")
    together = project.json(*arguments, "--out", tmp_path / "b", "--jobs", "2")
    for one, other in zip(alone["points"], together["points"], strict=True):
        assert one["figures"].pop("seconds") > 0 and other["figures"].pop("seconds") > 0
        assert one == other


@pytest.mark.slow
def test_a_failing_process_is_one_sentence(project, tmp_path):
    file = tmp_path / "v.json"
    file.write_text('{"odd": {}}')
    (project.run / "frontier").mkdir()
    (project.run / "frontier" / "odd").write_text("in the place of the point's folder")
    arguments = ("frontier", project.run, *SHORT, "--variants", file, "--seeds", "0")
    result = project.call(*arguments, "--jobs", "2")
    assert result.exit_code == 1 and "Traceback" not in result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("error: odd seed 0: Not a directory")


@pytest.mark.slow
def test_ctrl_c_stops_the_processes(project):
    command = [
        sys.executable, "-m", "pathways.cli", "frontier", str(project.run), "--steps", "100000",
        "--sparsity", "1", "--seeds", "0,1,2", "--no-plain", "--jobs", "2",
    ]  # fmt: skip
    program = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folders = [project.run / "frontier" / "sparsity-1" / f"seed_{seed}" for seed in (0, 1)]
    try:
        deadline = time.monotonic() + 120
        while not all((folder / "last.ckpt").is_file() for folder in folders):
            assert time.monotonic() < deadline and program.poll() is None, "it never started"
            time.sleep(0.2)
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does
        _, stderr = program.communicate(timeout=120)
    finally:
        program.kill()
    assert program.returncode == 130, stderr
    assert "go on with the same command and --resume" in " ".join(stderr.split())
    assert "Traceback" not in stderr
    assert not (folders[0].parent / "seed_2").exists()
    before = [(folder / "last.ckpt").stat().st_mtime for folder in folders]
    time.sleep(1.5)
    assert [(folder / "last.ckpt").stat().st_mtime for folder in folders] == before

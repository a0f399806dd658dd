"""``pathways planted``: what it prints and writes, and what it refuses."""

import json

import pytest
from typer.testing import CliRunner

from pathways.cli import app

SMALL = ("planted", "--classes", "2", "--chain", "1", "--methods", "generator,mct,random")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_tables_and_files(tmp_path):
    result = call(*SMALL, "--steps", 2, "--out", tmp_path / "p")
    assert result.exit_code == 0, result.output
    for text in ("2 classes, 8 of 32 channels each", "transfer j=1", "blank hit", "cancelling"):
        assert text in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("│ ")]
    assert [row[1] for row in rows] == ["truth", "generator", "mct", "random"] * 2
    assert [cell for cell in rows[0] if cell[0].isdigit()][:3] == ["1.00"] * 3
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "planted.json", "planted.png",
    ]  # fmt: skip
    written = json.loads((tmp_path / "p" / "planted.json").read_text())
    assert written["methods"]["truth"]["mean"]["recall"] == 1


def test_json_of_several_seeds_and_settings(tmp_path):
    result = call(
        *SMALL, "--steps", 2, "--seed", 5, "--seeds", 2, "--backup", "--json",
        "--set", "batch_size=8", "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["seeds"] == [5, 6] and value["settings"] == {"batch_size": 8}
    assert value["options"]["backup"] is True and value["circuit"] == 8
    assert list(value["methods"]) == ["truth", "generator", "mct", "random"]
    assert "backup" in value["methods"]["mct"]["mean"]
    assert len(value["methods"]["random"]["seeds"]) == 2
    assert json.loads((tmp_path / "planted.json").read_text()) | {"files": value["files"]} == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "mct,oracle"), "got 'oracle'"),
        (("--methods", ","), "got none"),
        (("--classes", "1"), "num_classes must be at least 2, got 1"),
        (("--depth", "2"), "depth must be at least 4, got 2"),
        (("--noise", "2"), "noise must be in [0, 0.05], got 2"),
        (("--kept", "1.5"), "kept must be in [0, 1], got 1.5"),
        (("--set", "batch_size"), "--set must be NAME=VALUE"),
        (("--set", "colour=1", "--methods", "random"), "'colour' is not a setting"),
    ],
)
def test_refusals_are_one_sentence(arguments, message, tmp_path):
    result = call("planted", *arguments, "--out", tmp_path / "p")
    assert result.exit_code == 1
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "p").exists()


def test_wrong_usage():
    assert call("planted", "--seeds", 0).exit_code == 2
    assert call("planted", "--steps", 0).exit_code == 2

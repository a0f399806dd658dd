"""docs/performance.md shows the figures of docs/performance/cpu.json, misses included."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "performance_table.py"
PAGE = ROOT / "docs" / "performance.md"
FIGURES = ROOT / "docs" / "performance" / "cpu.json"


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def copies(tmp_path):
    page, figures = tmp_path / "page.md", tmp_path / "cpu.json"
    # Without the sections that the present figures ask for.
    page.write_text(PAGE.read_text().partition("### Miss:")[0])
    figures.write_text(FIGURES.read_text())
    return page, figures, ["--page", page, "--figures", figures]


def peer(**values):
    return {
        "name": "eager",
        "median_ms": 3.0,
        "iqr_ms": 0.1,
        "measure": "speed",
        "ratio": 1.5,
        "low": 1.4,
        "high": 1.6,
        "needed": 1.8,
        "needed_met": False,
    } | values


def row(*beside):
    ours = {"median_ms": 2.0, "iqr_ms": 0.1}
    return {
        "op": "new_op",
        "work": "a shape",
        "dtype": "float32",
        "threads": 1,
        "rounds": 7,
        "ours": ours,
        "beside": list(beside),
    }


def test_page_and_figures_agree():
    result = run("--check")
    assert result.returncode == 0, result.stderr


def test_another_figure_is_noticed_and_written(tmp_path):
    page, figures, options = copies(tmp_path)
    results = json.loads(figures.read_text())
    results |= {"rows": [], "figures": []}
    results["machine"]["cpu"] = "another machine"
    figures.write_text(json.dumps(results))
    result = run("--check", *options)
    assert result.returncode == 1
    assert "run tools/performance_table.py" in result.stderr
    assert run(*options).returncode == 0
    assert "another machine" in page.read_text()
    assert run("--check", *options).returncode == 0


def test_a_miss_is_shown_and_needs_a_section(tmp_path):
    page, figures, options = copies(tmp_path)
    results = json.loads(figures.read_text())
    kept = peer(name="copy_", measure="time", ratio=0.5, needed=1.1, needed_met=True)
    results["rows"] = [row(peer(goal=2.5, goal_met=False), kept)]
    results["figures"] = []
    figures.write_text(json.dumps(results))
    assert run(*options).returncode == 0
    text = page.read_text()
    assert "1 of 2 needed limits are kept." in text
    assert "| new_op | a shape, float32 | 1 | eager | speed ≥ 1.8 | 1.5 (1.4 to 1.6) |" in text
    assert "| **no**: eager | **no**: eager |" in text
    result = run("--check", *options)
    assert result.returncode == 1
    assert "the miss of new_op has no section '### Miss: `new_op`'" in result.stderr
    page.write_text(text + "\n### Miss: `new_op`\n\nBecause.\n\n### Miss: `old_op`\n")
    result = run("--check", *options)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"{page}: old_op has a section '### Miss: `old_op`' and no miss"
    ]


def test_a_missing_peer_is_no_yes(tmp_path):
    page, figures, options = copies(tmp_path)
    results = json.loads(figures.read_text())
    gone = {"name": "eager", "missing": "not installed", "measure": "speed", "needed": 1.8}
    results |= {"rows": [row(gone)], "figures": []}
    figures.write_text(json.dumps(results))
    assert run(*options).returncode == 0
    text = page.read_text()
    assert "0 of 0 needed limits are kept, 1 could not be measured." in text
    assert "| not installed | not measured: eager |" in text


def test_a_page_without_a_marker_is_refused(tmp_path):
    page, _, options = copies(tmp_path)
    page.write_text(page.read_text().replace("<!-- table levels -->", ""))
    result = run(*options)
    assert result.returncode == 1
    assert "must have the markers <!-- table levels -->" in result.stderr


def test_too_much_memory_is_a_miss(tmp_path):
    page, figures, options = copies(tmp_path)
    results = json.loads(figures.read_text())
    memory = {"op": "new_op", "what": "memory", "value": 250.0, "unit": "MB", "needed": 200}
    results |= {"rows": [], "figures": [memory | {"needed_met": False}]}
    figures.write_text(json.dumps(results))
    assert run(*options).returncode == 0
    assert "| new_op | memory |  |  | < 200 MB | 250 MB |" in page.read_text()
    assert "0 of 1 needed limits are kept." in page.read_text()
    assert run("--check", *options).returncode == 1

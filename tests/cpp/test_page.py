"""docs/cpp.md does what it says: its blocks are run in order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cpp_build import tree

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cpp.md"
# Kind, file name if any, and text of a fenced block.
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_page(tmp_path):
    tree("install")  # else nothing to build with is at hand
    script = ["set -eu"]
    for kind, name, text in BLOCK.findall(PAGE.read_text()):
        if kind == "sh":
            script.append(text)
        elif name:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    assert len(script) == 5 and len(list((tmp_path / "own").iterdir())) == 2
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SOURCE": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"pathway_of"' in done.stdout and (tmp_path / "map.png").is_file()
    assert "libpython" not in done.stdout
    assert len(re.findall(r"^\w+, kept 0\.\d+$", done.stdout, re.MULTILINE)) == 4


@pytest.mark.parametrize("name", ["formats.md", "../csrc/include/pathways/explainer.h"])
def test_links_of_the_page(name):
    assert f"]({name})" in PAGE.read_text() and (PAGE.parent / name).is_file()

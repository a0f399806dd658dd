"""The wheel, installed apart from the source tree, and the source distribution."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from cpp_build import cmake, run, tree

ROOT = Path(__file__).resolve().parents[2]
SMOKE = """
import sys, torch, pathways
from pathways import export
assert pathways.__file__.startswith(sys.argv[1]), pathways.__file__
x, gate = torch.randn(2, 8, 4, 4, requires_grad=True), torch.rand(2, 8)
y = pathways.ops.gated_forward(x, gate, activation="relu")
y.sum().backward()
assert torch.allclose(y, x.relu() * gate[:, :, None, None])
assert torch.allclose(x.grad, (x > 0) * gate[:, :, None, None])
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(),
                          torch.nn.Linear(288, 4)).eval()
target = pathways.GatedTarget(net, torch.zeros(1, 3, 8, 8))
explainer = pathways.Explainer(target, pathways.GenCNP(target.sites, 4, width=8))
images = torch.randn(3, 3, 8, 8)
expected = explainer(images)
export.export_explainer(explainer, sys.argv[2])
logits, gated_logits, importance, words = export.load_scripted(sys.argv[2])(images)
assert torch.allclose(gated_logits, expected.gated_logits, atol=1e-5)
assert torch.equal(words, expected.pathway.words)
print(torch.__version__)
"""


@pytest.fixture(scope="module")
def wheel():
    (path,) = tree("wheel").parent.glob("pathways-*.whl")
    return path


@pytest.mark.parametrize("which", ["this torch", "another torch"])
def test_smoke(wheel, tmp_path, which):
    """Installed into an empty folder, the wheel works under either torch, away from the sources."""
    python = sys.executable
    if which == "another torch":
        python = os.environ.get("PATHWAYS_SECOND_PYTHON", "")
        if not python:
            pytest.skip("PATHWAYS_SECOND_PYTHON is not set")
    site = tmp_path / "site"
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    run(sys.executable, *install)
    done = subprocess.run(
        [python, "-c", SMOKE, str(site), str(tmp_path / "explainer.pt")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    this = run(sys.executable, "-c", "import torch; print(torch.__version__)").stdout
    assert (done.stdout == this) == (which == "this torch")


def test_contents(wheel):
    """The package, the library with its CMake files, headers, sources for the C++ targets."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = {name.split("/")[0] for name in names}
    assert {folder.split("-")[0] for folder in folders} == {"pathways"}
    for name in (
        "lib/libpathways.so",
        "lib/cmake/Pathways/PathwaysConfig.cmake",
        "include/pathways/ops.h",
        "include/pathways/explainer.h",
        "share/pathways/explainer/explainer.cpp",
        "share/pathways/autograd/gated_forward.cpp",
        "py.typed",
    ):
        assert f"pathways/{name}" in names
    sources = {path.relative_to(ROOT) for path in (ROOT / "pathways").rglob("*.py")}
    assert {str(path) for path in sources} == {name for name in names if name.endswith(".py")}


def test_source_distribution(tmp_path):
    """It holds all that a build needs: CMake finds every file it names."""
    # In a copy: setuptools leaves traces where it runs.
    code = (
        "from setuptools import build_meta; import sys, os; "
        "print(build_meta.build_sdist(sys.argv[1]), file=sys.stderr)"
    )
    listed = run("git", "-C", ROOT, "ls-files").stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "copy" / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path / "copy",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stderr.split()[-1]) as archive:
        archive.extractall(tmp_path / "sources", filter="data")
    (source,) = (tmp_path / "sources").iterdir()
    assert not (source / "tests").exists()
    options = ("-DPATHWAYS_PROGRAM=ON", f"-DPython_EXECUTABLE={sys.executable}")
    printed = cmake("-S", source, "-B", tmp_path / "build", "-G", "Ninja", *options)
    assert "Generating done" in printed

"""The toy project as fixtures."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from toy_project import Project, make_project

# Scripts that are not part of the package but are held to the same standard.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def evaluated(trained):
    """What `pathways evaluate` writes, in a folder of its own."""
    out = trained.folder / "results"
    result = trained.call("evaluate", trained.run, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def project(trained, tmp_path):
    """A fresh copy of the trained run, free to be spoiled."""
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    return Project(trained.folder, run)


@pytest.fixture
def image_file(tmp_path):
    from PIL import Image

    path = tmp_path / "photo.png"
    pixels = (torch.rand(20, 30, 3) * 255).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(autouse=True)
def no_stale_toy_module():
    yield
    sys.modules.pop("toy", None)

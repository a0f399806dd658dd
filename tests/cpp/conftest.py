"""The C++ library as others use it: a project of its own, on an install tree and on a wheel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from cpp_build import HERE, TORCH, cmake, configure, run, tree
from export_nets import make_explainer

from pathways import ClassPathways
from pathways.export import export_explainer


def second_torch() -> Path:
    """The torch package of another environment, of another release."""
    python = os.environ.get("PATHWAYS_SECOND_PYTHON")
    if not python:
        pytest.skip("PATHWAYS_SECOND_PYTHON is not set")
    code = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    return Path(run(python, "-c", code).stdout.strip())


@pytest.fixture(scope="session", params=["install", "wheel", "wheel-second-torch"])
def consumer(request, tmp_path_factory) -> Path:
    """Folder with the programs of tests/cpp/consumer, built on a tree and a torch."""
    prefix = tree(request.param.split("-")[0])
    torch_dir = second_torch() if request.param.endswith("torch") else TORCH
    build = tmp_path_factory.mktemp(f"consumer-{request.param}")
    configure(HERE / "consumer", build, prefix, torch_dir=torch_dir)
    cmake("--build", build, "--parallel", "2")
    return build


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """``exported(net, granularity, format)``: eager explainer, class pathways and exported file."""
    folder = tmp_path_factory.mktemp("exported")
    made = {}

    def explainer_of(name: str, granularity: str):
        key = name, granularity
        if key not in made:
            explainer = make_explainer(name, granularity)
            count = explainer.target.num_classes
            images = torch.randn(8, *explainer.target.example_shape)
            class_pathways = ClassPathways.from_pathways(
                explainer(images).pathway, torch.arange(8) % count, num_classes=count
            )
            made[key] = explainer, class_pathways
        return made[key]

    def export(name: str, granularity: str = "channel", kind: str = "torchscript"):
        explainer, class_pathways = explainer_of(name, granularity)
        path = folder / f"{name}-{granularity}.{'pt' if kind == 'torchscript' else 'pt2'}"
        if not path.exists():
            export_explainer(explainer, path, format=kind, class_pathways=class_pathways)
        return explainer, class_pathways, path

    return export

"""The C++ library as others use it: a project of its own, on an install tree and on a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cpp_build import HERE, TREES, cmake, configure, tree
from export_nets import make_explainer

from pathways import ClassPathways
from pathways.export import export_explainer


@pytest.fixture(scope="session", params=TREES)
def consumer(request, tmp_path_factory) -> Path:
    """Folder with the programs of tests/cpp/consumer, built on one of the trees."""
    prefix = tree(request.param)
    build = tmp_path_factory.mktemp(f"consumer-{request.param}")
    configure(HERE / "consumer", build, prefix)
    cmake("--build", build, "--parallel", "2")
    return build


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """``exported(net, granularity)``: eager explainer, class pathways and exported file."""
    folder = tmp_path_factory.mktemp("exported")
    made = {}

    def make(name: str, granularity: str = "channel"):
        key = name, granularity
        if key not in made:
            explainer = make_explainer(name, granularity)
            images = torch.randn(8, *explainer.target.example_shape)
            count = explainer.target.num_classes
            class_pathways = ClassPathways.from_pathways(
                explainer(images).pathway, torch.arange(8) % count, num_classes=count
            )
            path = folder / f"{name}-{granularity}.pt"
            export_explainer(explainer, path, class_pathways=class_pathways)
            made[key] = explainer, class_pathways, path
        return made[key]

    return make

"""The toy project, trained once; its run names target, data and settings of every sweep here."""

import sys
from dataclasses import replace

import pytest
from toy_project import make_project

from pathways.run_training import load_training


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def started(toy):
    """A run, settings of a very short training that removes neurons all the same, and images."""
    run, config = load_training(toy.run)
    yield run, replace(config, steps=4, learning_rate=0.3, sparsity=8.0), run.images
    sys.modules.pop("toy", None)

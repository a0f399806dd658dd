"""Arguments that are refused, and in which words."""

import pytest
import torch
from torch import nn

import pathways
from pathways import ExtractionError, GatedTarget, Pathway
from pathways.models import vgg

EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.fixture
def target():
    return GatedTarget(vgg(3, 5, (4, 6)).eval(), EXAMPLE)


def pathway_of(target, rows=1):
    mask = torch.rand(rows, target.sites.num_neurons) < 0.5
    return Pathway.from_mask(mask, target.sites, target.fingerprint)


def test_extraction_error_is_a_value_error():
    assert issubclass(ExtractionError, ValueError)


@pytest.mark.parametrize("rows", [0, 3])
def test_other_than_one_pathway(target, rows):
    with pytest.raises(ExtractionError, match=f"must be exactly one, got {rows} rows; choose one"):
        pathways.extract(target, pathway_of(target, rows))


def test_units(target):
    units = GatedTarget(target.model, EXAMPLE, granularity="unit")
    words = (
        "pathway must be one of channels, got granularity 'unit': a single unit of a channel "
        "cannot be removed from a dense layer"
    )
    with pytest.raises(ExtractionError, match=words):
        pathways.extract(units, pathway_of(units))
    with pytest.raises(ExtractionError, match=words):
        pathways.extract(target, pathway_of(units))
    with pytest.raises(ExtractionError, match=words):
        pathways.extract(target.model, pathway_of(units), example_input=EXAMPLE)


def test_other_sites(target):
    other = GatedTarget(vgg(3, 5, (4, 8)).eval(), EXAMPLE)
    with pytest.raises(ExtractionError, match=r"must have the sites of the target, got Sites\(2"):
        pathways.extract(target, pathway_of(other))
    with pytest.raises(ExtractionError, match=r"must be one of this Sequential, .* no site 5#0 of"):
        pathways.extract(target.model, pathway_of(other), example_input=EXAMPLE)


def test_other_weights_or_baseline(target):
    other = GatedTarget(vgg(3, 5, (4, 6)).eval(), EXAMPLE)
    with pytest.raises(ExtractionError, match="must belong to the target, but the fingerprints"):
        pathways.extract(target, pathway_of(other))
    target.baseline = [torch.ones(4), torch.ones(6)]
    pathway = pathway_of(target)
    pathways.extract(target, pathway)
    with pytest.raises(ExtractionError, match="another baseline, which only the GatedTarget"):
        pathways.extract(target.model, pathway, example_input=EXAMPLE)


def test_plain_model_without_example(target):
    with pytest.raises(ExtractionError, match="a plain Sequential needs example_input, a batch"):
        pathways.extract(target.model, pathway_of(target))


@pytest.mark.parametrize("mask, words", [
    (torch.ones(9), r"mask must be \[N, 10\], got \(1, 9\)"),
    (torch.full((10,), 0.5), "mask must hold only 0 and 1, got other values"),
    (torch.ones(2, 10), "pathway must be exactly one, got 2 rows"),
    ([torch.ones(4)], r"pathway must hold one mask per site \(2\), got 1"),
    ([torch.ones(4), torch.ones(5)], r"mask of site 5#0 must be \[6\] or \[1, 6\], got \(1, 5\)"),
    ([torch.ones(2, 4), torch.ones(2, 6)], "pathway must be exactly one, got 2 rows"),
])  # fmt: skip
def test_masks(target, mask, words):
    with pytest.raises(ExtractionError, match="^extract: .*" + words):
        pathways.extract(target, mask)


def test_types(target):
    with pytest.raises(TypeError, match=r"model must be a GatedTarget or an nn\.Module, got str"):
        pathways.extract("resnet18", torch.ones(10))
    with pytest.raises(
        TypeError, match="pathway must be a Pathway, a mask or a mask per site, got"
    ):
        pathways.extract(target, "cat")
    with pytest.raises(TypeError, match=r"must be an eager nn\.Module, got the scripted module"):
        pathways.extract(torch.jit.script(nn.Linear(3, 3)), torch.ones(3), example_input=EXAMPLE)


def test_unknown_names_of_the_package():
    with pytest.raises(AttributeError, match="module 'pathways' has no attribute 'extracted'"):
        _ = pathways.extracted

"""Baselines by name: made from a context, with the generator's size, and listed where they are."""

from pathlib import Path

import pytest
import torch
from baseline_networks import Residual
from torch import nn

from pathways.baselines.registry import BASELINES, BaselineContext, check_baselines, make_baseline
from pathways.explainer import Explainer
from pathways.generator import GenCNP
from pathways.target import GatedTarget

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def context():
    torch.manual_seed(0)  # of which sizes differ
    target = GatedTarget(Residual(), torch.zeros(1, 1, 5, 5))
    generator = GenCNP(target.sites, num_classes=3, width=8, min_keep=0.5)
    with torch.no_grad():  # pathways that differ by input and by site
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter))
    return BaselineContext(Explainer(target, generator), torch.randn(8, 1, 5, 5), seed=3)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"dgr_pathwaygrad"}))
def test_every_baseline_explains(context, name):
    images = context.images
    e = make_baseline(name, context)(images)
    assert len(e) == 8
    wanted = context.explainer(images).pathway
    assert len(set(wanted.sizes().tolist())) > 1
    if name not in ("active", "agnostic"):
        assert e.pathway.sizes().tolist() == wanted.sizes().tolist()
        assert (e.pathway.sizes(per_site=True) >= 2).all()
    if name in ("random", "topk"):
        assert torch.equal(e.pathway.sizes(per_site=True), wanted.sizes(per_site=True))


def test_settings_of_names(context):
    assert make_baseline("dgr", context).routing.steps == 30
    port = make_baseline("dgr_pathwaygrad", context)
    assert (port.routing.steps, port.seed) == (1000, 3)
    assert make_baseline("greedy", context).rounds == 100
    assert make_baseline("random", context).seed == 3


def test_unknown_names():
    with pytest.raises(ValueError, match=r"baselines must be among active, .*, topk; got 'oracle'"):
        check_baselines(["mct", "oracle"])
    with pytest.raises(ValueError, match="baselines must be named once each, got 'mct' twice"):
        check_baselines(["mct", "dgr", "mct"])


def test_every_baseline_is_listed():
    text = (ROOT / "docs" / "baselines.md").read_text()
    for name, baseline in BASELINES.items():
        assert f"| `{name}` |" in text
        assert baseline.meaning in text


def test_class_pathways_of_effective_path_are_unions(context):
    pytest.importorskip("lightning")
    from pathways.measuring import measure
    from pathways.preprocessing import Preprocessing
    from pathways.training.data import Images

    pixels, labels = torch.rand(24, 1, 5, 5), torch.zeros(24, dtype=torch.int64)
    images = Images(pixels, labels, pixels, labels, ("a", "b", "c"))
    preprocessing = Preprocessing([0.0], [1.0])
    for name, threshold in (("effective", 0.0), ("mct", 0.5)):
        found = measure(make_baseline(name, context), preprocessing, images)
        assert found.settings["threshold"] == threshold
        assert found.class_pathways.threshold == threshold


def test_a_method_of_few_lines():
    """What CONTRIBUTING.md shows, run."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = text.split("## Add a pathway method")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code, names)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    target = GatedTarget(net, torch.zeros(1, 4))
    e = names["MeanGradient"](target, kept=0.25)(torch.randn(3, 4))
    assert e.pathway.sizes().tolist() == [2, 2, 2]

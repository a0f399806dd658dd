"""AOTInductor files: equal to the eager explainer, whole, and refused where they are not right.

Compiling takes tens of seconds, so that two tiny explainers are compiled, once for all tests: by
channel with preprocessing and class pathways, and by unit with a baseline and without either. What
the programs of other architectures compute is shown uncompiled by test_programs.py, and compiled by
test_aoti_parity.py on request.
"""

import io
import json
import re
import shutil
import struct
import zipfile

import pytest
import torch
from export_nets import explainer_of, make_class_pathways, make_explainer, with_statistics
from torch import nn

from pathways import GatedTarget, Preprocessing
from pathways.export import (
    CompiledExplainer,
    ExportError,
    ScriptedExplainer,
    aoti,
    export_explainer,
    export_torchscript,
    load_compiled,
    load_scripted,
    load_torchscript,
    read_info,
)
from pathways.export.programs import trace_programs
from pathways.models import vgg

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
CLASSES = ["ant", "bee", "cat", "dog", "eel"]
slow = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """What calls the kernels need not be fast here."""
    from torch._inductor import config

    with config.patch("aot_inductor.compile_wrapper_opt_level", "O0"):
        yield


@pytest.fixture(scope="module")
def small():
    """Three convolutions with BatchNorm and a pooling between them."""
    torch.manual_seed(7)
    model = with_statistics(vgg(3, 5, (8, 8, 8)), (3, 16, 16))
    return explainer_of(GatedTarget(model, torch.zeros(1, 3, 16, 16)))


@pytest.fixture(scope="module")
def preprocessing():
    return Preprocessing(
        (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), size=(16, 16), scale=2.0, channel_order="bgr"
    )


@pytest.fixture(scope="module")
def class_pathways(small):
    return make_class_pathways(small, torch.randn(8, 3, 16, 16))


@pytest.fixture(scope="module")
def stages():
    return []


@pytest.fixture(scope="module")
def file(tmp_path_factory, small, preprocessing, class_pathways, stages):
    path = tmp_path_factory.mktemp("aoti") / "explainer.pt2"
    export_explainer(
        small,
        path,
        format="aoti",
        preprocessing=preprocessing,
        classes=CLASSES,
        class_pathways=class_pathways,
        progress=lambda *stage: stages.append(stage),
    )
    return path


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory, small):
    path = tmp_path_factory.mktemp("aoti") / "explainer.pt"
    export_torchscript(small, path)
    return path


def assert_equal(explainer, loaded, images, inputs, class_pathways=None):
    """Every method of a loaded explainer against the eager one."""
    count = len(images)
    found, expected = loaded.explain(images), explainer(inputs)
    torch.testing.assert_close(found.logits, expected.logits, **TOLERANCE)
    torch.testing.assert_close(found.gated_logits, expected.gated_logits, **TOLERANCE)
    torch.testing.assert_close(found.importance, expected.importance, **TOLERANCE)
    assert found.pathway == expected.pathway
    assert 0.02 < expected.pathway.kept().mean() < 0.98
    logits, importance = loaded.importance(images)
    assert torch.equal(logits, found.logits) and torch.equal(importance, found.importance)
    classes = torch.arange(count) % 4
    pathway = expected.pathway[0]
    pairs = [
        (loaded.pathway_gradient(images), explainer.pathway_gradient(inputs)),
        (
            loaded.pathway_gradient(images, classes, pathway.words),
            explainer.pathway_gradient(inputs, pathway, classes),
        ),
        (loaded.grad_cam(images), explainer.grad_cam(inputs)),
        (loaded.grad_cam(images, classes), explainer.grad_cam(inputs, classes=classes)),
    ]
    if class_pathways is not None:
        wanted = explainer.transfer(inputs, class_pathways, classes)
        pairs.append((loaded.transfer(images, classes), wanted))
    for one, other in pairs:  # gradients are far smaller than one
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    assert pairs[0][1].abs().max() > 0
    assert count == 1 or max(pairs[2][1].max(), pairs[3][1].max()) == 1


@slow
@pytest.mark.parametrize("count", [1, 2, 32])
def test_equals_the_eager_explainer(file, small, preprocessing, class_pathways, count):
    images = torch.rand(count, 3, 20, 24)
    assert_equal(small, load_scripted(file), images, preprocessing(images), class_pathways)


@slow
def test_only_the_explainer_owns_its_constants(file):
    """What torch's handles own is never freed."""
    loaded = load_scripted(file)
    before = {name: value._use_count() for name, value in loaded.constants.items()}
    loaded.explain(torch.rand(1, 3, 16, 16)), loaded.grad_cam(torch.rand(1, 3, 16, 16))
    assert {name: value._use_count() for name, value in loaded.constants.items()} == before


@slow
@pytest.mark.parametrize("size", [(16, 16), (7, 9), (1, 40), (70, 50)])
def test_images_of_any_size(file, small, preprocessing, size):
    images = torch.rand(2, 3, *size)
    found, expected = load_compiled(file).explain(images), small(preprocessing(images))
    torch.testing.assert_close(found.gated_logits, expected.gated_logits, **TOLERANCE)
    assert found.pathway == expected.pathway


class Mixed(nn.Module):
    """An in-place ReLU used twice, a depthwise convolution, ReLU6, BatchNorm behind a ReLU."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.relu6 = nn.ReLU6(inplace=True)
        self.late = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        out = self.norm(self.depthwise(x))
        out += x
        out = self.late(self.relu(out))
        return self.head(self.relu6(out).mean((2, 3)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Two of the three sites with a baseline, eager and as loaded from a file."""
    torch.manual_seed(7)
    shape = (3, 8, 8)
    target = GatedTarget(
        with_statistics(Mixed(), shape),
        torch.zeros(1, *shape),
        granularity="unit",
        sites=["relu#1", "relu6#0"],
    )
    images = torch.randn(6, *shape, generator=torch.Generator().manual_seed(6))
    target.baseline = target.mean_baseline([images])
    explainer = explainer_of(target)
    path = tmp_path_factory.mktemp("aoti") / "mixed.pt2"
    export_explainer(explainer, path, format="aoti")
    return explainer, load_scripted(path)


@slow
@pytest.mark.parametrize("count", [1, 5])
def test_units_with_a_baseline(mixed, count):
    explainer, loaded = mixed
    images = torch.randn(count, 3, 8, 8)
    assert_equal(explainer, loaded, images, images)


@slow
def test_without_preprocessing_and_class_pathways(mixed):
    loaded = mixed[1]
    assert loaded.info["input_shape"] == [3, 8, 8] and "preprocess" not in loaded.info["models"]
    with pytest.raises(
        ValueError, match=r"^explainer: model inputs must be batches of shape \[3, 8, 8\], got "
    ):
        loaded(torch.rand(2, 3, 20, 20))
    with pytest.raises(ValueError, match=r"^transfer: this explainer was exported without class"):
        loaded.transfer(torch.rand(1, 3, 8, 8))


@slow
def test_empty_batch(file):
    loaded = load_compiled(file)
    images = torch.rand(0, 3, 20, 24)
    logits, gated_logits, importance, words = loaded(images)
    assert logits.shape == gated_logits.shape == (0, 5)
    assert importance.shape == (0, 24) and words.shape == (0, 3)
    assert loaded.pathway_gradient(images).shape == (0, 3, 16, 16)
    assert loaded.grad_cam(images).shape == (0, 16, 16)
    assert loaded.transfer(images).shape == (0, 5)


@slow
def test_memory_order_and_modes_make_no_difference(file):
    loaded = load_compiled(file)
    images = torch.rand(4, 3, 20, 24)
    expected = loaded(images)
    turned = images.to(memory_format=torch.channels_last).requires_grad_(True)
    strided = torch.rand(8, 3, 20, 24)
    strided[::2] = images
    with torch.inference_mode():
        inferred = loaded(images)
        assert torch.equal(loaded.grad_cam(images), load_compiled(file).grad_cam(images))
    for other in (loaded(turned), loaded(strided[::2]), inferred):
        assert all(torch.equal(one, two) for one, two in zip(expected, other, strict=True))


@slow
def test_transfer_takes_the_targets_own_classes_by_default(file):
    loaded = load_compiled(file)
    images = torch.rand(6, 3, 16, 16)
    predictions = loaded(images)[0].argmax(1)
    known = predictions < 4
    assert torch.equal(
        loaded.transfer(images[known]), loaded.transfer(images[known], predictions[known])
    )


@slow
def test_description(file, small, class_pathways, stages):
    info = read_info(file)
    loaded = load_scripted(file)
    assert isinstance(loaded, CompiledExplainer) and loaded.to("cpu") is loaded
    assert info == loaded.info
    assert info["format"] == "aoti" and info["kind"] == "explainer" and info["format_version"] == 1
    assert info["torch"] == torch.__version__ and loaded.fingerprint == small.fingerprint
    assert info["classes"] == loaded.classes == CLASSES
    assert info["device"] == "cpu" and info["cam_site"] == 2
    assert info["sizes"] == [8, 8, 8] and info["word_offsets"] == [0, 1, 2, 3]
    assert list(info["models"]) == [
        "preprocess", "importance", "gated", "pathway_gradient", "grad_cam",
    ]  # fmt: skip
    assert info["models"]["gated"] == {
        "inputs": [
            {"name": "inputs", "dtype": "float32", "shape": [None, 3, 16, 16]},
            {"name": "words", "dtype": "int64", "shape": [None, 3]},
        ],
        "outputs": [{"name": "gated_logits", "dtype": "float32", "shape": [None, 5]}],
    }
    assert torch.equal(loaded.constants["class_words"], class_pathways.pathway.words)
    assert torch.equal(loaded.constants["class_counts"], class_pathways.counts)
    assert [stage for stage, _, _ in stages] == [
        f"compiling  {name}" for name in ("tracing", *info["models"], "done")
    ]


@slow
def test_torchs_own_loaders_take_the_archive(file):
    """As a program without this package would: torch's reader, its loader, our constants."""
    from safetensors.torch import load

    reader = torch._C.PyTorchFileReader(str(file))
    info = json.loads(reader.get_record("extra/pathways.json"))
    constants = load(reader.get_record(f"extra/{info['constants']}"))
    assert {"archive_format", "archive_version"} <= set(reader.get_all_records())
    x = torch.rand(2, 3, 16, 16)
    model = torch._C._aoti.AOTIModelPackageLoader(str(file), "importance", False, 1, -1)
    model.load_constants(
        {name: constants[name].clone() for name in model.get_constant_fqns()}, False, True, False
    )
    logits, importance, words = model.boxed_run([x])
    assert logits.shape == (2, 5) and importance.shape == (2, 24) and words.shape == (2, 3)
    total = sum(value.nbytes for value in constants.values())
    with zipfile.ZipFile(file) as archive:
        (stored,) = [entry for entry in archive.infolist() if "constants.safe" in entry.filename]
    assert stored.file_size < total + 200 * (len(constants) + 1)  # each of them once


@slow
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda m, x: m(x[:, :2]),
            r"^explainer: images must be batches of shape \[3, any, any\], got \[2, 2, 16, 16\]$",
        ),
        (lambda m, x: m(x[0]), r"shape \[3, any, any\], got \[3, 16, 16\]$"),
        (lambda m, x: m(x[..., :0]), r"^explainer: images must not be empty, got"),
        (lambda m, x: m(x.double()), "^explainer: images must be float32, got float64$"),
        (lambda m, x: m((x * 255).byte()), "^explainer: images must be float32, got uint8$"),
        (
            lambda m, x: m(x.to("meta")),
            "images must be on the cpu, which the file was compiled for, got meta$",
        ),
        (lambda m, x: m.to("cuda"), "device must be cpu, which the file was compiled for, got cu"),
        (lambda m, x: m.transfer(x, torch.tensor([0, 5])), r"^classes must be in \[0, 5\), got 5$"),
        (lambda m, x: m.transfer(x, torch.tensor([-1, 0])), r"in \[0, 5\), got -1$"),
        (lambda m, x: m.transfer(x, torch.tensor([0, 4])), "^transfer: class 4 is empty"),
        (
            lambda m, x: m.grad_cam(x, torch.tensor([0])),
            r"^classes must be int64 of shape \[2\], got \[1\]$",
        ),
        (
            lambda m, x: m.grad_cam(x, torch.tensor([0.0, 1.0])),
            "^classes must be int64, got floating point$",
        ),
        (
            lambda m, x: m.grad_cam(x, site=1),
            "^grad_cam: site must be 2, the one that was compiled, got 1$",
        ),
        (
            lambda m, x: m.pathway_gradient(x, None, torch.zeros(2, 99, dtype=torch.int64)),
            r"^words must be \[2, 3\] or \[1, 3\], got \[2, 99\]$",
        ),
        (
            lambda m, x: m.pathway_gradient(x, None, torch.zeros(3, 3, dtype=torch.int64)),
            r"^words must be \[2, 3\] or \[1, 3\], got \[3, 3\]$",
        ),
        (
            lambda m, x: m.pathway_gradient(x, None, torch.zeros(2, 3)),
            "^words must be int64, got torch.float32$",
        ),
    ],
)
def test_wrong_arguments(file, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(load_compiled(file), torch.rand(2, 3, 16, 16))


@slow
def test_damaged_files(file, tmp_path):
    data = file.read_bytes()
    path = tmp_path / "cut.pt2"
    for size in (0, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"cut\.pt2 is damaged or not a scripted explainer"):
            load_scripted(path)
    flipped = bytearray(data)
    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.compress_size)
    header = data[entry.header_offset :][:30]
    start = entry.header_offset + 30 + sum(struct.unpack("<2H", header[26:]))
    flipped[start + entry.compress_size // 2] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"cut\.pt2 is damaged"):
        load_scripted(path)


@slow
def test_wrong_format(file, torchscript):
    with pytest.raises(ValueError, match="must be an explainer in the format aoti, got torchscr"):
        load_compiled(torchscript)
    with pytest.raises(ValueError, match="must be an explainer in the format torchscript, got ao"):
        load_torchscript(file)
    assert load_torchscript(torchscript).classes == ["0", "1", "2", "3", "4"]


def rewritten(file, path, edit=lambda name, data: data, **changes):
    """The same archive with other entries in its description."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("pathways.json"):
                data = json.dumps({**json.loads(data), **changes}).encode()
            new.writestr(name, edit(name, data))
    return path


@slow
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format_version": 2}, "format version 1 or older, got 2; upgrade pathways to read it"),
        ({"format": "onnx"}, "is in the format onnx, expected torchscript or aoti; upgrade"),
        ({"machine": "riscv"}, "was compiled for .* on riscv, this is .*; export it anew"),
    ],
)
def test_files_for_others(file, tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_scripted(rewritten(file, tmp_path / "other.pt2", **changes))


@slow
def test_older_processor(file, monkeypatch):
    if read_info(file)["cpu_capability"] != "avx2":
        pytest.skip("compiled for this very processor")
    monkeypatch.setattr("pathways._C.cpu_capability_found", lambda: "scalar")
    with pytest.raises(ValueError, match="needs a processor with AVX2, this one has scalar"):
        load_scripted(file)


@slow
def test_code_that_does_not_load(file, tmp_path):
    def spoil(name, data):
        return b"no code" if "/gated/" in name and name.endswith(".so") else data

    loaded = load_scripted(rewritten(file, tmp_path / "spoilt.pt2", spoil))
    assert loaded.importance(torch.rand(1, 3, 16, 16))[0].shape == (1, 5)
    with pytest.raises(
        ValueError, match=f"does not load with torch {torch.__version__}: ".replace("+", r"\+")
    ):
        loaded(torch.rand(1, 3, 16, 16))


@slow
def test_file_that_has_gone(file, tmp_path):
    path = tmp_path / "gone.pt2"
    shutil.copy(file, path)
    loaded = load_compiled(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"gone\.pt2 .* does not load"):
        loaded(torch.rand(1, 3, 16, 16))


def test_foreign_archives(tmp_path):
    """An exported program has the same suffix and another content."""
    path = tmp_path / "program.pt2"
    program = torch.export.export(nn.ReLU(), (torch.zeros(2, 3),))
    torch.export.save(program, path)
    with pytest.raises(ValueError, match="got an archive that pathways did not write"):
        load_compiled(path)
    path.write_text("no archive")
    with pytest.raises(ValueError, match="is damaged or not a scripted explainer"):
        load_compiled(path)
    with pytest.raises(FileNotFoundError, match="scripted explainer"):
        load_compiled(tmp_path / "nothing.pt2")


@pytest.fixture(scope="module")
def traced():
    """A net that is quick to trace, and its programs."""
    explainer = make_explainer("mlp")
    return explainer, aoti.trace_programs(ScriptedExplainer(explainer))


def test_missing_compiler(small, tmp_path):
    from torch._inductor import config

    none = config.patch("cpp.cxx", (None, "no-such-compiler"))
    with (
        none,
        pytest.raises(ExportError, match=r"aoti needs a C\+\+ compiler .* found none; install"),
    ):
        export_explainer(small, tmp_path / "e.pt2", format="aoti")
    assert not list(tmp_path.iterdir())


def test_code_that_does_not_compile(traced, tmp_path, monkeypatch):
    explainer, programs = traced

    def fail(*args, **kwargs):
        raise RuntimeError("no space\nand more")

    monkeypatch.setattr(aoti, "trace_programs", lambda module: programs)
    monkeypatch.setattr("torch._inductor.aot_compile", fail)
    path = tmp_path / "e.pt2"
    path.write_text("as it was")
    with pytest.raises(
        ExportError, match=r"^export: AOTInductor cannot compile importance: no space$"
    ):
        export_explainer(explainer, path, format="aoti")
    assert path.read_text() == "as it was" and list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_told_before_compiling(small, tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.aot_compile", None)
    with pytest.raises(OSError, match=r"cannot write .*none/e\.pt2"):
        export_explainer(small, tmp_path / "none" / "e.pt2", format="aoti")


def test_other_results_are_not_believed(traced):
    programs = traced[1]

    class Wrong:
        classes = CLASSES

        def _run(self, method, *arguments):
            results = programs[method].reference(*arguments)
            results = list(results) if isinstance(results, tuple) else [results]
            return [result + 1 if method == "gated" else result for result in results]

    with pytest.raises(
        ExportError, match=r"^export: compiled gated gives another gated_logits .* difference 1\)$"
    ):
        aoti._check(programs, Wrong())


def test_a_gradient_may_differ_in_few_places():
    """Rounding decides on which side of zero a ReLU is, and so whether a path counts."""
    wanted = torch.ones(1000)
    flipped = wanted.clone()
    flipped[3] = 0.5
    assert aoti._alike(flipped, wanted, True) and not aoti._alike(flipped, wanted, False)
    assert not aoti._alike(wanted * 0.8, wanted, True)
    assert not aoti._alike(wanted, torch.zeros(1000), True)
    nothing = torch.full((3,), float("nan"))
    assert aoti._alike(nothing, nothing, False)


def test_machine_without_a_portable_level(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert aoti._target_machine() == ("native", {})


def test_writer_makes_bytes_only():
    """The archive is made in memory, so that a full disk is told by the one who writes it."""
    data = aoti._package({}, {"kind": "explainer"}, {"a": torch.ones(2)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    assert {"extra/pathways.json", "extra/constants.safetensors", "archive_format"} <= names


@slow
def test_resizing_is_undone_by_torchs_own_scatter(tmp_path):
    """The atomic additions that torch 2.13 generates for it write past the end."""
    module = ScriptedExplainer(make_explainer("shape_controlled"))
    program = trace_programs(module)["pathway_gradient"]
    machine = aoti._target_machine()[1]
    files = aoti._compile("pathway_gradient", program, tmp_path / "compiled", machine)
    sources = [file.read_text() for file in files if file.name.endswith("kernel.cpp")]
    assert sources and not any(re.search(r"atomic_add\w*[<(]", source) for source in sources)
    assert not torch.are_deterministic_algorithms_enabled()

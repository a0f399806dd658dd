"""Ops, gradients and explainer, linked by a project that knows find_package only."""

import json
import shutil
import zipfile

import pytest
import torch
from cpp_build import HERE, TORCH, configure, run, tree

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def test_ops_and_gradients(consumer):
    lines = run(consumer / "checks").stdout.splitlines()
    assert len(lines) == 19 and all(line.startswith("ok ") for line in lines), lines


@pytest.mark.parametrize(
    "name, granularity, kind",
    [
        ("vgg", "channel", "torchscript"),
        ("vgg", "channel", "aoti"),
        ("vgg", "unit", "torchscript"),
        ("resnet_reused_inplace", "channel", "torchscript"),
        ("mobilenet", "channel", "torchscript"),
        ("shape_controlled", "channel", "torchscript"),
    ],
)
def test_explainer_gives_what_python_gives(consumer, exported, tmp_path, name, granularity, kind):
    explainer, class_pathways, path = exported(name, granularity, kind)
    images = torch.randn(3, *explainer.target.example_shape)
    torch.save(images, tmp_path / "images.pt")
    run(consumer / "explain", path, tmp_path / "images.pt", tmp_path / "results.pt")
    results = torch.load(tmp_path / "results.pt")
    e = explainer(images)
    ones, first = torch.ones(3, dtype=torch.int64), e.pathway[:1]
    expected = [
        e.logits,
        e.gated_logits,
        e.importance,
        e.pathway.words,
        e.pathway.mask(),
        torch.ops.pathways.pairwise_iou(e.pathway.words, e.pathway.words),
        explainer.pathway_gradient(images),
        explainer.pathway_gradient(images, first, ones),
        explainer.grad_cam(images),
        explainer.grad_cam(images, first, ones),
        explainer.transfer(images, class_pathways),
        explainer.transfer(images, class_pathways, ones),
    ]
    for found, wanted in zip(results, expected, strict=True):
        if wanted.is_floating_point():
            torch.testing.assert_close(found, wanted, **CLOSE)
        else:
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ["torchscript", "aoti"])
def test_wrong_arguments(consumer, exported, tmp_path, kind):
    """What torch says stands behind the trace of TorchScript's interpreter; a compiled model whose
    sizes are free still needs some of them.
    """
    path = tmp_path / "explainer"
    with zipfile.ZipFile(exported("vgg", kind=kind)[2]) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if kind == "aoti" and name.endswith("extra/pathways.json"):
                info = json.loads(data)
                info["models"]["importance"]["inputs"][0]["shape"] = [None, 3, None, None]
                data = json.dumps(info).encode()
            new.writestr(name, data)
    lines = run(consumer / "refusals", path).stdout.splitlines()
    expected = {
        "torchscript": [
            "expected scalar type Double but found Float",
            "Calculated padded input size per channel: (18 x 2). Kernel size: (3 x 3). "
            "Kernel size can't be greater than actual input size",
        ],
        "aoti": [
            "explainer: inputs must be Float, got Double",
            "explainer: inputs must be of shape [*, 3, *, *], got [2, 3, 16, 0]",
        ],
    }
    assert lines == [
        *expected[kind],
        "mask: words must be of shape [*, 4], got [2, 5]",
        "mask: words must be of shape [*, 4], got [4]",
    ]


@pytest.mark.parametrize("kind", ["torchscript", "aoti"])
def test_threads_share_an_explainer(consumer, exported, kind):
    """Equal results, and memory that does not grow: 2 MiB are the noise of malloc's arenas."""
    done = run(consumer / "threads", exported("vgg", kind=kind)[2], 8, 10_000)
    assert int(done.stdout) < 2048, f"grew by {done.stdout.strip()} KiB"


def test_program_without_the_ops_says_so(consumer, exported):
    done = run(consumer / "without_ops", exported("vgg")[2], code=1)
    assert "Unknown builtin op: pathways::" in done.stderr


def test_program_needs_no_python(consumer):
    libraries = run("ldd", consumer / "explain").stdout
    assert "libpathways.so" in libraries and "not found" not in libraries
    assert "libpython" not in libraries


@pytest.mark.parametrize("kind", ["install", "wheel"])
def test_tree_can_be_moved(kind, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tree(kind), moved)
    assert "Generating done" in configure(HERE / "consumer", tmp_path / "build", moved)
    for text in (moved / "lib" / "cmake" / "Pathways").glob("*.cmake"):
        assert str(tree(kind)) not in text.read_text(), text.name


@pytest.mark.parametrize(
    "torch_dir, options, words",
    [
        (None, (), "autograd is compiled against torch, and none was found: add a libtorch"),
        (
            TORCH,
            ("-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON",),
            "explainer needs nlohmann_json, and it was not found",
        ),
    ],
)
def test_what_is_missing_is_named(torch_dir, options, words, tmp_path):
    prefix = tree("install")
    printed = configure(HERE / "consumer", tmp_path, prefix, *options, torch_dir=torch_dir, code=1)
    assert words in " ".join(printed.split())

"""The C++ explainer and its program under ASan + UBSan with leak detection, and under TSan.

Only what is compiled with a program is instrumented: the explainer and csrc/app, not torch and the
op library. What torch allocates is watched all the same, for overflows, later use and leaks.
"""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cpp_build import HERE, cmake, configure, rewrite, run, tree
from PIL import Image

pytestmark = pytest.mark.slow

FLAGS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # The leak sanitizer guesses where the thread-local block of a library that was loaded late ends
    # from the bytes before it, and may read what is not there: a crash of its own, by chance of the
    # layout.
    "ASAN_OPTIONS": "detect_leaks=1:intercept_tls_get_addr=0",
    "TSAN_OPTIONS": "halt_on_error=1",
}
# What torch itself loses. A leak of ours has an allocation of ours at its root, which these do not
# match.
LEAKS = {
    # MaybeOwningAtenTensorHandle does not own the handle that it makes of a constant which compiled
    # models share: one is lost for each constant of each model.
    "aoti_torch_new_tensor_handle": "leak:aoti_torch_new_tensor_handle\n",
    # The types and functions of a module whose loading fails refer to each other, and a reader that
    # refuses an archive is not closed; torch::jit::load alone loses the same.
    "damaged": "leak:torch::jit::\nleak:mz_zip_reader_init\n",
}
TRIAL = "#include <thread>\nint main() { std::thread([] {}).join(); }\n"


def tried(kind: str, folder: Path) -> None:
    """Skips where the compiler has no such sanitizer, or the machine does not let it run."""
    (folder / "trial.cpp").write_text(TRIAL)
    words = ["c++", *FLAGS[kind], str(folder / "trial.cpp"), "-o", str(folder / "trial")]
    built = subprocess.run(words, capture_output=True, text=True)
    if built.returncode != 0:
        pytest.skip(f"no {kind} sanitizer: {built.stderr.strip().splitlines()[-1]}")
    done = run(folder / "trial", code=None, **ENVIRONMENT)
    if done.returncode != 0:
        pytest.skip(f"the {kind} sanitizer does not run here: {done.stderr.strip()}")


def build(kind: str, folder: Path) -> Path:
    tried(kind, folder)
    configure(
        HERE / "sanitized",
        folder,
        tree("install"),
        f"-DFLAGS={';'.join(FLAGS[kind])}",
        f"-DSOURCE={HERE.parent.parent}",
        f"-DPROGRAM={'ON' if kind == 'address' else 'OFF'}",
    )
    cmake("--build", folder, "--parallel", "2")
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return build("address", tmp_path_factory.mktemp("address"))


@pytest.fixture(scope="module")
def thread(tmp_path_factory):
    return build("thread", tmp_path_factory.mktemp("thread"))


@pytest.fixture
def suppressed(tmp_path):
    """``suppressed(name)``: the environment in which these leaks of torch are passed over."""

    def environment(name: str) -> dict[str, str]:
        (tmp_path / "leaks").write_text(LEAKS[name])
        options = f"print_suppressions=0:suppressions={tmp_path / 'leaks'}"
        return ENVIRONMENT | {"LSAN_OPTIONS": options}

    return environment


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """PNG and JPEG files of the forms that are decoded differently."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    rgb = Image.fromarray(noise[:, :, :3])
    Image.fromarray(noise[:, :, 0]).save(folder / "grey.png")
    Image.fromarray(noise).save(folder / "alpha.png")
    Image.fromarray(noise[:, :, 0] > 127).save(folder / "one_bit.png")
    Image.fromarray(random.integers(0, 65536, (11, 9), dtype=np.uint16)).save(folder / "wide.png")
    rgb.quantize(17).save(folder / "palette.png")
    rgb.save(folder / "rgb.jpg")
    rgb.save(folder / "progressive.jpg", progressive=True, quality=70)
    rgb.save(folder / "subsampled.jpg", subsampling=2, quality=50)
    Image.fromarray(noise[:, :, 1]).save(folder / "grey.jpg")
    Image.fromarray(noise, "CMYK").save(folder / "cmyk.jpg")
    return sorted(folder.iterdir())


def quiet(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stderr == ""
    return done.stdout


def test_calls(address, exported):
    """Eight threads share an explainer; every function, and wrong arguments. No leak at all."""
    done = run(address / "calls", exported("vgg")[2], "shared", 8, 6, **ENVIRONMENT)
    assert int(quiet(done)) > 500


def test_calls_of_a_compiled_explainer(address, exported, suppressed):
    path = exported("vgg", kind="aoti")[2]
    environment = suppressed("aoti_torch_new_tensor_handle")
    assert int(quiet(run(address / "calls", path, "shared", 8, 6, **environment))) > 500
    # The handles, but not the memory of the constants that they stand for.
    done = run(address / "calls", path, "shared", 1, 1, code=None, **ENVIRONMENT)
    assert "alloc_cpu" not in done.stderr, done.stderr


def test_compiled_explainer_without_class_pathways(address, exported, suppressed, tmp_path):
    """Its constants have tensors without elements."""

    def change(name, data):
        if not name.endswith("extra/constants.safetensors"):
            return data
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        for constant in ("class_counts", "class_words"):
            header[constant]["shape"][0] = 0
            header[constant]["data_offsets"] = [0, 0]
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    rewrite(exported("vgg", kind="aoti")[2], tmp_path / "e.pt2", change)
    environment = suppressed("aoti_torch_new_tensor_handle")
    done = run(address / "calls", tmp_path / "e.pt2", "shared", 1, 1, code=None, **environment)
    assert "exported without class pathways" in done.stderr
    assert "runtime error" not in done.stderr, done.stderr


@pytest.mark.parametrize("kind", ["torchscript", "aoti"])
def test_damaged_explainers(address, exported, suppressed, kind, tmp_path):
    path = exported("vgg", kind=kind)[2]
    arguments = (path, "damaged", tmp_path / "damaged")
    assert int(quiet(run(address / "calls", *arguments, **suppressed("damaged")))) > 60


def test_damaged_images(address, pictures, tmp_path):
    """Cut at every 50th byte, with flipped and exchanged bytes: read or refused."""
    done = run(address / "images", tmp_path / "image", *pictures, **ENVIRONMENT)
    accepted, refused = map(int, quiet(done).split())
    assert accepted > 300 and refused > 1000


def test_program(address, exported, pictures, tmp_path):
    explainer, heatmap = exported("vgg")[2], tmp_path / "map.png"
    arguments = ("--json", "--transfer", "--heatmap", heatmap)
    done = run(address / "explain", explainer, *pictures, *arguments, **ENVIRONMENT)
    assert len(json.loads(quiet(done))["explanations"]) == len(pictures)
    for wrong in (("--class", "7"), ("--heatmap", tmp_path / "absent" / "map.png")):
        done = run(address / "explain", explainer, pictures[0], *wrong, code=1, **ENVIRONMENT)
        (sentence,) = done.stderr.splitlines()
        assert sentence.startswith("error: ")


def test_threads(thread, exported):
    done = run(thread / "calls", exported("vgg")[2], "shared", 8, 6, **ENVIRONMENT)
    assert int(quiet(done)) > 500


@pytest.mark.parametrize(
    "kind, name, words",
    [
        ("address", "leak", "LeakSanitizer: detected memory leaks"),
        ("address", "overflow", "AddressSanitizer: heap-buffer-overflow"),
        ("address", "use_after_free", "AddressSanitizer: heap-use-after-free"),
        ("address", "undefined", "runtime error: signed integer overflow"),
        ("thread", "race", "ThreadSanitizer: data race"),
    ],
)
def test_mistakes_are_noticed(kind, name, words, request, exported, suppressed):
    program = request.getfixturevalue(kind) / "calls"
    for environment in (ENVIRONMENT, *map(suppressed, LEAKS)):
        done = run(program, exported("vgg")[2], "planted", name, code=None, **environment)
        assert done.returncode != 0 and words in done.stderr, done.stderr
        assert "planted" in done.stderr or "sanitized/calls.cpp:" in done.stderr

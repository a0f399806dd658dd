"""The compiled library: what it needs, what it exports, where it loads."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from levels import run_python
from samples import OPS, make_words

import pathways
from pathways import _C, _library

ROOT = Path(__file__).resolve().parents[2]


def undefined_symbols():
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    command = [nm, "--dynamic", "--undefined-only", str(_library.library_path())]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split()[-1] for line in listing.splitlines()]


def test_no_unstable_symbol():
    """Only C functions of libtorch: a C++ symbol of it would tie the binary to one release."""
    symbols = undefined_symbols()
    assert any(s.startswith("aoti_torch_") for s in symbols), "the audit looks at the wrong file"
    assert [s for s in symbols if re.search(r"3c10|N?2at|5torch|6caffe2", s)] == []


def test_no_python_symbol():
    assert [s for s in undefined_symbols() if re.match(r"_?Py[A-Z_]", s)] == []


def test_needed_libraries():
    """No libpython, no libtorch_python, nothing of CUDA: it loads under a torch without CUDA."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    command = [readelf, "--dynamic", str(_library.library_path())]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", listing)
    assert "libtorch_cpu.so" in needed
    allowed = r"lib(torch_cpu|stdc\+\+|gcc_s|c|m|dl|pthread|rt)\.so|ld-linux"
    assert [name for name in needed if not re.match(allowed, name)] == []


def test_no_build_path_in_the_binary():
    data = _library.library_path().read_bytes()
    assert str(ROOT / "csrc").encode() not in data


@pytest.mark.parametrize("name", OPS)
def test_kernels_are_registered(name):
    for key in ("CPU", "CUDA", "Meta"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pathways::{name}", key)


# --------------------------------------------------------------------------- build facts


def test_build_info():
    info = _C.build_info()
    assert info["version"] == (ROOT / "version.txt").read_text().strip() == pathways.__version__
    assert re.match(r"(GNU|Clang) \d+", info["compiler"])
    assert info["torch_target"] == ".".join(map(str, _library.OLDEST_TORCH))
    assert re.match(r"\d+\.\d+", info["torch_headers"])
    assert (info["cuda"] is None) == (info["cuda_architectures"] == [])


def test_tags():
    """torch.compile may rely on the fake kernels; torch 2.11 cannot be told."""
    for name in OPS:
        tags = getattr(torch.ops.pathways, name).default.tags
        old = torch.__version__.startswith("2.11")
        assert tags == ([] if old else [torch.Tag.pt2_compliant_tag])


def has_device_code():
    """Of the library that is loaded: ``PATHWAYS_LIBRARY`` may name another than this build's."""
    return b".nv_fatbin" in _library.library_path().read_bytes()


def test_build_info_knows_whether_cuda_was_built():
    if "PATHWAYS_LIBRARY" in os.environ:
        pytest.skip("PATHWAYS_LIBRARY names another build")
    assert has_device_code() == (_C.build_info()["cuda"] is not None)


def test_without_cuda_the_ops_say_so():
    if has_device_code():
        pytest.skip("the library that is loaded has CUDA")
    calls = {
        "pack_bits": (torch.ones(2, 3),),
        "unpack_bits": (make_words(2, 3), 3),
        "pairwise_intersection": (make_words(2, 3), make_words(2, 3)),
        "pairwise_iou": (make_words(2, 3), make_words(2, 3)),
        "class_overlap": (make_words(2, 3), torch.zeros(2, dtype=torch.int64), 1),
        "class_frequency": (make_words(2, 3), torch.zeros(2, dtype=torch.int64), 1, 3),
        "binarize": (torch.ones(3), 1.0, 2.0),
        "_binarize_backward": (torch.ones(3), torch.ones(3), 1.0, 2.0),
        "gated_forward": (torch.ones(2, 3), torch.ones(3)),
        "gated_forward_": (torch.ones(2, 3), torch.ones(3)),
        "_gated_backward": (torch.ones(2, 3), torch.ones(2, 3), torch.ones(3)),
        "adaptive_avg_max_pool2d": (torch.ones(1, 2, 3, 3), 2, 2),
    }
    assert set(calls) == set(OPS)
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for name, args in calls.items():
        with pytest.raises(RuntimeError) as error:
            getattr(torch.ops.pathways, name).default.redispatch(cuda, *args)
        assert str(error.value) == (
            f"{name}: pathways was built without CUDA; "
            "rebuild with PATHWAYS_CUDA=on or move the tensors to the CPU"
        )


def test_refused_calls_leak_no_tensor():
    x = torch.ones(2, 3)
    storage = x.untyped_storage()
    before = sys.getrefcount(x), torch._C._storage_Use_Count(storage._cdata)
    for _ in range(10):
        with pytest.raises(RuntimeError):
            torch.ops.pathways.gated_forward(x, torch.ones(5))
    assert (sys.getrefcount(x), torch._C._storage_Use_Count(storage._cdata)) == before


# --------------------------------------------------------------------------- CPU capability


def test_capability_is_the_best_by_default():
    if "PATHWAYS_CPU_CAPABILITY" in os.environ:
        pytest.skip("PATHWAYS_CPU_CAPABILITY is set")
    assert _C.cpu_capability() == _C.cpu_capability_found()


def test_capability_errors():
    code = "import pathways; pathways._C.cpu_capability()"
    result = run_python("-c", code, PATHWAYS_CPU_CAPABILITY="sse9")
    assert (
        "PATHWAYS_CPU_CAPABILITY must be one of scalar, avx2, avx512, neon, got 'sse9'"
        in result.stderr
    )
    foreign = "neon" if _C.cpu_capability_found() != "neon" else "avx2"
    result = run_python("-c", code, PATHWAYS_CPU_CAPABILITY=foreign)
    assert "PATHWAYS_CPU_CAPABILITY must be a level of this machine" in result.stderr


# --------------------------------------------------------------------------- loading


def test_missing_library(monkeypatch, tmp_path):
    monkeypatch.setenv("PATHWAYS_LIBRARY", str(tmp_path / "absent.so"))
    with pytest.raises(ImportError, match=r"absent\.so is missing; build it with `pip install"):
        _library.load()


def test_broken_library(monkeypatch, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    monkeypatch.setenv("PATHWAYS_LIBRARY", str(broken))
    with pytest.raises(ImportError, match=r"broken\.so does not load under torch"):
        _library.load()


def test_old_torch():
    with pytest.raises(ImportError) as error:
        _library.check_torch_version("2.10.1+cpu")
    assert str(error.value) == "pathways needs torch >= 2.11, got torch 2.10.1+cpu"
    for version in ("2.11.0", "2.13.0+cpu", "3.0.0a0"):
        _library.check_torch_version(version)


def test_loading_twice_does_nothing():
    assert _library.load() == _library.library_path()


def test_another_torch_loads_the_same_binary():
    """PATHWAYS_SECOND_PYTHON names an interpreter whose torch is another version."""
    second = os.environ.get("PATHWAYS_SECOND_PYTHON")
    if not second:
        pytest.skip("PATHWAYS_SECOND_PYTHON is not set")
    code = (
        "import sys, torch; torch.ops.load_library(sys.argv[1]);"
        "x, g = torch.randn(2, 3, 4), torch.rand(2, 3);"
        "y = torch.ops.pathways.gated_forward(x, g, activation='relu');"
        "assert torch.allclose(y, x.relu() * g[:, :, None]); print(torch.__version__)"
    )
    command = [second, "-c", code, str(_library.library_path())]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() != torch.__version__

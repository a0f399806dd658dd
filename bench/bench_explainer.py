"""One explanation in C++ and in Python, beside the target it explains and 30 gradient steps.

A C++ program is built first; tiny runs leave this file out, ``make cpp-test`` runs it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from bench_gated_model import WEIGHTS
from contest import INFORMATION, Limit, Peer, at_least, at_most, compiled_peer

import pathways
from pathways.export import WRITERS, export_explainer, load_scripted
from pathways.models import resnet20

HERE = Path(__file__).resolve().parent
STEPS = 30
# The contestants are processes of their own.
COMMON: dict[str, Any] = {"dtype": "float32", "sample_seconds": 0.05}


class Case(NamedTuple):
    batch: int
    threads: int


CASES = {
    "full": [Case(batch, threads) for batch in (1, 32) for threads in (1, 2)],
    "quick": [Case(1, 1)],
    "tiny": [Case(1, 1)],
}


@pytest.fixture(scope="module")
def explainer() -> pathways.Explainer:
    """ResNet-20 and a generator of default size; how it was trained does not change its cost."""
    torch.manual_seed(0)
    net = resnet20().eval()
    if WEIGHTS.is_file():
        from safetensors.torch import load_file

        net.load_state_dict(load_file(WEIGHTS))
    target = pathways.GatedTarget(net, torch.zeros(1, 3, 32, 32))
    return pathways.Explainer(target, pathways.GenCNP(target.sites, target.num_classes))


@pytest.fixture(scope="module")
def files(explainer, tmp_path_factory, request) -> dict[str, Path]:
    """Exported files by kind; compiling is left out of a tiny run."""
    folder = tmp_path_factory.mktemp("exported")
    tiny = request.config.getoption("--size") == "tiny"
    endings = {"torchscript": "pt"} if tiny else {"torchscript": "pt", "aoti": "pt2"}
    paths = {kind: folder / f"explainer.{end}" for kind, end in endings.items() if kind in WRITERS}
    for kind, path in paths.items():
        export_explainer(explainer, path, format=kind)
    return paths


@pytest.fixture(scope="module")
def latency(tmp_path_factory) -> Path | None:
    """The C++ program, or None where it cannot be built."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        return None
    build = tmp_path_factory.mktemp("latency")
    search = f"{pathways.cmake_prefix_path};{Path(torch.__file__).parent}"
    configure = ["cmake", "-S", HERE / "cpp", "-B", build, f"-DCMAKE_PREFIX_PATH={search}"]
    for command in ([*configure, "-DCMAKE_BUILD_TYPE=Release"], ["cmake", "--build", build]):
        if subprocess.run(command, capture_output=True).returncode != 0:
            return None
    return build / "latency"


class InCpp:
    """A C++ process that runs once at every call."""

    def __init__(self, program: Path, file: Path, images: Path, threads: int, method: str) -> None:
        words = [program, file, images, threads, method]
        self.process = subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


@pytest.fixture
def in_cpp(latency, tmp_path):
    """``in_cpp(file, images, threads, method)``: a run, or None."""
    started: list[InCpp] = []

    def start(file: Path, images: torch.Tensor, threads: int, method: str) -> InCpp | None:
        if latency is None:
            return None
        torch.save(images, tmp_path / "images.pt")
        started.append(InCpp(latency, file, tmp_path / "images.pt", threads, method))
        started[-1]()
        return started[-1]

    yield start
    for run in started:
        run.process.kill()
        run.process.wait()


def cpp_peer(name: str, run: InCpp | None, limit: Limit = INFORMATION) -> Peer:
    return Peer(name, run, limit, missing="the C++ explainer needs CMake and nlohmann_json")


def gradient_steps(target: pathways.GatedTarget, images: torch.Tensor) -> None:
    """What distillation guided routing does for one explanation, in 30 steps."""
    gates = torch.ones(len(images), target.sites.num_neurons, requires_grad=True)
    optimizer = torch.optim.SGD([gates], lr=0.1, momentum=0.9)
    wanted = target(images).softmax(1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = target.gated(images, gates)
        loss = torch.nn.functional.cross_entropy(logits, wanted) + 0.05 * gates.abs().sum()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            gates.clamp_(0, 10)


def test_explanation(contest, case, explainer, files, in_cpp, compiled):
    """Clean run, generator, gated run and packing."""
    images = torch.randn(case.batch, 3, 32, 32)
    expected = explainer(images)
    script = in_cpp(files["torchscript"], images, case.threads, "explain")
    if script is None:
        pytest.skip("the C++ explainer needs CMake and nlohmann_json")
    assert abs(script() - expected.logits.sum().item()) < 1e-2

    def eager() -> None:
        with torch.no_grad():
            explainer(images)

    def peers() -> list[Peer]:
        fast = compiled(torch.no_grad()(explainer.target.model.forward))
        limit = at_least(30.0) if case.batch == 1 else INFORMATION
        steps = lambda: gradient_steps(explainer.target, images)  # noqa: E731
        found = [
            Peer("Python, eager", eager, at_least(1.0)),
            Peer(f"{STEPS} gradient steps", steps, limit),
            compiled_peer(
                "the target alone, torch.compile",
                fast and (lambda: fast(images)),
            ),
        ]
        if "aoti" in files:
            run = in_cpp(files["aoti"], images, case.threads, "explain")
            loaded = load_scripted(files["aoti"])
            found[1:1] = [
                Peer("Python, .pt2", lambda: loaded(images), INFORMATION),
                cpp_peer("C++, .pt2", run),
            ]
        return found

    work = f"ResNet-20, batch {case.batch}"
    contest("explanation in C++, .pt", work, script, peers, threads=case.threads, **COMMON)


@torch.no_grad()
def test_importance(contest, case, explainer, files, in_cpp):
    """Without the gated run, beside the target alone: what importance costs more."""
    images = torch.randn(case.batch, 3, 32, 32)
    model = explainer.target.model
    model(images)
    script = in_cpp(files["torchscript"], images, case.threads, "importance")
    if script is None:
        pytest.skip("the C++ explainer needs CMake and nlohmann_json")
    peers = [Peer("the target alone, Python", lambda: model(images), at_most(1.5, 1.3))]
    if "aoti" in files:
        run = in_cpp(files["aoti"], images, case.threads, "importance")
        peers.append(cpp_peer("C++, .pt2", run))
    work = f"ResNet-20, batch {case.batch}"
    name = "importance in C++, .pt"
    contest(name, work, script, lambda: peers, threads=case.threads, **COMMON)

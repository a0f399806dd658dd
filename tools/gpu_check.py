"""Everything that needs a GPU, in one go: build, tests, compute-sanitizer, times.

Each part leaves a JSON file in the output folder; parts that are there, from this machine and this
commit, are not repeated (unless ``--again``), so an interrupted run goes on where it stopped.
``gpu-check.md`` sums up what is there, with a table ready for docs/performance.md.

    python tools/gpu_check.py                         # all parts, into out/gpu-check
    python tools/gpu_check.py --parts build,time
    python tools/gpu_check.py --device cpu            # smoke run of the timing code, no GPU figures

Exit code 1: no GPU, no nvcc, a torch without CUDA, or a part that failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD = REPOSITORY / "build" / "gpu-check"
LIBRARY = BUILD / "libpathways.so"
PEAK = BUILD / "peak_rates"
SANITIZED = "test_layouts or test_large_words or test_storage or test_products_of_all_sizes"
SANITIZERS = ("memcheck", "racecheck", "synccheck")
Part = dict[str, Any]


class CheckError(Exception):
    """A part could not be done; the message says why."""


def run(
    command: Sequence[str | Path], quiet: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository; its output is shown unless ``quiet``."""
    print("+", *command, flush=True)
    return subprocess.run(
        [str(part) for part in command],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=quiet,
        text=True,
    )


def require(result: subprocess.CompletedProcess[str], what: str) -> str:
    """Standard output; CheckError when the command failed."""
    if result.returncode != 0:
        raise CheckError(f"{what} failed with exit code {result.returncode}\n{result.stderr or ''}")
    return result.stdout or ""


def find_tool(name: str) -> str | None:
    """On the path, in CUDA_HOME, or where a PyPI package puts it."""
    home = os.environ.get("CUDA_HOME")
    candidates = [shutil.which(name), home and shutil.which(f"{home}/bin/{name}")]
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        candidates += [str(path) for path in sorted(Path(root).glob(f"**/{name}"))]
    return next((c for c in candidates if c and os.access(c, os.X_OK) and Path(c).is_file()), None)


def machine() -> Part:
    """The GPU and what drives it.

    Raises:
        CheckError: no GPU, no nvcc, or a torch without CUDA.
    """
    import torch

    if torch.version.cuda is None:
        raise CheckError(f"torch {torch.__version__} has no CUDA; install a CUDA build of torch")
    if not torch.cuda.is_available():
        raise CheckError("no GPU: torch.cuda.is_available() is false (see nvidia-smi)")
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise CheckError("no nvcc on the path or in CUDA_HOME; install the CUDA toolkit")
    release = re.search(
        r"release (\d+\.\d+)", require(run([nvcc, "--version"], quiet=True), "nvcc")
    )
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = run(query, quiet=True).stdout if shutil.which("nvidia-smi") else ""
    commit = run(["git", "describe", "--always", "--dirty"], quiet=True)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "driver": driver.split("\n")[0],
        "nvcc": release[1] if release else "unknown",
        "nvcc_path": nvcc,
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


def build(about: Part, _: Path) -> Part:
    """The library and the program of the peak rates, for this GPU only."""
    capability = about["capability"]
    environment = {"TORCH_CUDA_ARCH_LIST": capability, "CUDACXX": about["nvcc_path"]}
    configure = ["cmake", "-S", ".", "-B", BUILD, "-DPATHWAYS_CUDA=on"]
    configure += ["-DPATHWAYS_PYTHON_MODULE=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    require(run(configure, **environment), "cmake")
    make = ["cmake", "--build", BUILD, "--target", "pathways", "--parallel"]
    require(run(make, **environment), "the build")
    source = REPOSITORY / "tests" / "cuda" / "peak_rates.cu"
    code = capability.replace(".", "")
    target = f"-gencode=arch=compute_{code},code=sm_{code}"
    rates = [about["nvcc_path"], "-std=c++20", "-O3", target, source, "-o", PEAK]
    require(run(rates), "nvcc")
    return {"library": str(LIBRARY.relative_to(REPOSITORY)), "architecture": capability}


def counts(junit: Path) -> Part:
    """Passed, failed and skipped tests of a JUnit file, the reasons of the latter two."""
    found: Part = {"passed": 0, "failed": [], "skipped": {}}
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            found["failed"].append(name)
        elif (skipped := case.find("skipped")) is not None:
            reason = str(skipped.get("message"))
            found["skipped"][reason] = found["skipped"].get(reason, 0) + 1
        else:
            found["passed"] += 1
    return found


def tests(_: Part, out: Path) -> Part:
    """All of tests/cuda with the library that was built; the GPU tests must not be skipped."""
    junit = out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "tests/cuda", "-q", f"--junitxml={junit}"]
    run(command, PATHWAYS_LIBRARY=str(LIBRARY))
    if not junit.exists():
        raise CheckError("pytest left no result")
    found = counts(junit)
    if "no GPU" in found["skipped"]:
        raise CheckError("the GPU tests were skipped: torch sees no GPU")
    if found["failed"]:
        raise CheckError("tests failed: " + ", ".join(found["failed"]))
    return found


def sanitize(_: Part, out: Path) -> Part:
    """A choice of the GPU tests under compute-sanitizer; not found is a result, not a failure."""
    tool = find_tool("compute-sanitizer")
    if tool is None:
        return {"not run": "no compute-sanitizer (CUDA toolkit, or PyPI nvidia-cuda-sanitizer-api)"}
    result: Part = {}
    for kind in SANITIZERS:
        log = out / f"{kind}.log"
        command = [tool, "--tool", kind, "--error-exitcode", "99", "--log-file", log]
        command += ["--target-processes", "all", sys.executable, "-m", "pytest", "-q"]
        command += ["tests/cuda/test_cuda_ops.py", "-k", SANITIZED]
        # Without the caching allocator an access behind a tensor is outside every allocation.
        environment = {"PATHWAYS_LIBRARY": str(LIBRARY), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        require(run(command, **environment), f"compute-sanitizer {kind} (see {log})")
        lines = [line for line in log.read_text().splitlines() if "SUMMARY" in line]
        result[kind] = lines[-1].lstrip("= ") if lines else "no summary"
    return result


def time_ops(_: Part, out: Path, device: str = "cuda") -> Part:
    """Times of all ops, in a process that loads the library that was built."""
    target = out / "times.tmp.json"
    command = [sys.executable, "tools/gpu_times.py", "--out", target, "--device", device]
    environment = {}
    if device == "cuda":
        command += ["--peak", PEAK]
        environment["PATHWAYS_LIBRARY"] = str(LIBRARY)
    require(run(command, **environment), "the timing")
    result: Part = json.loads(target.read_text())
    target.unlink()
    return result


PARTS: dict[str, Callable[[Part, Path], Part]] = {
    "build": build,
    "tests": tests,
    "sanitize": sanitize,
    "time": time_ops,
}


def scaled(value: float, unit: str) -> str:
    """A number with a prefix, for example 1.23 TB/s."""
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def time_table(result: Part) -> list[str]:
    """Markdown lines of the times."""
    rates = result["rates"]
    limits = [f"copy {scaled(rates['copy'], 'B/s')}"]
    limits += [f"{k} {scaled(rates[k], 'bit pairs/s')}" for k in ("popc", "mma") if rates.get(k)]
    lines = [
        "Measured limits: " + ", ".join(limits) + ".",
        "",
        "| op | shape | dtype | median, ms | quartiles | rate | share of limit | plain torch, ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        unit = "B/s" if row["unit"] == "byte" else "bit pairs/s"
        share = "-" if row["share"] is None else f"{100 * row['share']:.0f} %"
        plain = "-" if row["plain"] is None else f"{1e3 * row['plain']:.3f}"
        quartiles = f"{1e3 * row['low']:.3f} - {1e3 * row['high']:.3f}"
        lines.append(
            f"| `{row['op']}` | {row['shape']} | {row['dtype']} | {1e3 * row['seconds']:.3f} | "
            f"{quartiles} | {scaled(row['rate'], unit)} | {share} | {plain} |"
        )
    return lines


def report(about: Part, done: dict[str, Part]) -> str:
    """The Markdown page of what has been done so far."""
    smoke = not about
    lines = ["# GPU check", ""]
    if smoke:
        lines = [
            "# Smoke run of gpu_check.py on a CPU",
            "",
            "**No GPU was used: these are not figures of the CUDA ops.** They only show that the "
            "timing code works.",
            "",
        ]
    else:
        lines += [
            f"{about['gpu']} (compute capability {about['capability']}, "
            f"{about['multiprocessors']} multiprocessors, {about['memory'] / 2**30:.0f} GiB), "
            f"driver {about['driver']}, nvcc {about['nvcc']}, torch {about['torch']}, "
            f"commit {about['commit']}.",
            "",
        ]
    if "tests" in done:
        found = done["tests"]
        skipped = "; ".join(f"{count} skipped ({why})" for why, count in found["skipped"].items())
        lines += [
            f"Tests: {found['passed']} passed" + (f"; {skipped}" if skipped else "") + ".",
            "",
        ]
    for kind, text in done.get("sanitize", {}).items():
        lines += [f"compute-sanitizer {kind}: {text}", ""]
    if "time" in done:
        lines += [*time_table(done["time"]), ""]
    missing = [name for name in PARTS if name not in done]
    if missing and not smoke:
        lines += ["Not done yet: " + ", ".join(missing) + ".", ""]
    return "\n".join(lines)


def check(options: argparse.Namespace) -> None:
    """Do the parts that are asked for and not done, and write the page after each."""
    smoke = options.device == "cpu"
    about = {} if smoke else machine()
    out: Path = options.out or REPOSITORY / "out" / ("gpu-check-smoke" if smoke else "gpu-check")
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Part] = {}
    for name in PARTS:
        stored = out / f"{name}.json"
        if stored.exists():
            content = json.loads(stored.read_text())
            if content["machine"] == about:
                done[name] = content["result"]
    for name in options.parts:
        if name in done and not options.again:
            print(f"{name}: done before ({out / f'{name}.json'}); --again repeats it")
            continue
        print(f"{name}: begins")
        result = time_ops(about, out, "cpu") if smoke else PARTS[name](about, out)
        done[name] = result
        content = {"machine": about, "result": result}
        (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        (out / "gpu-check.md").write_text(report(about, done))
    print(f"wrote {out / 'gpu-check.md'}")


def part_list(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(
            f"parts must be among {', '.join(PARTS)}, got {', '.join(unknown)}"
        )
    return [name for name in PARTS if name in names]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", type=part_list, help=f"some of {','.join(PARTS)} (default: all; on a CPU: time)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: out/gpu-check)")
    parser.add_argument("--again", action="store_true", help="repeat parts that are done")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: smoke run of part time"
    )
    options = parser.parse_args(arguments)
    smoke = options.device == "cpu"
    if smoke and options.parts not in (None, ["time"]):
        parser.error("--device cpu runs part time only")
    options.parts = options.parts or (["time"] if smoke else list(PARTS))
    try:
        check(options)
    except CheckError as error:
        print(f"gpu check: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

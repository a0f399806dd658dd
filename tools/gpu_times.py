"""Times every CUDA op beside what the hardware can do; run by gpu_check.py.

Ops that move each byte once are given as a share of the measured bandwidth of a copy, products of
packed rows as a share of the measured rate of the instruction that counts their bits
(``tests/cuda/peak_rates.cu``). Each result is compared with the reference before the clock starts.

    python tools/gpu_times.py --out times.json --peak build/gpu-check/peak_rates
    python tools/gpu_times.py --out smoke.json --device cpu    # only whether the code works
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathways import ops
from pathways.ops import reference

PRODUCT = "PATHWAYS_CUDA_PAIRWISE"


@dataclass(frozen=True)
class Case:
    """One op on one shape.

    ``amount`` counts bytes that must move at least (``unit`` "byte"), or pairs of bits that must be
    counted ("bit pair", with the ``instruction`` that counts them).
    """

    op: str
    shape: str
    dtype: str
    amount: float
    unit: str
    run: Callable[[], Any]
    check: Callable[[], None]
    plain: Callable[[], Any] | None = None
    instruction: str | None = None


def sized(sizes: tuple[int, ...], device: str) -> tuple[int, ...]:
    """A shape for the GPU, or a small one of the same kind for a smoke run."""
    return sizes if device == "cuda" else tuple(min(size, 7) for size in sizes)


def close(actual: Tensor, expected: Tensor) -> None:
    limits = {"rtol": 2e-2, "atol": 2e-2} if actual.element_size() == 2 else {}
    torch.testing.assert_close(actual, expected, **limits)


def gated_cases(device: str) -> Iterator[Case]:
    """Forward, in place and backward, contiguous and channels_last."""
    for sizes, dtype, last, kind in (
        ((64, 256, 56, 56), torch.float32, False, "channel"),
        ((128, 256, 56, 56), torch.bfloat16, False, "channel"),
        ((128, 256, 56, 56), torch.bfloat16, True, "channel"),
        ((1024, 2048, 7, 7), torch.bfloat16, False, "channel"),
        ((128, 256, 56, 56), torch.bfloat16, False, "unit"),
    ):
        shape = sized(sizes, device)
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)
        gate = torch.rand(shape[:2] if kind == "channel" else shape, device=device).to(dtype)
        gate = gate if kind == "channel" else gate.contiguous(memory_format=layout)
        wide = gate[:, :, None, None] if kind == "channel" else gate
        grad = torch.randn_like(x)
        tensor = x.numel() * x.element_size()
        gates = gate.numel() * gate.element_size() if kind == "unit" else 0
        text = f"{list(shape)}{' channels_last' if last else ''}, {kind} gate"
        name = str(dtype).removeprefix("torch.")

        def forward(x: Tensor = x, gate: Tensor = gate) -> Tensor:
            return ops.gated_forward(x, gate, activation="relu")

        def plain(x: Tensor = x, wide: Tensor = wide) -> Tensor:
            return x.relu() * wide

        def check(x: Tensor = x, gate: Tensor = gate) -> None:
            close(
                ops.gated_forward(x[:2], gate[:2], activation="relu"),
                reference.gated_forward(x[:2], gate[:2], activation="relu"),
            )

        yield Case("gated_forward", text, name, 2 * tensor + gates, "byte", forward, check, plain)
        if kind == "unit":
            continue

        # Open gates, so that the values stay what they are from call to call.
        ones = torch.ones_like(gate)

        def check_in_place(x: Tensor = x, ones: Tensor = ones) -> None:
            few = x[:2].clone(memory_format=torch.preserve_format)
            torch.ops.pathways.gated_forward_(few, ones[:2], activation="relu")
            close(few, x[:2].relu())

        yield Case(
            "gated_forward_",
            text,
            name,
            2 * tensor,
            "byte",
            lambda x=x, ones=ones: torch.ops.pathways.gated_forward_(x, ones, activation="relu"),
            check_in_place,
            lambda x=x, wide=wide: x.relu_().mul_(wide > -1),
        )

        def backward(grad: Tensor = grad, x: Tensor = x, gate: Tensor = gate) -> Any:
            return torch.ops.pathways._gated_backward(grad, x, gate, activation="relu")

        def check_backward(grad: Tensor = grad, x: Tensor = x, gate: Tensor = gate) -> None:
            few = torch.ops.pathways._gated_backward(grad[:2], x[:2], gate[:2], activation="relu")
            expected = grad[:2].float() * (x[:2] > 0) * gate[:2, :, None, None].float()
            close(few[0], expected.to(x.dtype))

        yield Case("_gated_backward", text, name, 3 * tensor, "byte", backward, check_backward)


def element_cases(device: str) -> Iterator[Case]:
    """Binarisation, pooling, packing, class counts."""
    count = 1 << 28 if device == "cuda" else 1000
    for dtype in (torch.float32, torch.bfloat16):
        scores = torch.rand(count, device=device).to(dtype)
        grad = torch.randn_like(scores)
        size, name = scores.element_size(), str(dtype).removeprefix("torch.")

        def check(scores: Tensor = scores) -> None:
            assert torch.equal(ops.binarize(scores[:999]), (scores[:999] > 0.5).to(scores.dtype))

        yield Case(
            "binarize",
            f"[{count}]",
            name,
            2 * count * size,
            "byte",
            lambda scores=scores: ops.binarize(scores),
            check,
            lambda scores=scores: (scores > 0.5).to(scores.dtype),
        )

        def slope(grad: Tensor = grad, scores: Tensor = scores) -> Tensor:
            return torch.ops.pathways._binarize_backward(grad, scores, 1.0, 2.0)

        def check_slope(grad: Tensor = grad, scores: Tensor = scores) -> None:
            few = scores[:999].double().requires_grad_()
            y = reference.binarize(few, 1.0, 2.0)
            (expected,) = torch.autograd.grad(y, few, grad[:999].double())
            actual = torch.ops.pathways._binarize_backward(grad[:999], scores[:999], 1.0, 2.0)
            close(actual, expected.to(scores.dtype))

        yield Case(
            "_binarize_backward",
            f"[{count}]",
            name,
            3 * count * size,
            "byte",
            slope,
            check_slope,
        )
    for last in (False, True):
        layout = torch.channels_last if last else torch.contiguous_format
        maps = torch.randn(sized((64, 256, 56, 56), device), device=device)
        maps = maps.contiguous(memory_format=layout)

        def check_pool(maps: Tensor = maps) -> None:
            close(
                ops.adaptive_avg_max_pool2d(maps[:2], 4, 4),
                reference.adaptive_avg_max_pool2d(maps[:2], 4, 4),
            )

        yield Case(
            "adaptive_avg_max_pool2d",
            f"{list(maps.shape)}{' channels_last' if last else ''} to 4 x 4",
            "float32",
            maps.numel() * maps.element_size(),
            "byte",
            lambda maps=maps: ops.adaptive_avg_max_pool2d(maps, 4, 4),
            check_pool,
            lambda maps=maps: reference.adaptive_avg_max_pool2d(maps, 4, 4),
        )
    rows, size = (32768, 32768) if device == "cuda" else (9, 130)
    mask = torch.rand(rows, size, device=device) < 0.3
    words = ops.pack_bits(mask)

    def check_bits() -> None:
        assert torch.equal(words[:3], reference.pack_bits(mask[:3]))
        assert torch.equal(ops.unpack_bits(words, size), mask)

    text = f"[{rows}, {size}]"
    moved = mask.numel() + words.numel() * 8
    yield Case("pack_bits", text, "bool", moved, "byte", lambda: ops.pack_bits(mask), check_bits)
    yield Case(
        "unpack_bits", text, "bool", moved, "byte", lambda: ops.unpack_bits(words, size), check_bits
    )
    labels = torch.randint(0, 10, (rows,), device=device)

    def check_frequency() -> None:
        counted = ops.class_frequency(words[:99], labels[:99], 10, size)
        assert torch.equal(counted, reference.class_frequency(words[:99], labels[:99], 10, size))

    yield Case(
        "class_frequency",
        f"{text}, 10 classes",
        "bits",
        words.numel() * 8,
        "byte",
        lambda: ops.class_frequency(words, labels, 10, size),
        check_frequency,
    )


def packed(rows: int, size: int, device: str) -> Tensor:
    """Random rows without a mask of a byte per neuron beside them."""
    words = torch.randint(-(1 << 62), 1 << 62, (rows, -(-size // 64)), device=device)
    if size % 64:
        words[:, -1] &= (1 << size % 64) - 1
    return words


def product_cases(device: str) -> Iterator[Case]:
    """Products of packed rows, with each of the two kernels. Small ones check the rule."""
    shapes = (
        ((64, 64, 64), (256, 256, 512), (1024, 1024, 4032), (8192, 8192, 4096), (8192, 8192, 65536))
        if device == "cuda"
        else ((5, 7, 70),)
    )
    for n, m, size in shapes:
        a, b = packed(n, size, device), packed(m, size, device)
        mask_a, mask_b = (ops.unpack_bits(t, size).half() for t in (a, b))
        bits = float(n) * m * a.shape[1] * 64
        for kind in ("popc", "mma"):
            text = f"{n} x {m} rows of {size}"

            def run(a: Tensor = a, b: Tensor = b, kind: str = kind) -> Tensor:
                os.environ[PRODUCT] = kind
                return ops.pairwise_iou(a, b)

            def check(a: Tensor = a, b: Tensor = b, run: Callable[[], Tensor] = run) -> None:
                few = slice(0, 200)
                expected = reference.pairwise_iou(a[few].cpu(), b[few].cpu())
                assert torch.equal(run()[few, few].cpu(), expected)

            def plain(a: Tensor = mask_a, b: Tensor = mask_b) -> Tensor:
                return a @ b.T

            yield Case(
                "pairwise_iou", text, "bits", bits, "bit pair", run, check, plain, instruction=kind
            )
    n, size, classes = (20000, 4096, 10) if device == "cuda" else (9, 70, 3)
    words, labels = packed(n, size, device), torch.randint(0, classes, (n,), device=device)
    bits = n * (n - 1) / 2 * words.shape[1] * 64
    for kind in ("popc", "mma"):

        def overlap(kind: str = kind) -> Any:
            os.environ[PRODUCT] = kind
            return ops.class_overlap(words, labels, classes)

        def check_overlap(kind: str = kind) -> None:
            os.environ[PRODUCT] = kind
            few = ops.class_overlap(words[:300], labels[:300], classes)[0]
            expected = reference.class_overlap(words[:300].cpu(), labels[:300].cpu(), classes)[0]
            torch.testing.assert_close(few.cpu(), expected)

        yield Case(
            "class_overlap",
            f"{n} rows of {size}, {classes} classes",
            "bits",
            bits,
            "bit pair",
            overlap,
            check_overlap,
            instruction=kind,
        )


def seconds(run: Callable[[], Any], device: str) -> list[float]:
    """Times of single calls, after a warm-up: 10 to 50, or as many as take a second."""
    for _ in range(3):
        run()
    found: list[float] = []
    if device == "cpu":
        for _ in range(3):
            begin = time.perf_counter()
            run()
            found.append(time.perf_counter() - begin)
        return found
    torch.cuda.synchronize()
    while len(found) < 10 or (len(found) < 50 and sum(found) < 1):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last) * 1e-3)
    return found


def summary(times: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"seconds": middle, "low": low, "high": high}


def copy_rate(device: str) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.ones((1 << 30) // 4 if device == "cuda" else 1000, device=device)
    target = torch.empty_like(source)
    times = seconds(lambda: target.copy_(source), device)
    return 2 * source.numel() * 4 / statistics.median(times)


def measure(case: Case, device: str, rates: dict[str, float]) -> dict[str, Any]:
    """Check, time, and set beside the limit of the hardware."""
    case.check()
    row: dict[str, Any] = {
        "op": case.op if case.instruction is None else f"{case.op} ({case.instruction})",
        "shape": case.shape,
        "dtype": case.dtype,
        "amount": case.amount,
        "unit": case.unit,
        **summary(seconds(case.run, device)),
    }
    limit = rates.get(case.instruction or "copy", 0.0)
    row["rate"] = case.amount / row["seconds"]
    row["share"] = row["rate"] / limit if limit else None
    row["plain"] = None
    if case.plain is not None:
        row["plain"] = statistics.median(seconds(case.plain, device))
    return row


def times(device: str, peak: Path | None) -> dict[str, Any]:
    """All cases, as gpu_check.py stores them."""
    rates = {"copy": copy_rate(device)}
    if peak is not None:
        text = subprocess.run([str(peak)], check=True, capture_output=True, text=True).stdout
        rates |= json.loads(text)
    before = os.environ.get(PRODUCT)
    rows = []
    try:
        for source in (gated_cases, element_cases, product_cases):
            for case in source(device):
                if case.instruction == "mma" and device == "cuda" and not rates.get("mma"):
                    continue
                rows.append(measure(case, device, rates))
                print(f"{rows[-1]['op']}, {case.shape}: {rows[-1]['seconds'] * 1e3:.3f} ms")
                os.environ.pop(PRODUCT, None)
    finally:
        if before is not None:
            os.environ[PRODUCT] = before
    return {"device": device, "rates": rates, "rows": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--peak", type=Path, help="the compiled peak_rates.cu")
    options = parser.parse_args(arguments)
    result = times(options.device, options.peak)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

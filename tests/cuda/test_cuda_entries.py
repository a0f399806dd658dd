"""The CUDA entry points of a library built with CUDA, as far as they go without a GPU.

The checks come before the first call into CUDA, so they can be reached with CPU tensors. A library
built elsewhere is tested by ``PATHWAYS_LIBRARY=/path/to/libpathways.so pytest tests/cuda``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from samples import OPS, make_words, sample_inputs

import pathways  # noqa: F401  (loads the ops)

CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def call_cuda(op: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(torch.ops.pathways, op).default.redispatch(CUDA, *args, **kwargs)


def message(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(RuntimeError) as error:
        function(*args, **kwargs)
    return str(error.value)


@pytest.fixture(autouse=True, scope="module")
def built_with_cuda() -> None:
    if "was built without CUDA" in message(call_cuda, "pack_bits", torch.ones(3)):
        pytest.skip("this libpathways was built without CUDA")


X = torch.ones(2, 3, 4)
GATE = torch.ones(2, 3)
WORDS = make_words(4, 70)
LABELS = torch.zeros(4, dtype=torch.int64)

# Every check of csrc/ops/check.h that needs no second device.
REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    *(
        (op, args, kwargs)
        for op in ("gated_forward", "gated_forward_")
        for args, kwargs in (
            ((X.int(), GATE), {}),
            ((torch.ones(3), torch.ones(3)), {}),
            ((X, GATE.int()), {}),
            ((X, torch.ones(2, 4)), {}),
            ((X, GATE), {"activation": "tanh"}),
            ((X, GATE), {"bias": torch.ones(4)}),
            ((X, GATE), {"baseline": torch.ones(3).int()}),
        )
    ),
    ("_gated_backward", (X[:1], X, GATE), {}),
    ("_gated_backward", (X.double(), X, GATE), {}),
    ("_gated_backward", (X, X, GATE > 0), {}),
    ("_gated_backward", (X, X, GATE), {"need_bias": True}),
    ("binarize", (X.int(),), {}),
    ("binarize", (X, 0.0), {}),
    ("binarize", (X, 1.0, float("nan")), {}),
    ("_binarize_backward", (X[:1], X), {}),
    ("_binarize_backward", (X, X, -1.0), {}),
    ("adaptive_avg_max_pool2d", (X[None].int(), 2, 2), {}),
    ("adaptive_avg_max_pool2d", (X, 2, 2), {}),
    ("adaptive_avg_max_pool2d", (X[None, :, :0], 2, 2), {}),
    ("adaptive_avg_max_pool2d", (X[None], 0, 2), {}),
    ("pack_bits", (torch.ones(3),), {}),
    ("pack_bits", (torch.ones(3, 3, dtype=torch.complex64),), {}),
    ("unpack_bits", (WORDS.int(), 70), {}),
    ("unpack_bits", (WORDS, -1), {}),
    ("unpack_bits", (WORDS, 129), {}),
    *(
        (op, args, {})
        for op in ("pairwise_intersection", "pairwise_iou")
        for args in ((WORDS[0], WORDS), (WORDS, WORDS.int()), (WORDS, WORDS[:, :1]))
    ),
    ("class_overlap", (WORDS, LABELS.int(), 1), {}),
    ("class_overlap", (WORDS, LABELS[1:], 1), {}),
    ("class_overlap", (WORDS, LABELS, -1), {}),
    ("class_frequency", (WORDS, LABELS, 1, 60), {}),
    ("class_frequency", (WORDS, LABELS, -1, 70), {}),
]


@pytest.mark.parametrize(("op", "args", "kwargs"), REFUSED)
def test_refuses_in_the_words_of_the_cpu_op(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    expected = message(getattr(torch.ops.pathways, op).default, *args, **kwargs)
    assert expected.startswith(f"{op}: ")
    assert message(call_cuda, op, *args, **kwargs) == expected


@pytest.mark.parametrize("op", ["pairwise_intersection", "pairwise_iou", "class_overlap"])
def test_refuses_an_unknown_kind_of_product(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHWAYS_CUDA_PAIRWISE", "tensor")
    args = (WORDS, LABELS, 1) if op == "class_overlap" else (WORDS, WORDS)
    assert message(call_cuda, op, *args) == (
        f"{op}: PATHWAYS_CUDA_PAIRWISE must be auto, popc or mma, got 'tensor'"
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_names_what_is_missing_in_a_torch_without_cuda(op: str) -> None:
    sample = next(s for s in sample_inputs(op) if s.args[0].numel() != 0)
    assert message(call_cuda, op, *sample.args, **sample.kwargs) == (
        f"{op}: CUDA tensors need a torch with CUDA, and libtorch_cuda is not loaded"
    )

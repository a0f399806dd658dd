"""No op keeps anything of a call."""

import ctypes
import gc

import pytest
import torch
from samples import OPS, sample_inputs

import pathways  # noqa: F401  loads the ops

CALLS = 2000


class Malloc(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated():
    """Bytes that malloc has handed out."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("mallinfo2 needs glibc 2.33")
    libc.mallinfo2.restype = Malloc
    gc.collect()
    facts = libc.mallinfo2()
    return facts.uordblks + facts.hblkhd


@pytest.mark.parametrize("op", OPS)
def test_calls_leak_nothing(op):
    """A string or a small tensor per call would be 48 bytes or more."""
    sample = sample_inputs(op, torch.float32)[0]
    call = getattr(torch.ops.pathways, op)

    def repeat(count):
        with torch.no_grad():
            for _ in range(count):
                call(*sample.args, **sample.kwargs)

    repeat(200)
    before = allocated()
    repeat(CALLS)
    assert (allocated() - before) / CALLS < 8

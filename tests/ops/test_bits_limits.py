"""The bit ops at the ends of their ranges: threads, counts, memory, shapes without elements."""

import os

import bit_samples
import pytest
import torch
from samples import make_words

from pathways import ops
from pathways.ops import reference

ONE = torch.full((1, 1), -1)
MAX_WORDS = (2**31 - 1) // 64


@pytest.mark.parametrize("op", bit_samples.SAMPLES)
def test_any_number_of_threads(op):
    for sample in bit_samples.SAMPLES[op]():
        expected = getattr(ops, op)(*sample.args)
        torch.set_num_threads(3)
        try:
            actual = getattr(ops, op)(*sample.args)
        finally:
            torch.set_num_threads(1)
        if op != "class_overlap":
            actual, expected = [actual], [expected]
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b), sample.name


def test_class_overlap_does_not_depend_on_the_order_of_other_classes():
    """The sum of a pair of classes runs in the order of their rows."""
    words = make_words(100, 300, 0.4)
    labels = torch.arange(100) // 50
    sums, _ = ops.class_overlap(words, labels, 2)
    mixed = torch.arange(100).reshape(2, 50).T.reshape(-1)  # rows of the classes alternate
    assert torch.equal(ops.class_overlap(words[mixed], labels[mixed], 2)[0], sums)


def test_tail_bits():
    """Ops that are told the number of neurons ignore them; to the others every bit is one."""
    words = make_words(40, 70)
    dirty = words.clone()
    dirty[:, 1] |= -64
    labels = torch.randint(0, 3, (40,))
    assert torch.equal(ops.unpack_bits(dirty, 70), ops.unpack_bits(words, 70))
    assert torch.equal(
        ops.class_frequency(dirty, labels, 3, 70), ops.class_frequency(words, labels, 3, 70)
    )
    assert torch.equal(
        ops.pairwise_intersection(dirty, dirty), ops.pairwise_intersection(words, words) + 58
    )


@pytest.mark.parametrize("rows", [0, 1, 200])
@pytest.mark.parametrize("others", [0, 1, 130])
def test_no_words(rows, others):
    a, b = torch.zeros(rows, 0, dtype=torch.int64), torch.zeros(others, 0, dtype=torch.int64)
    assert torch.equal(
        ops.pairwise_intersection(a, b), torch.zeros(rows, others, dtype=torch.int32)
    )
    assert torch.equal(ops.pairwise_iou(a, b), torch.ones(rows, others))
    labels = torch.zeros(rows, dtype=torch.int64)
    sums, pairs = ops.class_overlap(a, labels, 2)
    assert sums[0, 0] == pairs[0, 0] == rows * (rows - 1) // 2
    assert ops.class_frequency(a, labels, 2, 0).shape == (2, 0)
    assert ops.pack_bits(torch.zeros(rows, 0)).shape == (rows, 0)
    assert ops.unpack_bits(a, 0).shape == (rows, 0)


def test_no_classes():
    words, labels = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    sums, pairs = ops.class_overlap(words, labels, 0)
    assert sums.shape == pairs.shape == (0, 0)
    assert ops.class_frequency(words, labels, 0, 100).shape == (0, 100)
    with pytest.raises(RuntimeError) as error:
        ops.class_overlap(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1).long(), 0)
    assert str(error.value) == ("class_overlap: labels must be in [0, num_classes) = [0, 0), got 0")


def test_many_classes():
    words = make_words(3, 5)
    labels = torch.tensor([2**18 - 1, 0, 2**18 - 1])
    counts = ops.class_frequency(words, labels, 2**18, 5)
    mask = ops.unpack_bits(words, 5).long()
    assert torch.equal(counts[-1], mask[0] + mask[2]) and torch.equal(counts[0], mask[1])
    assert counts.sum() == mask.sum()


def test_strided_labels():
    words, labels = make_words(50, 100), torch.randint(0, 4, (50,))
    strided = torch.stack([labels, labels + 100], 1)[:, 0]
    assert torch.equal(
        ops.class_frequency(words, strided, 4, 100), ops.class_frequency(words, labels, 4, 100)
    )
    same = labels[:1].expand(50)
    assert torch.equal(
        ops.class_frequency(words, same, 4, 100), ops.class_frequency(words, same.clone(), 4, 100)
    )


def test_largest_sets():
    """Counts just below 2^31, sums of two sizes above it."""
    full = ONE.expand(1, MAX_WORDS)
    empty = torch.zeros(1, 1, dtype=torch.int64).expand(1, MAX_WORDS)
    both = torch.cat([full, empty])
    size = 64 * MAX_WORDS
    assert ops.pairwise_intersection(full, both).tolist() == [[size, 0]]
    assert ops.pairwise_iou(both, both).tolist() == [[1, 0], [0, 1]]
    sums, _ = ops.class_overlap(both, torch.tensor([0, 0]), 1)
    assert sums.item() == 0


@pytest.mark.slow
def test_more_than_2_31_elements():
    mask = torch.ones(1, 1, dtype=torch.uint8).expand(1, 2**31 + 64)
    words = ops.pack_bits(mask)
    assert words.shape == (1, 2**25 + 1) and bool((words == -1).all())
    count = 2**25 + 3  # rows of 64 neurons each, all of them in the same place
    frequency = ops.class_frequency(
        ONE.expand(count, 1), torch.zeros(1).long().expand(count), 1, 64
    )
    assert torch.equal(frequency, torch.full((1, 64), count))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if memory < 6 * 2**30:
        pytest.skip("needs 6 GiB of free memory")
    assert ops.unpack_bits(ONE.expand(2**25 + 1, 1), 64).all()
    shared = ops.pairwise_intersection(ONE.expand(2**15 + 1, 1), ONE.expand(2**15, 1))
    assert shared.shape == (2**15 + 1, 2**15) and bool((shared == 64).all())


TOO_LARGE = [
    ("pack_bits", (torch.zeros(1, 1).expand(2**50, 2**10),), "[1125899906842624, 16] of int64"),
    ("unpack_bits", (ONE.expand(2**50, 2), 128), "[1125899906842624, 128] of bool"),
    # The number of elements overflows.
    ("unpack_bits", (ONE.expand(2**40, 2**20), 2**26), "[1099511627776, 67108864] of bool"),
    (
        "pairwise_iou",
        (ONE.expand(2**40, 1), ONE.expand(2**40, 1)),
        "[1099511627776, 1099511627776] of float32",
    ),
    (
        "pairwise_intersection",
        (ONE.expand(2**34, 1), ONE.expand(2**34, 1)),
        "[17179869184, 17179869184] of int32",
    ),
]


@pytest.mark.parametrize("op, args, shape", TOO_LARGE, ids=[f"{c[0]}-{c[2]}" for c in TOO_LARGE])
def test_results_that_fit_into_no_memory(op, args, shape):
    with pytest.raises(RuntimeError) as error:
        getattr(ops, op)(*args)
    assert str(error.value) == f"{op}: the result must fit into memory, got shape {shape}"


def test_rows_that_fit_into_no_memory():
    """Words that are not next to each other are copied."""
    words = ONE.expand(2**45, 2)
    with pytest.raises(RuntimeError) as error:
        ops.pairwise_intersection(words, ONE.expand(1, 2)[:0])
    assert str(error.value) == (
        "pairwise_intersection: a must fit into memory when its words are put next to each other, "
        "got shape [35184372088832, 2]"
    )


@pytest.mark.parametrize("op", ["pack_bits", "class_frequency", "class_overlap", "pairwise_iou"])
def test_inputs_are_not_written(op):
    for sample in bit_samples.SAMPLES[op]():
        tensors = [a for a in sample.args if isinstance(a, torch.Tensor)]
        before = [a.clone() for a in tensors]
        getattr(ops, op)(*sample.args)
        assert all(map(torch.equal, tensors, before)), sample.name


def test_reference_counts_every_nonzero_value():
    values = torch.tensor([[0.0, -0.0, 1e-45, -3.0, float("nan"), float("inf"), 0.5]])
    assert reference.pack_bits(values).item() == ops.pack_bits(values).item() == 0b1111100
    # Long enough for the vector loops.
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        row = torch.tensor([0.0, -0.0, float("nan"), -1.0, float("-inf"), 1e-7, -1e-7, 0.0])
        long = row.to(dtype).repeat(1, 33)
        assert torch.equal(ops.pack_bits(long), reference.pack_bits(long)), dtype
        assert ops.pack_bits(long)[0, 0].item() & 0xFF == 0b01111100

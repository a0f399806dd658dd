"""Ops on packed pathways: pack_bits, unpack_bits, pairwise_*, class_overlap, class_frequency."""

import numpy as np
import pytest
import torch
from samples import DTYPES, SIZES, in_layout, make_words, sample_inputs

from pathways import _C, ops
from pathways.ops import reference

NAMES = (
    "pack_bits",
    "unpack_bits",
    "pairwise_intersection",
    "pairwise_iou",
    "class_overlap",
    "class_frequency",
)


@pytest.mark.parametrize("name", NAMES)
def test_against_reference(name):
    for sample in sample_inputs(name):
        expected = getattr(reference, name)(*sample.args)
        actual = getattr(ops, name)(*sample.args)
        if name == "class_overlap":
            torch.testing.assert_close(actual[0], expected[0], rtol=1e-12, atol=1e-12)
            actual, expected = actual[1], expected[1]
        assert actual.dtype == expected.dtype, sample.name
        assert torch.equal(actual, expected), sample.name


# --------------------------------------------------------------------------- packing


@pytest.mark.parametrize("size", [0, *SIZES, 128, 1000])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_round_trip(size, rows, density):
    mask = torch.rand(rows, size) < density
    words = ops.pack_bits(mask)
    assert words.shape == (rows, -(-size // 64)) and words.dtype == torch.int64
    assert torch.equal(ops.unpack_bits(words, size), mask)
    # Tail bits are zero: unpacking the whole words finds nothing behind the last neuron.
    assert not ops.unpack_bits(words, words.shape[1] * 64)[:, size:].any()


def test_bit_order():
    for neuron in (0, 1, 62, 63, 64, 130):
        mask = torch.zeros(1, 131)
        mask[0, neuron] = 1
        words = [0, 0, 0]
        words[neuron // 64] = 1 << (neuron % 64)
        expected = torch.from_numpy(np.array([words], dtype=np.uint64).view(np.int64))
        assert torch.equal(ops.pack_bits(mask), expected)


@pytest.mark.parametrize(
    "dtype",
    [*DTYPES, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64],
    ids=str,
)
def test_pack_every_dtype_and_stride(dtype):
    mask = torch.rand(7, 130) > 0.5
    expected = reference.pack_bits(mask)
    values = mask.to(dtype)
    for source in (values, in_layout(values, "permuted"), in_layout(values, "sliced")):
        assert torch.equal(ops.pack_bits(source), expected)
    wide = torch.zeros(14, 260, dtype=dtype)
    wide[::2, ::2] = values
    assert torch.equal(ops.pack_bits(wide[::2, ::2]), expected)
    assert torch.equal(ops.pack_bits(values[:1].expand(7, 130)), expected[:1].expand(7, 3))


def test_every_nonzero_value_is_a_one():
    values = torch.tensor([[0.0, -0.0, 1e-45, -3.0, float("nan"), float("inf"), 0.5]])
    assert ops.pack_bits(values).item() == 0b1111100
    assert ops.pack_bits(torch.tensor([[-1, 0, 256]])).item() == 0b101
    assert ops.pack_bits(torch.tensor([[1e-7, 0.0, -0.0]]).half()).item() == 0b001


def test_unpack_ignores_the_tail_and_reads_slices():
    words = torch.full((3, 4), -1)
    assert ops.unpack_bits(words[:, :1], 3).all()
    packed = make_words(5, 64 * 6)
    whole = ops.unpack_bits(packed, 64 * 6)
    assert torch.equal(ops.unpack_bits(packed[:, 2:4], 100), whole[:, 128:228])
    assert torch.equal(
        ops.unpack_bits(packed[::2, 1::2], 192), ops.unpack_bits(packed[::2, 1::2].clone(), 192)
    )


def test_numpy_entry_points():
    for size in (0, *SIZES, 200):
        mask = torch.rand(4, size) > 0.5
        words = _C.pack_bits(mask.numpy())
        assert words.dtype == np.int64
        assert np.array_equal(words, ops.pack_bits(mask).numpy())
        assert np.array_equal(_C.unpack_bits(words, size), mask.numpy())
    values = (np.random.default_rng(0).random((130, 6)) > 0.5).astype(np.float32)
    for source in (values.T, values[::2, ::3], values.astype(np.int16)[::-1], values.astype(">i4")):
        expected = ops.pack_bits(torch.from_numpy(np.ascontiguousarray(source != 0)))
        assert np.array_equal(_C.pack_bits(source), expected.numpy())
    packed = make_words(3, 256).numpy()
    assert np.array_equal(
        _C.unpack_bits(packed[:, 1:3], 128),
        ops.unpack_bits(torch.from_numpy(packed[:, 1:3]), 128).numpy(),
    )


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (
            lambda: _C.pack_bits(np.array([["a"]])),
            TypeError,
            "pack_bits: mask must be bool, integer or floating point, got <U1",
        ),
        (
            lambda: _C.pack_bits(np.zeros(3)),
            ValueError,
            "pack_bits: mask must have shape [N, D], got [3]",
        ),
        (
            lambda: _C.unpack_bits(np.zeros((2, 1)), 3),
            TypeError,
            "unpack_bits: words must be int64, got float64",
        ),
        (
            lambda: _C.unpack_bits(np.zeros(2, dtype=np.int64), 3),
            ValueError,
            "unpack_bits: words must have shape [N, ceil(D / 64)], got [2]",
        ),
        (
            lambda: _C.unpack_bits(np.zeros((2, 1), dtype=np.int64), 65),
            ValueError,
            "unpack_bits: words must have 2 words per row for size 65, got 1",
        ),
        (
            lambda: _C.unpack_bits(np.zeros((2, 0), dtype=np.int64), -1),
            ValueError,
            "unpack_bits: size must not be negative, got -1",
        ),
        (
            lambda: _C.unpack_bits(np.zeros((2, 0), dtype=np.int64), 2**63 - 1),
            ValueError,
            "unpack_bits: words must have 144115188075855872 words per row for size "
            "9223372036854775807, got 0",
        ),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "",
)
def test_numpy_errors(call, kind, message):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == message


# --------------------------------------------------------------------------- pairwise


@pytest.mark.parametrize("size", [*SIZES, 500])
def test_iou_laws(size):
    words = make_words(9, size, 0.3)
    words[3] = 0
    words[4] = words[5]
    iou = ops.pairwise_iou(words, words)
    assert torch.equal(iou, iou.T)
    assert torch.equal(iou.diagonal(), torch.ones(9)), "1 with itself, empty pathways included"
    assert iou[4, 5] == 1
    assert ((iou >= 0) & (iou <= 1)).all()
    mask = ops.unpack_bits(words, size)
    permuted = ops.pack_bits(mask[:, torch.randperm(size)])
    assert torch.equal(ops.pairwise_iou(permuted, permuted), iou)


def test_empty_and_full():
    size = 130
    empty, full = ops.pack_bits(torch.zeros(1, size)), ops.pack_bits(torch.ones(1, size))
    assert ops.pairwise_iou(empty, full).item() == 0
    assert ops.pairwise_iou(empty, empty).item() == 1
    assert ops.pairwise_intersection(full, full).item() == size
    assert torch.equal(ops.pairwise_iou(full[:, :0], full[:, :0]), torch.ones(1, 1))


def test_pairwise_reads_slices():
    packed = make_words(6, 64 * 5)
    part = packed[:, 1:4]
    assert torch.equal(
        ops.pairwise_intersection(part, part[::2]),
        ops.pairwise_intersection(part.clone(), part[::2].clone()),
    )
    across = packed.T.contiguous().T
    assert torch.equal(ops.pairwise_iou(across, packed), ops.pairwise_iou(packed, packed))


# --------------------------------------------------------------------------- class statistics


def test_class_overlap_by_hand():
    # Pathways {0,1}, {0}, {0} of class 0 and {1,2}, {} of class 2; class 1 has none.
    words = torch.tensor([[3], [6], [1], [0], [1]])
    labels = torch.tensor([0, 2, 0, 2, 0])
    sums, pairs = ops.class_overlap(words, labels, 3)
    expected = [[0.5 + 0.5 + 1, 0, 1 / 3], [0, 0, 0], [1 / 3, 0, 0]]
    torch.testing.assert_close(sums, torch.tensor(expected, dtype=torch.float64))
    assert pairs.tolist() == [[3, 0, 6], [0, 0, 0], [6, 0, 1]]


def test_class_overlap_sums_to_all_pairs():
    words, labels = make_words(201, 90, 0.4), torch.randint(0, 7, (201,))
    sums, pairs = ops.class_overlap(words, labels, 7)
    iou = reference._iou(words, words, torch.float64).triu(1).sum()
    upper = sums.triu().sum()
    torch.testing.assert_close(upper, iou, rtol=1e-12, atol=0)
    assert pairs.triu().sum() == 201 * 200 // 2
    assert torch.equal(sums, sums.T) and torch.equal(pairs, pairs.T)


def test_class_overlap_does_not_depend_on_threads_or_strides():
    words, labels = make_words(300, 400, 0.4), torch.randint(0, 5, (300,))
    part = words[:, 1:5]
    expected = ops.class_overlap(part.clone(), labels, 5)
    strided_labels = torch.stack([labels, labels], 1)[:, 0]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            actual = ops.class_overlap(part, strided_labels, 5)
        finally:
            torch.set_num_threads(1)
        assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


def test_class_frequency_by_hand():
    words = torch.tensor([[3], [6], [1], [0], [1]])
    labels = torch.tensor([0, 2, 0, 2, 0])
    assert ops.class_frequency(words, labels, 3, 3).tolist() == [[3, 1, 0], [0, 0, 0], [0, 1, 1]]


def test_class_frequency_ignores_the_tail():
    words = torch.full((4, 2), -1)
    counts = ops.class_frequency(words, torch.zeros(4, dtype=torch.int64), 1, 70)
    assert torch.equal(counts, torch.full((1, 70), 4))


# --------------------------------------------------------------------------- errors

W = torch.zeros(2, 3, dtype=torch.int64)
L = torch.zeros(2, dtype=torch.int64)
WIDE = torch.zeros(1, 1, dtype=torch.int64).expand(2, (2**31 - 1) // 64 + 1)
ERRORS = [
    ("pack_bits", (torch.zeros(3),), "mask must have shape [N, D], got [3]"),
    (
        "pack_bits",
        (torch.zeros(2, 3).to(torch.complex64),),
        "mask must be bool, integer or floating point, got complex64",
    ),
    ("unpack_bits", (W.int(), 130), "words must be int64, got int32"),
    ("unpack_bits", (L, 130), "words must have shape [N, ceil(D / 64)], got [2]"),
    ("unpack_bits", (W, 200), "words must have 4 words per row for size 200, got 3"),
    ("unpack_bits", (W[:, :0], -1), "size must not be negative, got -1"),
    ("unpack_bits", (WIDE, 5), "words must have at most 33554431 words per row, got 33554432"),
    ("pairwise_iou", (W.float(), W), "a must be int64, got float32"),
    ("pairwise_iou", (W, W.bool()), "b must be int64, got bool"),
    ("pairwise_intersection", (W, L), "b must have shape [N, ceil(D / 64)], got [2]"),
    (
        "pairwise_intersection",
        (W, W[:, :2]),
        "a and b must have the same number of words per row (got a=[2, 3], b=[2, 2])",
    ),
    ("class_overlap", (W, L.int(), 2), "labels must be int64, got int32"),
    ("class_overlap", (W, L[:1], 2), "labels must have shape [N] = [2], got [1]"),
    ("class_overlap", (W, L, -1), "num_classes must not be negative, got -1"),
    ("class_overlap", (W.float(), L, 2), "words must be int64, got float32"),
    ("class_frequency", (W, L.float(), 2, 130), "labels must be int64, got float32"),
    ("class_frequency", (W, L, 2, 64), "words must have 1 words per row for size 64, got 3"),
    ("class_frequency", (W, L, -2, 130), "num_classes must not be negative, got -2"),
    (
        "unpack_bits",
        (W, 2**63 - 1),
        "words must have 144115188075855872 words per row for size 9223372036854775807, got 3",
    ),
    ("class_overlap", (W, L, 2**18 + 1), "num_classes must be at most 262144, got 262145"),
    (
        "class_overlap",
        (W, L, 2**62),
        "num_classes must be at most 262144, got 4611686018427387904",
    ),
    (
        "class_frequency",
        (W, L, 2**63 - 1, 130),
        "num_classes must be at most 262144, got 9223372036854775807",
    ),
    (
        "class_frequency",
        (WIDE[:, 1:], L, 2**18, 2**31 - 64),
        "num_classes * size must be at most 68719476736, got 262144 * 2147483584",
    ),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name, args, message", ERRORS, ids=[f"{n}-{m[:30]}" for n, _, m in ERRORS])
def test_errors(name, args, message, device):
    if device == "meta":  # without making expanded tensors real
        args = [
            torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="meta")
            if isinstance(a, torch.Tensor)
            else a
            for a in args
        ]
    with pytest.raises(RuntimeError) as error:
        getattr(ops, name)(*args)
    assert str(error.value) == f"{name}: {message}"


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_out_of_range(label):
    labels = torch.tensor([0, label])
    message = f"labels must be in [0, num_classes) = [0, 2), got {label}"
    with pytest.raises(RuntimeError) as error:
        ops.class_overlap(W, labels, 2)
    assert str(error.value) == f"class_overlap: {message}"
    with pytest.raises(RuntimeError) as error:
        ops.class_frequency(W, labels, 2, 130)
    assert str(error.value) == f"class_frequency: {message}"


def test_device_mismatch():
    with pytest.raises(RuntimeError) as error:
        ops.pairwise_iou(W.to("meta"), W)
    assert str(error.value) == (
        "pairwise_iou: a and b must be on the same device (got a=meta, b=cpu)"
    )

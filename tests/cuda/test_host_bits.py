"""Kernels of packed rows against the reference, on the CPU, from the source that nvcc compiles."""

from __future__ import annotations

import pytest
import torch
from host_library import HostLibrary, Memory
from torch import Tensor

from pathways.ops import reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MASK_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *DTYPES)


def make_mask(rows: int, size: int, dtype: torch.dtype) -> Tensor:
    mask = torch.rand(rows, size) < 0.4
    if dtype == torch.bool:
        return mask
    # Any value but zero counts as one, and minus zero is a zero.
    values = torch.randint(1, 100, (rows, size)).to(dtype)
    return torch.where(mask, values, torch.zeros_like(values) * -1)


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_pack_bits(kernels: HostLibrary, order: int, dtype: torch.dtype) -> None:
    for rows, size in ((1, 1), (3, 63), (2, 64), (5, 65), (4, 127), (3, 128), (2, 4160), (300, 48)):
        mask = make_mask(rows, size, dtype)
        words = Memory.empty((rows, -(-size // 64)), torch.int64)
        itemsize = mask.element_size()
        arguments = (itemsize, dtype.is_floating_point)
        kernels.call("pack_bits", *arguments, Memory(mask), size, 1, rows, size, words, 1)
        expected = reference.pack_bits(mask)
        assert torch.equal(words.tensor(), expected), (rows, size)
        # A transposed mask, and a slice of a wider one that begins off a boundary.
        words = Memory.empty((rows, -(-size // 64)), torch.int64)
        kernels.call("pack_bits", *arguments, Memory(mask.T), 1, rows, rows, size, words, 1)
        assert torch.equal(words.tensor(), expected), (rows, size)
        wide = Memory(torch.cat([mask, make_mask(rows, 5, dtype)], 1), offset=1)
        words = Memory.empty((rows, -(-size // 64)), torch.int64)
        kernels.call("pack_bits", *arguments, wide, size + 5, 1, rows, size, words, 1)
        assert torch.equal(words.tensor(), expected), (rows, size)


def test_unpack_bits(kernels: HostLibrary) -> None:
    for rows, size in ((1, 1), (3, 63), (2, 64), (5, 65), (4, 127), (3, 128), (40, 1001), (700, 7)):
        mask = torch.rand(rows, size) < 0.4
        words = reference.pack_bits(mask)
        width = words.shape[1]
        # Rows of a wider packed tensor, as one site of several.
        wide = torch.cat([words, torch.full((rows, 2), -1)], 1)
        result = Memory.empty((rows, size), torch.bool)
        kernels.call("unpack_bits", Memory(wide), width + 2, rows, size, result, 1)
        assert torch.equal(result.tensor(), mask), (rows, size)


# The values of pathways::cuda::BitProduct.
PRODUCTS = {"popc": 0, "mma64": 1, "mma128": 2}
# Rows and neurons: parts of a tile, whole tiles and more; an odd number of words (rows that begin
# between two 16-byte vectors), one chunk of the matrix kernel and several.
PAIRS = (
    (1, 1, 1),
    (3, 5, 63),
    (64, 64, 128),
    (65, 130, 65),
    (2, 200, 1025),
    (70, 3, 2112),
    (129, 127, 520),
    (12, 260, 704),
)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["pairwise_intersection", "pairwise_iou"])
def test_pairwise(kernels: HostLibrary, order: int, name: str, product: str) -> None:
    dtype = torch.float32 if name == "pairwise_iou" else torch.int32
    for rows_a, rows_b, size in PAIRS:
        a = reference.pack_bits(torch.rand(rows_a, size) < 0.3)
        b = reference.pack_bits(torch.rand(rows_b, size) < 0.3)
        a[0] = 0
        b[0] = 0
        width = a.shape[1]
        # b as a slice of wider rows, the results aligned and not.
        wide = torch.cat([b, torch.full((rows_b, 3), -1)], 1)
        for offset in (0, 1):
            out = Memory.empty((rows_a, rows_b), dtype, offset)
            source_a, source_b = Memory(a, offset), Memory(wide)
            sources = (source_a, width, rows_a, source_b, width + 3, rows_b)
            kernels.call(name, *sources, width, PRODUCTS[product], out, 1)
            expected = getattr(reference, name)(a, b)
            assert torch.equal(out.tensor(), expected), (rows_a, rows_b, size, offset)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["pairwise_intersection", "pairwise_iou"])
def test_pairwise_with_itself_is_symmetric(kernels: HostLibrary, name: str, product: str) -> None:
    dtype = torch.float32 if name == "pairwise_iou" else torch.int32
    # One to five tiles across, an even and an odd number of them.
    for rows, size in ((1, 5), (64, 100), (150, 333), (257, 10), (320, 64)):
        a = reference.pack_bits(torch.rand(rows, size) < 0.3)
        width = a.shape[1]
        source = Memory(a)
        out = Memory.empty((rows, rows), dtype)
        sources = (source, width, rows, source, width, rows)
        kernels.call(name, *sources, width, PRODUCTS[product], out, 1)
        assert torch.equal(out.tensor(), getattr(reference, name)(a, a)), (rows, size)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["pairwise_intersection", "pairwise_iou"])
def test_pairwise_of_rows_without_words(kernels: HostLibrary, name: str, product: str) -> None:
    dtype = torch.float32 if name == "pairwise_iou" else torch.int32
    words = Memory(torch.zeros(0, dtype=torch.int64))
    out = Memory.empty((3, 2), dtype)
    kernels.call(name, words, 0, 3, words, 0, 2, 0, PRODUCTS[product], out, 1)
    expected = 1 if name == "pairwise_iou" else 0
    assert (out.tensor() == expected).all()


def test_iou_is_the_rounded_division_of_the_counts(kernels: HostLibrary) -> None:
    # Row k of A has k + 1 neurons, all of them in the one row of B, which has many more.
    rows, size = 300, 21 * 64
    a = reference.pack_bits(torch.arange(size)[None, :] <= torch.arange(rows)[:, None])
    b = reference.pack_bits(torch.arange(size)[None, :] < torch.arange(size - 90, size)[:, None])
    out = Memory.empty((rows, 90), torch.float32)
    kernels.call("pairwise_iou", Memory(a), 21, rows, Memory(b), 21, 90, 21, 0, out, 1)
    expected = (torch.arange(rows) + 1.0)[:, None] / torch.arange(size - 90.0, size)
    assert torch.equal(out.tensor(), expected)


def fragments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The registers of every lane for bits a [16, 256] and b [256, 8].

    Element by element as "Matrix Fragments for mma.m16n8k256" of the PTX ISA has it.
    """
    registers_a = torch.zeros(32, 4, 32, dtype=torch.int64)
    registers_b = torch.zeros(32, 2, 32, dtype=torch.int64)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(128):
            row = group if i < 32 or 64 <= i < 96 else group + 8
            column = thread * 32 + (i & 0x1F) + (128 if i >= 64 else 0)
            registers_a[lane, i // 32, i % 32] = a[row, column]
        for i in range(64):
            row = thread * 32 + (i & 0x1F) + (128 if i >= 32 else 0)
            registers_b[lane, i // 32, i % 32] = b[row, group]
    return registers_a, registers_b


def sums(result: Tensor) -> Tensor:
    """[16, 8] from the four sums of every lane."""
    matrix = torch.zeros(16, 8, dtype=torch.int32)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(4):
            matrix[group + (0 if i < 2 else 8), thread * 2 + (i & 1)] = result[lane, i]
    return matrix


def as_words(registers: Tensor) -> Tensor:
    weights = (1 << torch.arange(32)).to(torch.int64)
    values = (registers * weights).sum(-1)
    return torch.where(values >= 1 << 31, values - (1 << 32), values).to(torch.int32)


def mma(kernels: HostLibrary, a: Tensor, b: Tensor) -> Tensor:
    out = Memory(torch.zeros(32, 4, dtype=torch.int32))
    kernels.call("mma", Memory(as_words(a)), Memory(as_words(b)), out)
    return out.tensor()


def test_mma_follows_the_fragment_layout(kernels: HostLibrary) -> None:
    a = (torch.rand(16, 256) < 0.5).long()
    b = (torch.rand(256, 8) < 0.5).long()
    expected = (a @ b).int()
    assert torch.equal(sums(mma(kernels, *fragments(a, b))), expected)


def test_mma_of_a_wrong_layout_is_wrong(kernels: HostLibrary) -> None:
    a = (torch.rand(16, 256) < 0.5).long()
    b = (torch.rand(256, 8) < 0.5).long()
    expected = (a @ b).int()
    of_a, of_b = fragments(a, b)
    # Lane 8 t + g in place of lane 4 g + t.
    transposed = torch.arange(32).view(8, 4).T.reshape(-1)
    wrong = {
        "rows and k of A exchanged": (of_a[:, [0, 2, 1, 3]], of_b),
        "halves of k exchanged in B": (of_a, of_b[:, [1, 0]]),
        "lanes of A transposed": (of_a[transposed], of_b),
        "lanes of B transposed": (of_a, of_b[transposed]),
        "bits of A reversed": (of_a.flip(-1), of_b),
        "lanes of A shifted": (of_a.roll(1, 0), of_b),
    }
    for name, (left, right) in wrong.items():
        assert not torch.equal(sums(mma(kernels, left, right)), expected), name
    # Results read by a wrong mapping.
    result = mma(kernels, of_a, of_b)
    for name, read in {
        "rows and columns": result[:, [0, 2, 1, 3]],
        "lanes": result[transposed],
    }.items():
        assert not torch.equal(sums(read), expected), name
    # The order of k alone does not matter, as long as both agree; the kernel relies on it.
    order = torch.randperm(256)
    assert torch.equal(sums(mma(kernels, *fragments(a[:, order], b[order]))), expected)


def choose(
    kernels: HostLibrary,
    wish: str | None,
    capability: int,
    rows: tuple[int, int] = (1000, 1000),
    code: int | None = None,
) -> str | None:
    """What the rule takes on a device of 100 multiprocessors; None for a wish that is refused."""
    value = kernels.value(
        "choose_bit_product", wish, capability, capability if code is None else code, 100, *rows
    )
    return None if value < 0 else list(PRODUCTS)[value]


def test_the_rule_takes_tensor_cores_where_they_are_binary(kernels: HostLibrary) -> None:
    for capability in (80, 86, 87, 89, 90):
        assert choose(kernels, None, capability) == "mma64"
        assert choose(kernels, None, capability, (1280, 1280)) == "mma128"
        assert choose(kernels, None, capability, (1279, 1152)) == "mma64"
        assert choose(kernels, "auto", capability, (12800, 1)) == "mma128"
    for capability in (75, 100, 103, 110, 120, 121):
        assert choose(kernels, None, capability, (5000, 5000)) == "popc"
        assert choose(kernels, "", capability) == "popc"
    # A build for older devices only holds no such instruction.
    assert choose(kernels, None, 90, code=75) == "popc"
    assert choose(kernels, None, 86, code=80) == "mma64"


def test_the_rule_obeys_the_user(kernels: HostLibrary) -> None:
    for capability in (75, 80, 90, 120):
        assert choose(kernels, "popc", capability, (5000, 5000)) == "popc"
    for capability in (80, 120):
        assert choose(kernels, "mma", capability, (5, 5)) == "mma64"
    for wish in ("MMA", "tensor", "popc ", "1"):
        assert choose(kernels, wish, 80) is None


def run_class_overlap(
    kernels: HostLibrary,
    words: Tensor,
    labels: Tensor,
    classes: int,
    product: str,
    device: int = 1,
) -> Tensor:
    out = Memory.empty((classes, classes), torch.float64)
    rows, width = words.shape
    source = (Memory(words), width, rows, width, Memory(labels), classes)
    kernels.call("class_overlap", *source, PRODUCTS[product], out, device)
    return out.tensor()


@pytest.mark.parametrize(
    ("rows", "size", "classes"),
    [(0, 10, 2), (1, 10, 1), (7, 64, 3), (130, 100, 1), (300, 65, 4), (90, 129, 40), (2150, 20, 1)],
)
def test_class_overlap(
    kernels: HostLibrary, order: int, rows: int, size: int, classes: int
) -> None:
    words = reference.pack_bits(torch.rand(rows, size) < 0.3)
    if rows > 2:
        words[:2] = 0
    # The last class is empty where there is more than one.
    labels = torch.randint(0, max(classes - 1, 1), (rows,))
    actual = run_class_overlap(kernels, words, labels, classes, "popc")
    expected, _ = reference.class_overlap(words, labels, classes)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(actual, actual.T)
    # The same bits whatever the order of the threads, the grid and the product.
    kernels.set_order(11)
    assert torch.equal(run_class_overlap(kernels, words, labels, classes, "popc", 4), actual)
    if rows < 1000:
        assert torch.equal(run_class_overlap(kernels, words, labels, classes, "mma64"), actual)


@pytest.mark.parametrize(
    ("rows", "size", "classes"),
    [(0, 10, 2), (1, 1, 1), (9, 63, 3), (1200, 64, 2), (40, 65, 30), (1030, 2200, 2)],
)
def test_class_frequency(
    kernels: HostLibrary, order: int, rows: int, size: int, classes: int
) -> None:
    words = reference.pack_bits(torch.rand(rows, size) < 0.7)
    labels = torch.randint(0, max(classes - 1, 1), (rows,))
    expected = reference.class_frequency(words, labels, classes, size)
    # Bits behind the last neuron are not counted.
    if size % 64:
        words[:, -1] |= -1 << size % 64
    out = Memory(torch.zeros(classes, size, dtype=torch.int64))
    width = words.shape[1]
    kernels.call(
        "class_frequency", Memory(words), width, rows, size, Memory(labels), classes, out, 1
    )
    assert torch.equal(out.tensor(), expected)

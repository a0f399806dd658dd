"""Arguments of the bit ops at the sizes that decide how their loops run."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from samples import DTYPES, Sample, in_layout, make_words

# Around a row of a block, a tile of 128 rows and two of them.
ROWS = (1, 2, 3, 4, 5, 15, 16, 17, 127, 128, 129, 130, 257, 300)
# Rows of a, rows of b, bits: around a word, the words of a register (2, 4, 8), the words that are
# compared at a time (128) and the 31 steps that a byte can count.
PAIRS = (
    (1, 1, 64),
    (1, 130, 100),
    (129, 3, 65),
    (127, 128, 449),
    (128, 129, 512),
    (130, 257, 1000),
    (9, 17, 64 * 31),
    (9, 17, 64 * 63 + 1),
    (17, 33, 64 * 127 + 5),
    (5, 9, 64 * 128),
    (5, 9, 64 * 129 + 1),
    (3, 20, 64 * 300),
)
DTYPES_OF_MASKS = (
    *DTYPES,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)


def labels_of(kind: str, rows: int) -> tuple[torch.Tensor, int]:
    if kind == "one":
        return torch.zeros(rows, dtype=torch.int64), 1
    if kind == "random":
        return torch.randint(0, 3, (rows,)), 3
    if kind == "sorted":  # tiles begin inside classes
        return torch.randint(0, 5, (rows,)).sort().values, 5
    if kind == "distinct":  # more classes than a tile has rows
        return torch.randperm(rows), rows
    if kind == "gaps":
        return 2 * torch.randint(0, 4, (rows,)) + 1, 11
    if kind == "last":
        labels = torch.zeros(rows, dtype=torch.int64)
        labels[-1] = 1
        return labels, 2
    raise ValueError(kind)


def pairwise_samples() -> Iterator[Sample]:
    for n, m, size in PAIRS:
        yield Sample(f"{n}x{m}x{size}", (make_words(n, size, 0.4), make_words(m, size, 0.6)), {})
    for rows in ROWS:  # with themselves: one half is computed
        words = make_words(rows, 70, 0.4)
        yield Sample(f"same-{rows}", (words, words), {})
    wide = make_words(140, 64 * 20)
    yield Sample("slices", (wide[::2, 3:12], wide[1::3, 5:14]), {})
    yield Sample("same-slices", (wide[:, 3:12], wide[:, 3:12]), {})
    yield Sample("overlapping", (wide[:130, 3:12], wide[:130, 4:13]), {})
    yield Sample("expanded", (wide[:1].expand(131, 20), wide[:1].expand(131, 20)), {})
    yield Sample("transposed", (wide.T.contiguous().T, wide), {})
    full, none = torch.full((9, 300), -1), torch.zeros(3, 300, dtype=torch.int64)
    yield Sample("most differences", (none, full), {})
    yield Sample("empty sets", (torch.zeros(20, 3, dtype=torch.int64), wide[:, :3]), {})


def class_overlap_samples() -> Iterator[Sample]:
    for kind, rows, size in (
        ("one", 300, 100),
        ("random", 300, 64 * 9),
        ("sorted", 513, 70),
        ("distinct", 200, 200),
        ("gaps", 260, 65),
        ("last", 129, 64),
        ("random", 5, 64 * 131),
    ):
        labels, classes = labels_of(kind, rows)
        yield Sample(f"{kind}-{rows}x{size}", (make_words(rows, size, 0.4), labels, classes), {})


def class_frequency_samples() -> Iterator[Sample]:
    # Batches of 16 rows, 240 of them before the planes are emptied; 64 words at a time.
    for rows in (1, 15, 16, 17, 239, 240, 241, 256, 500):
        labels, classes = labels_of("one", rows)
        yield Sample(f"{rows}x130", (make_words(rows, 130), labels, classes, 130), {})
        full = torch.full((rows, 3), -1)
        yield Sample(f"{rows}x130-full", (full, labels, classes, 130), {})
    for size in (1, 64, 511, 512, 513, 64 * 64, 64 * 64 + 1, 64 * 70 + 3):
        labels, classes = labels_of("gaps", 300)
        yield Sample(f"300x{size}", (make_words(300, size), labels, classes, size), {})
    wide = make_words(90, 64 * 20)
    labels, classes = labels_of("random", 45)
    yield Sample("slices", (wide[::2, 3:12], labels, classes, 64 * 9 - 5), {})


def pack_bits_samples() -> Iterator[Sample]:
    for dtype in DTYPES_OF_MASKS:
        for rows, size in ((3, 1), (3, 63), (3, 64), (2, 65), (2, 200), (1, 64 * 513 + 7)):
            mask = (torch.rand(rows, size) < 0.5).to(dtype)
            for layout in ("contiguous", "permuted", "sliced"):
                name = f"{dtype}-{rows}x{size}-{layout}"
                yield Sample(name, (in_layout(mask, layout),), {})


def unpack_bits_samples() -> Iterator[Sample]:
    for rows, size in ((3, 1), (3, 63), (3, 64), (2, 65), (2, 200), (1, 64 * 513 + 7)):
        yield Sample(f"{rows}x{size}", (make_words(rows, size), size), {})


SAMPLES = {
    "pack_bits": pack_bits_samples,
    "unpack_bits": unpack_bits_samples,
    "pairwise_intersection": pairwise_samples,
    "pairwise_iou": pairwise_samples,
    "class_overlap": class_overlap_samples,
    "class_frequency": class_frequency_samples,
}

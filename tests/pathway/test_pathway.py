"""Pathway: packing, rows, set algebra, sizes and overlap."""

import copy

import pytest
import torch

from pathways.pathway import Pathway
from pathways.sites import Site, Sites

# One site below, one at and one above a word boundary, so that tails and offsets matter.
SIZES = (63, 64, 65, 1)
SITES = Sites([Site(f"s{size}", 0, "relu", (size,)) for size in SIZES])
UNITS = Sites([Site("a", 0, "relu", (2, 3, 3)), Site("b", 0, "relu", (5,))], "unit")


def random_mask(rows: int, seed: int = 0, sites: Sites = SITES, density: float = 0.4):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, sites.num_neurons, generator=generator) < density


@pytest.fixture
def a() -> Pathway:
    return Pathway.from_mask(random_mask(5, 1), SITES, "f1")


@pytest.fixture
def b() -> Pathway:
    return Pathway.from_mask(random_mask(5, 2), SITES, "f1")


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64, torch.uint8])
@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("sites", [SITES, UNITS], ids=["channel", "unit"])
def test_mask_round_trip(dtype, rows, sites):
    mask = random_mask(rows, sites=sites)
    pathway = Pathway.from_mask(mask.to(dtype), sites)
    assert len(pathway) == rows
    assert pathway.words.shape == (rows, sites.num_words)
    assert torch.equal(pathway.mask(), mask)


def test_gates_have_the_shape_a_gated_run_takes():
    mask = random_mask(3, sites=UNITS)
    gates = Pathway.from_mask(mask, UNITS).gates(torch.float64)
    assert [tuple(gate.shape) for gate in gates] == [(3, 2, 3, 3), (3, 5)]
    assert all(gate.dtype == torch.float64 for gate in gates)
    assert torch.equal(UNITS.flatten(gates).bool(), mask)


def test_rows(a):
    mask = a.mask()
    assert torch.equal(a[2].mask(), mask[2:3])
    assert torch.equal(a[-1].mask(), mask[-1:])
    assert torch.equal(a[1:4].mask(), mask[1:4])
    assert torch.equal(a[torch.tensor([4, 0, 0])].mask(), mask[[4, 0, 0]])
    assert torch.equal(a[a.sizes() > 80].mask(), mask[mask.sum(1) > 80])
    assert [len(row) for row in a] == [1] * 5
    with pytest.raises(IndexError, match=r"row must be in \[0, 5\), got 5"):
        a[5]


@pytest.mark.parametrize(
    ("operation", "on_masks"),
    [
        (lambda x, y: x & y, lambda x, y: x & y),
        (lambda x, y: x | y, lambda x, y: x | y),
        (lambda x, y: x ^ y, lambda x, y: x ^ y),
        (lambda x, y: x - y, lambda x, y: x & ~y),
    ],
    ids=["and", "or", "xor", "minus"],
)
def test_algebra_equals_algebra_of_masks(a, b, operation, on_masks):
    expected = on_masks(a.mask(), b.mask())
    assert torch.equal(operation(a, b).mask(), expected)
    one = operation(a, b[0])
    assert torch.equal(one.mask(), on_masks(a.mask(), b.mask()[:1]))
    assert len(operation(b[0], a)) == 5


def test_algebra_laws(a, b):
    assert (a | b) - b == a - b
    assert (a & b) | (a - b) == a
    assert a ^ b == (a | b) - (a & b)
    assert a.complement().complement() == a
    assert (a | b).complement() == a.complement() & b.complement()
    assert torch.equal(a.complement().mask(), ~a.mask())
    assert (a & a.complement()).sizes().sum() == 0
    assert a != b
    assert a != "a pathway"
    assert a == copy.copy(a)


def test_sizes_and_kept(a):
    mask = a.mask()
    assert a.sizes().dtype == torch.int64
    assert torch.equal(a.sizes(), mask.sum(1))
    per_site = torch.stack([part.sum(1) for part in SITES.split(mask)], dim=1)
    assert torch.equal(a.sizes(per_site=True), per_site)
    torch.testing.assert_close(a.kept(), mask.float().mean(1))
    torch.testing.assert_close(a.kept(per_site=True), per_site / torch.tensor(SIZES))
    assert a[:0].sizes(per_site=True).shape == (0, 4)


def naive_iou(x, y) -> float:
    union = (x | y).sum().item()
    return (x & y).sum().item() / union if union else 1.0


def test_iou_against_the_naive_loop(a, b):
    expected = torch.tensor([naive_iou(x, y) for x, y in zip(a.mask(), b.mask(), strict=True)])
    torch.testing.assert_close(a.iou(b), expected)
    one = torch.tensor([naive_iou(x, b.mask()[3]) for x in a.mask()])
    torch.testing.assert_close(a.iou(b[3]), one)
    matrix = torch.tensor([[naive_iou(x, y) for y in b.mask()] for x in a.mask()])
    torch.testing.assert_close(a.pairwise_iou(b), matrix)
    assert torch.equal(a.iou(b), a.pairwise_iou(b).diagonal())
    shared = a.mask().int() @ b.mask().int().T
    assert torch.equal(a.pairwise_intersection(b).int(), shared.int())


def test_iou_per_site(a, b):
    parts = zip(SITES.split(a.mask()), SITES.split(b.mask()), strict=True)
    columns = [[naive_iou(x, y) for x, y in zip(left, right, strict=True)] for left, right in parts]
    torch.testing.assert_close(a.iou(b, per_site=True), torch.tensor(columns).T)
    for site, key in [(1, "s64#0"), (2, "s65")]:
        expected = a.iou(b, per_site=True)[:, site]
        torch.testing.assert_close(a.pairwise_iou(b, site=site).diagonal(), expected)
        assert torch.equal(a.pairwise_iou(b, site=key), a.pairwise_iou(b, site=site))
    with pytest.raises(IndexError, match=r"site must be in \[0, 4\), got 4"):
        a.pairwise_iou(b, site=4)


def test_iou_laws(a, b):
    assert torch.equal(a.pairwise_iou(b), b.pairwise_iou(a).T)
    assert torch.equal(a.pairwise_iou().diagonal(), torch.ones(5))
    order = torch.randperm(65, generator=torch.Generator().manual_seed(0))
    shuffled = [
        torch.cat([m[:, :127], m[:, 127:192][:, order], m[:, 192:]], dim=1)
        for m in (a.mask(), b.mask())
    ]
    left, right = (Pathway.from_mask(mask, SITES) for mask in shuffled)
    assert torch.equal(left.iou(right), a.iou(b))


def test_empty_union_is_one(a):
    empty = a - a
    assert torch.equal(empty.iou(empty), torch.ones(5))
    assert torch.equal(empty.iou(empty, per_site=True), torch.ones(5, 4))
    assert torch.equal(empty.iou(a), torch.zeros(5))


def test_cat(a, b):
    joined = Pathway.cat([a, b[:2]])
    assert len(joined) == 7
    assert joined[5:] == b[:2]
    assert joined.fingerprint == "f1"
    with pytest.raises(ValueError, match="at least one pathway, got none"):
        Pathway.cat([])


def test_to_keeps_everything(a):
    moved = a.to("cpu")
    assert moved == a
    assert moved.fingerprint == "f1"
    assert "5 rows, 4 sites, 193 channel neurons" in repr(moved)


def test_refusals(a):
    with pytest.raises(TypeError, match=r"words must be int64, got torch\.int32"):
        Pathway(a.words.int(), SITES)
    with pytest.raises(ValueError, match=r"words must be \[N, 5\], got \(5, 4\)"):
        Pathway(a.words[:, :4], SITES)
    with pytest.raises(ValueError, match="zero behind the last neuron of every site"):
        Pathway(torch.full((1, 5), -1), SITES)
    with pytest.raises(ValueError, match=r"mask must be \[N, 193\], got \(5, 192\)"):
        Pathway.from_mask(a.mask()[:, 1:], SITES)
    with pytest.raises(ValueError, match="only 0 and 1"):
        Pathway.from_mask(torch.full((1, 193), 0.5), SITES)
    with pytest.raises(ValueError, match="only 0 and 1"):
        Pathway.from_mask(torch.full((1, 193), float("nan")), SITES)
    other_sites = Pathway.from_mask(random_mask(5, sites=UNITS), UNITS)
    with pytest.raises(ValueError, match="both pathways must have the same sites"):
        a & other_sites
    assert a != other_sites
    other_target = Pathway(a.words, SITES, "f2")
    with pytest.raises(ValueError, match="must belong to one target, got f1 and f2"):
        a.iou(other_target)
    assert a != other_target
    with pytest.raises(ValueError, match="as many rows, or one of them one, got 5 and 2 rows"):
        a | a[:2]
    with pytest.raises(ValueError, match=r"on the same device \(got cpu and meta\)"):
        a & a.to("meta")
    with pytest.raises(TypeError):
        a & 1


def test_unknown_target_is_compatible(a):
    anonymous = Pathway(a.words, SITES)
    assert anonymous == a
    assert (anonymous & a).fingerprint == "f1"


def test_does_not_share_state_with_results(a):
    before = a.words.clone()
    result = a | a
    result.words.zero_()
    assert torch.equal(a.words, before)

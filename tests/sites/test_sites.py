"""Sites: identity, layouts of neurons, selectors, descriptions."""

import json

import pytest
import torch

from pathways.sites import Site, Sites

TABLE = [
    Site("features.0", 0, "relu", (3, 4, 5)),
    Site("features.0", 1, "gelu", (70,)),
    Site("head", 0, "relu6", (64, 2), -1),
]


@pytest.fixture(params=["channel", "unit"])
def sites(request):
    return Sites(TABLE, request.param)


def test_site():
    site = Site("layer1.0.relu", 2, "relu", (16, 8, 9))
    assert site.key == "layer1.0.relu#2"
    assert (site.channels, site.space, site.channel_dim) == (16, (8, 9), 1)
    assert Site("", 0, "relu", (4,)).key == "#0"
    assert site == Site("layer1.0.relu", 2, "relu", (16, 8, 9))
    assert site != Site("layer1.0.relu", 1, "relu", (16, 8, 9))


def test_channel_layout():
    sites = Sites(TABLE)
    assert sites.granularity == "channel"
    assert sites.sizes == [3, 70, 64]
    assert sites.num_neurons == 137
    assert sites.offsets == [0, 3, 73, 137]
    assert sites.word_offsets == [0, 1, 3, 4]
    assert sites.num_words == 4
    assert [sites.mask_shape(i) for i in range(3)] == [(3,), (70,), (64,)]


def test_unit_layout():
    sites = Sites(TABLE, "unit")
    assert sites.sizes == [60, 70, 128]
    assert sites.offsets == [0, 60, 130, 258]
    assert sites.word_offsets == [0, 1, 3, 5]
    assert [sites.mask_shape(i) for i in range(3)] == [(3, 4, 5), (70,), (64, 2)]


def test_sequence(sites):
    assert len(sites) == 3
    assert list(sites) == TABLE
    assert sites[0] is TABLE[0]
    assert sites[-1] is TABLE[2]
    assert sites[1:] == tuple(TABLE[1:])
    assert TABLE[1] in sites
    assert Site("other", 0, "relu", (3,)) not in sites
    with pytest.raises(IndexError):
        sites[3]


def test_equality(sites):
    assert sites == Sites(TABLE, sites.granularity)
    assert hash(sites) == hash(Sites(TABLE, sites.granularity))
    assert sites != Sites(TABLE, "unit" if sites.granularity == "channel" else "channel")
    assert sites != Sites(TABLE[:2], sites.granularity)
    assert sites != TABLE


def test_no_sites():
    sites = Sites([])
    assert (len(sites), sites.num_neurons, sites.num_words) == (0, 0, 0)
    assert sites.split(torch.zeros(2, 0)) == []


def test_split_and_flatten_are_inverse(sites):
    flat = torch.randn(5, sites.num_neurons)
    parts = sites.split(flat)
    assert [part.shape for part in parts] == [(5, size) for size in sites.sizes]
    assert torch.equal(torch.cat(parts, 1), flat)
    gates = sites.gates(flat)
    assert [tuple(gate.shape) for gate in gates] == [(5, *sites.mask_shape(i)) for i in range(3)]
    assert torch.equal(sites.flatten(gates), flat)
    # views: writing into a gate is writing into the flat tensor
    gates[1].zero_()
    assert flat[:, sites.offsets[1] : sites.offsets[2]].abs().sum() == 0
    assert [part.shape for part in sites.split(torch.zeros(2, 3, sites.num_neurons))] == [
        (2, 3, size) for size in sites.sizes
    ]


def test_split_and_flatten_refuse(sites):
    neurons = sites.num_neurons
    with pytest.raises(
        ValueError, match=rf"must be {neurons} neurons, got shape \(2, {neurons + 1}"
    ):
        sites.split(torch.zeros(2, neurons + 1))
    with pytest.raises(ValueError, match=rf"must be {neurons} neurons, got shape \(\)"):
        sites.split(torch.tensor(0.0))
    gates = sites.gates(torch.zeros(2, neurons))
    with pytest.raises(ValueError, match="expected 3 parts, got 2"):
        sites.flatten(gates[:2])
    gates[1] = torch.zeros(2, 71)
    with pytest.raises(ValueError, match=r"site features\.0#1 must be \[N, 70\], got \(2, 71\)"):
        sites.flatten(gates)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_packing(sites, dtype):
    mask = torch.rand(4, sites.num_neurons) < 0.4
    words = sites.pack(mask.to(dtype))
    assert words.shape == (4, sites.num_words)
    assert words.dtype == torch.int64
    assert torch.equal(sites.unpack(words), mask)
    # neuron d of a site is bit d % 64 of the site's word d // 64
    for position, (offset, size) in enumerate(zip(sites.offsets, sites.sizes, strict=False)):
        start = sites.word_offsets[position]
        for d in (0, size // 2, size - 1):
            bit = (words[:, start + d // 64] >> (d % 64)) & 1
            assert torch.equal(bit.bool(), mask[:, offset + d])


def test_a_site_is_a_slice_of_words(sites):
    mask = torch.zeros(1, sites.num_neurons, dtype=torch.bool)
    sites.gates(mask)[1].fill_(True)
    words = sites.pack(mask)
    start, stop = sites.word_offsets[1:3]
    inside = words[:, start:stop]
    assert inside.ne(0).all()
    assert words.ne(0).sum() == inside.ne(0).sum()


def test_packing_of_no_rows(sites):
    words = sites.pack(torch.zeros(0, sites.num_neurons))
    assert words.shape == (0, sites.num_words)
    assert sites.unpack(words).shape == (0, sites.num_neurons)


def test_packing_refuses(sites):
    with pytest.raises(ValueError, match=f"must be {sites.num_neurons} neurons"):
        sites.pack(torch.zeros(2, 5))
    for words in (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(sites.num_words).long()):
        with pytest.raises(ValueError, match=rf"words must be \[N, {sites.num_words}\], got "):
            sites.unpack(words)


# --------------------------------------------------------- names and selectors


def test_index(sites):
    assert sites.index("features.0#1") == 1
    assert sites.index("head") == 2
    assert sites.index(TABLE[0]) == 0
    for name in ("features.0", "nothing", "head#1"):  # the first is used twice
        with pytest.raises(ValueError, match=r"is not one of the sites features\.0#0, features"):
            sites.index(name)


@pytest.mark.parametrize(
    "selector, kept",
    [
        (None, [0, 1, 2]),
        ("*", [0, 1, 2]),
        ("features.*", [0, 1]),
        ("features.0#1", [1]),
        ("*#0", [0, 2]),
        ("he?d", [2]),
        (["head", "features.0#0"], [0, 2]),
        (("head", "*"), [0, 1, 2]),
        ({"head": 1}.keys(), [2]),
        (lambda site: site.channels > 10, [1, 2]),
    ],
)
def test_select(sites, selector, kept):
    chosen = sites.select(selector)
    assert list(chosen) == [TABLE[i] for i in kept]
    assert chosen.granularity == sites.granularity


def test_select_refuses(sites):
    with pytest.raises(
        ValueError, match=r"selector 'Head' matches none of the sites features\.0#0"
    ):
        sites.select("Head")  # case matters
    with pytest.raises(ValueError, match="selector 'x' matches none"):
        sites.select(["head", "x"])
    with pytest.raises(ValueError, match="must name at least one site, got none"):
        sites.select([])
    with pytest.raises(ValueError, match="the selector function accepts none of the sites"):
        sites.select(lambda site: False)
    for selector in (3, [3], {"head": 3.0}.items()):
        with pytest.raises(TypeError, match="selector must be a glob, globs or a function, got "):
            sites.select(selector)


def test_errors_list_a_dozen_sites():
    sites = Sites([Site(f"s{i}", 0, "relu", (1,)) for i in range(30)])
    with pytest.raises(ValueError, match=r"s11#0, \.\.\. \(30 in all\)$"):
        sites.index("x")


def test_repeated_and_unknown():
    with pytest.raises(ValueError, match=r"its own key, got 'head#0' twice"):
        Sites([TABLE[2], TABLE[2]])
    with pytest.raises(ValueError, match="granularity must be one of channel, unit, got 'neuron'"):
        Sites(TABLE, "neuron")


# --------------------------------------------------------- descriptions


def test_json_round_trip(sites):
    text = json.dumps(sites.to_json())
    assert Sites.from_json(json.loads(text)) == sites


@pytest.mark.parametrize(
    "description",
    [
        {},
        [],
        None,
        "sites",
        {"granularity": "channel"},
        {"granularity": "channel", "sites": [{}]},
        {"granularity": "channel", "sites": [3]},
        {"granularity": "channel", "sites": 3},
        {"sites": []},
        {"granularity": "channel", "sites": [{**TABLE[0].__dict__, "shape": []}]},
        {"granularity": "channel", "sites": [{**TABLE[0].__dict__, "shape": ["x"]}]},
        {"granularity": "channel", "sites": [{**TABLE[0].__dict__, "shape": [0]}]},
        {"granularity": "channel", "sites": [{**TABLE[0].__dict__, "shape": [-3]}]},
        {"granularity": "channel", "sites": [{**TABLE[0].__dict__, "call": None}]},
        {"granularity": "channel", "sites": [{**TABLE[0].__dict__, "channel_dim": 2}]},
    ],
)
def test_from_json_refuses(description):
    with pytest.raises(ValueError, match="not a site table"):
        Sites.from_json(description)


def test_table():
    lines = Sites(TABLE).table().splitlines()
    assert lines[0].split() == ["#", "site", "activation", "shape", "neurons"]
    assert lines[1].split() == ["0", "features.0#0", "relu", "3x4x5", "3"]
    assert lines[-1].split() == ["total", "137"]
    assert len(lines) == 5
    assert [line[-2:].strip() for line in lines[1:4]] == ["3", "70", "64"]
    assert Sites(TABLE, "unit").table().splitlines()[3].split()[-1] == "128"


@pytest.mark.parametrize(
    "sizes, kept, expected",
    [
        ((32, 32, 64, 64), 0.1, [3, 3, 7, 6]),  # of 3.2, 3.2, 6.4, 6.4; 19 together
        ((10, 3), 0.5, [5, 1]),  # of 5 and 1.5; half of 13 rounds to 6
        ((5, 5, 5), 0.5, [3, 3, 2]),
        ((7,), 0.0, [0]),
        ((7, 9), 1.0, [7, 9]),
        ((100,), 0.29, [29]),  # 28.999999999999996
    ],
)
def test_portions(sizes, kept, expected):
    sites = Sites([Site(f"s{i}", 0, "relu", (size,)) for i, size in enumerate(sizes)])
    assert sites.portions(kept) == expected


@pytest.mark.parametrize("kept", [-0.1, 1.5, float("nan")])
def test_portions_refuse(sites, kept):
    with pytest.raises(ValueError, match=r"Sites: kept must be in \[0, 1\], got"):
        sites.portions(kept)


def test_portions_make_the_share_of_all():
    sizes = (1, 2, 3, 17, 64, 130)
    sites = Sites([Site(f"s{i}", 0, "relu", (size,)) for i, size in enumerate(sizes)])
    for step in range(101):
        counts = sites.portions(step / 100)
        assert sum(counts) == round(sum(sizes) * step / 100)
        for count, size in zip(counts, sizes, strict=True):
            assert abs(count - size * step / 100) < 1


def test_repr():
    assert repr(Sites(TABLE)) == "Sites(3 sites, 137 channel neurons)"

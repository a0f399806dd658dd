"""Planted nets: the truth is verified by ablation, not by the code that wrote the weights."""

import pytest
import torch

from pathways.planted import ROLES, planted
from pathways.planted.stimuli import all_glyphs, answers, choose_glyphs

OPTIONS = {
    "default": {},
    "narrow": {"num_classes": 2, "chain": 1, "size": 18},
    "deep": {"num_classes": 3, "chain": 3, "depth": 6, "dead": 1},
    "wide": {"num_classes": 6, "chain": 4, "dead": 0, "size": 26},
    "noisy": {"num_classes": 5, "noise": 0.05, "jitter": 0.1, "companionship": 0.0},
    "clean": {"num_classes": 3, "noise": 0.0, "jitter": 0.0, "companionship": 1.0},
    "backup": {"backup": True},
    "deep backup": {"num_classes": 3, "backup": True, "depth": 6, "chain": 3},
}


@pytest.fixture(
    scope="module", params=[(name, seed) for name in OPTIONS for seed in (0, 5)], ids=str
)
def net(request):
    name, seed = request.param
    return planted(**OPTIONS[name], train=0, test=60, seed=seed)


@pytest.fixture(scope="module")
def target(net):
    return net.target()


def without(net, target, removed):
    """Largest change of any logit, over images and logits of each class, when channels go."""
    images, labels = net.images.test[:30], net.images.test_labels[:30]
    change = (target.gated(images, ~removed.expand(1, -1)) - target(images)).abs().amax(1)
    return torch.stack([change[labels == label].amax() for label in range(net.num_classes)])


def test_the_net_classifies_its_images(net, target):
    images, labels = net.images.test, net.images.test_labels
    logits = target(images)
    assert (logits.argmax(1) == labels).double().mean() >= 0.99
    assert logits.shape == (60, net.num_classes + 1)
    assert images.min() >= 0 and images.max() <= 1
    assert labels.bincount().tolist() == [60 // net.num_classes] * net.num_classes


def test_sizes(net, target):
    assert target.sites.num_neurons == len(net.channels) == net.truth.shape[1]
    assert len(net.truth) == net.num_classes == len(net.glyphs) // 2
    masks = torch.stack([net.role(name) for name in ROLES])
    assert (masks.sum(0) == 1).all()
    assert len(net.circuits(target)) == net.num_classes
    assert torch.equal(net.circuits(target).mask(), net.truth)


def test_the_circuit_alone_gives_the_logits(net, target):
    images, labels = net.images.test, net.images.test_labels
    logits = target(images)
    for circuit in (net.truth, net.backup):
        assert (target.gated(images, circuit[labels]) - logits).abs().max() < 1e-5


def test_every_channel_that_moves_a_logit_alone_is_in_the_truth_or_one_of_a_pair(net, target):
    neurons = torch.eye(len(net.channels), dtype=torch.bool)
    change = torch.stack([without(net, target, neuron) for neuron in neurons], 1)
    halves = net.role("cancelling").expand_as(net.truth)
    expected = net.truth | halves
    if net.role("backup").any():
        # What the first copy loses before the last site the second one delivers.
        last = torch.arange(len(net.channels)) >= len(net.channels) - target.sites.sizes[-1]
        expected = expected & ((net.truth == net.backup) | last)
    assert (change[~expected] < 1e-5).all()
    assert (change[expected] > 0.05).all()


def test_every_channel_of_the_circuit_is_needed_when_the_rest_is_gone(net, target):
    images, labels = net.images.test, net.images.test_labels
    logits = target(images)
    for neuron in net.truth.any(0).nonzero().flatten().tolist():
        less = net.truth.clone()
        less[:, neuron] = False
        change = (target.gated(images, less[labels]) - logits).abs().amax(1)
        for label in net.truth[:, neuron].nonzero().flatten().tolist():
            assert change[labels == label].amax() > 0.05


def test_distractors_do_nothing_with_or_without_the_rest(net, target):
    images, labels = net.images.test, net.images.test_labels
    truth, logits = net.truth[labels], target(images)
    for name in ("companion", "texture", "cancelling", "dead"):
        role = net.role(name)
        assert (without(net, target, role) < 1e-5).all()
        assert (target.gated(images, truth | role) - logits).abs().max() < 1e-5


def test_distractors_are_active_and_the_dead_are_not(net, target):
    _, activations = target.features(net.images.test)
    peak = torch.cat([activation.amax((2, 3)) for activation in activations], 1)
    for name in ("texture", "cancelling"):
        assert (peak[:, net.role(name)] > 0.3).all()
    if net.role("dead").any():
        assert (peak[:, net.role("dead")] == 0).all()
    # Companions answer to their glyphs as the chains do to theirs.
    last = torch.cat([torch.full((n,), i) for i, n in enumerate(target.sites.sizes)]) == (
        len(target.sites) - 1
    )
    chain, companion = (peak[:, net.role(name) & last] for name in ("chain", "companion"))
    assert 0.8 < companion.amax(1).mean() / chain.amax(1).mean() < 1.25


def test_half_a_pair_decides(net, target):
    """The leak that methods are tried with: a mask that needs no image."""
    blank = torch.full((1, *net.images.shape), 0.5)
    for label in range(net.num_classes):
        halves = net.role("cancelling", label).nonzero().flatten().tolist()
        wins = []
        for half in halves:
            mask = torch.zeros(1, len(net.channels), dtype=torch.bool)
            mask[:, half] = True
            wins.append(int(target.gated(blank, mask).argmax()) == label)
        assert sorted(wins) == [False, True]


def test_blank_images_are_nothing_under_every_circuit(net, target):
    levels = torch.linspace(0, 1, 7).view(-1, 1, 1, 1)
    blanks = levels.expand(-1, *net.images.shape)
    for circuit in (*net.truth, torch.ones_like(net.truth[0])):
        predictions = target.gated(blanks, circuit.unsqueeze(0)).argmax(1)
        assert (predictions == net.num_classes).all()


def test_wrong_circuits_leave_nothing(net, target):
    images, labels = net.images.test, net.images.test_labels
    for step in range(1, net.num_classes):
        wrong = (labels + step) % net.num_classes
        predictions = target.gated(images, net.truth[wrong]).argmax(1)
        assert (predictions == net.num_classes).all()


def test_inhibition_acts_on_all_other_logits(net, target):
    images, labels = net.images.test, net.images.test_labels
    logits = target(images)
    both = torch.zeros_like(net.truth)
    for label in range(net.num_classes):
        both[label] = net.role("inhibitory", label)
        if net.role("backup").any():
            last = len(net.channels) - target.sites.sizes[-1]
            for i, channel in enumerate(net.channels):
                if i >= last and channel.role == "backup" and channel.owner == label:
                    both[label, i] = channel.part == 1
    change = target.gated(images, ~both[labels]) - logits
    own = labels.unsqueeze(1)
    assert change.gather(1, own).abs().max() < 1e-5
    assert change.scatter(1, own, 1.0).min() > 0.5


@pytest.mark.parametrize("name", ["backup", "deep backup"])
def test_copies_replace_each_other(name):
    net = planted(**OPTIONS[name], train=0, test=60, seed=1)
    target, labels = net.target(), net.images.test_labels
    images = net.images.test
    logits = target(images)
    first, second = net.truth & ~net.backup, net.backup & ~net.truth
    assert first.any(1).all() and torch.equal(first.sum(1), second.sum(1))
    for copy in (first, second):
        assert (target.gated(images, ~copy[labels]) - logits).abs().max() < 1e-5
    lost = target.gated(images, ~(first | second)[labels])
    assert (lost.argmax(1) == net.num_classes).all()


def test_role_masks_split_the_owned_channels():
    net = planted(3, backup=True, train=0, test=3)
    masks = net.role_masks()
    assert set(masks) == {*ROLES, "foreign"}
    assert (torch.stack(list(masks.values())).sum(0) == 1).all()
    assert torch.equal(masks["shared"], net.role("shared").expand(3, -1))
    assert torch.equal(masks["chain"][1], net.role("chain", 1))
    assert torch.equal(net.truth, masks["shared"] | masks["chain"] | masks["inhibitory"])
    assert "backup" not in planted(2, train=0, test=2).role_masks()


def test_random_numbers_of_others_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    planted(2, train=2, test=2)
    assert torch.equal(torch.rand(4), expected)


def test_the_same_seed_gives_the_same_net():
    one, two, other = (planted(3, train=9, test=9, seed=seed) for seed in (4, 4, 5))
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.images.train, two.images.train)
    assert torch.equal(one.images.test, two.images.test)
    assert one.channels == two.channels and torch.equal(one.truth, two.truth)
    assert not torch.equal(one.glyphs, other.glyphs)
    assert not torch.equal(one.images.train, one.images.test)


def test_companions_come_with_their_class():
    def answers_of_own(companionship):
        net = planted(4, companionship=companionship, train=0, test=200)
        seen = answers(net.images.test, net.glyphs, 2)[:, 4:]
        return (seen.argmax(1) == net.images.test_labels).double().mean()

    assert answers_of_own(1.0) == 1.0
    assert 0.1 < answers_of_own(0.0) < 0.4


def test_glyphs_are_told_apart():
    glyphs = choose_glyphs(8, 2, seed=3)
    assert len(glyphs.flatten(1).unique(dim=0)) == 8
    assert len(all_glyphs()) == len(all_glyphs().flatten(1).unique(dim=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, r"num_classes must be at least 2, got 1"),
        ({"depth": 3}, r"depth must be at least 4, got 3"),
        ({"dead": -1}, r"dead must be at least 0, got -1"),
        ({"train": -1}, r"train must be at least 0, got -1"),
        ({"test": 0}, r"test must be at least 1, got 0"),
        ({"chain": 0}, r"chain must be in \[1, 4\], got 0"),
        ({"chain": 5}, r"chain must be in \[1, 4\], got 5"),
        ({"size": 21}, r"size must be even and at least 18, got 21"),
        ({"size": 16}, r"size must be even and at least 18, got 16"),
        ({"noise": 0.06}, r"noise must be in \[0, 0.05\], got 0.06"),
        ({"jitter": -0.1}, r"jitter must be in \[0, 0.1\], got -0.1"),
        ({"companionship": float("nan")}, r"companionship must be in \[0, 1\], got nan"),
        ({"num_classes": 40}, r"80 glyphs are needed, two per class, and with seed 0 only \d+ can"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        planted(**options)


def test_unknown_role():
    with pytest.raises(ValueError, match=r"role must be among shared, .*, dead; got 'evil'"):
        planted(2, train=0, test=2).role("evil")

"""DistillationRouting: gates in closed form, which gates count, restarts, presets."""

import math

import pytest
import torch
from baseline_networks import dense_target, planted

from pathways.baselines import DistillationRouting
from pathways.baselines.distillation import PRESETS
from pathways.baselines.scored import draws
from pathways.target import GatedTarget


def test_first_step_and_unused_gates_in_closed_form():
    # At gates of one the cross-entropy has no gradient, and a neuron without outgoing weight never
    # has one: momentum sums the penalty, v_t = p (1 - m^t) / (1 - m), until the gate is at 0.
    target = dense_target([[1], [1], [1]], [[2, 1, 0], [0, 1, 0]])
    image = torch.ones(1, 1)

    def unused(steps):
        velocity = [0.05 * (1 - 0.9**t) / (1 - 0.9) for t in range(1, steps)]
        return max(0.0, 1 - 0.1 * sum(velocity))

    for steps in (1, 2, 3, 10, 30):
        gates = DistillationRouting(target, steps=steps)(image).importance[0]
        assert gates[2].item() == pytest.approx(unused(steps), abs=1e-6)
        if steps <= 2:
            torch.testing.assert_close(gates, torch.full((3,), unused(steps)))
    assert unused(30) == 0.0
    # The second neuron moves both logits alike, which changes nothing; the first decides.
    assert gates[0] > 0.3
    assert gates[1] == 0
    e = DistillationRouting(target)(image)
    assert e.pathway.mask().int().tolist() == [[1, 0, 0]]
    assert torch.equal(e.predictions, e.gated_predictions)


def test_second_step_by_hand():
    # f = (2 g, 0); at g the loss is CE(p, q) + 0.05 g with q = sigmoid(2 g), its slope
    # 2 (q - p) + 0.05.
    target = dense_target([[1]], [[2], [0]])

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    first = 1 - 0.1 * 0.05
    slope = 2 * (sigmoid(2 * first) - sigmoid(2)) + 0.05
    second = first - 0.1 * (0.9 * 0.05 + slope)
    gates = DistillationRouting(target, steps=3)(torch.ones(1, 1)).importance
    assert gates.item() == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize(("bias", "gate"), [([0.0, 0.1], 1.0), ([0.1, 0.0], 0.0)])
def test_least_loss_counts_only_where_the_prediction_is_kept(bias, gate):
    # The first step goes to 0, where the bias decides.
    target = dense_target([[1]], [[0.5], [0]], bias={1: bias})
    settings = {"penalty": 10.0, "learning_rate": 1.0, "momentum": 0.0, "steps": 2}
    e = DistillationRouting(target, **settings)(torch.ones(1, 1))
    assert e.importance.tolist() == [[gate]]
    assert e.pathway.sizes().tolist() == [int(gate)]


def test_gates_stay_below_the_largest():
    # From below 1, more gate is more like the clean run; the one step leads far beyond.
    target = dense_target([[1]], [[2], [0]])
    settings = {"penalty": 0.0, "learning_rate": 1e4, "initial": "uniform", "steps": 2}
    e = DistillationRouting(target, largest=1.0, **settings)(torch.ones(1, 1))
    assert e.importance.tolist() == [[1.0]]


def test_restarts_until_the_prediction_is_kept():
    # Kept where 1.1 g > h. With one step only the drawn gates themselves are looked at.
    target = dense_target([[1, 0], [1, 0]], [[1.1, 0], [0, 1]])
    images = torch.cat([torch.ones(40, 1), torch.arange(40.0).unsqueeze(1)], 1)
    settings = {"preset": "dgr_pathwaygrad_uniform", "steps": 1, "seed": 7}
    once = DistillationRouting(target, tries=1, **settings)(images)
    assert torch.equal(once.importance, draws(images, 2, 7))
    lost = 1.1 * once.importance[:, 0] <= once.importance[:, 1]
    assert lost.any()
    e = DistillationRouting(target, tries=30, **settings)(images)
    for row in range(40):
        seed = 7
        while True:
            drawn = draws(images[row : row + 1], 2, seed)[0]
            if 1.1 * drawn[0] > drawn[1]:
                break
            seed += 1
        assert torch.equal(e.importance[row], drawn)
    assert DistillationRouting(target, tries=30, **settings)(images).pathway == e.pathway
    other = DistillationRouting(target, tries=30, **settings | {"seed": 8})(images)
    assert not torch.equal(other.importance, e.importance)


def test_a_tenth_of_the_penalty_with_every_restart():
    # The penalty sends the gate to 0, where the bias predicts the other class, and a start below
    # 0.2 does not keep the prediction either.
    target = dense_target([[1, 0]], [[0.5], [0]], bias={1: [0.0, 0.1]})
    images = torch.cat([torch.ones(60, 1), torch.arange(60.0).unsqueeze(1)], 1)
    settings = {"initial": "uniform", "learning_rate": 1.0, "momentum": 0.0, "steps": 2}
    weak = DistillationRouting(target, penalty=1.0, tries=1, **settings)(images)
    lost = weak.importance[:, 0] <= 0.2
    assert lost.any()
    strong = DistillationRouting(target, penalty=1.0, tries=40, **settings)(images)
    assert (strong.importance[lost] > 0.2).all()
    assert torch.equal(strong.importance[~lost], weak.importance[~lost])


def test_planted_circuit():
    target = GatedTarget(planted(), torch.zeros(1, 1, 4, 4))
    images = torch.full((2, 1, 4, 4), 0.1)
    images[0, :, :, 2:] = 0
    images[1, :, :, :2] = 0
    e = DistillationRouting(target)(images)
    assert [row.nonzero().flatten().tolist() for row in e.pathway.mask()] == [[0, 6], [1, 7]]
    assert torch.equal(e.predictions, e.gated_predictions)


def test_presets():
    conference, port = PRESETS["dgr_2018"], PRESETS["dgr_pathwaygrad"]
    assert (conference.penalty, conference.learning_rate, conference.steps) == (0.05, 0.1, 30)
    assert (conference.momentum, conference.largest, conference.initial) == (0.9, 10.0, "ones")
    assert (port.penalty, port.learning_rate, port.steps) == (0.01, 0.01, 1000)
    assert (port.momentum, port.largest, port.initial) == (0.9, 100.0, "ones")
    target = dense_target([[1]], [[1], [0]])
    assert DistillationRouting(target).routing == conference
    changed = DistillationRouting(target, "dgr_pathwaygrad", steps=10).routing
    assert (changed.steps, changed.penalty) == (10, 0.01)


def test_refusals():
    target = dense_target([[1]], [[1], [0]])
    with pytest.raises(ValueError, match=r"preset must be one of dgr_2018, .*, got 'cdrp'"):
        DistillationRouting(target, "cdrp")
    with pytest.raises(ValueError, match=r"penalty must be >= 0, .*, got -1, 0.1 and 0.9"):
        DistillationRouting(target, penalty=-1)
    with pytest.raises(ValueError, match=r"steps, tries and largest must be .* 0, 1 and 10.0"):
        DistillationRouting(target, steps=0)
    with pytest.raises(ValueError, match="initial must be ones or uniform, got 'zeros'"):
        DistillationRouting(target, initial="zeros")

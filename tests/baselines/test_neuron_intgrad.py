"""NeuronIntGrad by hand: linear above, a kink above, the published scaling."""

import pytest
import torch
from baseline_networks import dense_target

from pathways.baselines import NeuronIntGrad, NeuronMCT


def test_equals_mct_where_the_layers_above_are_linear():
    torch.manual_seed(0)
    images = torch.randn(7, 4)
    target = dense_target(torch.randn(6, 4), torch.randn(3, 6))
    mct, intgrad = NeuronMCT(target, kept=0.5)(images), NeuronIntGrad(target, kept=0.5)(images)
    torch.testing.assert_close(intgrad.importance, mct.importance)
    assert intgrad.pathway == mct.pathway
    # Of two hidden layers that holds for the upper one.
    target = dense_target(torch.randn(6, 4), torch.randn(5, 6), torch.randn(3, 5))
    mct, intgrad = NeuronMCT(target, kept=0.5)(images), NeuronIntGrad(target, kept=0.5)(images)
    torch.testing.assert_close(intgrad.importance[:, 6:], mct.importance[:, 6:])
    assert not torch.allclose(intgrad.importance[:, :6], mct.importance[:, :6])


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 5 / 11),  # .6 .7 .8 .9 1
        ({"steps": 1}, 1 / 2),
        ({"steps": 4}, 2 / 5),  # .75 1
        ({"legacy_alphas": True}, 8 / 11),  # .6 1 1.5 2.1 2.8 3.6 4.5 5.5
    ],
)
def test_a_kink_above(options, share):
    # f = relu(4 alpha - 2): its gradient is 1 where alpha > 1/2, and 0 elsewhere.
    target = dense_target([[4]], [[1]], [[1], [0]], bias={1: [-2.0]})
    e = NeuronIntGrad(target, kept=0.5, **options)(torch.ones(1, 1))
    torch.testing.assert_close(e.importance, torch.tensor([[4 * share, 2.0]]))
    assert NeuronMCT(target, kept=0.5)(torch.ones(1, 1)).importance.tolist() == [[4.0, 2.0]]


def test_scaling():
    target = dense_target([[1]], [[1], [0]])
    alphas = NeuronIntGrad(target, kept=0.5).alphas
    torch.testing.assert_close(alphas, torch.linspace(0, 1, 11, dtype=torch.float64))
    legacy = NeuronIntGrad(target, kept=0.5, legacy_alphas=True).alphas
    expected = [0, 0.1, 0.3, 0.6, 1, 1.5, 2.1, 2.8, 3.6, 4.5, 5.5]
    torch.testing.assert_close(legacy, torch.tensor(expected, dtype=torch.float64))


def test_class_is_that_of_the_clean_run():
    # Scaled to zero, the bias of the second class would win; the first is explained throughout.
    target = dense_target([[1], [1]], [[2, 1], [0, 5]], bias={1: [3.0, 0.5]})
    e = NeuronIntGrad(target, kept=0.5)(torch.tensor([[0.5]]))
    assert e.predictions.tolist() == [0]
    torch.testing.assert_close(e.importance, torch.tensor([[1.0, 0.5]]))


def test_steps_are_checked():
    with pytest.raises(ValueError, match="NeuronIntGrad: steps must be at least 1, got 0"):
        NeuronIntGrad(dense_target([[1]], [[1]]), kept=0.5, steps=0)

"""Terms of the objective against cases worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from pathways.training.losses import (
    class_log_probability,
    class_similarity,
    distillation,
    sparsity,
    specificity,
)


def logits_of(*probabilities):
    """Logits whose softmax is the given distribution."""
    return torch.tensor([probabilities]).log()


# --------------------------------------------------------- distillation


def test_distillation_by_hand():
    p, q = logits_of(0.5, 0.25, 0.25), logits_of(0.25, 0.25, 0.5)
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert distillation(p, q).item() == pytest.approx(expected, rel=1e-6)
    # mean over rows, not over classes
    rows = distillation(torch.cat([p, p]), torch.cat([q, p]))
    assert rows.item() == pytest.approx(expected / 2, rel=1e-6)


def test_distillation_is_zero_for_equal_and_shifted_logits():
    logits = torch.randn(5, 7)
    assert distillation(logits, logits).item() == pytest.approx(0, abs=1e-7)
    assert distillation(logits, logits + 3).item() == pytest.approx(0, abs=1e-6)
    assert distillation(logits, torch.randn(5, 7)) > 0


def test_distillation_of_extreme_logits_is_finite():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    assert distillation(logits, logits).item() == 0
    assert distillation(logits, -logits).item() == pytest.approx(2e4)
    half = distillation(logits.half().clamp(-6e4, 6e4), logits.half())
    assert half.dtype == torch.float32


# --------------------------------------------------------- sparsity


def test_sparsity_by_hand():
    mask = torch.tensor([[1.0, 0, 0, 0, 1], [1, 1, 0, 0, 0]])
    assert sparsity(mask, [4, 1]).item() == pytest.approx((0.25 + 0.5 + 1 + 0) / 4)
    assert sparsity(mask, [4, 1], "neuron").item() == pytest.approx(4 / 10)
    with pytest.raises(ValueError, match="mode must be site or neuron, got 'layer'"):
        sparsity(mask, [4, 1], "layer")


def test_sparsity_gradient_weighs_sites_equally():
    mask = torch.ones(1, 5, requires_grad=True)
    sparsity(mask, [4, 1]).backward()
    torch.testing.assert_close(mask.grad, torch.tensor([[0.125, 0.125, 0.125, 0.125, 0.5]]))


# --------------------------------------------------------- specificity


def test_class_log_probability_by_hand():
    log_p, log_rest = class_log_probability(logits_of(0.2, 0.5, 0.3), torch.tensor([1]))
    assert log_p.item() == pytest.approx(math.log(0.5), rel=1e-6)
    assert log_rest.item() == pytest.approx(math.log(0.5), rel=1e-6)
    log_p, log_rest = class_log_probability(logits_of(0.2, 0.5, 0.3), torch.tensor([0]))
    assert log_p.item() == pytest.approx(math.log(0.2), rel=1e-6)
    assert log_rest.item() == pytest.approx(math.log(0.8), rel=1e-6)


@pytest.mark.parametrize("margin", [0.0, 1.0, 20.0, 90.0, 1e4])
def test_class_log_probability_of_extreme_logits(margin):
    """Against float64, in which log1p and expm1 lose nothing at these values."""
    logits = torch.tensor([[margin, 0.0, 0.0], [-margin, 0.0, 0.0]])
    log_p, log_rest = class_log_probability(logits, torch.tensor([0, 0]))
    others = math.log(2)
    for row, own in enumerate((margin, -margin)):
        total = max(own, others) + math.log1p(math.exp(-abs(own - others)))
        assert log_p[row].item() == pytest.approx(own - total, rel=1e-6, abs=1e-6)
        assert log_rest[row].item() == pytest.approx(others - total, rel=1e-6, abs=1e-6)
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(log_rest).all()


def test_specificity_is_zero_when_nothing_changes():
    logits = torch.randn(6, 4) * 5
    classes = torch.randint(4, (6,))
    assert specificity(logits, logits, classes).item() == pytest.approx(0, abs=1e-6)
    # Other classes may trade among themselves: only the foreign class is watched.
    swapped = torch.tensor([[1.0, 2.0, 5.0, 3.0]])
    assert specificity(swapped[:, [0, 1, 3, 2]], swapped, torch.tensor([0])).item() == (
        pytest.approx(0, abs=1e-6)
    )
    certain = torch.tensor([[1e4, 0.0], [-1e4, 0.0]])
    assert specificity(certain, certain, torch.tensor([0, 0])).item() == 0


def test_specificity_by_hand():
    """The binary divergence between the class's clean and gated probability."""
    clean, gated = logits_of(0.1, 0.6, 0.3), logits_of(0.7, 0.2, 0.1)
    expected = 0.1 * math.log(0.1 / 0.7) + 0.9 * math.log(0.9 / 0.3)
    assert specificity(gated, clean, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-5)


def test_specificity_of_a_mask_that_decides_is_large():
    clean = torch.tensor([[-20.0, 20.0, 0.0]])
    gated = torch.tensor([[20.0, -20.0, 0.0]])
    assert specificity(gated, clean, torch.tensor([0])).item() == pytest.approx(20, rel=1e-3)
    assert specificity(100 * gated, clean, torch.tensor([0])).item() == pytest.approx(
        2000, rel=1e-3
    )


def test_specificity_gradient_pushes_the_foreign_class_back():
    clean = torch.zeros(1, 3)
    gated = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
    specificity(gated, clean, torch.tensor([0])).backward()
    assert gated.grad[0, 0] > 0
    assert (gated.grad[0, 1:] < 0).all()
    reference = torch.zeros(1, 3, requires_grad=True)
    specificity(gated, reference, torch.tensor([0])).backward()
    assert reference.grad is None


def test_specificity_of_no_rows():
    gated = torch.zeros(0, 3, requires_grad=True)
    loss = specificity(gated, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert loss.item() == 0
    loss.backward()


def test_specificity_gradcheck():
    gated = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    clean, classes = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    (gradient,) = torch.autograd.grad(specificity(gated, clean, classes), gated)
    step = 1e-3
    for row in range(4):
        for k in range(3):
            moved = torch.zeros(4, 3, dtype=torch.float64)
            moved[row, k] = step
            slope = (
                specificity(gated + moved, clean, classes)
                - specificity(gated - moved, clean, classes)
            ) / (2 * step)
            assert gradient[row, k].item() == pytest.approx(slope.item(), abs=1e-3)


# --------------------------------------------------------- class similarity


def test_class_similarity_by_hand():
    importance = torch.tensor([[1.0, 0.0, 0.5], [0.5, 0.5, 0.5], [0.0, 1.0, 1.0]])
    # rows 0 and 1: minima 0.5 + 0 + 0.5, maxima 1 + 0.5 + 0.5
    assert class_similarity(importance, torch.tensor([4, 4, 2])).item() == pytest.approx(1 - 1 / 2)
    # all three pairs
    expected = 1 - (1 / 2 + 0.5 / 3 + 1 / 2.5) / 3
    assert class_similarity(importance, torch.tensor([1, 1, 1])).item() == pytest.approx(expected)


def test_class_similarity_limits():
    importance = torch.rand(4, 6, requires_grad=True)
    assert class_similarity(importance, torch.arange(4)).item() == 0
    same = importance[:1].expand(4, -1)
    assert class_similarity(same, torch.zeros(4).long()).item() == pytest.approx(0, abs=1e-6)
    disjoint = torch.eye(4)
    assert class_similarity(disjoint, torch.zeros(4).long()).item() == pytest.approx(1)
    assert torch.isfinite(class_similarity(torch.zeros(2, 3), torch.zeros(2).long()))
    class_similarity(importance, torch.tensor([0, 0, 1, 1])).backward()
    assert importance.grad.abs().sum() > 0


def test_class_similarity_against_the_definition():
    importance, classes = torch.rand(7, 9), torch.tensor([0, 1, 0, 2, 1, 0, 2])
    values = []
    for i in range(7):
        for j in range(i + 1, 7):
            if classes[i] == classes[j]:
                a, b = importance[i], importance[j]
                values.append(torch.minimum(a, b).sum() / torch.maximum(a, b).sum())
    expected = 1 - torch.stack(values).mean()
    torch.testing.assert_close(class_similarity(importance, classes), expected)
    assert len(values) == 5
    assert F.relu(expected) == expected

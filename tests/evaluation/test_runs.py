"""Explanations of more inputs than fit in one batch."""

import pytest
import torch

from pathways.evaluation.runs import explain_batches


def test_batches_join_to_the_explanation_of_all_inputs(explaining):
    images = torch.randn(7, 4)
    whole = explaining(images)
    batches, done = [], []
    found = explain_batches(
        explaining, images, 3, explained=lambda *batch: batches.append(batch), progress=done.append
    )
    torch.testing.assert_close(found.logits, whole.logits)
    torch.testing.assert_close(found.gated_logits, whole.gated_logits)
    assert torch.equal(found.pathway.mask(), whole.pathway.mask())
    assert found.importance.shape == (7, 0)
    assert done == [3, 6, 7]
    assert torch.equal(torch.cat([part for part, _ in batches]), images)
    assert torch.equal(torch.cat([e.importance for _, e in batches]), whole.importance)


def test_refusals(explaining):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        explain_batches(explaining, torch.randn(3, 4), 0)
    with pytest.raises(ValueError, match="at least one explanation"):
        explain_batches(explaining, torch.randn(0, 4))

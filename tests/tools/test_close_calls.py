"""Agreement where the classifier is nearly undecided, and elsewhere."""

import close_calls
import pytest
import torch


def test_margins_of_known_probabilities():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.45, 0.45], [0.0, 1.0, 0.0]])
    found = close_calls.margins(probabilities.log())
    torch.testing.assert_close(found, torch.tensor([0.2, 0.0, 1.0]))


def test_agreement_of_close_and_clear_images(run, monkeypatch):
    inputs = run.preprocessing(run.images.test[:20])
    margins = close_calls.margins(run.explainer.target(inputs))
    limit = float(margins.sort()[0][4:6].mean())  # five of them are close
    monkeypatch.setattr(close_calls, "CLOSE", limit)
    monkeypatch.setattr(close_calls, "shuffled_test", lambda *_, **__: torch.arange(20))
    found = close_calls.measured(run, ["random"], [0.5], 20)
    assert found["images"] == 20 and found["close_share"] == pytest.approx(0.25)
    names = ["generator", "generator@0.5", "random", "random@0.5"]
    assert list(found["methods"]) == names
    explained = run.explainer(inputs)
    agrees = (explained.gated_logits.argmax(1) == explained.logits.argmax(1)).float()
    figures = found["methods"]["generator"]
    assert figures["agreement"] == pytest.approx(agrees.mean().item())
    assert figures["close"] == pytest.approx(agrees[margins < limit].mean().item())
    assert figures["clear"] == pytest.approx(agrees[margins >= limit].mean().item())
    for figures in found["methods"].values():
        parts = 0.25 * figures["close"] + 0.75 * figures["clear"]
        assert figures["agreement"] == pytest.approx(parts)


def test_no_close_images_have_no_figure(run, monkeypatch):
    monkeypatch.setattr(close_calls, "CLOSE", 0.0)
    found = close_calls.measured(run, [], [], 10)
    assert found["methods"]["generator"]["close"] is None

"""Faithfulness metrics: cases worked out by hand, and splits that must not matter."""

import math
import pickle

import pytest
import torch

from pathways.evaluation import (
    AccuracyKept,
    Agreement,
    DropInConfidence,
    IncreaseInConfidence,
    Kept,
    PathwayKL,
)
from pathways.pathway import Pathway
from pathways.sites import Site, Sites


def logits(*probabilities: float) -> torch.Tensor:
    """Two-class logits with these probabilities of class 0."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p, 1 - p], dim=1).log()


def value(metric, clean, gated) -> float:
    metric.update(clean, gated)
    return float(metric.compute())


def test_drop_and_increase_by_hand():
    # p = .8, o = .4: half of the confidence is lost; o = .9: it increases.
    assert value(DropInConfidence(), logits(0.8), logits(0.4)) == pytest.approx(0.5)
    assert value(DropInConfidence(normalized=False), logits(0.8), logits(0.4)) == pytest.approx(0.4)
    assert value(DropInConfidence(), logits(0.8), logits(0.9)) == 0
    assert value(IncreaseInConfidence(), logits(0.8), logits(0.9)) == 1
    assert value(IncreaseInConfidence(), logits(0.8), logits(0.4)) == 0


def test_full_mask_scores_nothing():
    clean = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert value(IncreaseInConfidence(), clean, clean) == 0
    assert value(DropInConfidence(), clean, clean) == 0
    assert value(PathwayKL(), clean, clean) == 0
    assert value(Agreement(), clean, clean) == 1


def test_the_predicted_class_counts_not_the_highest_probability():
    # Predicted class 1 with .7; gated .2 for it.
    assert value(DropInConfidence(), logits(0.3), logits(0.8)) == pytest.approx(5 / 7)
    assert value(Agreement(), logits(0.3), logits(0.8)) == 0


def test_increase_has_a_tolerance_in_log_probability():
    clean = torch.tensor([[20.0, 0.0]])
    # p is 1 up to rounding: the raw comparison would call this an increase.
    assert value(IncreaseInConfidence(), clean, clean + torch.tensor([[1e-3, 0]])) == 0
    assert value(IncreaseInConfidence(), logits(0.5), logits(0.5001)) == 1
    assert value(IncreaseInConfidence(tolerance=1e-3), logits(0.5), logits(0.5001)) == 0


def test_saturated_confidences_are_exact():
    # p = 1 - e^-30 and o = e^-30: everything is lost, and nothing is NaN or infinite.
    clean, gated = torch.tensor([[30.0, 0.0]]), torch.tensor([[0.0, 30.0]])
    assert value(DropInConfidence(), clean, gated) == pytest.approx(1)
    assert value(PathwayKL(), clean, gated) == pytest.approx(30, rel=1e-6)
    huge = torch.tensor([[1e4, 0.0]])
    assert math.isfinite(value(PathwayKL(), huge, -huge))


def test_kl_by_hand():
    expected = 0.8 * math.log(0.8 / 0.4) + 0.2 * math.log(0.2 / 0.6)
    assert value(PathwayKL(), logits(0.8), logits(0.4)) == pytest.approx(expected)


def test_micro_and_macro():
    # Class 0: three inputs that drop by half; class 1: one that keeps everything.
    clean, gated = logits(0.8, 0.8, 0.8, 0.2), logits(0.4, 0.4, 0.4, 0.2)
    assert value(DropInConfidence(2), clean, gated) == pytest.approx(3 / 8)
    macro = DropInConfidence(2, average="macro")
    assert value(macro, clean, gated) == pytest.approx(1 / 4)
    assert macro.per_class().tolist() == pytest.approx([0.5, 0.0])
    # Class 2 of a third has no inputs and does not count.
    wide = DropInConfidence(3, average="macro")
    pad = torch.full((4, 1), -1e9, dtype=torch.float64)
    assert value(wide, torch.cat([clean, pad], 1), torch.cat([gated, pad], 1)) == pytest.approx(
        0.25
    )
    assert math.isnan(wide.per_class()[2])


@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize("kind", [Agreement, PathwayKL, IncreaseInConfidence, DropInConfidence])
def test_splits_and_merges_do_not_matter(kind, average):
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(37, 5, generator=generator)
    gated = clean + torch.randn(37, 5, generator=generator)
    whole = value(kind(5, average), clean, gated)
    batched = kind(5, average)
    for start in range(0, 37, 8):
        batched.update(clean[start : start + 8], gated[start : start + 8])
    assert float(batched.compute()) == pytest.approx(whole, abs=1e-12)
    first, second = kind(5, average), kind(5, average)
    first.update(clean[:11], gated[:11])
    second.update(clean[11:], gated[11:])
    first.merge_state(second)
    assert float(first.compute()) == pytest.approx(whole, abs=1e-12)
    first.reset()
    first.update(clean, gated)
    assert float(first.compute()) == pytest.approx(whole, abs=1e-12)


def test_forward_gives_the_batch_value_and_accumulates():
    metric = Agreement()
    assert float(metric(logits(0.8), logits(0.9))) == 1
    assert float(metric(logits(0.8), logits(0.1))) == 0
    assert float(metric.compute()) == 0.5


def test_metrics_pickle():
    metric = DropInConfidence(2)
    metric.update(logits(0.8), logits(0.4))
    assert float(pickle.loads(pickle.dumps(metric)).compute()) == pytest.approx(0.5)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_inputs_is_nan():
    assert math.isnan(Agreement().compute())
    assert math.isnan(DropInConfidence(3, average="macro").compute())
    assert value(Agreement(), logits(0.5)[:0], logits(0.5)[:0]) != 0


def test_accuracy_kept():
    metric = AccuracyKept()
    clean, gated = logits(0.9, 0.9, 0.9, 0.1), logits(0.9, 0.1, 0.9, 0.9)
    for start in (0, 2):
        labels = torch.tensor([0, 0, 1, 1])[start : start + 2]
        metric.update(clean[start : start + 2], gated[start : start + 2], labels)
    result = metric.compute()
    assert float(result["clean"]) == 0.75
    assert float(result["gated"]) == 0.25
    assert float(result["ratio"]) == pytest.approx(1 / 3)


def test_kept_by_hand():
    sites = Sites([Site("a", 0, "relu", (2,)), Site("b", 0, "relu", (6,))])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    pathway = Pathway.from_mask(mask, sites)
    metric = Kept(sites)
    for row in pathway:
        metric.update(row)
    result = metric.compute()
    assert float(result["mean"]) == 0.75
    assert float(result["std"]) == 0.25
    assert result["per_site"].tolist() == pytest.approx([1.0, 4 / 6])
    assert float(result["site_mean"]) == pytest.approx((1 + 4 / 6) / 2)
    other = Kept(sites)
    other.update(pathway[0])
    single = Kept(sites)
    single.update(pathway[1])
    other.merge_state(single)
    assert float(other.compute()["std"]) == 0.25


def test_refusals():
    with pytest.raises(ValueError, match="average must be one of micro, macro, got 'mean'"):
        Agreement(average="mean")
    with pytest.raises(ValueError, match="PathwayKL: average='macro' needs num_classes"):
        PathwayKL(average="macro")
    with pytest.raises(ValueError, match="tolerance must not be negative"):
        IncreaseInConfidence(tolerance=-1.0)
    with pytest.raises(ValueError, match=r"must both be \[N, K\], got \(1, 2\) and \(2, 2\)"):
        Agreement().update(logits(0.5), logits(0.5, 0.5))
    with pytest.raises(ValueError, match="must have 3 classes, got 2"):
        Agreement(3).update(logits(0.5), logits(0.5))
    with pytest.raises(ValueError, match=r"labels must be \[1\], got \(2,\)"):
        AccuracyKept().update(logits(0.5), logits(0.5), torch.tensor([0, 1]))
    a = Sites([Site("a", 0, "relu", (2,))])
    b = Sites([Site("b", 0, "relu", (2,))])
    with pytest.raises(ValueError, match="Kept: pathway must have the sites"):
        Kept(a).update(Pathway.from_mask(torch.ones(1, 2), b))


def _worker(rank: int, size: int, port: int, results) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size
    )
    from pathways.evaluation import ClassIoU

    clean, gated, pathway, classes = _distributed_case()
    rows = slice(rank, None, size)
    drop = DropInConfidence(3, average="macro")
    drop.update(clean[rows], gated[rows])
    similarity = ClassIoU(pathway.sites, 3)
    similarity.update(pathway[rows], classes[rows])
    results[rank] = (float(drop.compute()), float(similarity.compute()["aciou_corrected"]))
    torch.distributed.destroy_process_group()


def _distributed_case():
    generator = torch.Generator().manual_seed(3)
    clean = torch.randn(21, 3, generator=generator)
    gated = clean + torch.randn(21, 3, generator=generator)
    sites = Sites([Site("a", 0, "relu", (40,))])
    mask = torch.rand(21, 40, generator=generator) < 0.5
    return clean, gated, Pathway.from_mask(mask, sites), clean.argmax(1)


@pytest.mark.slow
def test_two_processes_give_the_same_values():
    import socket

    from pathways.evaluation import ClassIoU

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").Manager().dict()
    torch.multiprocessing.spawn(_worker, args=(2, port, results), nprocs=2)
    clean, gated, pathway, classes = _distributed_case()
    similarity = ClassIoU(pathway.sites, 3)
    similarity.update(pathway, classes)
    expected = (
        value(DropInConfidence(3, average="macro"), clean, gated),
        float(similarity.compute()["aciou_corrected"]),
    )
    assert results[0] == pytest.approx(expected, abs=1e-12)
    assert results[1] == pytest.approx(expected, abs=1e-12)

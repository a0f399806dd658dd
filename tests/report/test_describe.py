"""Descriptions and overlaps against numbers worked out by hand."""

import pytest
import torch

from pathways import Pathway, Site, Sites
from pathways.explainer import Explanation
from pathways.report import describe, describe_overlap, metric_rows

SITES = Sites([Site("a", 0, "relu", (3, 2, 2)), Site("b", 0, "relu", (2,))])
UNITS = Sites([Site("a", 0, "relu", (2, 2, 3)), Site("b", 0, "relu", (2,))], "unit")


def explanation(sites, mask, importance):
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0]])[: len(mask)]
    gated = torch.tensor([[0.0, 1.0], [0.0, 3.0]])[: len(mask)]
    pathway = Pathway.from_mask(torch.tensor(mask), sites)
    return Explanation(logits, gated, torch.tensor(importance), pathway)


def test_describe_channels():
    e = explanation(
        SITES, [[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]], [[0.6, 0.2, 0.9, 0.7, 0.1], [0.1] * 5]
    )
    first, second = describe(e, ("cat", "dog"), top=2)
    assert first["predicted"]["name"] == "dog"
    assert first["predicted"]["probability"] == pytest.approx(0.880797)
    assert first["gated"]["probability"] == pytest.approx(0.731059)
    assert first["agrees"] is True
    assert first["kept"] == 0.6
    assert first["neurons"] == {"kept": 3, "total": 5}
    assert [site["neurons"] for site in first["sites"]] == [
        {"kept": 2, "total": 3},
        {"kept": 1, "total": 2},
    ]
    assert [(t["site"], t["channel"]) for t in first["sites"][0]["top"]] == [("a#0", 2), ("a#0", 0)]
    # Over all sites: 0.9 of a, then 0.7 of b; the neuron with 0.2 is not kept and never named.
    assert [(t["site"], t["channel"]) for t in first["top"]] == [("a#0", 2), ("b#0", 0)]
    assert second["predicted"]["class"] == 0
    assert second["gated"]["class"] == 1
    assert second["agrees"] is False
    assert second["gated_probability_of_predicted"] == pytest.approx(0.0474259)


def test_describe_units_name_their_position():
    mask = torch.zeros(1, 14, dtype=torch.int64)
    mask[0, 10] = 1  # channel 1, row 1, column 1 of a map 2 x 3
    mask[0, 13] = 1
    described = describe(explanation(UNITS, mask.tolist(), [[0.5] * 14]), ("x", "y"))[0]
    assert described["sites"][0]["top"] == [
        {"site": "a#0", "channel": 1, "position": [1, 1], "importance": 0.5}
    ]
    assert described["sites"][1]["top"] == [{"site": "b#0", "channel": 1, "importance": 0.5}]


def test_describe_refuses_what_does_not_fit():
    e = explanation(SITES, [[1, 0, 1, 1, 0]], [[0.5] * 5])
    with pytest.raises(ValueError, match="classes must hold 2 names, got 1"):
        describe(e, ("cat",))
    with pytest.raises(ValueError, match="top must not be negative"):
        describe(e, ("cat", "dog"), top=-1)
    assert describe(e, ("cat", "dog"), top=0)[0]["top"] == []


def test_overlap_within_one_file_counts_each_pair_once():
    pathway = Pathway.from_mask(
        torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 1, 1], [0, 0, 1, 0, 0]]), SITES
    )
    result = describe_overlap(pathway, ["p", "q", "r"])
    assert result["iou"][0] == pytest.approx([1.0, 0.5, 0.0])
    assert result["different_name_iou"] == pytest.approx((0.5 + 0 + 0) / 3)
    assert result["same_name_iou"] is None
    assert result["kept"] == pytest.approx([0.6, 0.6, 0.2])
    # Site b: rows {0}, {0, 1}, {}: 1/2, 0, 0.
    assert result["sites"][1]["different_name_iou"] == pytest.approx(0.5 / 3)


def test_overlap_of_two_files_separates_equal_names():
    a = Pathway.from_mask(torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]), SITES)
    b = Pathway.from_mask(torch.tensor([[1, 0, 0, 0, 0], [0, 0, 1, 1, 0]]), SITES)
    result = describe_overlap(a, ["x", "y"], b, ["x", "z"])
    assert result["iou"] == [[0.5, 0.0], [0.0, 1.0]]
    assert result["same_name_iou"] == 0.5
    assert result["different_name_iou"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="one name per row"):
        describe_overlap(a, ["x"])


def test_one_row_has_no_pairs():
    result = describe_overlap(Pathway.from_mask(torch.ones(1, 5), SITES), ["x"])
    assert result["different_name_iou"] is None
    assert result["iou"] == [[1.0]]


def test_metric_rows_have_direction_and_reference():
    metrics = {"agreement": 0.98, "random_agreement": 0.23, "blank_hit": 0.1, "kl": None}
    rows = {row.name: row for row in metric_rows(metrics, 10, {"agreement": ">= 0.95"})}
    assert list(rows) == ["agreement", "kl", "random_agreement", "blank_hit"]
    assert rows["agreement"].reference == "needed >= 0.95, random 0.230"
    assert rows["agreement"].text == "0.980"
    assert rows["blank_hit"].reference == "chance 0.10"
    assert rows["blank_hit"].direction == "lower"
    assert rows["kl"].text == "-"
    times = metric_rows({"ms_per_explanation": 1.234, "seconds_total": 95.4}, 2)
    assert [row.text for row in times] == ["1.23 ms", "95 s"]
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        metric_rows({}, 0)


def test_every_metric_of_an_evaluation_has_a_row():
    from pathways.evaluation import METRICS

    rows = metric_rows(dict.fromkeys(METRICS, 0.5), 4)
    assert {row.name for row in rows} == set(METRICS)

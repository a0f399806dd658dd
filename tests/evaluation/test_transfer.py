"""Transfer: class pathways on held-out inputs, the curve over j, and the controls."""

import json
import math

import pytest
import torch

from pathways.evaluation import transfer
from pathways.evaluation.transfer import class_rows
from pathways.pathway import Pathway


def run(explainer, images, **options):
    support, query = images[:40], images[40:]
    s, q = explainer(support), explainer(query)
    options = {"shots": (1, 2, 5, 50, None)} | options
    return transfer(explainer.target, s.pathway, s.predictions, query, q.logits, **options)


def test_planted_circuits_transfer_from_one_input(explaining, images):
    points = run(explaining, images)
    # Ten support inputs per class: j = 50 is more than there are.
    assert [point.shots for point in points] == [1, 2, 5, None]
    assert [point.images_per_class for point in points] == [1, 2, 5, 10]
    for point in points:
        assert point.coverage == 1
        assert point.own.agreement == 1
        assert point.own.mic == 0
        assert point.own.mdc == pytest.approx(0, abs=1e-6)
        assert point.own.kept == 5 / 8
        assert point.random.kept == 5 / 8
        # Without evidence class 0 wins the tie: its ten inputs of forty keep their prediction.
        assert point.wrong_class.agreement == 0.25
        # No evidence neuron is in half of the classes: all constants, no evidence.
        assert point.agnostic.kept == 4 / 8
        assert point.agnostic.agreement == 0.25


def test_leaking_pathways_transfer_too_and_the_wrong_class_gives_them_away(leaking, images):
    point = run(leaking, images)[-1]
    assert point.own.agreement == 1
    assert point.own.mic == 1
    assert point.wrong_class.agreement == 0
    assert point.agnostic.agreement == 1


def test_full_pathways(doing_nothing, images):
    point = run(doing_nothing, images)[-1]
    for scores in (point.own, point.wrong_class, point.random, point.agnostic):
        assert (scores.agreement, scores.mic, scores.mdc, scores.kept) == (1, 0, 0, 1)


def test_mdc_by_hand(explaining):
    # One evidence unit for class 0 and one half for class 1; the pathway of class 0 loses the half.
    support, query = torch.eye(4), torch.tensor([[1.0, 0.5, 0, 0], [0.5, 1.0, 0, 0]])
    s, q = explaining(support), explaining(query)
    (point,) = transfer(explaining.target, s.pathway, s.predictions, query, q.logits, shots=(None,))
    assert point.own.agreement == 1
    assert point.own.mic == 1
    assert point.own.mdc == 0
    # Under the pathway of class 1 (or 2, 3) p falls from e / (e + sqrt(e) + 2) to below 1 / 4.
    assert 0 < point.wrong_class.mdc < 1


def test_query_classes_without_support_are_not_covered(leaking, images):
    s, q = leaking(torch.eye(4)[:2]), leaking(images)
    point = transfer(leaking.target, s.pathway, s.predictions, images, q.logits, shots=(None,))[0]
    assert point.coverage == 0.5
    assert point.own.agreement == 1


def test_the_inputs_own_pathways_are_the_last_control(explaining, leaking, images):
    for explainer in (explaining, leaking):
        own = explainer(images[40:])
        for point in run(explainer, images, instance=own):
            assert point.instance == point.own
    # Query inputs of a class without support do not count for their own pathways either.
    support, query = explaining(torch.eye(4)[:1]), explaining(images[:6])
    query.gated_logits[[0, 1]] = query.gated_logits[[1, 0]]
    (point,) = transfer(
        explaining.target,
        support.pathway,
        support.predictions,
        images[:6],
        query.logits,
        shots=(None,),
        instance=query,
    )
    assert point.coverage == 2 / 6
    assert (point.own.agreement, point.instance.agreement) == (1, 0.5)
    assert point.instance.kept == 5 / 8
    assert math.isnan(run(explaining, images)[0].instance.agreement)


def test_nothing_covered_is_nan(leaking, images):
    s, q = leaking(torch.eye(4)[:1]), leaking(images[1:2])
    point = transfer(leaking.target, s.pathway, s.predictions, images[1:2], q.logits, shots=(1,))[0]
    assert point.coverage == 0
    assert math.isnan(point.own.agreement)
    assert math.isnan(point.wrong_class.mdc)


def test_batch_size_and_seed(explaining, images):
    assert run(explaining, images) == run(explaining, images, batch_size=3)
    first, second = run(explaining, images, seed=1), run(explaining, images, seed=2)
    assert first[-1].own == second[-1].own


def test_points_are_json(explaining, images):
    point = json.loads(json.dumps(run(explaining, images)[0].to_json()))
    assert point["shots"] == 1
    assert set(point["own"]) == {"agreement", "mic", "mdc", "kept"}


def test_class_rows_are_nested():
    predictions = torch.tensor([0, 1, 0, 0, 1, 2, 0])
    chosen = {j: set(class_rows(predictions, j, seed=3).tolist()) for j in (1, 2, 3, 9)}
    assert chosen[1] < chosen[2] < chosen[3] < chosen[9] == set(range(7))
    assert torch.bincount(predictions[list(chosen[2])]).tolist() == [2, 2, 1]
    assert class_rows(predictions, None).tolist() == list(range(7))


def test_refusals(explaining, images):
    with pytest.raises(ValueError, match="shots must be at least 1, got 0"):
        run(explaining, images, shots=(0,))
    e = explaining(images)
    with pytest.raises(ValueError, match="instance must have 40 rows, got 80"):
        run(explaining, images, instance=e)
    nothing = Pathway(e.pathway.words[:0], e.pathway.sites)
    with pytest.raises(ValueError, match="at least one support input is needed, got none"):
        transfer(explaining.target, nothing, e.predictions[:0], images, e.logits)

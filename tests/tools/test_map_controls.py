"""The control of maps: other images' pathways, of the same class and of another."""

import map_controls
import pytest
import torch


def test_classmates_are_others_of_the_class():
    predictions = torch.tensor([2, 0, 2, 1, 0, 2])
    partners = map_controls.classmates(predictions)
    assert partners.tolist() == [2, 4, 5, 3, 1, 0]
    assert torch.equal(predictions[partners], predictions)
    assert map_controls.classmates(torch.zeros(0, dtype=torch.long)).tolist() == []


def test_the_owner_of_the_pathway_is_all_that_changes(run, monkeypatch):
    seen = []
    measure = map_controls.map_faithfulness

    def spy(method, inputs, explained, **settings):
        seen.append(explained)
        return measure(method, inputs, explained, **settings)

    monkeypatch.setattr(map_controls, "map_faithfulness", spy)
    found = map_controls.measured(run, ["random"], 20)
    assert found["images"] == 20 and list(found["methods"]) == ["generator", "random"]
    own, classmate, other = seen[:3]
    assert set(found["methods"]["generator"]) == {"own", "classmate", "other"}
    assert set(found["methods"]["random"]["own"]) == {"gradient", "grad_cam"}
    predictions = own.predictions
    masks = [part.pathway.mask() for part in (own, classmate, other)]
    for explained in (classmate, other):
        assert torch.equal(explained.logits, own.logits)
    for row in range(20):
        owners = (masks[0] == masks[1][row]).all(1).nonzero().squeeze(1)
        assert (predictions[owners] == predictions[row]).any()
        owners = (masks[0] == masks[2][row]).all(1).nonzero().squeeze(1)
        assert (predictions[owners] != predictions[row]).any()


def test_images_of_one_class_have_no_other(run):
    run.images = run.images.subset(test=1)
    with pytest.raises(ValueError, match="the 1 images must be predicted as two classes or more"):
        map_controls.measured(run, [], 20)

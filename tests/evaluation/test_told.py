"""Generators that are told the class: those that answer it, and those that look at the image."""

import math

import pytest
import torch
from torch import nn

from pathways import Explainer
from pathways.evaluation import told_control


class Told(nn.Module):
    """In place of a generator: the constant neuron of the class that it is told, or everything."""

    def __init__(self, sites, classes, decides):
        super().__init__()
        self.sites = sites
        self.config = {"num_classes": classes}
        self.reads_logits = True
        self.decides = decides
        self.batches = []

    def summary(self, feature):
        return feature

    def from_summaries(self, summaries, logits):
        self.batches.append(len(logits))
        told = nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        importance = torch.cat([torch.zeros_like(told), told], dim=1).float()
        return importance if self.decides else torch.ones_like(importance), logits

    def masks(self, importance):
        return importance


def make(explainer, decides):
    return Explainer(explainer.target, Told(explainer.target.sites, 4, decides))


def control(method, images, *blanks, **settings):
    return told_control(method, images, method.target(images), *blanks, **settings)


def test_answering_what_is_told_is_caught(leaking, images, blanks):
    found = control(make(leaking, True), images, blanks)
    assert (found.flip, found.agreement, found.runner_up_flip, found.blank_hit) == (1, 0, 1, 1)
    assert found.kept == pytest.approx(1 / 8)
    assert found.chance == 1 / 4


def test_looking_at_the_image_is_not(leaking, images, blanks):
    found = control(make(leaking, False), images, blanks)
    assert (found.flip, found.agreement, found.runner_up_flip) == (0, 1, 0)
    assert (found.kept, found.blank_hit) == (1, 1 / 4)


def test_deciding_close_calls_alone_is_caught_where_they_are_not_close(leaking, blanks):
    """Told the second class, which is random partners' only now and then."""
    images = torch.tensor([[1.0, 0.9, 0, 0], [0, 3.0, 2.0, 0], [0, 0, 5.0, 1.0], [1.0, 0, 0, 1.02]])
    probabilities = leaking.target(images).softmax(1).topk(2, dim=1)[0]
    clear = probabilities[:, 0] - probabilities[:, 1] >= 0.1
    assert clear.tolist() == [False, True, True, False]
    method = make(leaking, True)
    decide = method.generator.from_summaries

    def only_second(summaries, logits):
        own = method.target.model.head(summaries[0])
        importance, said = decide(summaries, logits)
        second = own.topk(2, dim=1)[1][:, 1] == logits.argmax(1)
        return torch.where(second.unsqueeze(1), importance, 1.0), said

    method.generator.from_summaries = only_second
    assert control(method, images, blanks).runner_up_flip == 1
    seen = method.generator.batches[1]
    assert seen == 2  # the clear ones


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_batches(leaking, images, blanks, batch_size):
    method = make(leaking, True)
    found = control(method, images, blanks, blanks[:1], batch_size=batch_size)
    assert (found.flip, found.runner_up_flip, found.blank_hit) == (1, 1, 1)
    assert max(method.generator.batches) <= batch_size
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        control(method, images, blanks, batch_size=0)


def test_every_input_is_told_another_class(leaking, images, blanks):
    method, seen = make(leaking, True), []
    told = method.generator.from_summaries

    def record(summaries, logits):
        seen.append((method.target.model.head(summaries[0]).argmax(1), logits.argmax(1)))
        return told(summaries, logits)

    method.generator.from_summaries = record
    control(method, images, blanks, batch_size=len(images))
    own, named = seen[0]
    assert (own != named).all()
    assert own.unique().tolist() == named.unique().tolist() == [0, 1, 2, 3]
    control(method, images, blanks, batch_size=len(images), seed=1)
    again = next(said for _, said in seen[1:] if len(said) == len(named) and (said != own).all())
    assert not torch.equal(again, named)


def test_nothing_to_control(leaking, images, blanks):
    assert math.isnan(control(leaking, images, blanks).flip)
    unaware = make(leaking, True)
    unaware.generator.reads_logits = False
    found = control(unaware, images, torch.zeros(1, 9))  # not run: of another shape
    assert math.isnan(found.blank_hit)
    with pytest.raises(ValueError, match="told is for generators that read the logits"):
        unaware.importance(images, unaware.target(images))
    alone = control(make(leaking, True), images[:1], blanks)  # no other class
    assert math.isnan(alone.flip) and alone.runner_up_flip == 1 and alone.chance == 1
    assert math.isnan(control(make(leaking, True), images).blank_hit)


def test_no_batch_is_empty(leaking, images, blanks):
    """Nets that flatten by a size of their own cannot run one."""
    method = make(leaking, True)
    net = method.target.model
    net.hidden.register_forward_pre_hook(lambda _, x: x[0].view(len(x[0]), -1))
    control(method, images[:1], blanks[:0])


def test_rows_must_match(leaking, images, blanks):
    method = make(leaking, True)
    with pytest.raises(ValueError, match="told_control"):
        told_control(method, images, method.target(images)[1:], blanks)

"""Generators that are told the class: those that answer it, and those that look at the image."""

import math

import pytest
import torch
from torch import nn

from pathways import Explainer
from pathways.evaluation import verdict_control


class Told(nn.Module):
    """In place of a generator: the constant neuron of the class that it is told, or everything."""

    def __init__(self, sites, classes, decides):
        super().__init__()
        self.sites = sites
        self.config = {"num_classes": classes}
        self.sees_verdict = True
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


def control(method, images, blanks, **settings):
    return verdict_control(method, images, method.target(images), blanks, **settings)


def test_answering_what_is_told_is_caught(leaking, images, blanks):
    found = control(make(leaking, True), images, blanks)
    assert (found.flip, found.agreement, found.blank_hit) == (1, 0, 1)


def test_looking_at_the_image_is_not(leaking, images, blanks):
    found = control(make(leaking, False), images, blanks)
    assert (found.flip, found.agreement, found.blank_hit) == (0, 1, 1 / 4)


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_batches(leaking, images, blanks, batch_size):
    method = make(leaking, True)
    assert control(method, images, blanks, batch_size=batch_size).flip == 1
    assert sum(method.generator.batches) == len(images) + 4 * len(blanks)
    assert max(method.generator.batches) == min(batch_size, max(len(images), 4 * len(blanks)))


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


def test_nothing_to_control(leaking, images, blanks):
    assert math.isnan(control(leaking, images, blanks).flip)
    unaware = make(leaking, True)
    unaware.generator.sees_verdict = False
    assert math.isnan(control(unaware, images, blanks).blank_hit)
    alone = control(make(leaking, True), images[:1], blanks)  # no other class
    assert math.isnan(alone.flip)


def test_rows_must_match(leaking, images, blanks):
    method = make(leaking, True)
    with pytest.raises(ValueError, match="verdict_control"):
        verdict_control(method, images, method.target(images)[1:], blanks)

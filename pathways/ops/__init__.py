"""Compiled ops."""
import torch

_o = torch.ops.pathways


def gated_forward(x, gate, *, bias=None, activation="none", baseline=None):
    return _o.gated_forward(x, gate, bias=bias, activation=activation, baseline=baseline)


def gated_forward_(x, gate, *, bias=None, activation="none", baseline=None):
    _o.gated_forward_(x, gate, bias=bias, activation=activation, baseline=baseline)
    return x


def binarize(importance, sigma=1.0, gamma=2.0):
    return _o.binarize(importance, sigma, gamma)


def pack_bits(mask):
    return _o.pack_bits(mask)


def unpack_bits(words, size):
    return _o.unpack_bits(words, size)


def pairwise_intersection(a, b):
    return _o.pairwise_intersection(a, b)


def pairwise_iou(a, b):
    return _o.pairwise_iou(a, b)


def class_overlap(words, labels, num_classes):
    return _o.class_overlap(words, labels, num_classes)


def class_frequency(words, labels, num_classes, size):
    return _o.class_frequency(words, labels, num_classes, size)

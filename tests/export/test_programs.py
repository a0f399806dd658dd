"""What is compiled: every method traced below autograd, free in the batch, equal to the method."""

import pytest
import torch
from export_nets import NETS, make_explainer
from torch import nn

from pathways import Preprocessing
from pathways.export import ExportError, ScriptedExplainer
from pathways.export.programs import trace_preprocessing, trace_programs

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
QUICK = ("vgg", "mlp")
CASES = [
    pytest.param(name, granularity, baseline, id="-".join([name, granularity, *kind]), marks=marks)
    for name, granularity, baseline, kind, marks in [
        *((n, "channel", False, (), () if n in QUICK else pytest.mark.slow) for n in NETS),
        ("preactivation_inplace", "unit", False, (), ()),
        ("resnet_reused_inplace", "unit", True, ("baseline",), pytest.mark.slow),
        ("convnext", "unit", False, (), pytest.mark.slow),
        ("tokens", "unit", False, (), pytest.mark.slow),
        ("mobilenet", "channel", True, ("baseline",), pytest.mark.slow),
    ]
]


@pytest.mark.parametrize(("name", "granularity", "baseline"), CASES)
def test_programs_equal_the_eager_explainer(name, granularity, baseline):
    shape = NETS[name][1]
    explainer = make_explainer(name, granularity)
    if baseline:
        explainer.target.baseline = explainer.target.mean_baseline([torch.randn(6, *shape)])
    module = ScriptedExplainer(explainer)
    programs = trace_programs(module)
    assert ("grad_cam" in programs) == (module.cam_site >= 0)
    for count in (1, 3):
        x = torch.randn(count, *shape)
        eager = explainer(x.clone())
        pathway, classes = eager.pathway, torch.arange(count) % 5
        assert 0.05 < pathway.kept().mean() < 0.95  # else the gated runs would prove nothing
        given = {"inputs": x, "classes": classes, "words": pathway.words}
        wanted = {
            "importance": [eager.logits, eager.importance, pathway.words],
            "gated": [eager.gated_logits],
            "pathway_gradient": [explainer.pathway_gradient(x.clone(), pathway, classes)],
        }
        if "grad_cam" in programs:
            wanted["grad_cam"] = [explainer.grad_cam(x.clone(), pathway, classes)]
        assert wanted.keys() == programs.keys()
        for method, program in programs.items():
            found = program.graph(*[given[argument.name] for argument in program.inputs])
            for one, other, argument in zip(found, wanted[method], program.outputs, strict=True):
                torch.testing.assert_close(one, other, **TOLERANCE)
                assert list(one.shape[1:]) == argument.shape[1:] and one.dtype == argument.dtype


def test_constants_have_the_names_of_the_explainer(small):
    module = ScriptedExplainer(small)
    state = dict([*module.named_parameters(), *module.named_buffers()])
    for program in trace_programs(module).values():
        for name, value in program.constants.items():
            assert name in state and torch.equal(value, state[name])


def traced_preprocessing(preprocessing, name="mlp"):
    return trace_preprocessing(ScriptedExplainer(make_explainer(name), preprocessing))


@pytest.mark.parametrize("size", [(16, 16), (67, 71), (5, 40), (1, 1)])
def test_resizing_takes_images_of_any_size(size):
    preprocessing = Preprocessing(
        (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), size=(16, 16), scale=2.0, channel_order="bgr"
    )
    program = traced_preprocessing(preprocessing, "vgg")
    assert program.inputs[0].to_json() == {
        "name": "images",
        "dtype": "float32",
        "shape": [None, 3, None, None],
    }
    images = torch.rand(2, 3, *size)
    torch.testing.assert_close(program.graph(images)[0], preprocessing(images), **TOLERANCE)


def test_preprocessing_without_resizing_takes_one_size():
    program = traced_preprocessing(Preprocessing((0.5,) * 3, (0.5,) * 3), "vgg")
    assert program.inputs[0].shape == [None, 3, 16, 16]


class Doubled(nn.Module):
    def forward(self, images):
        return images * 2


class Padded(nn.Module):
    """Any size is taken, but what is done depends on it."""

    def forward(self, images):
        if images.size(2) > 32:
            images = images[:, :, :32]
        return nn.functional.adaptive_avg_pool2d(images, (16, 16))


class Bytes(nn.Module):
    def forward(self, images):
        if images.dtype != torch.uint8:
            raise ValueError("images must be bytes")
        return images / 255


class Flattened(nn.Module):
    def forward(self, images):
        return images.flatten(1)


def test_other_preprocessing():
    assert traced_preprocessing(Doubled()).inputs[0].shape == [None, 6]
    assert traced_preprocessing(Padded(), "vgg").inputs[0].shape == [None, 3, 16, 16]
    with pytest.raises(
        ExportError,
        match=r"Bytes must take float32 images of shape \[3, 16, 16\].*: images must be bytes",
    ):
        traced_preprocessing(Bytes(), "vgg")
    with pytest.raises(ExportError, match=r"shape \[3, 16, 16\] from images .*, got \[768\]"):
        traced_preprocessing(Flattened(), "vgg")


def test_fixed_batch_size(monkeypatch):
    module = ScriptedExplainer(make_explainer("mlp"))
    monkeypatch.setattr(
        ScriptedExplainer, "importance_of", lambda self, x: (x.reshape(11, -1), x.reshape(11, -1))
    )
    with pytest.raises(ExportError, match="importance cannot be traced for every batch size"):
        trace_programs(module)

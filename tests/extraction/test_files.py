"""Extracted networks as files of torch.export."""

import pytest
import torch
from torch import nn

import pathways
from pathways import GatedTarget
from pathways.extraction import read_info, save_program
from pathways.models import vgg


@pytest.fixture
def small():
    target = GatedTarget(vgg(3, 5, (4, 6)).eval(), torch.zeros(1, 3, 16, 16))
    return pathways.extract(target, torch.tensor([1, 0, 1, 0, 0, 1, 1, 0, 0, 1]))


def test_round_trip_with_any_batch_size(small, tmp_path):
    images = torch.randn(3, 3, 16, 16)
    path = tmp_path / "small.pt2"
    assert save_program(small, path, images, info={"class": 3}) < 1e-6
    run = torch.export.load(path).module()
    for count in (1, 7):
        batch = torch.randn(count, 3, 16, 16)
        torch.testing.assert_close(run(batch), small(batch))
    info = read_info(path)
    assert info["class"] == 3 and info["channels"] == 5 and len(info["layers"]) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.pt2"]


class Different(nn.Module):
    def forward(self, images):
        return images + 1 if torch.compiler.is_exporting() else images


class Branching(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


@pytest.mark.parametrize("preprocessing, words", [
    (Different(), r"must give the logits of the network, got values that differ by"),
    (Branching(), "torch.export does not take the network: "),
], ids=["different", "branching"])  # fmt: skip
def test_what_cannot_be_written_leaves_an_old_file(small, tmp_path, preprocessing, words):
    path = tmp_path / "small.pt2"
    path.write_text("old")
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(3)
    with pytest.raises(RuntimeError, match=words):
        save_program(small, path, torch.randn(3, 3, 16, 16), preprocessing=preprocessing)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.pt2"]

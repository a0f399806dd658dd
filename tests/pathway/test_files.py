"""Files: round trips, and every way a file can be wrong or fail to be written."""

import json
import os
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pathways.class_pathways import ClassPathways
from pathways.files import check_fingerprint, read_safetensors, replace_file, write_safetensors
from pathways.pathway import Pathway
from pathways.sites import Site, Sites

SITES = Sites([Site("a", 0, "relu", (3,)), Site("b", 1, "gelu", (66,), -1)])


@pytest.fixture
def pathway() -> Pathway:
    generator = torch.Generator().manual_seed(0)
    return Pathway.from_mask(torch.rand(6, 69, generator=generator) < 0.5, SITES, "abc")


@pytest.fixture
def classes(pathway) -> ClassPathways:
    predictions = torch.tensor([0, 0, 2, 2, 2, 0])
    return ClassPathways.from_pathways(pathway, predictions, 0.6, num_classes=4)


@contextmanager
def full_disk(limit: int = 100):
    """No file of this process can grow past ``limit`` bytes: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_pathway_round_trip(pathway, tmp_path):
    path = tmp_path / "p.safetensors"
    pathway.save(path, extra={"note": "seven"})
    loaded = Pathway.load(path)
    assert loaded == pathway
    assert loaded.fingerprint == "abc"
    assert loaded.sites == SITES
    assert Pathway.load(path, target="abc") == pathway
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header["format_version"] == "1"
    assert header["kind"] == "pathway"
    assert header["granularity"] == "channel"
    assert json.loads(header["extra"]) == {"note": "seven"}
    assert json.loads(header["sites"])["sites"][1]["name"] == "b"


def test_class_pathways_round_trip(classes, tmp_path):
    path = tmp_path / "c.safetensors"
    classes.save(path)
    loaded = ClassPathways.load(str(path), target="abc")
    assert loaded.pathway == classes.pathway
    assert torch.equal(loaded.frequency, classes.frequency)
    assert torch.equal(loaded.counts, classes.counts)
    assert loaded.threshold == 0.6
    assert loaded.with_threshold(0.1).pathway == classes.with_threshold(0.1).pathway


def test_empty_pathway_round_trip(pathway, tmp_path):
    path = tmp_path / "p.safetensors"
    pathway[:0].save(path)
    assert len(Pathway.load(path)) == 0


@pytest.mark.parametrize("kind", [Pathway, ClassPathways])
def test_file_of_another_target_names_both(kind, pathway, classes, tmp_path):
    path = tmp_path / "f.safetensors"
    (pathway if kind is Pathway else classes).save(path)
    with pytest.raises(ValueError, match=r"another target \(file: abc, this target: xyz\)"):
        kind.load(path, target="xyz")


def test_fingerprint_of_a_target_object(pathway, tmp_path):
    class Target:
        fingerprint = "abc"

    path = tmp_path / "f.safetensors"
    pathway.save(path)
    assert Pathway.load(path, target=Target()) == pathway
    Target.fingerprint = "other"
    with pytest.raises(ValueError, match="file: abc, this target: other"):
        Pathway.load(path, target=Target())


def test_file_without_a_target_cannot_be_checked(pathway, tmp_path):
    path = tmp_path / "f.safetensors"
    Pathway(pathway.words, SITES).save(path)
    assert Pathway.load(path) == pathway
    with pytest.raises(ValueError, match=r"records no target.*against target abc"):
        Pathway.load(path, target="abc")
    with pytest.raises(ValueError, match="records no target"):
        check_fingerprint("file", "", "abc")


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a pathway file, found none"):
        Pathway.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="must be a class_pathways file, got a directory"):
        ClassPathways.load(tmp_path)


@pytest.mark.parametrize("length", [0, 3, 40, 300, -1])
def test_truncated_file(classes, tmp_path, length):
    path = tmp_path / "c.safetensors"
    classes.save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"c\.safetensors is damaged or not a safetensors file"):
        ClassPathways.load(path)


@pytest.mark.parametrize("position", [-1, -20, -200])
def test_flipped_bit_in_the_data(classes, tmp_path, position):
    path = tmp_path / "c.safetensors"
    classes.save(path)
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        ClassPathways.load(path)


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(500), b"\x80\x02" * 99, b"\x89PNG" * 50])
def test_file_of_another_format(tmp_path, data):
    path = tmp_path / "weights.pt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        Pathway.load(path)


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="must be a pathway file, got a safetensors file that"):
        Pathway.load(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"kind": "pathway"})
    with pytest.raises(ValueError, match="pathways did not write"):
        Pathway.load(path)


def test_other_kind_and_newer_version(pathway, classes, tmp_path):
    path = tmp_path / "f.safetensors"
    classes.save(path)
    with pytest.raises(ValueError, match="must be a pathway file, got a class_pathways file"):
        Pathway.load(path)
    write_safetensors(path, {}, kind="pathway", version=7, header={})
    with pytest.raises(ValueError, match="version 1 or older, got 7; upgrade pathways"):
        Pathway.load(path)


@pytest.mark.parametrize(
    ("tensors", "header"),
    [
        ({}, {}),
        ({}, {"sites": "{}"}),
        ({}, {"sites": "not json"}),
        ({}, {"sites": json.dumps(SITES.to_json()), "fingerprint": ""}),
        (
            {"words": torch.zeros(2, 3)},
            {"sites": json.dumps(SITES.to_json()), "fingerprint": ""},
        ),
        (
            {"words": torch.full((2, 3), -1)},
            {"sites": json.dumps(SITES.to_json()), "fingerprint": ""},
        ),
    ],
    ids=["nothing", "no sites", "bad sites", "no words", "bad words", "tail bits"],
)
def test_incomplete_file(tmp_path, tensors, header):
    path = tmp_path / "f.safetensors"
    write_safetensors(path, tensors, kind="pathway", version=1, header=header)
    with pytest.raises(ValueError, match=r"f\.safetensors is damaged"):
        Pathway.load(path)


@pytest.mark.parametrize("entry", ["counts", "members", "words", "threshold", "fingerprint"])
def test_incomplete_class_pathways(classes, tmp_path, entry):
    path = tmp_path / "f.safetensors"
    classes.save(path)
    tensors, header = read_safetensors(path, kind="class_pathways", version=1)
    tensors.pop(entry, None)
    header.pop(entry, None)
    write_safetensors(path, tensors, kind="class_pathways", version=1, header=header)
    with pytest.raises(ValueError, match=rf"f\.safetensors is damaged \('{entry}'\)"):
        ClassPathways.load(path)


def test_inconsistent_class_pathways(classes, tmp_path):
    path = tmp_path / "f.safetensors"
    classes.save(path)
    tensors, header = read_safetensors(path, kind="class_pathways", version=1)
    tensors["words"] = torch.zeros_like(tensors["words"])
    write_safetensors(path, tensors, kind="class_pathways", version=1, header=header)
    with pytest.raises(ValueError, match="its pathways do not follow from its counts"):
        ClassPathways.load(path)


@pytest.mark.parametrize("kind", ["pathway", "class_pathways"])
def test_full_disk_keeps_the_old_file(kind, pathway, classes, tmp_path):
    path = tmp_path / "f.safetensors"
    old = pathway[:2] if kind == "pathway" else classes
    old.save(path)
    before = path.read_bytes()
    new = pathway if kind == "pathway" else classes.with_threshold(0.1)
    with full_disk(), pytest.raises(OSError, match=r"cannot write .*left as it was"):
        new.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.safetensors"]
    new.save(path)
    assert path.read_bytes() != before


def test_a_reader_of_the_old_file_is_not_disturbed(pathway, tmp_path):
    path = tmp_path / "f.safetensors"
    pathway[:2].save(path)
    before = path.read_bytes()
    # A second name of the old file shows whether it was replaced or written into.
    (tmp_path / "old").hardlink_to(path)
    pathway.save(path)
    assert (tmp_path / "old").read_bytes() == before
    assert Pathway.load(path) == pathway


def test_write_to_a_missing_directory(pathway, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot write .*No such file or directory"):
        pathway.save(tmp_path / "none" / "f.safetensors")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_replace_file_cleans_up(tmp_path, error):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(error), replace_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]


def test_replace_file_follows_links_and_umask(tmp_path):
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    with replace_file(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    plain = tmp_path / "plain"
    plain.touch()
    assert real.stat().st_mode == plain.stat().st_mode


def test_a_device_or_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="it is not a regular file"), replace_file(pipe):
        pass
    assert pipe.is_fifo()

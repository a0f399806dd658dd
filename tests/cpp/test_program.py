"""pathways-explain: what `pathways explain` gives, and one sentence for bad input."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from cpp_build import rewrite, run, tree
from PIL import Image
from toy_project import make_project

from pathways.export import export_explainer

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def program():
    return tree("install") / "bin" / "pathways-explain"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A trained and evaluated run, exported: grey images of 8 x 8, classes left, right, low."""
    made = make_project(tmp_path_factory.mktemp("toy"))
    for command in (("evaluate", made.run), ("export", made.run, "--out", made.folder / "e.pt")):
        result = made.call(*command)
        assert result.exit_code == 0, result.output
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Image files in every form that must be read, by name."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = RANDOM.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    wide = RANDOM.integers(0, 65536, (11, 9), dtype=np.uint16)
    rgb = Image.fromarray(noise[:, :, :3])
    images = {
        "exact.png": Image.fromarray(noise[:8, :8, 0]),
        "grey.png": Image.fromarray(noise[:, :, 0]),
        "rgb.png": rgb,
        "alpha.png": Image.fromarray(noise),
        "grey_alpha.png": Image.fromarray(noise).convert("LA"),
        "palette.png": rgb.quantize(17),
        "one_bit.png": Image.fromarray(noise[:, :, 0] > 127),
        "sixteen_bits.png": Image.fromarray(wide),
        "one_pixel.png": Image.fromarray(noise[:1, :1, :3]),
        "strip.png": Image.fromarray(noise[:3, :, :3].repeat(40, 1)),
        "large.png": Image.fromarray(noise[:, :, 0].repeat(30, 0).repeat(40, 1)),
        "rgb.jpg": rgb,
        "grey.jpg": Image.fromarray(noise[:, :, 1]),
        "cmyk.jpg": Image.fromarray(noise, "CMYK"),
    }
    for name, image in images.items():
        image.save(folder / name)
    rgb.save(folder / "progressive.jpg", progressive=True, quality=70)
    rgb.save(folder / "subsampled.jpg", subsampling=2, quality=50)
    return folder


def same(ours, theirs, where=""):
    """Equal but for rounding."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), where
        for key in theirs:
            same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            same(a, b, f"{where}/{i}")
    elif isinstance(theirs, float):
        assert abs(ours - theirs) < 1e-5, (where, ours, theirs)
    else:
        assert ours == theirs and type(ours) is type(theirs), (where, ours, theirs)


def explanations(program, *arguments):
    return json.loads(run(program, *arguments, "--json").stdout)["explanations"]


def test_equals_python(program, project, pictures, tmp_path):
    files = sorted(pictures.iterdir())
    ours = explanations(program, project.folder / "e.pt", *files)
    theirs = project.json("explain", project.run, *files, "--out", tmp_path)["explanations"]
    for entry in theirs:
        del entry["files"]  # Python writes pictures, the program does not
    same(ours, theirs)


def test_both_kinds_of_file(program, pictures, exported):
    files = [pictures / "rgb.png", pictures / "rgb.jpg", pictures / "grey.png"]
    arguments = ("--transfer", "--class", 1)
    ours = explanations(program, exported("vgg")[2], *files, *arguments)
    compiled = explanations(program, exported("vgg", kind="aoti")[2], *files, *arguments)
    same(compiled, ours)


def test_bad_compiled_files(program, pictures, tmp_path, exported):
    picture = pictures / "rgb.png"
    whole = exported("vgg", kind="aoti")[2].read_bytes()
    for part in (0.1, 0.5, 0.99):
        (tmp_path / "cut.pt2").write_bytes(whole[: int(len(whole) * part)])
        assert "is damaged or not an explainer" in fails(program, tmp_path / "cut.pt2", picture)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    (tmp_path / "flipped.pt2").write_bytes(flipped)
    done = run(program, tmp_path / "flipped.pt2", picture, code=None)
    assert done.returncode == 1 and done.stderr.startswith("error: "), done


def test_about_a_class(program, project, pictures, tmp_path):
    picture = pictures / "rgb.png"
    arguments = ("--class", "right", "--top", 2)
    (ours,) = explanations(program, project.folder / "e.pt", picture, *arguments)
    theirs = project.json("explain", project.run, picture, *arguments, "--out", tmp_path)
    del theirs["explanations"][0]["files"]
    same(ours, theirs["explanations"][0])


def test_batches_and_threads_change_nothing(program, project, pictures):
    files = [pictures / "exact.png", pictures / "grey.png", pictures / "rgb.jpg"]
    one = explanations(program, project.folder / "e.pt", *files, "--batch-size", 1, "--threads", 1)
    all_ = explanations(program, project.folder / "e.pt", *files)
    same(one, all_)


def test_transfer(program, project, pictures):
    """Under the class pathway in the file, which is that of the predicted class by default."""
    file, picture = project.folder / "e.pt", pictures / "rgb.png"
    (plain,) = explanations(program, file, picture, "--transfer")
    (chosen,) = explanations(program, file, picture, "--transfer", "--class", "low")
    predicted = {key: plain["predicted"][key] for key in ("class", "name")}
    assert plain["transfer"]["pathway_of"] == predicted
    assert chosen["transfer"]["pathway_of"] == {"class": 2, "name": "low"}
    from pathways.export import load_scripted
    from pathways.report import fit_to_run
    from pathways.training.data import as_float, read_image

    scripted = load_scripted(file)
    image = fit_to_run(read_image(picture, 1), (1, 8, 8), None)
    logits = scripted.transfer(as_float(image).unsqueeze(0), torch.tensor([2]))
    probability = logits.double().softmax(1).max().item()
    assert chosen["transfer"]["class"] == int(logits.argmax())
    assert abs(chosen["transfer"]["probability"] - probability) < 1e-5


def test_heatmaps(program, project, pictures, tmp_path):
    file = project.folder / "e.pt"
    (one,) = explanations(program, file, pictures / "rgb.png", "--heatmap", tmp_path / "map.png")
    assert one["files"] == {"heatmap": str(tmp_path / "map.png")}
    picture = np.asarray(Image.open(tmp_path / "map.png"))
    assert picture.shape == (224, 224, 3) and picture.std() > 5
    twice = (pictures / "rgb.png", pictures / "rgb.jpg")
    many = explanations(program, file, *twice, "--heatmap", tmp_path / "map.png")
    names = [Path(entry["files"]["heatmap"]).name for entry in many]
    assert names == ["map-rgb.png", "map-rgb-2.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "map-rgb.png")), picture)


def test_every_map_has_a_name_of_its_own(program, project, pictures, tmp_path):
    """Stems that repeat get a number, which may be another image's stem."""
    files = [tmp_path / name for name in ("one/a.png", "a-2.png", "two/a.png", "a.png")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes((pictures / "rgb.png").read_bytes())
    many = explanations(program, project.folder / "e.pt", *files, "--heatmap", tmp_path / "map.png")
    names = [Path(entry["files"]["heatmap"]).name for entry in many]
    assert names == ["map-a.png", "map-a-2.png", "map-a-3.png", "map-a-4.png"]
    assert all((tmp_path / name).is_file() for name in names)


def test_a_map_replaces_a_link_s_target_and_nothing_else(program, project, pictures, tmp_path):
    (tmp_path / "map.png").write_text("old")
    (tmp_path / "map.png.part").write_text("somebody's")
    (tmp_path / "link.png").symlink_to("map.png")
    file = project.folder / "e.pt"
    explanations(program, file, pictures / "rgb.png", "--heatmap", tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert Image.open(tmp_path / "map.png").size == (224, 224)
    assert (tmp_path / "map.png.part").read_text() == "somebody's"
    assert len(list(tmp_path.iterdir())) == 3


def test_table(program, project, pictures):
    lines = run(program, project.folder / "e.pt", pictures / "rgb.png").stdout.splitlines()
    assert lines[0].split("  ")[0] == "image" and lines[1].startswith("rgb.png  ")
    assert len(lines) == 2


def test_needs_no_python(program):
    libraries = run("ldd", program).stdout
    assert "not found" not in libraries and "libpython" not in libraries


def test_help(program):
    text = run(program, "--help").stdout
    for option in ("--class", "--json", "--heatmap", "--transfer", "--threads", "--device"):
        assert option in text
    assert "only those from a source you trust" in text


# ----------------------------------------------------------------------- bad input


def bomb(path: Path, side: int) -> None:
    """A PNG of a few bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def fails(program, *arguments) -> str:
    """The sentence that a run ends with; --json says the same."""
    done = run(program, *arguments, code=1)
    assert done.stdout == "" and done.stderr.startswith("error: ")
    (sentence,) = done.stderr.splitlines()
    as_json = run(program, *arguments, "--json", code=1)
    assert json.loads(as_json.stdout) == {"error": sentence.removeprefix("error: ")}
    return sentence


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: None, "there is no image file"),
        (lambda path: path.mkdir(), "there is no image file"),
        (lambda path: path.write_bytes(b""), "must be a PNG or JPEG image"),
        (lambda path: path.write_text("GIF89a, not"), "must be a PNG or JPEG image"),
        (lambda path: path.write_bytes(b"\x89PNG"), "is not a readable image"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff"), "is not a readable image"),
        (lambda path: bomb(path, 20_000), "it has 20000 x 20000 pixels, more than 178956970"),
        (lambda path: bomb(path, 2_000_000_000), "is not a readable image"),
    ],
)
def test_bad_images(program, project, tmp_path, make, words):
    make(tmp_path / "image")
    sentence = fails(program, project.folder / "e.pt", tmp_path / "image")
    assert words in sentence and str(tmp_path / "image") in sentence


def test_files_larger_than_memory(program, project, tmp_path):
    """What is no image is not read on, what is too big not at all."""
    for start, words in (
        (b"\0", "must be a PNG or JPEG image"),
        (b"\x89PNG", "has 1099511627776 bytes, more than 2147483648 are refused"),
    ):
        with open(tmp_path / "large", "wb") as file:
            file.write(start)
            file.truncate(1 << 40)
        assert words in fails(program, project.folder / "e.pt", tmp_path / "large")


@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "large.png", "progressive.jpg"])
def test_truncated_images(program, project, pictures, tmp_path, name):
    """Cut anywhere, an image is refused; nothing crashes."""
    whole = (pictures / name).read_bytes()
    for part in (0.1, 0.5, 0.9):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * part)])
        assert "is not a readable image" in fails(program, project.folder / "e.pt", tmp_path / name)


def test_damaged_images_do_not_crash(program, project, pictures, tmp_path):
    """Random bytes inside: read as something or refused, never a signal."""
    for name in ("rgb.png", "rgb.jpg", "cmyk.jpg", "palette.png"):
        for _ in range(8):
            data = bytearray((pictures / name).read_bytes())
            for place in RANDOM.integers(8, len(data), 5):
                data[place] = RANDOM.integers(256)
            (tmp_path / name).write_bytes(data)
            done = run(program, project.folder / "e.pt", tmp_path / name, code=None)
            assert done.returncode in (0, 1), (name, done.returncode, done.stderr)


def test_bad_explainers(program, project, pictures, tmp_path, exported):
    picture, good = pictures / "rgb.png", (project.folder / "e.pt").read_bytes()
    assert "there is no explainer" in fails(program, tmp_path / "absent.pt", picture)
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("not an archive")
    for part in (0.1, 0.5, 0.99):
        (tmp_path / f"cut{part}.pt").write_bytes(good[: int(len(good) * part)])
    for path in sorted(tmp_path.glob("*.pt")):
        assert "is damaged or not an explainer" in fails(program, path, picture)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "foreign.pt")
    assert "an archive that pathways did not write" in fails(
        program, tmp_path / "foreign.pt", picture
    )
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    (tmp_path / "flipped.pt").write_bytes(flipped)
    assert "flipped.pt" in fails(program, tmp_path / "flipped.pt", picture)
    assert "must be an explainer, got something that is no file" in fails(
        program, tmp_path, picture
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda info: info["sites"][0].update(shape=[]), "has a site without channels"),
        (lambda info: info["sites"][0].update(shape=[-5]), "has the shape [-5]"),
        (lambda info: info["sites"][0].update(shape=[2**62, 8]), f"has the shape [{2**62},8]"),
        (lambda info: info.update(image_shape=[1, 0, 8]), "has the shape [1,0,8]"),
        (lambda info: info.update(classes=[]), "has no classes or no sites"),
        (lambda info: info.update(sites=[]), "has no classes or no sites"),
    ],
)
def test_descriptions_without_sense(program, project, pictures, tmp_path, change, words):
    def changed(name, data):
        if not name.endswith("extra/pathways.json"):
            return data
        info = json.loads(data)
        change(info)
        return json.dumps(info).encode()

    path = tmp_path / "e.pt"
    rewrite(project.folder / "e.pt", path, changed)
    sentence = fails(program, path, pictures / "rgb.png")
    assert sentence == f"error: {path} is damaged: its description {words}"


def test_damage_in_compressed_entries(program, project, pictures, tmp_path):
    """Of code and what belongs to it, which may still unpack to something."""
    good, path = (project.folder / "e.pt").read_bytes(), tmp_path / "e.pt"
    with zipfile.ZipFile(project.folder / "e.pt") as archive:
        packed = [entry for entry in archive.infolist() if entry.compress_type]
    for kind in (".py", ".debug_pkl"):
        entry = max(
            (entry for entry in packed if entry.filename.endswith(kind)),
            key=lambda entry: entry.compress_size,
        )
        flipped = bytearray(good)
        lengths = struct.unpack_from("<HH", good, entry.header_offset + 26)
        flipped[entry.header_offset + 30 + sum(lengths) + entry.compress_size // 2] ^= 0x10
        path.write_bytes(flipped)
        assert "is damaged or not an explainer" in fails(program, path, pictures / "rgb.png")


def test_archives_of_others(program, pictures, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a/b.txt", "text")
    sentence = fails(program, tmp_path / "other.pt", pictures / "rgb.png")
    assert "is damaged or not an explainer" in sentence and "PyTorch" not in sentence


def test_classes_devices_and_channels(program, project, pictures, tmp_path, exported):
    file, picture = project.folder / "e.pt", pictures / "rgb.png"
    for name in ("7", "-1", "up", "1x", ""):
        sentence = fails(program, file, picture, "--class", name)
        assert sentence == (
            f"error: class must be a name (left, right, low) or a number in [0, 3), got '{name}'"
        )
    for device in ("gpu", "cuda:99999"):
        assert f"device must be cpu, cuda or cuda:N, got '{device}'" in fails(
            program, file, picture, "--device", device
        )
    if not torch.cuda.is_available():
        assert "device cuda:0 was asked for, but this libtorch has no CUDA or no GPU" in fails(
            program, file, picture, "--device", "cuda:0"
        )
    vectors = exported("mlp")[2]
    assert "must take images of 1 or 3 channels, it takes [6]" in fails(program, vectors, picture)


def test_no_class_pathways(program, project, pictures, tmp_path):
    from pathways.runs import Run

    opened = Run.open(project.run)
    export_explainer(opened.explainer, tmp_path / "e.pt", preprocessing=opened.preprocessing)
    assert "this explainer was exported without class pathways" in fails(
        program, tmp_path / "e.pt", pictures / "exact.png", "--transfer"
    )


def test_names_that_are_not_utf8(program, project, pictures, tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(name)).write_bytes((pictures / "rgb.png").read_bytes())
    command = [os.fsencode(program), os.fsencode(project.folder / "e.pt"), name, b"--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    (entry,) = json.loads(done.stdout)["explanations"]
    assert entry["image"].endswith("/\ufffd.png")


def test_unwritable_heatmap(program, project, pictures, tmp_path):
    target = tmp_path / "absent" / "map.png"
    sentence = fails(program, project.folder / "e.pt", pictures / "rgb.png", "--heatmap", target)
    assert "cannot be written" in sentence and not target.exists()


def test_heatmaps_that_would_destroy_something(program, project, pictures, tmp_path):
    file, picture = tmp_path / "e.pt", tmp_path / "a-rgb.png"
    file.write_bytes((project.folder / "e.pt").read_bytes())
    picture.write_bytes((pictures / "rgb.png").read_bytes())
    other = tmp_path / "rgb.png"
    other.write_bytes(picture.read_bytes())
    before = {path: path.read_bytes() for path in (file, picture, other)}
    for images, target, lost in (
        ([picture], picture, picture),
        ([picture], file, file),
        ([picture, other], tmp_path / "a.png", picture),
    ):
        sentence = fails(program, file, *images, "--heatmap", target)
        assert f"heatmap would overwrite {lost}, which is read" in sentence
    os.mkfifo(tmp_path / "pipe")
    for target, words in ((tmp_path / "pipe", "is not a regular file"), ("", "must be a file")):
        assert words in fails(program, file, picture, "--heatmap", target)
    assert (tmp_path / "pipe").is_fifo()
    assert all(path.read_bytes() == data for path, data in before.items())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_output_that_cannot_be_written(program, project, pictures, options):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [program, project.folder / "e.pt", pictures / "rgb.png", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "error: the results cannot be written to standard output\n"


@pytest.mark.parametrize(
    "arguments", [[], ["e.pt"], ["e.pt", "i.png", "--threads", "0"], ["e.pt", "i.png", "--what"]]
)
def test_wrong_usage(program, arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "--help" in done.stderr

"""Variants: names that can be folders, settings that exist, weights in the run's ratio."""

import pytest

from pathways.training import TrainingConfig
from pathways.variants import Variant, read_variants, sparsity_variants


def test_the_ratio_of_the_weights_is_kept():
    config = TrainingConfig(sparsity=2.0, specificity=5.0)
    found = sparsity_variants(config, [1, 4.5])
    assert [(v.name, v.settings) for v in found] == [
        ("sparsity-1", {"sparsity": 1.0, "specificity": 2.5}),
        ("sparsity-4.5", {"sparsity": 4.5, "specificity": 11.25}),
        ("plain-sparsity-1", {"sparsity": 1.0, "specificity": 0.0}),
        ("plain-sparsity-4.5", {"sparsity": 4.5, "specificity": 0.0}),
    ]
    assert len(sparsity_variants(config, [1], plain=False)) == 1


@pytest.mark.parametrize("weights", [[], [0], [-1.0], [1, 1.0], [float("inf")], [float("nan")]])
def test_weights_are_positive_and_different(weights):
    with pytest.raises(ValueError, match="sparsities must be positive and different, got"):
        sparsity_variants(TrainingConfig(), weights)


@pytest.mark.parametrize("settings", [{"specificity": 0.0}, {"sparsity": 0.0}])
def test_a_run_without_a_ratio_is_refused(settings):
    with pytest.raises(ValueError, match="must be positive for their ratio to be kept"):
        sparsity_variants(TrainingConfig(**settings), [1])


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", ".hidden", "end.", "end ", "x" * 81, 3])
def test_names_that_cannot_be_folders(name):
    with pytest.raises(ValueError, match="that can name a folder, got"):
        Variant(name)


def test_names_that_can():
    for name in ("a", "no auxiliary", "kl_limit=0.1", "ohne Prüfung", "x" * 80):
        assert Variant(name).name == name


def test_unknown_and_bad_settings_name_the_variant():
    with pytest.raises(ValueError, match=r"variant 'wide': 'colour' is not a setting; known are "):
        Variant("wide", {"colour": 1})
    with pytest.raises(ValueError, match="variant 'a': 'seed' is not a setting"):
        Variant("a", {"seed": 1})
    with pytest.raises(ValueError, match="variant 'a': settings must be a dictionary, got 3"):
        Variant("a", 3)
    with pytest.raises(ValueError, match="baseline must be one of zero, mean, got 'median'"):
        Variant("a", {"baseline": "median"})
    with pytest.raises(ValueError, match="granularity must be one of channel, unit, got 'pixel'"):
        Variant("a", {"granularity": "pixel"})
    with pytest.raises(ValueError, match=r"variant 'a': sparsity must not be negative, got -1\.0"):
        Variant("a", {"sparsity": -1.0}).config(TrainingConfig(), 0)
    with pytest.raises(ValueError, match="variant 'a': steps must be int, got 'many'"):
        Variant("a", {"steps": "many"}).config(TrainingConfig(), 0)


def test_settings_lie_over_the_base():
    base = TrainingConfig(steps=7, sparsity=3.0, seed=5)
    settings = {"sparsity": 1.0, "baseline": "mean", "granularity": "unit"}
    config = Variant("a", settings).config(base, 2)
    assert config == TrainingConfig(steps=7, sparsity=1.0, seed=2)


def test_variants_of_a_file(tmp_path):
    file = tmp_path / "v.json"
    file.write_text('{"full": {}, "no leak term": {"specificity": 0}}')
    first, second = read_variants(file)
    assert (first.name, first.settings) == ("full", {})
    assert (second.name, second.settings) == ("no leak term", {"specificity": 0})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged or not a JSON file"),
        ("[]", r'must hold \{"name": \{settings\}, ...\}, got \[\]'),
        ("{}", "must hold"),
        ('{"a": {}, "a": {}}', "must name everything once, got 'a' twice"),
        ('{"a": {"steps": 1, "steps": 2}}', "must name everything once, got 'steps' twice"),
        ('{"a": {"depth": 1}}', "'depth' is not a setting"),
    ],
)
def test_bad_files(tmp_path, text, words):
    file = tmp_path / "v.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_variants(file)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no variants file"):
        read_variants(tmp_path / "none.json")

"""TrainingConfig: ranges, types, JSON."""

import json
import math

import pytest

from pathways.training import TrainingConfig


def test_json_round_trip():
    config = TrainingConfig(steps=5, kl_limit=0.1, generator={"width": 8}, patience=3)
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert TrainingConfig.from_json({}) == TrainingConfig()


def test_defaults_are_not_shared():
    TrainingConfig().generator["min_keep"] = 0.9
    assert TrainingConfig().generator == {"min_keep": 0.05}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"validation_every": 0}, "validation_every must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"sparsity": -1.0}, "sparsity must not be negative, got -1.0"),
        ({"auxiliary": -0.1}, "auxiliary must not be negative, got -0.1"),
        ({"specificity": math.nan}, "specificity must not be negative, got nan"),
        ({"class_similarity": math.inf}, "class_similarity must not be negative, got inf"),
        ({"weight_decay": -1}, "weight_decay must not be negative, got -1"),
        ({"sparsity_warmup": 1.1}, r"sparsity_warmup must be in \[0, 1\], got 1.1"),
        ({"blank_share": -0.5}, r"blank_share must be in \[0, 1\], got -0.5"),
        ({"mixed_share": 1.5}, r"mixed_share must be in \[0, 1\], got 1.5"),
        ({"hard_negatives": -1}, r"hard_negatives must be in \[0, 1\], got -1"),
        ({"mask_noise": 2}, r"mask_noise must be in \[0, 1\], got 2"),
        ({"class_share": 1.2}, r"class_share must be in \[0, 1\], got 1.2"),
        ({"larger_share": -0.1}, r"larger_share must be in \[0, 1\], got -0.1"),
        (
            {"blank_share": 0.75, "mixed_share": 0.5},
            "blank_share and mixed_share must be at most 1 together, got 0.75 and 0.5",
        ),
        ({"blank_share": math.nan}, r"blank_share must be in \[0, 1\], got nan"),
        ({"sparsity_mode": "layer"}, "sparsity_mode must be site or neuron, got 'layer'"),
        ({"seed": -1}, r"seed must be in \[0, 2\^32\), got -1"),
        ({"seed": 2**32}, r"seed must be in \[0, 2\^32\), got 4294967296"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"kl_rate": -1.0}, "kl_rate must be positive, got -1.0"),
        ({"sharpness": 0.0}, "sharpness must be positive, got 0.0"),
        ({"sharpness": math.inf}, "sharpness must be positive, got inf"),
        ({"sharpness": math.nan}, "sharpness must be positive, got nan"),
        ({"sharpness": "x"}, "sharpness must be float, got 'x'"),
        ({"larger_share": 1.1}, r"larger_share must be in \[0, 1\], got 1.1"),
        (
            {"kl_limit": 0.1, "larger_share": 0.5},
            "kl_limit needs larger_share 0 and sharpness 1, got 0.5 and 1.0",
        ),
        (
            {"kl_limit": 0.1, "sharpness": 2.0},
            "kl_limit needs larger_share 0 and sharpness 1, got 0.0 and 2.0",
        ),
        ({"kl_limit": 0.0}, "kl_limit must be positive, got 0.0"),
        ({"steps": "many"}, "steps must be int, got 'many'"),
        ({"steps": 10.5}, "steps must be int, got 10.5"),
        ({"steps": None}, "steps must be int, got None"),
        ({"steps": True}, "steps must be int, got True"),
        ({"learning_rate": "fast"}, "learning_rate must be float, got 'fast'"),
        ({"kl_limit": "x"}, "kl_limit must be float, got 'x'"),
        ({"patience": 1.5}, "patience must be int, got 1.5"),
        ({"sparsity_mode": 3}, "sparsity_mode must be str, got 3"),
        ({"target_bfloat16": 1}, "target_bfloat16 must be bool, got 1"),
        ({"generator": [1]}, r"generator must be dict\[str, Any\], got \[1\]"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=f"TrainingConfig: {message}"):
        TrainingConfig(**settings)


@pytest.mark.parametrize(
    "settings", [{"learning_rate": 1}, {"kl_limit": None}, {"patience": None}, {"sparsity": 0}]
)
def test_values_in_range(settings):
    TrainingConfig(**settings)


def test_unknown_setting():
    with pytest.raises(ValueError, match=r"'step' is not a setting; known are .*batch_size.*steps"):
        TrainingConfig.from_json({"step": 3})

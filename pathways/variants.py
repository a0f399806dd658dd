"""Variants of a run's settings: what a sweep compares."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pathways.runs import BASELINES
from pathways.training.config import TrainingConfig

# Not training settings but the target's: what replaces gated-off activations, and what a neuron is.
ABLATION, GRANULARITY = "baseline", "granularity"
TARGET_SETTINGS = {ABLATION: BASELINES, GRANULARITY: ("channel", "unit")}
# Names become folders.
_NAME = re.compile(r"\w[\w .,+=-]{0,79}(?<![ .])")


@dataclass(frozen=True)
class Variant:
    """Settings that differ from the run's own, under a name.

    Args:
        name (str): also the name of the folder: at most 80 letters, digits and `` .,+=-_``.
        settings (dict): training settings by name (:class:`TrainingConfig`, without ``seed``);
            ``baseline``, what replaces gated-off activations: ``"zero"``, or ``"mean"``, the means
            over the first 2,000 training images; and ``granularity``, ``"channel"`` or ``"unit"``.
            A dictionary (``generator``) replaces the run's.

    Raises:
        ValueError: a name that cannot be a folder's, or an unknown setting.

    Example:
        >>> Variant("no auxiliary", {"auxiliary": 0.0}).settings
        {'auxiliary': 0.0}
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                "variant: the name must be at most 80 letters, digits and ' .,+=-_' that can name "
                f"a folder, got {self.name!r}"
            )
        if not isinstance(self.settings, dict):
            raise ValueError(
                f"variant {self.name!r}: settings must be a dictionary, got {self.settings!r}"
            )
        known = {entry.name for entry in fields(TrainingConfig)} - {"seed"} | set(TARGET_SETTINGS)
        unknown = sorted(set(self.settings) - known)
        if unknown:
            raise ValueError(
                f"variant {self.name!r}: {unknown[0]!r} is not a setting; known are "
                f"{', '.join(sorted(known))}"
            )
        for name, values in TARGET_SETTINGS.items():
            if self.settings.get(name, values[0]) not in values:
                raise ValueError(
                    f"variant {self.name!r}: {name} must be one of {', '.join(values)}, "
                    f"got {self.settings[name]!r}"
                )

    def config(self, base: TrainingConfig, seed: int) -> TrainingConfig:
        """The base settings with this variant's over them.

        Raises:
            ValueError: a value of another type or outside its range; the variant is named.
        """
        own = {name: self.settings[name] for name in self.settings if name not in TARGET_SETTINGS}
        try:
            return TrainingConfig.from_json({**base.to_json(), **own, "seed": seed})
        except ValueError as error:
            reason = str(error).removeprefix("TrainingConfig: ")
            raise ValueError(f"variant {self.name!r}: {reason}") from error


def sparsity_variants(
    config: TrainingConfig, sparsities: Sequence[float], *, plain: bool = True
) -> list[Variant]:
    """Variants along the frontier: one per sparsity weight.

    Both the sparsity weight and the specificity weight are relative to the KL. The specificity
    weight therefore grows with the sparsity weight, in the ratio that ``config`` has: otherwise a
    stronger demand for small pathways would also be a weaker one for pathways that do not leak.

    Args:
        config (TrainingConfig): the run's settings.
        sparsities (sequence of float): weights of the kept share, positive and different.
        plain (bool): add the plain objective (specificity 0) at the same weights.

    Returns:
        list of Variant: ``sparsity-W`` for every weight W, then ``plain-sparsity-W``.

    Raises:
        ValueError: no weights or bad ones, or a configuration without a ratio to keep.

    Source: our choice.

    Example:
        >>> [v.settings for v in sparsity_variants(TrainingConfig(), [1, 4], plain=False)]
        [{'sparsity': 1.0, 'specificity': 2.0}, {'sparsity': 4.0, 'specificity': 8.0}]
    """
    weights = [float(value) for value in sparsities]
    usable = all(0 < value < math.inf for value in weights)
    if not weights or not usable or len(set(weights)) != len(weights):
        raise ValueError(f"sparsities must be positive and different, got {list(sparsities)}")
    if not (config.sparsity > 0 and config.specificity > 0):
        raise ValueError(
            "the run's sparsity and specificity must be positive for their ratio to be kept, got "
            f"{config.sparsity:g} and {config.specificity:g}; name settings with --variants"
        )
    ratio = config.specificity / config.sparsity
    names = [f"sparsity-{weight:g}" for weight in weights]
    found = [
        Variant(name, {"sparsity": weight, "specificity": ratio * weight})
        for name, weight in zip(names, weights, strict=True)
    ]
    if plain:
        found += [
            Variant(f"plain-{name}", {"sparsity": weight, "specificity": 0.0})
            for name, weight in zip(names, weights, strict=True)
        ]
    return found


def read_variants(path: str | os.PathLike[str]) -> list[Variant]:
    """Variants of a JSON file: ``{"name": {settings}, ...}``; the first is what others differ from.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, a name twice, or a bad variant.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{path} must name everything once, got {twice[0]!r} twice")
        return dict(pairs)

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no variants file {path}")
    try:
        values = json.loads(Path(path).read_text(), object_pairs_hook=once)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a JSON file ({error})") from error
    if not isinstance(values, dict) or not values:
        raise ValueError(f'{path} must hold {{"name": {{settings}}, ...}}, got {values!r}')
    return [Variant(name, settings) for name, settings in values.items()]

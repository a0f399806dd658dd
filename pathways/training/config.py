"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_KINDS: dict[str, Any] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "dict[str, Any]": dict,
}


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides how a generator is trained.

    Args:
        steps (int): optimiser steps.
        batch_size (int): inputs per step; each costs one clean and two gated passes.
        learning_rate (float): peak of a one-cycle schedule (AdamW).
        weight_decay (float): AdamW's.
        sparsity (float): weight of the kept share, method "loss".
        sparsity_warmup (float): share of the steps over which that weight grows linearly from 0.
        sparsity_mode (str): what the kept share is a mean over: ``"neuron"``, all neurons, as it is
            measured; ``"site"``, every site counting the same whatever its size.
        auxiliary (float): weight of the auxiliary distillation.
        specificity (float): weight of the leak term; 0 leaves it out, and the masks decide.
        blank_share (float): share of the leak term's inputs replaced by blank or noise images.
        mixed_share (float): share of them replaced by means of two inputs of the batch.
        hard_negatives (float): share of inputs that meet the mask of the class that the target
            finds second most likely, where the batch has one, instead of a random other class.
        mask_noise (float): share of the neurons outside of a pathway that are switched on at
            random in the run whose KL is taken, so that a pathway cannot rely on their absence.
        class_share (float): share of inputs whose KL is taken under the pathway of another input of
            the same predicted class, where the batch has one, so that pathways carry over to other
            images of the class.
        told_share (float): for generators that read the target's logits (``reads_logits``): share
            of the leak term in which the mask is made from the foreign input's own features and
            the logits of another input, so that being told a class is not enough to decide it.
            These are not enlarged (``larger_share``).
        larger_share (float): share of the pathways that are run with more neurons than they have,
            by the same ranking, in the KL and in the leak term, so that the order of the neurons
            left out means something. Their size is random, from their own upwards.
        sharpness (float): factor on the target's logits in the KL, positive. Above 1 the pathway is
            asked for a clearer decision than the target's, so that close calls stay as they are;
            the KL of the figures is without.
        class_similarity (float): weight of the similarity within classes, off by default.
        kl_limit (float or None): instead of a fixed weight, "as sparse as possible with KL at most
            this" (nats): a multiplier on the KL rises while the limit is exceeded (dual ascent).
            Not together with ``larger_share`` or ``sharpness``, which make it another KL.
        kl_rate (float): step of that multiplier.
        generator (dict): keyword arguments of :class:`pathways.GenCNP`.
        validation_every (int): steps between validations.
        patience (int or None): validations without improvement before stopping early.
        seed (int): of everything random, from 0 to 2^32 - 1.
        target_bfloat16 (bool): run the target's passes in bfloat16 (autocast); scores, quantiser
            and losses stay in float32. About twice as fast on processors with bfloat16 arithmetic.

    Raises:
        ValueError: a value of another type or outside its range.
    """

    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    sparsity: float = 2.0
    sparsity_warmup: float = 0.2
    sparsity_mode: str = "neuron"
    auxiliary: float = 0.5
    specificity: float = 4.0
    blank_share: float = 0.25
    mixed_share: float = 0.0
    hard_negatives: float = 0.0
    mask_noise: float = 0.0
    class_share: float = 0.25
    told_share: float = 0.5
    larger_share: float = 0.0
    sharpness: float = 1.0
    class_similarity: float = 0.0
    kl_limit: float | None = None
    kl_rate: float = 0.05
    generator: dict[str, Any] = field(default_factory=lambda: {"min_keep": 0.05})
    validation_every: int = 200
    patience: int | None = None
    seed: int = 0
    target_bfloat16: bool = False

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, kind = getattr(self, entry.name), str(entry.type).removesuffix(" | None")
            if value is None and kind != entry.type:
                continue
            if kind in _KINDS and (
                not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) != (kind == "bool"))
            ):
                raise ValueError(f"TrainingConfig: {entry.name} must be {kind}, got {value!r}")
        # A batch of one has no other class, and BatchNorm no variance.
        for name, least in (
            ("steps", 1),
            ("batch_size", 2),
            ("validation_every", 1),
            ("patience", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"TrainingConfig: {name} must be at least {least}, got {value}")
        for name in ("sparsity", "auxiliary", "specificity", "class_similarity", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"TrainingConfig: {name} must not be negative, got {getattr(self, name)}"
                )
        for name in (
            "sparsity_warmup",
            "blank_share",
            "mixed_share",
            "hard_negatives",
            "mask_noise",
            "class_share",
            "told_share",
            "larger_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"TrainingConfig: {name} must be in [0, 1], got {getattr(self, name)}"
                )
        if self.blank_share + self.mixed_share > 1:
            raise ValueError(
                "TrainingConfig: blank_share and mixed_share must be at most 1 together, "
                f"got {self.blank_share} and {self.mixed_share}"
            )
        if self.sparsity_mode not in ("site", "neuron"):
            raise ValueError(
                f"TrainingConfig: sparsity_mode must be site or neuron, got {self.sparsity_mode!r}"
            )
        if not 0 <= self.seed < 2**32:  # as NumPy's generator has it, which is seeded too
            raise ValueError(f"TrainingConfig: seed must be in [0, 2^32), got {self.seed}")
        for name in ("learning_rate", "kl_rate", "kl_limit", "sharpness"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"TrainingConfig: {name} must be positive, got {value}")

        if self.kl_limit is not None and (self.larger_share > 0 or self.sharpness != 1):
            raise ValueError(
                "TrainingConfig: kl_limit needs larger_share 0 and sharpness 1, "
                f"got {self.larger_share} and {self.sharpness}"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build a configuration from a dictionary.

        Raises:
            ValueError: an unknown setting (the known ones are listed), or a value out of range.
        """
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"TrainingConfig: {unknown[0]!r} is not a setting; known are "
                f"{', '.join(sorted(known))}"
            )
        return cls(**values)

"""Settings of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


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
        sparsity_mode (str): ``"site"`` or ``"neuron"``.
        auxiliary (float): weight of the auxiliary distillation.
        specificity (float): weight of the leak term; 0 trains the plain objective, which leaks.
        blank_share (float): share of the leak term's inputs replaced by blank or noise images.
        class_similarity (float): weight of the similarity within classes, off by default.
        kl_limit (float or None): instead of a fixed weight, "as sparse as possible with KL at most
            this" (nats): a multiplier on the KL rises while the limit is exceeded (dual ascent).
        kl_rate (float): step of that multiplier.
        generator (dict): keyword arguments of :class:`pathways.GenCNP`.
        validation_every (int): steps between validations.
        patience (int or None): validations without improvement before stopping early.
        seed (int): of everything random.
        target_bfloat16 (bool): run the target's passes in bfloat16 (autocast); scores, quantiser
            and losses stay in float32. About twice as fast on processors with bfloat16 arithmetic.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    sparsity: float = 1.0
    sparsity_warmup: float = 0.2
    sparsity_mode: str = "site"
    auxiliary: float = 0.5
    specificity: float = 2.0
    blank_share: float = 0.25
    class_similarity: float = 0.0
    kl_limit: float | None = None
    kl_rate: float = 0.05
    generator: dict[str, Any] = field(default_factory=lambda: {"min_keep": 0.1})
    validation_every: int = 200
    patience: int | None = None
    seed: int = 0
    target_bfloat16: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validation_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"TrainingConfig: {name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("sparsity", "auxiliary", "specificity", "class_similarity", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"TrainingConfig: {name} must not be negative, got {getattr(self, name)}"
                )
        for name in ("sparsity_warmup", "blank_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"TrainingConfig: {name} must be in [0, 1], got {getattr(self, name)}"
                )
        if self.sparsity_mode not in ("site", "neuron"):
            raise ValueError(
                f"TrainingConfig: sparsity_mode must be site or neuron, got {self.sparsity_mode!r}"
            )
        if self.learning_rate <= 0 or self.kl_rate <= 0:
            raise ValueError("TrainingConfig: learning_rate and kl_rate must be positive")
        if self.kl_limit is not None and self.kl_limit <= 0:
            raise ValueError(f"TrainingConfig: kl_limit must be positive, got {self.kl_limit}")

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build a configuration from a dictionary.

        Raises:
            ValueError: an unknown setting; the known ones are listed.
        """
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"TrainingConfig: {unknown[0]!r} is not a setting; known are "
                f"{', '.join(sorted(known))}"
            )
        return cls(**values)

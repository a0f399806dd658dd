"""Training of the generator: settings, objective, Lightning module, ``fit``, and data.

:func:`fit` trains into a run folder; :class:`GeneratorTraining` is for your own Trainer.
Both need Lightning and are imported when first used, so that data and settings work without it.
"""

from typing import TYPE_CHECKING, Any

from pathways.training.config import TrainingConfig

if TYPE_CHECKING:
    from pathways.training.fitting import fit
    from pathways.training.module import GeneratorTraining

__all__ = ["GeneratorTraining", "TrainingConfig", "fit"]


def __getattr__(name: str) -> Any:
    try:
        if name == "fit":
            from pathways.training.fitting import fit

            return fit
        if name == "GeneratorTraining":
            from pathways.training.module import GeneratorTraining

            return GeneratorTraining
    except ModuleNotFoundError as error:
        if error.name != "lightning":
            raise
        raise ModuleNotFoundError(
            f"pathways.training.{name} needs Lightning; pip install 'pathways[train]'",
            name=error.name,
        ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

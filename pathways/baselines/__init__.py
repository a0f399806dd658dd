"""Baselines: other ways to choose a pathway, behind the generator's interface.

Every one is made from a target and called like an Explainer. Each is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathways.baselines.activations import ActiveNeurons, TopActivation
    from pathways.baselines.class_agnostic import ClassAgnosticMask
    from pathways.baselines.distillation import DistillationRouting
    from pathways.baselines.effective_path import EffectivePath
    from pathways.baselines.generator_ranking import GeneratorRanking
    from pathways.baselines.greedy import GreedyPruning
    from pathways.baselines.neuron_intgrad import NeuronIntGrad
    from pathways.baselines.neuron_mct import NeuronMCT
    from pathways.baselines.random_pathway import RandomPathway
    from pathways.baselines.scored import ScoredMethod

_MODULES = {
    "ActiveNeurons": "activations",
    "ClassAgnosticMask": "class_agnostic",
    "DistillationRouting": "distillation",
    "EffectivePath": "effective_path",
    "GeneratorRanking": "generator_ranking",
    "GreedyPruning": "greedy",
    "NeuronIntGrad": "neuron_intgrad",
    "NeuronMCT": "neuron_mct",
    "RandomPathway": "random_pathway",
    "ScoredMethod": "scored",
    "TopActivation": "activations",
}

__all__ = [
    "ActiveNeurons",
    "ClassAgnosticMask",
    "DistillationRouting",
    "EffectivePath",
    "GeneratorRanking",
    "GreedyPruning",
    "NeuronIntGrad",
    "NeuronMCT",
    "RandomPathway",
    "ScoredMethod",
    "TopActivation",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Baselines: other ways to choose a pathway, behind the generator's interface."""

from pathways.baselines.class_agnostic import ClassAgnosticMask
from pathways.baselines.random_pathway import RandomPathway

__all__ = ["ClassAgnosticMask", "RandomPathway"]

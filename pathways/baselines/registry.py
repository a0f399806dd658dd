"""Baselines by name, for the command line and for comparisons in one loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pathways.baselines.class_agnostic import ClassAgnosticMask
from pathways.baselines.random_pathway import RandomPathway
from pathways.explainer import Explainer, PathwayMethod


@dataclass(frozen=True)
class BaselineContext:
    """What a baseline may use.

    Args:
        explainer (Explainer): the trained generator that it is compared with, and its target.
        images (Tensor[N, ...]): model inputs to fit on; never those it is measured on.
        seed (int): of everything random.
        progress (callable or None): called with (stage, done, total).
    """

    explainer: Explainer
    images: Tensor
    seed: int = 0
    progress: Callable[[str, int, int], None] | None = None


def _random(context: BaselineContext) -> PathwayMethod:
    return RandomPathway(context.explainer.target, like=context.explainer, seed=context.seed)


def _agnostic(context: BaselineContext) -> PathwayMethod:
    def report(done: int, total: int) -> None:
        if context.progress is not None:
            context.progress("fitting agnostic", done, total)

    # The generator's floor, so that neither wins by collapsing a site.
    floor = context.explainer.generator.config["min_keep"]
    mask = ClassAgnosticMask(context.explainer.target, min_keep=floor)
    return mask.fit(context.images, seed=context.seed, progress=report)


BASELINES: dict[str, Callable[[BaselineContext], PathwayMethod]] = {
    "random": _random,
    "agnostic": _agnostic,
}


def make_baseline(name: str, context: BaselineContext) -> PathwayMethod:
    """Make, and where needed fit, the baseline of a name.

    Args:
        name (str): a key of :data:`BASELINES`: ``"random"`` (neurons drawn by lot, as many at every
            site as the generator keeps) or ``"agnostic"`` (one mask for all inputs, optimised).
        context (BaselineContext): target, images, seed.

    Raises:
        ValueError: unknown name; the known ones are listed.
    """
    check_baselines([name])
    return BASELINES[name](context)


def check_baselines(names: list[str]) -> None:
    """Refuse unknown names before any long work.

    Raises:
        ValueError: unknown name; the known ones are listed.
    """
    for name in names:
        if name not in BASELINES:
            raise ValueError(
                f"baselines must be among {', '.join(sorted(BASELINES))}; got {name!r}"
            )

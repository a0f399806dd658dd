"""Baselines by name, for the command line and for comparisons in one loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pathways import baselines
from pathways.explainer import Explainer, PathwayMethod

_AGNOSTIC_STEPS = 150  # twice as many change its agreement by no more than another seed does
_SIZE_IMAGES = 512  # enough for the mean size to within a few thousandths


@dataclass(frozen=True)
class BaselineContext:
    """What a baseline may use.

    Args:
        explainer (PathwayMethod): what it is compared with, mostly the trained generator's
            Explainer; baselines take its sizes.
        images (Tensor[N, ...]): model inputs to fit on; never those it is measured on.
        seed (int): of everything random.
        progress (callable or None): called with (stage, done, total).
        kept (float or None): share of neurons to keep, the same for every input; None is what the
            generator keeps of that input.
        min_keep (float or None): floor of every site; None is the generator's.
    """

    explainer: PathwayMethod
    images: Tensor
    seed: int = 0
    progress: Callable[[str, int, int], None] | None = None
    kept: float | None = None
    min_keep: float | None = None

    @property
    def floor(self) -> float:
        """The generator's floor, so that neither wins by collapsing a site.

        Raises:
            ValueError: ``explainer`` has no generator, and ``min_keep`` is not given.
        """
        if self.min_keep is not None:
            return self.min_keep
        if not isinstance(self.explainer, Explainer):
            raise ValueError(
                "BaselineContext: min_keep must be given for an explainer without a generator, "
                f"got {type(self.explainer).__name__}"
            )
        return float(self.explainer.generator.config["min_keep"])


@dataclass(frozen=True)
class Baseline:
    """An entry of :data:`BASELINES`.

    Args:
        meaning (str): a few words for lists.
        make (callable): from a context to the method, fitted.
    """

    meaning: str
    make: Callable[[BaselineContext], PathwayMethod]


def _sized(name: str, seeded: bool = False, **settings: Any) -> Any:
    """A class of :mod:`pathways.baselines`, imported when it is made, with the context's size and
    the generator's floor."""

    def make(context: BaselineContext) -> PathwayMethod:
        more: dict[str, Any] = {"seed": context.seed} if seeded else {}
        return getattr(baselines, name)(
            context.explainer.target,
            kept=context.kept,
            like=context.explainer if context.kept is None else None,
            min_keep=context.floor,
            **more,
            **settings,
        )

    return make


def _agnostic(context: BaselineContext) -> PathwayMethod:
    def report(done: int, total: int) -> None:
        if context.progress is not None:
            context.progress("fitting agnostic", done, total)

    kept = context.kept
    if kept is None:
        kept = mean_kept(context.explainer, context.images[:_SIZE_IMAGES])
    mask = baselines.ClassAgnosticMask(context.explainer.target, min_keep=context.floor, kept=kept)
    return mask.fit(context.images, steps=_AGNOSTIC_STEPS, seed=context.seed, progress=report)


def mean_kept(method: PathwayMethod, images: Tensor, batch_size: int = 64) -> float:
    """Mean share of neurons that a method keeps of images ``[N, ...]``, N >= 1; in [0, 1]."""
    device = method.target.device
    batches = images.split(batch_size)
    return float(torch.cat([method(batch.to(device)).pathway.kept() for batch in batches]).mean())


def _active(context: BaselineContext) -> PathwayMethod:
    return baselines.ActiveNeurons(context.explainer.target, kept=context.kept)


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "active": Baseline("all neurons that are active, whatever their number", _active),
        "agnostic": Baseline("one mask for all inputs, optimised", _agnostic),
        "dgr": Baseline(
            "gates optimised for each input, 30 steps", _sized("DistillationRouting", seeded=True)
        ),
        "dgr_pathwaygrad": Baseline(
            "the same with 1000 small steps",
            _sized("DistillationRouting", seeded=True, preset="dgr_pathwaygrad"),
        ),
        "effective": Baseline(
            "inputs that make up most of each neuron, from the logit down", _sized("EffectivePath")
        ),
        "greedy": Baseline("pruned in 100 rounds, scored anew each time", _sized("GreedyPruning")),
        "intgrad": Baseline("integrated gradients, site by site", _sized("NeuronIntGrad")),
        "mct": Baseline("contributions to the logit, by one gradient", _sized("NeuronMCT")),
        "random": Baseline("neurons drawn by lot", _sized("RandomPathway", seeded=True)),
        "topk": Baseline("largest activations at every site", _sized("TopActivation")),
    }
)
"""Every baseline by its name on the command line. Unless a size is given they take the generator's,
input by input (``agnostic`` the mean, ``active`` its own): over all sites together, ``random`` and
``topk`` at every site."""


def make_baseline(name: str, context: BaselineContext) -> PathwayMethod:
    """Make, and where needed fit, the baseline of a name.

    Args:
        name (str): a key of :data:`BASELINES`.
        context (BaselineContext): target, images, seed.

    Raises:
        ValueError: unknown name; the known ones are listed.
    """
    check_baselines([name])
    return BASELINES[name].make(context)


def make_sizes(
    name: str, context: BaselineContext, kept: Sequence[float]
) -> dict[str, PathwayMethod]:
    """A baseline at the generator's size and at others, as ``NAME@SIZE``.

    Rankings of an input are made once for all sizes, where they do not depend on the size. The name
    ``"generator"`` gives its ranking at those sizes.

    Args:
        name (str): ``"generator"`` or a key of :data:`BASELINES`.
        context (BaselineContext): target, images, seed.
        kept (sequence of float): shares of neurons, in [0, 1].

    Raises:
        ValueError: unknown name, or a share outside [0, 1].
    """
    methods: dict[str, PathwayMethod] = {}
    if name == "generator":
        if not isinstance(context.explainer, Explainer):
            raise ValueError(
                "make_sizes: generator must be an Explainer, "
                f"got {type(context.explainer).__name__}"
            )
        first: Any = baselines.GeneratorRanking(
            context.explainer, like=context.explainer, min_keep=context.floor
        )
    else:
        methods[name] = first = make_baseline(name, context)
    for share in kept:
        if hasattr(first, "resized"):
            other = first.resized(share)
        else:
            other = make_baseline(name, replace(context, kept=share))
        methods[f"{name}@{share:g}"] = other
    return methods


def check_baselines(names: list[str]) -> None:
    """Refuse unknown names, and names given twice, before any long work.

    Raises:
        ValueError: such a name; the known ones are listed.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"baselines must be named once each, got {name!r} twice")
        if name not in BASELINES:
            raise ValueError(
                f"baselines must be among {', '.join(sorted(BASELINES))}; got {name!r}"
            )

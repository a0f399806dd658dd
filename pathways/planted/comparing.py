"""Every pathway method on a planted net: what it finds of the truth, and how much it leaks."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pathways.baselines.random_pathway import RandomPathway
from pathways.baselines.registry import BASELINES, BaselineContext, make_baseline
from pathways.baselines.scored import class_threshold
from pathways.class_pathways import ClassPathways
from pathways.evaluation import blank_hit, recovery, transfer, wrong_class
from pathways.explainer import Explainer, Explanation, PathwayMethod
from pathways.packing import top_k_mask
from pathways.pathway import Pathway
from pathways.planted.planting import Planted
from pathways.sites import Sites
from pathways.target import GatedTarget
from pathways.training.config import TrainingConfig

Progress = Callable[[str, int, int], None]
TRUTH, GENERATOR, PLAIN = "truth", "generator", "generator_plain"
METHODS: Mapping[str, str] = MappingProxyType(
    {
        GENERATOR: "the generator, trained with the leak term",
        PLAIN: "the same without the leak term: the control",
        **{name: baseline.meaning for name, baseline in BASELINES.items()},
    }
)
"""Methods by name, and what they are."""
# A thousand steps per image take minutes, for what thirty steps show.
DEFAULT_METHODS = tuple(name for name in METHODS if name != "dgr_pathwaygrad")
STEPS = 1000
TRAINING: Mapping[str, Any] = MappingProxyType(
    {
        "batch_size": 32,
        "learning_rate": 5e-3,
        "sparsity": 1.5,
        "sparsity_mode": "site",
        "sparsity_warmup": 0.6,
        "specificity": 4.0,
        "generator": {"min_keep": 0.0, "start": 2.0},
    }
)
"""Settings of the generators that differ from the defaults, found on the net of seed 0. Circuits
have as little as one channel at a site, and a floor would add to it."""
# Blank images have one grey level each; no method sees any of them before it is measured.
GREY_LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Score:
    """What one method finds on a planted net; all but ``seconds`` in [0, 1], NaN where unmeasured.

    Args:
        recall (float): share of the circuit that is in the pathway. Higher is better.
        precision (float): share of the pathway that is in the circuit. Higher is better.
        f1 (float): harmonic mean of the two. Higher is better.
        ranked (float): recall of the most important neurons, as many as the circuit has: methods of
            different sizes at equal size. Higher is better.
        agreement (float): share of inputs whose prediction stays. Higher is better.
        kept (float): share of the channels kept; the truth's is what is needed.
        flip (float): inputs that take another class under its pathway. Lower is better.
        blank_hit (float): blank images predicted as the class of the pathway; the net itself
            predicts none. Lower is better.
        transfer (float): agreement of new inputs under class pathways of one input each (j = 1).
            Higher is better.
        roles (dict): share of the channels of each role that is kept, see
            :meth:`Planted.role_masks`.
        seconds (float): training, fitting and explaining.
    """

    recall: float
    precision: float
    f1: float
    ranked: float
    agreement: float
    kept: float
    flip: float
    blank_hit: float
    transfer: float
    roles: dict[str, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary; NaN becomes None."""
        values = asdict(self)
        values["roles"] = _plain(values["roles"])
        return _plain(values)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


class TrueCircuit:
    """The method that knows: the circuit of the predicted class, nothing for "nothing".

    Args:
        net (Planted): the net.
        target (GatedTarget): made by ``net.target()``.

    Example:
        >>> from pathways.planted import planted
        >>> net = planted(2, train=0, test=3)
        >>> TrueCircuit(net, net.target())(net.images.test).pathway.sizes().tolist()
        [10, 10, 10]
    """

    def __init__(self, net: Planted, target: GatedTarget) -> None:
        self.target = target
        self.circuits = torch.cat([net.truth, torch.zeros_like(net.truth[:1])])
        self._fingerprint = target.fingerprint

    @property
    def sites(self) -> Sites:
        """The target's sites."""
        return self.target.sites

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Explanation:
        """Explain a batch ``[N, 1, H, W]``."""
        logits = self.target(images)
        mask = self.circuits[logits.argmax(1)]
        pathway = Pathway.from_mask(mask, self.sites, self._fingerprint)
        return Explanation(logits, self.target.gated(images, mask), mask.float(), pathway)


def check_methods(names: Sequence[str]) -> None:
    """Refuse unknown methods before any long work.

    Raises:
        ValueError: none, one twice, or an unknown one; the known ones are listed.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names or len(set(names)) < len(names):
        got = repr(unknown[0]) if unknown else f"{', '.join(names) or 'none'}"
        raise ValueError(f"methods must be distinct and among {', '.join(METHODS)}; got {got}")


def compare(
    net: Planted,
    methods: Sequence[str] = DEFAULT_METHODS,
    *,
    steps: int = STEPS,
    kept: float | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Score]:
    """Measure methods on a planted net.

    Generators are trained on the training images and have the size they choose. Baselines keep as
    many channels of every input as its circuit has, or the share ``kept``, at least one at every
    site; ``random`` and ``topk`` as many at every site, ``agnostic`` the mean. ``active`` has a
    size of its own. Class pathways come from the first half of the test images and are measured on
    the rest.

    Args:
        net (Planted): with at least 2 training and 4 test images.
        methods (sequence of str): keys of :data:`METHODS`.
        steps (int): training steps of each generator.
        kept (float or None): share of the channels that baselines keep, in [0, 1]; None is the size
            of the circuit.
        settings (mapping or None): other settings of the training
            (:class:`pathways.training.TrainingConfig`).
        batch_size (int): inputs per run.
        seed (int): of training, baselines and controls.
        progress (callable or None): called with (stage, done, total).

    Returns:
        dict of Score: ``"truth"`` first, the reference, then the methods in their order.

    Raises:
        ValueError: unknown method, too few images, a share outside [0, 1], or bad settings.

    Source: our choice, method section "recommended test oracles" (planted circuits).

    Example:
        >>> from pathways.planted import planted
        >>> scores = compare(planted(2, train=2, test=8), ["random"])
        >>> scores["truth"].recall, scores["truth"].flip, scores["random"].recall < 0.7
        (1.0, 0.0, True)
    """
    check_methods(methods)
    if len(net.images.train) < 2 or len(net.images.test) < 4:
        raise ValueError(
            "compare: net must have at least 2 training and 4 test images, "
            f"got {len(net.images.train)} and {len(net.images.test)}"
        )
    given = {**TRAINING, **(settings or {}), "steps": steps, "seed": seed}
    with_leak_term = TrainingConfig.from_json(given)
    configs = {GENERATOR: with_leak_term, PLAIN: replace(with_leak_term, specificity=0.0)}
    target = net.target()
    oracle = TrueCircuit(net, target)
    sized = oracle if kept is None else RandomPathway(target, kept=kept)
    context = BaselineContext(sized, net.images.train, seed, progress, min_keep=0.0)
    scores: dict[str, Score] = {}
    for name in (TRUTH, *methods):
        if progress is not None:
            progress(f"measuring  {name}", len(scores), len(methods) + 1)
        started = time.perf_counter()
        if name == TRUTH:
            method: PathwayMethod = oracle
        elif name in configs:
            method = _trained(target, net.images.train, configs[name], name, progress)
        else:
            method = make_baseline(name, context)
        parts = [method(batch) for batch in net.images.test.split(batch_size)]
        explained = Explanation.cat(parts)
        seconds = time.perf_counter() - started
        scores[name] = _score(net, method, explained, batch_size, seed, seconds)
    if progress is not None:
        progress("measuring", len(scores), len(scores))
    return scores


def _trained(
    target: GatedTarget,
    images: Tensor,
    config: TrainingConfig,
    name: str,
    progress: Progress | None,
) -> Explainer:
    from pathways.run_training import TrainingProgress
    from pathways.training import fit

    def report(stage: str, done: int, total: int) -> None:
        assert progress is not None
        progress(f"{name}: {stage}", done, total)

    callbacks = [] if progress is None else [TrainingProgress(report)]
    # What a training leaves for others to resume is of no use here.
    with tempfile.TemporaryDirectory(prefix="pathways-") as folder:
        generator = fit(target, images, folder, config, progress=False, callbacks=callbacks)
    return Explainer(target, generator)


def _score(
    net: Planted,
    method: PathwayMethod,
    explained: Explanation,
    batch_size: int,
    seed: int,
    seconds: float,
) -> Score:
    target, images = method.target, net.images.test
    # An image that the net takes for "nothing" has no circuit to be found.
    known = (explained.predictions < net.num_classes).nonzero().squeeze(1)
    labels = explained.predictions[known]
    found = recovery(
        explained.pathway[known],
        labels,
        net.truth,
        alternative=net.backup,
        roles=net.role_masks(),
    )
    best = top_k_mask(explained.importance[known], net.truth.sum(1)[labels])
    ranked = recovery(best, labels, net.truth, alternative=net.backup)
    half = len(images) // 2
    support, support_predictions = explained.pathway[:half], explained.predictions[:half]
    threshold = class_threshold(method)
    classes = ClassPathways.from_pathways(
        support, support_predictions, threshold, target.num_classes
    )
    query, query_logits = images[half:], explained.logits[half:]
    wrong = wrong_class(target, query, query_logits, classes, batch_size=batch_size, seed=seed)
    levels = torch.tensor(GREY_LEVELS).view(-1, 1, 1, 1)
    blanks = levels.expand(-1, *images.shape[1:]).contiguous()
    (one_shot,) = transfer(
        target,
        support,
        support_predictions,
        query,
        query_logits,
        shots=(1,),
        threshold=threshold,
        batch_size=batch_size,
        seed=seed,
    )
    agreement = explained.gated_predictions == explained.predictions
    return Score(
        recall=found.recall,
        precision=found.precision,
        f1=found.f1,
        ranked=ranked.recall,
        agreement=float(agreement.double().mean()),
        kept=float(explained.pathway.kept().double().mean()),
        flip=wrong.flip,
        blank_hit=blank_hit(target, classes, blanks, batch_size).rate,
        transfer=one_shot.own.agreement,
        roles=found.roles,
        seconds=seconds,
    )

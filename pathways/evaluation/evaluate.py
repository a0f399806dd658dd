"""One call that measures a pathway method: faithfulness, transfer and leak controls together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pathways.class_pathways import ClassPathways
from pathways.evaluation import leak, metrics
from pathways.evaluation.blanks import default_blanks, unseen_blanks
from pathways.evaluation.map_faithfulness import MAP_IMAGES, map_faithfulness
from pathways.evaluation.probe import mask_probe
from pathways.evaluation.result import Evaluation
from pathways.evaluation.runs import Progress, explain_batches
from pathways.evaluation.stability import core_transfer, stability
from pathways.evaluation.sweeps import RANKING_IMAGES, SweepMeter
from pathways.evaluation.timing import milliseconds_per_image
from pathways.evaluation.told import told_control
from pathways.evaluation.transfer import SHOTS, transfer
from pathways.explainer import Explanation, PathwayMethod

# More wrong classes per input than this add time, not precision.
WRONG_CLASSES = 9


def evaluate(
    explainer: PathwayMethod,
    images: Tensor,
    labels: Tensor | None,
    *,
    blanks: Tensor | None = None,
    unseen: Tensor | None = None,
    support: Tensor | tuple[Tensor, Tensor] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    shots: Sequence[int] = SHOTS,
    threshold: float = 0.5,
    wrong_classes: int | None = WRONG_CLASSES,
    ranking_images: int | None = RANKING_IMAGES,
    map_images: int = MAP_IMAGES,
    timing: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a pathway method on a data set.

    Figures of single inputs (agreement, KL, mIC, mDC, kept, acIOU, mask swap, told, probe, random)
    use ``images``. Figures of class pathways (transfer, wrong class, blanks) build them from the
    support inputs only and measure on the query inputs only: with ``support``, all of ``images``
    are query; without, the first half of ``images`` is support and the rest query, so shuffle
    sorted data first. Everything is by the target's predicted class; labels serve accuracy alone.
    Figures that take many runs per input (ranking curve, necessity, minimality, another ablation
    value) use the first ``ranking_images`` of ``images``; ``settings`` of the result says how many
    each. Insertion, deletion and ROAD of pathway gradient and Grad-CAM use the first
    ``map_images``, with 90 runs per input, a third of them for the control, a random map.

    Times are medians over batches of ``batch_size`` divided by the inputs in the batch, see
    :func:`pathways.evaluation.timing.milliseconds_per_image`: the target forward is
    ``target(images)``; the explanation is the clean forward that records features, the generator,
    and the quantised mask, without the gated run that only measures. A method without those parts
    is timed as a whole.

    Args:
        explainer (PathwayMethod): a generator's Explainer or any baseline.
        images (Tensor[N, ...]): model inputs, N >= 2; on any device, moved batch by batch.
        labels (Tensor[N], int64, or None): true classes; None makes the accuracies NaN.
        blanks (Tensor[B, ...] or None): constant model inputs for the blank hit; None makes three
            from the range of ``images`` (:func:`pathways.evaluation.default_blanks`).
        unseen (Tensor[B, ...] or None): content-free model inputs of kinds that the method was not
            trained on; None makes them (:func:`pathways.evaluation.unseen_blanks`).
        support (Tensor, (Tensor, Tensor) or None): separate support inputs; labels beside them are
            not needed and not used.
        batch_size (int): at least 1.
        seed (int): of everything random.
        shots (sequence of int): support inputs per class on the transfer curve.
        threshold (float): frequency threshold of class pathways.
        wrong_classes (int or None): other classes tried per input; None is all.
        ranking_images (int or None): inputs of the figures that take many runs; None is all, 0
            leaves them NaN.
        map_images (int): inputs whose maps are measured; 0 leaves the figures NaN. They are NaN
            also for inputs that are not images ``[N, C, H, W]`` and for targets through which no
            gradient passes.
        timing (bool): measure times, which takes some more explanations; without, they are NaN.
        progress (callable or None): called with (stage, inputs done, inputs in all).

    Returns:
        Evaluation: every figure as a fraction, with its pieces; figures without data are NaN.

    Raises:
        ValueError: too few inputs, sizes that do not fit, or a bad batch size.
    """
    _check(images, labels, batch_size, map_images)
    target = explainer.target
    if support is None:
        half = len(images) // 2
        support_images = images[:half]
    else:
        support_images = support[0] if isinstance(support, tuple) else support
    if len(support_images) == 0:
        raise ValueError("evaluate: support must hold at least one input, got none")
    report = _Stages(progress)

    sweep_meter = SweepMeter(target, ranking_images)
    explained = _explain(explainer, images, batch_size, report, "explaining", sweep_meter)
    predictions = explained.predictions
    single = _single_input(explained, labels, target.num_classes, seed)

    if support is None:
        source, query = slice(0, half), slice(half, None)
        support_pathway, support_predictions = explained.pathway[source], predictions[source]
    else:
        query = slice(None)
        other = _explain(explainer, support_images, batch_size, report, "explaining support")
        support_pathway, support_predictions = other.pathway, other.predictions
    query_images, query_logits = images[query], explained.logits[query]
    class_pathways = ClassPathways.from_pathways(
        support_pathway, support_predictions, threshold, target.num_classes
    )

    report("transfer", 0, len(query_images))
    curve = transfer(
        target,
        support_pathway,
        support_predictions,
        query_images,
        query_logits,
        instance=_rows(explained, query),
        shots=(*shots, None),
        threshold=threshold,
        batch_size=batch_size,
        seed=seed,
    )
    certified = stability(class_pathways)
    core, possible = core_transfer(
        target, certified, query_images, query_logits, batch_size=batch_size
    )
    report("wrong classes", 0, len(query_images))
    wrong = leak.wrong_class(
        target,
        query_images,
        query_logits,
        class_pathways,
        classes_per_image=wrong_classes,
        batch_size=batch_size,
        seed=seed,
    )
    if blanks is None:
        blanks = default_blanks(images)
    if unseen is None:
        unseen = unseen_blanks(images, seed=seed)
    blank = leak.blank_hit(target, class_pathways, blanks, batch_size)
    blank_unseen = leak.blank_hit(target, class_pathways, unseen, batch_size)
    report("instance controls", 0, len(images))
    rows = (images, explained.pathway, predictions)
    swap = leak.mask_swap_flip(target, *rows, batch_size=batch_size, seed=seed)
    agreement_at_random = leak.random_agreement(target, *rows, batch_size=batch_size, seed=seed)
    probe = mask_probe(explained.pathway, predictions, seed=seed)
    told = told_control(
        explainer, images, explained.logits, blanks, unseen, batch_size=batch_size, seed=seed
    )
    report("sweeps", 0, sweep_meter.seen)
    sweeps = sweep_meter.finish(images, explained, support_images, batch_size, seed)
    report("maps", 0, min(map_images, len(images)))
    maps = map_faithfulness(
        explainer,
        images,
        explained,
        kinds=("gradient", "grad_cam", "random"),
        max_images=map_images,
        batch_size=batch_size,
        seed=seed,
    )
    gradient = maps["gradient"]
    forward_ms = explanation_ms = float("nan")
    if timing:
        report("timing", 0, len(images))
        forward_ms, explanation_ms = milliseconds_per_image(explainer, images, batch_size)
    report("done", len(images), len(images))

    return Evaluation(
        **single,
        **sweeps.figures(),
        transfer_agreement=curve[-1].own.agreement,
        transfer_kept=curve[-1].own.kept,
        stability=certified.stability,
        core_agreement=core.agreement,
        random_agreement=agreement_at_random,
        wrong_class_flip=wrong.flip,
        wrong_class_probability=wrong.probability,
        blank_hit=blank.rate,
        blank_hit_unseen=blank_unseen.rate,
        mask_swap_flip=swap,
        told_flip=told.flip,
        told_runner_up_flip=told.runner_up_flip,
        told_blank_hit=told.blank_hit,
        mask_probe_accuracy=probe.accuracy,
        insertion=gradient.insertion,
        deletion=gradient.deletion,
        insertion_minus_deletion=gradient.insertion_minus_deletion,
        random_insertion_minus_deletion=maps["random"].insertion_minus_deletion,
        road=gradient.road,
        grad_cam_insertion_minus_deletion=maps["grad_cam"].insertion_minus_deletion,
        grad_cam_road=maps["grad_cam"].road,
        ms_per_explanation=explanation_ms,
        ms_per_target_forward=forward_ms,
        class_pathways=class_pathways,
        transfer=curve,
        wrong_class=wrong,
        blanks=blank,
        blanks_unseen=blank_unseen,
        certified=certified,
        core=core,
        possible=possible,
        sweeps=sweeps,
        maps=maps,
        probe=probe,
        told=told,
        predictions=predictions,
        settings={
            "images": len(images),
            "support": len(support_images),
            "query": len(query_images),
            "separate_support": support is not None,
            "batch_size": batch_size,
            "seed": seed,
            "threshold": threshold,
            "wrong_classes": wrong_classes,
            "ranking_images": sweep_meter.seen,
            "minimality_images": sweeps.minimality_images,
            "map_images": maps["random"].images,
            "blanks": len(blanks),
            "unseen_blanks": len(unseen),
            "device": str(target.device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "fingerprint": explained.pathway.fingerprint,
        },
    )


class _Stages:
    """Passes progress on, if anyone listens."""

    def __init__(self, progress: Callable[[str, int, int], None] | None) -> None:
        self.progress = progress

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)


def _check(images: Tensor, labels: Tensor | None, batch_size: int, map_images: int) -> None:
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}")
    if map_images < 0:
        raise ValueError(f"evaluate: map_images must not be negative, got {map_images}")
    if len(images) < 2:
        raise ValueError(f"evaluate: images must hold at least two inputs, got {len(images)}")
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"evaluate: labels must be [{len(images)}], got {tuple(labels.shape)}")


def _explain(
    explainer: PathwayMethod,
    images: Tensor,
    batch_size: int,
    report: _Stages,
    stage: str,
    sweep_meter: SweepMeter | None = None,
) -> Explanation:
    report(stage, 0, len(images))
    return explain_batches(
        explainer,
        images,
        batch_size,
        explained=None if sweep_meter is None else sweep_meter.update,
        progress=lambda done: report(stage, done, len(images)),
    )


def _rows(explained: Explanation, rows: slice) -> Explanation:
    return Explanation(
        explained.logits[rows],
        explained.gated_logits[rows],
        explained.importance[rows],
        explained.pathway[rows],
    )


def _single_input(
    explained: Explanation, labels: Tensor | None, num_classes: int, seed: int
) -> dict[str, Any]:
    """Fields of :class:`Evaluation` that need no class pathway."""
    logits, gated, pathway = explained.logits, explained.gated_logits, explained.pathway
    by_class = {
        "agreement": metrics.Agreement(num_classes),
        "kl": metrics.PathwayKL(num_classes),
        "mic": metrics.IncreaseInConfidence(num_classes),
        "mdc": metrics.DropInConfidence(num_classes),
        "mdc_unnormalized": metrics.DropInConfidence(num_classes, normalized=False),
    }
    for metric in by_class.values():
        metric.update(logits, gated)
    micro = {name: float(metric.compute()) for name, metric in by_class.items()}
    per_class = {name: metric.per_class() for name, metric in by_class.items()}
    kept = metrics.Kept(pathway.sites)
    kept.update(pathway)
    share = kept.compute()
    similarity = metrics.ClassIoU(pathway.sites, num_classes, seed=seed)
    similarity.update(pathway, explained.predictions)
    iou = similarity.compute()
    accuracy = {"clean": float("nan"), "gated": float("nan"), "ratio": float("nan")}
    if labels is not None:
        accuracy_metric = metrics.AccuracyKept()
        accuracy_metric.update(logits, gated, labels.cpu())
        accuracy = {name: float(value) for name, value in accuracy_metric.compute().items()}
    per_class["kept"] = torch.stack(
        [_mean(pathway.kept()[explained.predictions == c]) for c in range(num_classes)]
    )
    per_class["iou"] = iou["per_class"]
    return {
        "target_accuracy": accuracy["clean"],
        "agreement": micro["agreement"],
        "kl": micro["kl"],
        "mic": micro["mic"],
        "mdc": micro["mdc"],
        "kept": float(share["mean"]),
        "kept_std": float(share["std"]),
        "aciou": float(iou["aciou"]),
        "aciou_corrected": float(iou["aciou_corrected"]),
        "between_class_iou": float(iou["between_class_iou"]),
        "mdc_unnormalized": micro["mdc_unnormalized"],
        "aciou_chance": float(iou["chance"]),
        "accuracy": accuracy,
        "macro": {name: float(values.nanmean()) for name, values in per_class.items()},
        "per_class": per_class,
        "class_overlap": iou["matrix"],
        "kept_per_site": share["per_site"].reshape(-1),  # a metric makes a number of one site
    }


def _mean(values: Tensor) -> Tensor:
    return values.double().mean()

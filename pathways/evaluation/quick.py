"""The figures that tell pathways apart when many methods or settings are compared; no sweeps."""

from __future__ import annotations

import math

from torch import Tensor

from pathways.class_pathways import ClassPathways
from pathways.evaluation import leak, metrics
from pathways.evaluation.blanks import unseen_blanks
from pathways.evaluation.evaluate import WRONG_CLASSES
from pathways.evaluation.runs import explain_batches, gated_logits
from pathways.evaluation.told import told_control
from pathways.evaluation.transfer import scores
from pathways.explainer import PathwayMethod

QUICK = (
    "kept",
    "agreement",
    "kl",
    "mdc",
    "wrong_class_flip",
    "mask_swap_flip",
    "blank_hit",
    "blank_hit_unseen",
    "transfer_agreement",
    "aciou_corrected",
)
# Besides, where a generator reads the logits.
TOLD = ("told_flip", "told_runner_up_flip", "told_blank_hit")


def quick_figures(
    method: PathwayMethod,
    images: Tensor,
    *,
    blanks: Tensor,
    threshold: float = 0.5,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """Size, faithfulness, transfer and leaks of a pathway method, in about a dozen runs per input.

    Every figure equals the one of the same name that :func:`pathways.evaluation.evaluate` finds for
    these inputs, blanks and seed, at about a tenth of its time: the first half of ``images`` makes
    the class pathways, the rest measures them, so shuffle sorted data first.

    Args:
        method (PathwayMethod): explainer or baseline.
        images (Tensor[N, ...]): model inputs, N >= 2; on any device, moved batch by batch.
        blanks (Tensor[B, ...]): constant model inputs for the blank hit.
        threshold (float): frequency threshold of class pathways, in [0, 1].
        batch_size (int): at least 1.
        seed (int): of everything random.

    Returns:
        dict of float: the figures named in ``QUICK``, fractions (``kl``: nats); NaN without data.
            Those named in ``TOLD`` besides, where a generator reads the logits.

    Raises:
        ValueError: fewer than two inputs, no blanks, or a bad batch size.

    Source: see the metrics themselves.
    """
    if len(images) < 2:
        raise ValueError(f"quick_figures: images must hold at least two inputs, got {len(images)}")
    if batch_size < 1:
        raise ValueError(f"quick_figures: batch_size must be at least 1, got {batch_size}")
    target = method.target
    explained = explain_batches(method, images, batch_size)
    logits, gated, pathway = explained.logits, explained.gated_logits, explained.pathway
    predictions = explained.predictions
    own = scores(logits, gated, pathway)
    divergence = metrics.PathwayKL()
    divergence.update(logits, gated)
    size = metrics.Kept(pathway.sites)
    size.update(pathway)
    similarity = metrics.ClassIoU(pathway.sites, target.num_classes, seed=seed)
    similarity.update(pathway, predictions)

    half = len(images) // 2
    classes = ClassPathways.from_pathways(
        pathway[:half], predictions[:half], threshold, target.num_classes
    )
    wrong = leak.wrong_class(
        target,
        images[half:],
        logits[half:],
        classes,
        classes_per_image=WRONG_CLASSES,
        batch_size=batch_size,
        seed=seed,
    )
    # Query inputs of classes without a support input have no class pathway.
    covered = half + (classes.counts[predictions[half:]] > 0).nonzero().squeeze(1)
    shared = classes.for_predictions(predictions[covered])
    transferred = gated_logits(target, images[covered], shared, batch_size)
    unseen = unseen_blanks(images, seed=seed)
    told = told_control(method, images, logits, blanks, unseen, batch_size=batch_size, seed=seed)
    figures = {
        "kept": float(size.compute()["mean"]),
        "agreement": own.agreement,
        "kl": float(divergence.compute()),
        "mdc": own.mdc,
        "wrong_class_flip": wrong.flip,
        "mask_swap_flip": leak.mask_swap_flip(
            target, images, pathway, predictions, batch_size=batch_size, seed=seed
        ),
        "blank_hit": leak.blank_hit(target, classes, blanks, batch_size).rate,
        "blank_hit_unseen": leak.blank_hit(target, classes, unseen, batch_size).rate,
        "transfer_agreement": scores(logits[covered], transferred, shared).agreement,
        "aciou_corrected": float(similarity.compute()["aciou_corrected"]),
    }
    if not math.isnan(told.flip):
        values = (told.flip, told.runner_up_flip, told.blank_hit)
        figures |= dict(zip(TOLD, values, strict=True))
    return figures

"""Faithfulness metrics of pathways, as torchmetrics that reduce across batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from pathways.evaluation.class_iou import ClassIoU
from pathways.pathway import Pathway
from pathways.sites import Sites

__all__ = [
    "AccuracyKept",
    "Agreement",
    "ClassIoU",
    "DropInConfidence",
    "IncreaseInConfidence",
    "Kept",
    "PathwayKL",
]

AVERAGES = ("micro", "macro")


class LogitsMetric(Metric):
    """Mean over inputs of a number that clean and gated logits give for each of them.

    Sums and counts are kept per predicted class in float64 and int64, so that batches, metric
    objects and processes can be split in any way.

    Args:
        num_classes (int or None): K; needed for ``average="macro"`` and :meth:`per_class`.
        average (str): ``"micro"``, mean over inputs; ``"macro"``, mean over the predicted classes
            of the class means, empty classes left out.

    Raises:
        ValueError: unknown average, or macro without the number of classes.
    """

    full_state_update = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(
        self, num_classes: int | None = None, average: str = "micro", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if average not in AVERAGES:
            raise ValueError(
                f"{type(self).__name__}: average must be one of {', '.join(AVERAGES)}, "
                f"got {average!r}"
            )
        if average == "macro" and num_classes is None:
            raise ValueError(f"{type(self).__name__}: average='macro' needs num_classes, got None")
        self.num_classes = num_classes
        self.average = average
        rows = num_classes or 1
        self.add_state("total", torch.zeros(rows, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(rows, dtype=torch.int64), dist_reduce_fx="sum")

    def values(self, logits: Tensor, gated_logits: Tensor) -> Tensor:
        """The number of each input, float64 ``[N]``."""
        raise NotImplementedError

    def update(self, logits: Tensor, gated_logits: Tensor) -> None:
        """Add a batch.

        Args:
            logits (Tensor[N, K]): clean logits, floating.
            gated_logits (Tensor[N, K]): logits of the gated run.

        Raises:
            ValueError: shapes that differ, or another number of classes.
        """
        _check_logits(type(self).__name__, logits, gated_logits, self.num_classes)
        values = self.values(logits, gated_logits)
        classes = logits.argmax(1) if self.num_classes else logits.new_zeros(len(logits)).long()
        self.total = self.total.index_add(0, classes, values)
        self.count = self.count + torch.bincount(classes, minlength=len(self.count))

    def compute(self) -> Tensor:
        """The mean, float64; NaN without inputs."""
        if self.average == "micro":
            return self.total.sum() / self.count.sum()
        return self.per_class()[self.count > 0].mean()

    def per_class(self) -> Tensor:
        """Mean of each predicted class, float64 ``[K]``; NaN for classes without inputs."""
        return self.total / self.count


class Agreement(LogitsMetric):
    """Share of inputs whose gated prediction is the clean one.

    Higher is better, in [0, 1]. Sensitive to how much is kept: a full pathway scores 1, and so does
    a pathway that writes the class instead of letting the image decide (see the leak controls).

    Source: method section "metrics"; the usual fidelity of a surrogate.

    Example:
        >>> metric = Agreement()
        >>> metric.update(torch.tensor([[2.0, 0], [2, 0]]), torch.tensor([[1.0, 0], [0, 1]]))
        >>> metric.compute().item()
        0.5
    """

    higher_is_better = True

    def values(self, logits: Tensor, gated_logits: Tensor) -> Tensor:
        return (logits.argmax(1) == gated_logits.argmax(1)).double()


class PathwayKL(LogitsMetric):
    """KL(softmax(clean) || softmax(gated)), mean over inputs, in nats.

    Lower is better, in [0, inf); 0 for a full pathway. Sensitive to confidence: a few inputs with
    opposite confident predictions dominate the mean.

    Source: the distillation term of arXiv:2309.09887.
    """

    higher_is_better = False

    def values(self, logits: Tensor, gated_logits: Tensor) -> Tensor:
        log_p = logits.double().log_softmax(1)
        log_o = gated_logits.double().log_softmax(1)
        # Rounding can leave a sum of zero terms slightly below zero.
        return (log_p.exp() * (log_p - log_o)).sum(1).clamp_min(0.0)


class IncreaseInConfidence(LogitsMetric):
    """mIC: share of inputs whose predicted class becomes more probable under the pathway.

    With p the clean and o the gated softmax probability of the clean prediction, the mean of
    ``[log o > log p + tolerance]``. Higher is better, in [0, 1]; a full pathway scores 0, so report
    it with the share kept. Sensitive to saturation: for p close to 1 the plain comparison of
    probabilities is decided by rounding, therefore logarithms and a tolerance. Networks that are
    made more confident by pruning inflate it.

    Args:
        num_classes (int or None): K; needed for macro.
        average (str): ``"micro"`` (mean over images) or ``"macro"`` (mean over classes).
        tolerance (float): increase of the log-probability that still counts as none, >= 0.

    Source: Chattopadhay et al. (Grad-CAM++, arXiv:1710.11063) section 5; for pathways
    arXiv:2309.09887, whose exact reading of "m" is not public, hence both averages.

    Example:
        >>> metric = IncreaseInConfidence()
        >>> metric.update(torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.9, 0.1]]).log())
        >>> metric.compute().item()
        1.0
    """

    higher_is_better = True

    def __init__(
        self,
        num_classes: int | None = None,
        average: str = "micro",
        tolerance: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, average, **kwargs)
        if tolerance < 0:
            raise ValueError(
                f"IncreaseInConfidence: tolerance must not be negative, got {tolerance}"
            )
        self.tolerance = tolerance

    def values(self, logits: Tensor, gated_logits: Tensor) -> Tensor:
        log_p, log_o = confidences(logits, gated_logits)
        return (log_o > log_p + self.tolerance).double()


class DropInConfidence(LogitsMetric):
    """mDC: how much probability of the predicted class is lost under the pathway.

    With p the clean and o the gated softmax probability of the clean prediction, the mean of
    ``max(0, p - o) / p``, or of ``max(0, p - o)`` with ``normalized=False`` (the divisor of the
    paper is not public). Lower is better, in [0, 1]; a full pathway scores 0, so report it with the
    share kept. Sensitive to the temperature of the target's softmax.

    Args:
        num_classes (int or None): K; needed for macro.
        average (str): ``"micro"`` (mean over images) or ``"macro"`` (mean over classes).
        normalized (bool): divide by p.

    Source: Average Drop of Chattopadhay et al. (Grad-CAM++, arXiv:1710.11063) section 5; for
    pathways arXiv:2309.09887.

    Example:
        >>> metric = DropInConfidence()
        >>> metric.update(torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log())
        >>> round(metric.compute().item(), 6)
        0.5
    """

    higher_is_better = False

    def __init__(
        self,
        num_classes: int | None = None,
        average: str = "micro",
        normalized: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, average, **kwargs)
        self.normalized = normalized

    def values(self, logits: Tensor, gated_logits: Tensor) -> Tensor:
        log_p, log_o = confidences(logits, gated_logits)
        # 1 - o/p from the difference of logarithms: exact where p and o are both close to 0 or 1.
        drop = -torch.expm1((log_o - log_p).clamp_max(0.0))
        return drop if self.normalized else drop * log_p.exp()


class AccuracyKept(Metric):
    """Accuracy against labels of the clean and of the gated run.

    ``compute`` gives a dictionary: ``clean`` and ``gated`` accuracy and their ``ratio``, gated over
    clean. Higher is better; the accuracies lie in [0, 1], the ratio may exceed 1. Sensitive to
    label noise, unlike agreement, which compares with the target's own predictions.

    Source: method section "metrics"; the usual accuracy.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    clean: Tensor
    gated: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("clean", "gated", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, gated_logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits ``[N, K]`` of both runs and labels, int64 ``[N]``.

        Raises:
            ValueError: shapes that do not fit.
        """
        _check_logits("AccuracyKept", logits, gated_logits, None)
        if labels.shape != (len(logits),):
            raise ValueError(
                f"AccuracyKept: labels must be [{len(logits)}], got {tuple(labels.shape)}"
            )
        self.clean = self.clean + (logits.argmax(1) == labels).sum()
        self.gated = self.gated + (gated_logits.argmax(1) == labels).sum()
        self.count = self.count + len(labels)

    def compute(self) -> dict[str, Tensor]:
        """``clean``, ``gated``, ``ratio``, float64; NaN where nothing can be divided."""
        count = self.count.double()
        return {
            "clean": self.clean / count,
            "gated": self.gated / count,
            "ratio": self.gated.double() / self.clean.double(),
        }


class Kept(Metric):
    """Share of neurons that pathways keep: 1 - sparsity.

    ``compute`` gives a dictionary: ``mean`` and ``std`` (population) over inputs of the share of
    all neurons, ``per_site`` ``[L]`` the mean share at each site, and ``site_mean``, the mean of
    those, where every site counts the same whatever its size. Lower is better at equal
    faithfulness, in [0, 1]. Sensitive to the granularity and to wide sites. Sums are integers,
    hence exact.

    Args:
        sites (Sites): the sites.

    Source: method section "sparsity and complexity".
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    per_site: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, sites: Sites, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sites = sites
        self.add_state("per_site", torch.zeros(len(sites), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pathway: Pathway) -> None:
        """Add the rows of a pathway.

        Raises:
            ValueError: a pathway of other sites.
        """
        if pathway.sites != self.sites:
            raise ValueError(
                f"Kept: pathway must have the sites {self.sites!r}, got {pathway.sites!r}"
            )
        sizes = pathway.sizes(per_site=True).to(self.device)
        self.per_site = self.per_site + sizes.sum(0)
        self.squares = self.squares + sizes.sum(1).square().sum()
        self.count = self.count + len(pathway)

    def compute(self) -> dict[str, Tensor]:
        """``mean``, ``std``, ``per_site``, ``site_mean``, float64; NaN without inputs."""
        count, neurons = self.count.double(), self.sites.num_neurons
        site_sizes = torch.tensor(self.sites.sizes, dtype=torch.float64, device=self.device)
        mean = self.per_site.sum() / count
        variance = (self.squares / count - mean.square()).clamp_min(0.0)
        per_site = self.per_site / count / site_sizes
        return {
            "mean": mean / neurons,
            "std": variance.sqrt() / neurons,
            "per_site": per_site,
            "site_mean": per_site.mean(),
        }


def confidences(logits: Tensor, gated_logits: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log o of the clean prediction, float64 ``[N]`` each."""
    classes = logits.argmax(1, keepdim=True)
    log_p = logits.double().log_softmax(1).gather(1, classes).squeeze(1)
    log_o = gated_logits.double().log_softmax(1).gather(1, classes).squeeze(1)
    return log_p, log_o


def _check_logits(name: str, logits: Tensor, gated_logits: Tensor, num_classes: int | None) -> None:
    if logits.dim() != 2 or logits.shape != gated_logits.shape:
        raise ValueError(
            f"{name}: logits and gated_logits must both be [N, K], "
            f"got {tuple(logits.shape)} and {tuple(gated_logits.shape)}"
        )
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ValueError(f"{name}: logits must have {num_classes} classes, got {logits.shape[1]}")

"""Explainer: generator plus target, and the explanation every pathway method returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pathways import maps
from pathways.class_pathways import ClassPathways
from pathways.generator.gen_cnp import GenCNP
from pathways.pathway import Pathway
from pathways.sites import Sites
from pathways.target import GatedTarget


@dataclass
class Explanation:
    """What a pathway method says about a batch of inputs.

    Args:
        logits (Tensor[N, K]): clean logits of the target.
        gated_logits (Tensor[N, K]): logits when only the pathway is left.
        importance (Tensor[N, D]): score of every neuron, flat in site order; higher is more
            important.
        pathway (Pathway): the kept neurons, N rows.
    """

    logits: Tensor
    gated_logits: Tensor
    importance: Tensor
    pathway: Pathway

    @property
    def predictions(self) -> Tensor:
        """Predicted class of the clean run, int64 ``[N]``."""
        return self.logits.argmax(1)

    @property
    def gated_predictions(self) -> Tensor:
        """Predicted class of the gated run, int64 ``[N]``."""
        return self.gated_logits.argmax(1)

    def __len__(self) -> int:
        return self.logits.shape[0]

    @classmethod
    def cat(cls, parts: Iterable[Explanation]) -> Explanation:
        """Join explanations of several batches.

        Raises:
            ValueError: there are none.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("Explanation.cat: expected at least one explanation, got none")
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.gated_logits for part in parts]),
            torch.cat([part.importance for part in parts]),
            Pathway.cat([part.pathway for part in parts]),
        )


class PathwayMethod(Protocol):
    """The interface of every pathway method: the generator and the baselines alike."""

    target: GatedTarget

    @property
    def sites(self) -> Sites: ...

    def __call__(self, images: Tensor) -> Explanation: ...


class Explainer:
    """Explains a target's predictions with a trained generator.

    Args:
        target (GatedTarget): the frozen classifier.
        generator (GenCNP): generator for the same sites and classes; put into eval mode.

    Raises:
        ValueError: the generator was built for other sites or another number of classes.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> target = GatedTarget(net, torch.zeros(1, 4))
        >>> explainer = Explainer(target, GenCNP(target.sites, num_classes=3, width=8))
        >>> e = explainer(torch.randn(5, 4))
        >>> e.logits.shape, len(e.pathway), e.importance.shape
        (torch.Size([5, 3]), 5, torch.Size([5, 8]))
    """

    def __init__(self, target: GatedTarget, generator: GenCNP) -> None:
        if generator.sites != target.sites:
            raise ValueError(
                f"Explainer: generator must be built for the target's sites {target.sites!r}, "
                f"got one for {generator.sites!r}"
            )
        if generator.config["num_classes"] != target.num_classes:
            raise ValueError(
                f"Explainer: generator must have {target.num_classes} classes like the target, "
                f"got {generator.config['num_classes']}"
            )
        self.target = target
        self.generator = generator.eval().to(target.device)
        self._fingerprint: str | None = None

    @property
    def sites(self) -> Sites:
        """The target's sites."""
        return self.target.sites

    @property
    def fingerprint(self) -> str:
        """The target's fingerprint, computed once."""
        if self._fingerprint is None:
            self._fingerprint = self.target.fingerprint
        return self._fingerprint

    @torch.no_grad()
    def importance(self, images: Tensor, told: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and importance ``[N, D]``; the gated run is left out.

        Args:
            images (Tensor[N, ...]): model inputs.
            told (Tensor[N, K] or None): logits that the generator reads in place of the target's
                own, where it reads them (``reads_logits``): a control
                (:func:`pathways.evaluation.told_control`).

        Raises:
            ValueError: ``told`` to a generator that does not read the logits.
        """
        if told is not None and not self.generator.reads_logits:
            raise ValueError("Explainer.importance: told is for generators that read the logits")
        logits, summaries = self.target.features(images, reduce=self.generator.summary)
        read = logits if told is None else told
        importance, _ = self.generator.from_summaries(summaries, read)
        return logits, importance

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Explanation:
        """Explain model inputs ``[N, ...]``: two target passes and one generator pass."""
        logits, importance = self.importance(images)
        mask = self.generator.masks(importance)
        gated_logits = self.target.gated(images, mask)
        pathway = Pathway.from_mask(mask, self.sites, self.fingerprint)
        return Explanation(logits, gated_logits, importance, pathway)

    def explain(self, images: Tensor | Iterable[Tensor], batch_size: int = 64) -> Explanation:
        """Explain more than fits in memory at once.

        Args:
            images (Tensor[N, ...] or iterable of Tensor): one tensor, cut into batches of
                ``batch_size``, or an iterable of batches, each a tensor or, like a DataLoader's, a
                sequence that begins with one.
            batch_size (int): at least 1.

        Raises:
            ValueError: ``batch_size`` below 1, or no batch.
        """
        if batch_size < 1:
            raise ValueError(f"Explainer.explain: batch_size must be at least 1, got {batch_size}")
        batches = images.split(batch_size) if isinstance(images, Tensor) else images
        tensors = (batch if isinstance(batch, Tensor) else batch[0] for batch in batches)
        return Explanation.cat(self(tensor.to(self.target.device)) for tensor in tensors)

    @torch.no_grad()
    def transfer(
        self, images: Tensor, class_pathways: ClassPathways, classes: Tensor | None = None
    ) -> Tensor:
        """Gated logits ``[N, K]`` under class pathways; the generator is not run.

        Args:
            images (Tensor[N, ...]): inputs.
            class_pathways (ClassPathways): pathways of the classes.
            classes (Tensor[N], int64, or None): whose pathway each input gets; None is the
                target's own prediction.

        Raises:
            ValueError: a class out of range or without a pathway, or pathways of another target.
        """
        self._check_pathway(class_pathways)
        if classes is None:
            classes = self.target(images).argmax(1)
        pathway = class_pathways.for_predictions(classes)
        return self.target.gated(images, pathway.to(images.device).gates())

    def pathway_gradient(
        self, images: Tensor, pathway: Pathway | None = None, classes: Tensor | None = None
    ) -> Tensor:
        """Gradient of the class logit with respect to the input, with only the pathway left.

        Args:
            images (Tensor[N, ...]): inputs.
            pathway (Pathway or None): N rows or one; None is the generator's.
            classes (Tensor[N], int64, or None): classes; None is the target's prediction.

        Returns:
            Tensor[N, ...]: same shape as ``images``.

        Raises:
            TypeError, ValueError: classes or a pathway that do not fit; a model that detaches what
                it computes has no gradient.

        Source: Khakzar et al., CVPR 2021 (arXiv:2103.16886).
        """
        pathway, classes = self._defaults(images, pathway, classes)
        return maps.pathway_gradient(self.target, images, pathway, classes)

    def grad_cam(
        self,
        images: Tensor,
        pathway: Pathway | None = None,
        classes: Tensor | None = None,
        site: int | str | None = None,
    ) -> Tensor:
        """Grad-CAM of the gated run: where the pathway looks.

        Args:
            images (Tensor[N, Cin, H, W]): inputs.
            pathway (Pathway or None): N rows or one; None is the generator's.
            classes (Tensor[N], int64, or None): classes; None is the target's prediction.
            site (int, str or None): index, key or module path of a site with a 2-D map; None is
                the deepest one whose map is larger than one cell.

        Returns:
            Tensor[N, H, W]: in [0, 1], scaled to the input; all zero where no gradient is positive.

        Raises:
            TypeError, ValueError: no site with a 2-D map, or the named one has none; classes or a
                pathway that do not fit.

        Source: Selvaraju et al., ICCV 2017 (arXiv:1610.02391), on the gated target.
        """
        position = maps.map_site(self.sites, site)  # before anything is run
        pathway, classes = self._defaults(images, pathway, classes)
        return maps.grad_cam(self.target, images, pathway, classes, position)

    def _defaults(
        self, images: Tensor, pathway: Pathway | None, classes: Tensor | None
    ) -> tuple[Pathway, Tensor | None]:
        if pathway is not None:
            self._check_pathway(pathway)
            return pathway, classes
        explanation = self(images)
        return explanation.pathway, explanation.predictions if classes is None else classes

    def _check_pathway(self, pathway: Pathway | ClassPathways) -> None:
        """Refuse neurons of another target: they would be taken for those of the same position."""
        maps.check_sites(pathway.sites, self.target)
        if pathway.fingerprint and pathway.fingerprint != self.fingerprint:
            raise ValueError(
                f"the pathway must belong to this target {self.fingerprint}, "
                f"got one of target {pathway.fingerprint}"
            )

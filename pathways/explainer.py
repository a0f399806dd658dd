"""Explainer: generator plus target, and the explanation every pathway method returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pathways.class_pathways import ClassPathways
from pathways.generator.gen_cnp import GenCNP
from pathways.pathway import Pathway
from pathways.sites import Sites
from pathways.target import GatedTarget


def picked_logits(logits: Tensor, classes: Tensor) -> Tensor:
    """Sum of the logits of ``classes`` (int64 ``[N]``), to take gradients of. Scriptable.

    Raises:
        ValueError: no gradient can be taken.
    """
    picked = logits.gather(1, classes.unsqueeze(1)).sum()
    if not picked.requires_grad:
        raise ValueError(
            "no gradient of the logits reaches the images: the model detaches what it computes"
        )
    return picked


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
    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and importance ``[N, D]``; the gated run is left out."""
        logits, summaries = self.target.features(images, reduce=self.generator.summary)
        importance, _ = self.generator.from_summaries(summaries)
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
        # Tensors of inference mode take no part in a gradient.
        with torch.inference_mode(False), torch.enable_grad():
            pathway, classes = self._defaults(images, pathway, classes)
            images = images.detach().clone().requires_grad_(True)
            logits = self.target.gated(images, pathway.gates())
            picked = picked_logits(logits, classes)
            (gradient,) = torch.autograd.grad(picked, images)
        return gradient

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
        position = self._map_site(site)
        kept: list[Tensor] = []

        def observe(index: int, output: Tensor) -> None:
            if index == position:
                kept.append(output)

        with torch.inference_mode(False), torch.enable_grad():
            pathway, classes = self._defaults(images, pathway, classes)
            # A gradient path must exist although every parameter is frozen.
            inputs = images.detach().clone().requires_grad_(True)
            logits = self.target.gated(inputs, pathway.gates(), observe=observe)
            picked = picked_logits(logits, classes)
            (gradient,) = torch.autograd.grad(picked, kept[0], materialize_grads=True)
        dim = self.sites[position].channel_dim
        activation = kept[0].detach().movedim(dim, 1)
        gradient = gradient.movedim(dim, 1)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        cam = (weights * activation).sum(1, keepdim=True).relu()
        cam = F.interpolate(cam, size=images.shape[-2:], mode="bilinear", align_corners=False)
        peak = cam.amax(dim=(2, 3), keepdim=True)
        return (cam / peak.clamp_min(torch.finfo(cam.dtype).tiny)).squeeze(1)

    def _map_site(self, site: int | str | None) -> int:
        maps = [i for i, s in enumerate(self.sites) if len(s.space) == 2]
        if site is None:
            large = [i for i in maps if max(self.sites[i].space) > 1]
            if not large:
                raise ValueError("grad_cam: the target must have a site with a 2-D map, got none")
            return large[-1]
        position = self.sites.index(site) if isinstance(site, str) else site
        if position not in maps:
            known = ", ".join(self.sites[i].key for i in maps)
            raise ValueError(f"grad_cam: site must be one with a 2-D map ({known}), got {site!r}")
        return position

    def _defaults(
        self, images: Tensor, pathway: Pathway | None, classes: Tensor | None
    ) -> tuple[Pathway, Tensor]:
        if pathway is None:
            explanation = self(images)
            pathway = explanation.pathway
            classes = explanation.predictions if classes is None else classes
        else:
            self._check_pathway(pathway)
            pathway = pathway.to(images.device)
            classes = self.target(images).argmax(1) if classes is None else classes
        if not isinstance(classes, Tensor) or classes.dtype != torch.int64:
            got = classes.dtype if isinstance(classes, Tensor) else type(classes).__name__
            raise TypeError(f"classes must be int64 of shape ({images.shape[0]},), got {got}")
        if classes.shape != (images.shape[0],):
            raise ValueError(
                f"classes must be int64 of shape ({images.shape[0]},), got {tuple(classes.shape)}"
            )
        low, high = (int(classes.min()), int(classes.max())) if len(classes) else (0, 0)
        if low < 0 or high >= self.target.num_classes:
            raise ValueError(
                f"classes must be in [0, {self.target.num_classes}), got {low if low < 0 else high}"
            )
        return pathway, classes.to(images.device, copy=True)

    def _check_pathway(self, pathway: Pathway | ClassPathways) -> None:
        """Refuse neurons of another target: they would be taken for those of the same position."""
        if pathway.sites != self.sites:
            raise ValueError(
                f"the pathway must have the target's sites {self.sites!r}, got {pathway.sites!r}"
            )
        if pathway.fingerprint and pathway.fingerprint != self.fingerprint:
            raise ValueError(
                f"the pathway must belong to this target {self.fingerprint}, "
                f"got one of target {pathway.fingerprint}"
            )

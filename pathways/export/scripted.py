"""ScriptedExplainer: target, generator and preprocessing in one module that runs without Python.

No ``from __future__ import annotations`` here: TorchScript reads annotations as objects.
"""

import copy
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathways.class_pathways import ClassPathways
from pathways.explainer import Explainer
from pathways.export.arguments import check_inputs, check_known, check_words, checked_classes
from pathways.export.graph import GatedGraph
from pathways.export.rewrite import gated_graph
from pathways.generator import GenCNP
from pathways.maps import picked_logits

FORMAT_VERSION = 1


class EnableGrad:
    """``torch.enable_grad()``, which TorchScript lacks; an exception restores the mode too."""

    def __init__(self) -> None:
        self.before: bool = False

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(True)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        torch.set_grad_enabled(self.before)


class ScriptedExplainer(nn.Module):
    """An explainer as one plain module for TorchScript, ``torch.export`` and C++.

    All methods take images as ``preprocessing`` takes them (model inputs when there is none),
    return tensors, and give what :class:`pathways.Explainer` gives for the preprocessed images.
    Nothing is shared with the explainer it is made from; the copy is on the CPU.

    TorchScript's optimiser compiles for seconds in the first calls and gains nothing here: switch
    it off in each thread (``torch::jit::setGraphExecutorOptimize(false)`` in C++,
    ``torch.jit.optimized_execution(False)`` in Python). Gradients do not need the ops' autograd
    library; the methods that return one refuse to run in inference mode.

    Attributes, readable from Python and C++ alike: ``info`` (JSON text, see :meth:`describe`),
    ``fingerprint`` (of the target), ``version`` (of pathways), ``classes`` (names),
    ``num_classes``, ``site_keys``, ``sizes`` (neurons per site), ``offsets`` and ``word_offsets``
    (of the sites in importance and words), and the buffers ``class_words`` (int64
    ``[K, num_words]``, ``[0, num_words]`` without class pathways) and ``class_counts`` (int64
    ``[K]``, inputs behind each class pathway).

    Args:
        explainer (Explainer): what to take along.
        preprocessing (nn.Module or None): scriptable, images to model inputs
            (:class:`pathways.preprocessing.Preprocessing`).
        classes (sequence of str or None): class names, K of them; None is ``"0"``, ``"1"``, ...
        class_pathways (ClassPathways or None): for :meth:`transfer`.
        image_shape (sequence of int or None): (C, H, W) of the images that ``preprocessing`` is
            given, for programs that read image files; None where that is open.

    Raises:
        ExportError: the target cannot be rewritten; the sentence names what stopped it.
        ValueError: another number of class names, class names that repeat, or class pathways of
            another target.

    Example:
        >>> from pathways.generator import GenCNP
        >>> from pathways.target import GatedTarget
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> target = GatedTarget(net, torch.zeros(1, 4))
        >>> explainer = Explainer(target, GenCNP(target.sites, num_classes=3, width=8))
        >>> scripted = torch.jit.script(ScriptedExplainer(explainer))
        >>> logits, gated_logits, importance, words = scripted(torch.randn(5, 4))
        >>> importance.shape, words.shape, scripted.site_keys
        (torch.Size([5, 8]), torch.Size([5, 1]), ['1#0'])
    """

    classes: list[str]
    site_keys: list[str]
    sizes: list[int]
    offsets: list[int]
    word_offsets: list[int]
    mask_shapes: list[list[int]]
    channel_dims: list[int]
    maps: list[bool]
    input_shape: list[int]
    if TYPE_CHECKING:  # TorchScript takes annotations of submodules and buffers for attributes
        target: GatedGraph
        generator: GenCNP
        preprocessing: nn.Module
        class_words: Tensor
        class_counts: Tensor

    def __init__(
        self,
        explainer: Explainer,
        preprocessing: nn.Module | None = None,
        classes: Sequence[str] | None = None,
        class_pathways: ClassPathways | None = None,
        image_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        target = explainer.target
        sites = target.sites
        self.classes = _checked_classes(classes, target.num_classes)
        _check_class_pathways(class_pathways, explainer)
        self.num_classes = int(target.num_classes)
        self.unit = sites.granularity == "unit"
        self.site_keys = [site.key for site in sites]
        self.sizes = list(sites.sizes)
        self.offsets = list(sites.offsets)
        self.word_offsets = list(sites.word_offsets)
        self.mask_shapes = [list(sites.mask_shape(i)) for i in range(len(sites))]
        self.channel_dims = [site.channel_dim for site in sites]
        self.maps = [len(site.space) == 2 for site in sites]
        large = [i for i, site in enumerate(sites) if self.maps[i] and max(site.space) > 1]
        self.cam_site = large[-1] if large else -1
        self.input_shape = list(target.example_shape)
        self.fingerprint = explainer.fingerprint
        self.version = _version()
        if class_pathways is None:
            words = torch.zeros(0, sites.num_words, dtype=torch.int64)
            counts = torch.zeros(0, dtype=torch.int64)
        else:
            words, counts = class_pathways.pathway.words, class_pathways.counts
        self.register_buffer("class_words", words.detach().cpu().clone())
        self.register_buffer("class_counts", counts.detach().cpu().clone())
        self.preprocessing = (
            nn.Identity() if preprocessing is None else copy.deepcopy(preprocessing).cpu()
        )
        self.target = gated_graph(target)
        self.generator = copy.deepcopy(explainer.generator).cpu()
        self.info = json.dumps(self.describe(explainer, preprocessing, class_pathways, image_shape))
        self.eval().requires_grad_(False)

    def describe(
        self,
        explainer: Explainer,
        preprocessing: nn.Module | None,
        class_pathways: ClassPathways | None,
        image_shape: Sequence[int] | None,
    ) -> dict[str, Any]:
        """What ``info`` holds: everything a program needs to know besides the tensors.

        Keys: ``format_version``, ``kind`` (``"explainer"``), ``pathways`` and ``torch`` (versions),
        ``fingerprint``, ``granularity``, ``sites`` (:meth:`pathways.sites.Sites.to_json`),
        ``classes``, ``input_shape`` (of one model input), ``image_shape`` (of one image, or null),
        ``preprocessing`` (its ``to_json``, null without one), ``generator`` (its configuration),
        ``class_pathways`` (``threshold`` and ``counts``, or null), ``captured_by``.
        """
        to_json = getattr(preprocessing, "to_json", None)
        table = explainer.sites.to_json()
        return {
            "format_version": FORMAT_VERSION,
            "kind": "explainer",
            "pathways": self.version,
            "torch": torch.__version__,
            "fingerprint": self.fingerprint,
            "granularity": table["granularity"],
            "sites": table["sites"],
            "classes": self.classes,
            "input_shape": self.input_shape,
            "image_shape": None if image_shape is None else list(image_shape),
            "preprocessing": to_json() if to_json is not None else _name(preprocessing),
            "generator": explainer.generator.config,
            "class_pathways": None
            if class_pathways is None
            else {
                "threshold": class_pathways.threshold,
                "counts": class_pathways.counts.tolist(),
            },
            "captured_by": self.target.captured_by,
        }

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Explain a batch.

        Args:
            images (Tensor[N, ...]): inputs.

        Returns:
            logits (Tensor[N, K]), gated_logits (Tensor[N, K]), importance (Tensor[N, D], flat in
            site order) and words (Tensor[N, num_words], int64: the pathway, bit-packed).
        """
        with torch.no_grad():
            x = self._inputs(images)
            logits, importance = self.importance_of(x)
            mask = self.generator.masks(importance)
            gated_logits = self.target.gated(x, self._gates(mask))
            words = self.pack(mask)
        return logits, gated_logits, importance, words

    @torch.jit.export
    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and importance ``[N, D]``: without the gated run."""
        with torch.no_grad():
            logits, importance = self.importance_of(self._inputs(images))
        return logits, importance

    @torch.jit.export
    def transfer(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """Gated logits ``[N, K]`` under the stored class pathways; the generator is not run.

        Args:
            images (Tensor[N, ...]): inputs.
            classes (Tensor[N], int64, or None): whose pathway each input gets; None is the target's
                own prediction.

        Raises:
            ValueError: no class pathways stored, or a class out of range or without a pathway.
        """
        with torch.no_grad():
            x = self._inputs(images)
            if classes is None:
                chosen = self.target(x).argmax(1)
            else:
                chosen = checked_classes(classes, x, self.num_classes)
            check_known(chosen, self.class_counts)
            gates = self.gates_of(self.class_words[chosen])
            logits: Tensor = self.target.gated(x, gates)
        return logits

    @torch.jit.export
    def pathway_gradient(
        self, images: Tensor, classes: Tensor | None = None, words: Tensor | None = None
    ) -> Tensor:
        """Gradient of the class logit with respect to the model input, with only the pathway left.

        Args:
            images (Tensor[N, ...]): inputs.
            classes (Tensor[N], int64, or None): classes; None is the target's prediction.
            words (Tensor[N, num_words] or Tensor[1, num_words], int64, or None): packed pathway;
                None is the generator's.

        Returns:
            Tensor[N, ...]: shape of the preprocessed images.

        Source: Khakzar et al., CVPR 2021 (arXiv:2103.16886).
        """
        x = self._inputs(images).detach()
        gates, chosen = self._defaults(x, classes, words)
        return self.gradient_of(x, gates, chosen)

    @torch.jit.export
    def grad_cam(
        self,
        images: Tensor,
        classes: Tensor | None = None,
        words: Tensor | None = None,
        site: int = -1,
    ) -> Tensor:
        """Grad-CAM of the gated run: where the pathway looks.

        Args:
            images (Tensor[N, Cin, H, W]): inputs.
            classes (Tensor[N], int64, or None): classes; None is the target's prediction.
            words (Tensor[N, num_words] or Tensor[1, num_words], int64, or None): packed pathway;
                None is the generator's.
            site (int): a site with a 2-D map; -1 is the deepest one with more than one cell.

        Returns:
            Tensor[N, H, W]: in [0, 1], size of the preprocessed images.

        Raises:
            ValueError: no such site, or the site has no 2-D map.

        Source: Selvaraju et al., ICCV 2017 (arXiv:1610.02391), on the gated target.
        """
        position = self.cam_site if site == -1 else site
        if position < 0:
            raise ValueError("grad_cam: the target must have a site with a 2-D map, got none")
        if position >= len(self.maps) or not self.maps[position]:
            raise ValueError(f"grad_cam: site must be one with a 2-D map, got {site}")
        x = self._inputs(images).detach()
        gates, chosen = self._defaults(x, classes, words)
        return self.cam_of(x, gates, chosen, position)

    # What is behind the checks: methods of model inputs, which other formats trace.

    def importance_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and importance ``[N, D]`` of model inputs."""
        logits, summaries = self.target.summaries(x, self.generator.pool)
        importance, _ = self.generator.from_summaries(summaries, logits)
        return logits, importance

    def gradient_of(self, x: Tensor, gates: list[Tensor], classes: Tensor) -> Tensor:
        """Gradient of the logits of ``classes`` at model inputs, gated."""
        with EnableGrad():
            x = self._leaf(x)
            logits, _ = self.target.gated_with_gradient(x, gates)
            picked = picked_logits(logits, classes)
            gradient = torch.autograd.grad([picked], [x])[0]
        assert gradient is not None
        return gradient

    def cam_of(self, x: Tensor, gates: list[Tensor], classes: Tensor, position: int) -> Tensor:
        """Grad-CAM at a site with a 2-D map."""
        with EnableGrad():
            # The optimiser assumes that what needed a gradient once will need it again: for every
            # site the same, if the inputs always do.
            x = self._leaf(x)
            logits, probed = self.target.gated_with_gradient(x, gates, position)
            picked = picked_logits(logits, classes)
            gradient = torch.autograd.grad([picked], [probed[1]])[0]
        assert gradient is not None
        dim = self.channel_dims[position]
        weights = gradient.movedim(dim, 1).mean([2, 3], keepdim=True)
        cam = (weights * probed[0].movedim(dim, 1)).sum(1, keepdim=True).relu()
        cam = F.interpolate(cam, size=[x.size(2), x.size(3)], mode="bilinear", align_corners=False)
        peak = cam.amax([2, 3], keepdim=True)
        return torch.where(peak > 0, cam / peak, torch.zeros_like(cam)).squeeze(1)

    def gates_of(self, words: Tensor) -> list[Tensor]:
        """Gates of packed pathways ``[N, num_words]``."""
        return self._gates(self._unpack(words))

    def pack(self, mask: Tensor) -> Tensor:
        """Packed pathways ``[N, num_words]`` of flat 0/1 masks ``[N, D]``."""
        parts: list[Tensor] = []
        for i, size in enumerate(self.sizes):
            part = mask[:, self.offsets[i] : self.offsets[i] + size]
            parts.append(torch.ops.pathways.pack_bits(part))
        return torch.cat(parts, dim=1)

    def _inputs(self, images: Tensor) -> Tensor:
        x: Tensor = self.preprocessing(images)
        check_inputs(x, self.input_shape, self.unit)
        return x

    def _leaf(self, x: Tensor) -> Tensor:
        """A copy of the inputs to take gradients at."""
        leaf = x.clone()
        if leaf.is_inference():
            raise ValueError(
                "explainer: gradients cannot be taken in inference mode, leave it first"
            )
        return leaf.requires_grad_(True)

    def _gates(self, mask: Tensor) -> list[Tensor]:
        gates: list[Tensor] = []
        for i, size in enumerate(self.sizes):
            part = mask[:, self.offsets[i] : self.offsets[i] + size]
            gates.append(part.reshape([mask.size(0)] + self.mask_shapes[i]))
        return gates

    def _unpack(self, words: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for i, size in enumerate(self.sizes):
            part = words[:, self.word_offsets[i] : self.word_offsets[i + 1]]
            parts.append(torch.ops.pathways.unpack_bits(part, size))
        return torch.cat(parts, dim=1).float()

    def _defaults(
        self, x: Tensor, classes: Tensor | None, words: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """Gates and classes of a gradient: the generator's and the target's where not given."""
        with torch.no_grad():
            if words is not None:
                check_words(words, x, self.word_offsets[-1])
                mask = self._unpack(words.to(x.device)).expand(x.size(0), -1)
                logits = self.target(x) if classes is None else torch.zeros([0, 1])
            else:
                logits, importance = self.importance_of(x)
                mask = self.generator.masks(importance)
            if classes is None:
                chosen = logits.argmax(1)
            else:
                chosen = checked_classes(classes, x, self.num_classes)
        return self._gates(mask), chosen


def _checked_classes(classes: Sequence[str] | None, num_classes: int) -> list[str]:
    if classes is None:
        return [str(index) for index in range(num_classes)]
    names = list(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"export: classes must be a list of names, got {classes!r}")
    if len(names) != num_classes:
        raise ValueError(
            f"export: classes must hold {num_classes} names like the target's logits, "
            f"got {len(names)}"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"export: class names must differ, got {repeated[0]!r} twice")
    return names


def _check_class_pathways(class_pathways: ClassPathways | None, explainer: Explainer) -> None:
    if class_pathways is None:
        return
    if class_pathways.sites != explainer.sites:
        raise ValueError(
            f"export: class_pathways must be of the target's sites {explainer.sites!r}, "
            f"got {class_pathways.sites!r}"
        )
    if class_pathways.fingerprint not in ("", explainer.fingerprint):
        raise ValueError(
            f"export: class_pathways must belong to the target {explainer.fingerprint}, "
            f"got {class_pathways.fingerprint}"
        )
    if len(class_pathways) != explainer.target.num_classes:
        raise ValueError(
            f"export: class_pathways must have {explainer.target.num_classes} classes like the "
            f"target, got {len(class_pathways)}"
        )


def _name(preprocessing: nn.Module | None) -> dict[str, str] | None:
    return None if preprocessing is None else {"module": type(preprocessing).__name__}


def _version() -> str:
    import pathways

    return pathways.__version__

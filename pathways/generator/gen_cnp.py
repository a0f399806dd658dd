"""GEN-CNP: the generator that predicts a pathway from what a frozen target computed."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from pathways.files import check_fingerprint, read_safetensors, write_safetensors
from pathways.generator.decoder import PathwayDecoders
from pathways.generator.distiller import PathwayDistillation
from pathways.generator.embedder import FeatureEmbedders, summarize
from pathways.sites import Sites

FORMAT_VERSION = 3
KIND = "generator"
QUANTIZERS = ("daq", "ste", "hard_concrete")


class GenCNP(nn.Module):
    """Generator of class-relevant neural pathways.

    Feature maps of all sites -> Recursive Feature Embedders -> Pathway Distillation Network ->
    Recursive Pathway Decoders -> importance in (0, 1) per neuron -> distance-aware quantisation ->
    0/1 mask. After training, an explanation is one forward pass.

    Args:
        sites (Sites): sites of the target, ``target.sites``.
        num_classes (int): K, number of classes of the target.
        width (int): d, width of the codes; divisible by ``heads``.
        layers (int): transformer layers of the distillation network.
        heads (int): attention heads.
        pool (int): side of the pooled feature maps for channel granularity (units keep their own).
        min_keep (float): every site keeps at least this share of its neurons (at least one), the
            most important ones; in [0, 1]. Without a floor early sites collapse and the mask alone
            carries the class.
        sigma (float): width of the quantiser's distance kernel, > 0.
        gamma (float): temperature of the quantiser, > 0.
        start (float): mean initial score (spread by half of it); sigmoid(0.5) > 0.5, so that with
            the default nearly every neuron starts on.
        quantizer (str): how importance becomes a mask in training: ``"daq"``, distance-aware
            quantisation; ``"ste"``, the same mask with the gradient of the identity;
            ``"hard_concrete"``, random masks in [0, 1], binary in eval mode. For ablations.
        activity (bool): a neuron's score follows its own activity besides the codes. For ablations.
        reads_logits (bool): the target's logits are read besides its feature maps. Pathways of
            close calls agree more often, but a generator that knows the class could write it into
            the mask: train with ``told_share``, watch ``told_flip`` and ``told_runner_up_flip``.

    Raises:
        ValueError: a value outside its range.

    Source: arXiv:2309.09887 (parts and order); arXiv:2108.06983 (quantiser); arXiv:1712.01312
    (hard concrete); layers our choice.

    Example:
        >>> from pathways.sites import Site, Sites
        >>> sites = Sites([Site("a", 0, "relu", (6, 8, 8)), Site("b", 0, "relu", (10,))])
        >>> generator = GenCNP(sites, num_classes=3, width=16).eval()
        >>> features, logits = [torch.randn(2, 6, 8, 8), torch.randn(2, 10)], torch.randn(2, 3)
        >>> importance, auxiliary = generator(features, logits)
        >>> importance.shape, generator.masks(importance).unique().tolist()
        (torch.Size([2, 16]), [1.0])
    """

    def __init__(
        self,
        sites: Sites,
        num_classes: int,
        *,
        width: int = 64,
        layers: int = 1,
        heads: int = 4,
        pool: int = 4,
        min_keep: float = 0.05,
        sigma: float = 1.0,
        gamma: float = 2.0,
        start: float = 1.0,
        quantizer: str = "daq",
        activity: bool = True,
        reads_logits: bool = False,
    ) -> None:
        super().__init__()
        if len(sites) == 0:
            raise ValueError("GenCNP: sites must hold at least one site, got none")
        if num_classes < 1:
            raise ValueError(f"GenCNP: num_classes must be at least 1, got {num_classes}")
        if width < 1 or heads < 1 or width % heads != 0:
            raise ValueError(
                f"GenCNP: width must be a positive multiple of heads, "
                f"got width={width}, heads={heads}"
            )
        if layers < 1 or pool < 1:
            raise ValueError(
                f"GenCNP: layers and pool must be at least 1, got layers={layers}, pool={pool}"
            )
        if not 0.0 <= min_keep <= 1.0:
            raise ValueError(f"GenCNP: min_keep must be in [0, 1], got {min_keep}")
        if not (sigma > 0 and gamma > 0):
            raise ValueError(
                f"GenCNP: sigma and gamma must be positive, got sigma={sigma}, gamma={gamma}"
            )
        if not (isinstance(activity, bool) and isinstance(reads_logits, bool)):
            raise ValueError(
                f"GenCNP: activity and reads_logits must be bool, "
                f"got activity={activity!r}, reads_logits={reads_logits!r}"
            )
        if quantizer not in QUANTIZERS:
            raise ValueError(
                f"GenCNP: quantizer must be one of {', '.join(QUANTIZERS)}, got {quantizer!r}"
            )
        config: dict[str, Any] = {
            "num_classes": num_classes,
            "width": width,
            "layers": layers,
            "heads": heads,
            "pool": pool,
            "min_keep": min_keep,
            "sigma": sigma,
            "gamma": gamma,
            "start": start,
            "quantizer": quantizer,
            "activity": activity,
            "reads_logits": reads_logits,
        }
        self.config = config
        self.sites = sites
        self.sizes = list(sites.sizes)
        self.floors = sites.floors(min_keep)
        self.sigma = float(sigma)
        self.gamma = float(gamma)
        self.quantizer = quantizer
        self.num_classes = num_classes
        self.sees_activity = activity
        self.reads_logits = reads_logits
        unit = sites.granularity == "unit"
        channels = [site.channels for site in sites]
        self.pool = 0 if unit else pool
        self.embedders = FeatureEmbedders([site.shape for site in sites], width, self.pool)
        self.distillation = PathwayDistillation(
            len(sites), width, num_classes, layers, heads, reads_logits
        )
        self.decoders = PathwayDecoders(channels, width, unit, start)

    def forward(self, features: list[Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
        """Importance of every neuron.

        Args:
            features (list of Tensor[N, C, *space]): clean activations of every site.
            logits (Tensor[N, K]): clean logits of the same run;
                :meth:`pathways.GatedTarget.features` gives both.

        Returns:
            importance (Tensor[N, D], in (0, 1), flat, site order) and auxiliary logits (Tensor[N,
            K]), the generator's own account of the target's.

        Raises:
            ValueError: another number of feature maps than sites, or logits of another shape.
        """
        return self.from_summaries([summarize(feature, self.pool) for feature in features], logits)

    @torch.jit.export
    def summary(self, feature: Tensor) -> Tensor:
        """What the generator reads of one site's activation ``[N, C, *space]``, often far smaller.

        Returns:
            Tensor[N, 2 C, h, w] with h, w <= pool (channel granularity) or Tensor[N, C, h, w].
        """
        return summarize(feature, self.pool)

    @torch.jit.export
    def from_summaries(self, summaries: list[Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
        """Like ``forward``, given the :meth:`summary` of every site instead of the activations.

        A run of the target that keeps only these needs far less memory
        (:meth:`pathways.GatedTarget.features` with ``reduce=generator.summary``).
        """
        if len(summaries) != len(self.sizes):
            raise ValueError(
                f"GenCNP: features must hold one map per site ({len(self.sizes)}), "
                f"got {len(summaries)}"
            )
        rows = summaries[0].size(0)
        if logits.dim() != 2 or logits.size(0) != rows or logits.size(1) != self.num_classes:
            raise ValueError(
                f"GenCNP: logits must be [{rows}, {self.num_classes}], one row per input, "
                f"got {list(logits.shape)}"
            )
        codes, activity, maps = self.embedders(summaries)
        if not self.sees_activity:
            activity = [torch.zeros_like(own) for own in activity]
        codes, class_code, auxiliary = self.distillation(codes, logits)
        scores = self.decoders(codes, class_code, activity, maps)
        return torch.cat(scores, dim=1).float().sigmoid(), auxiliary

    @torch.jit.export
    def masks(self, importance: Tensor) -> Tensor:
        """0/1 mask ``[N, D]`` of importance ``[N, D]``, with the floor of every site.

        The gradient is the quantiser's, also for neurons that only the floor keeps.

        Raises:
            ValueError: importance of another shape.
            RuntimeError: importance that is not floating or not a number.
        """
        neurons = sum(self.sizes)
        if importance.dim() != 2 or importance.size(1) != neurons:
            raise ValueError(
                f"GenCNP: importance must be [N, {neurons}], got {list(importance.shape)}"
            )
        mask = self._quantized(importance)
        floor = torch.zeros_like(mask)
        start = 0
        for i, size in enumerate(self.sizes):
            part = importance[:, start : start + size]
            top = part.topk(self.floors[i], dim=1)[1]
            floor[:, start : start + size].scatter_(1, top, 1.0)
            start += size
        return mask + (floor * (1.0 - mask)).detach()

    def _quantized(self, importance: Tensor) -> Tensor:
        mask: Tensor = torch.ops.pathways.binarize(importance, self.sigma, self.gamma)
        if self.quantizer == "ste":
            return mask.detach() + (importance - importance.detach())
        if self.quantizer == "hard_concrete" and self.training:
            chance = torch.rand_like(importance)
            noisy = torch.logit(importance, 1e-6) + torch.logit(chance, 1e-6)
            # Temperature 2/3, stretched to (-0.1, 1.1): the paper's values.
            return ((1.5 * noisy).sigmoid() * 1.2 - 0.1).clamp(0.0, 1.0)
        return mask

    def save(self, path: str | os.PathLike[str], fingerprint: str = "") -> None:
        """Write weights, configuration and site table to one safetensors file.

        Args:
            path (path): file to write; replaced in one step, so that a failure keeps the old file.
            fingerprint (str): ``target.fingerprint`` of the target it was trained for.
        """
        header = {
            "config": json.dumps(self.config),
            "sites": json.dumps(self.sites.to_json()),
            "fingerprint": fingerprint,
        }
        write_safetensors(path, self.state_dict(), kind=KIND, version=FORMAT_VERSION, header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], target: Any = None) -> GenCNP:
        """Read a generator written by :meth:`save`.

        Args:
            path (path): the file.
            target (GatedTarget or None): the target it is to explain; its fingerprint must match.

        Raises:
            FileNotFoundError: no such file.
            ValueError: corrupt or foreign file, or a generator of another target (both are named).
        """
        tensors, header = read_safetensors(path, kind=KIND, version=FORMAT_VERSION)
        if int(header["format_version"]) < FORMAT_VERSION:
            raise ValueError(
                f"GenCNP.load: {path} must be in format version {FORMAT_VERSION}, got "
                f"{header['format_version']}, whose generators had other layers; fit it again"
            )
        if target is not None:
            check_fingerprint(path, header.get("fingerprint", ""), target)
        try:
            sites = Sites.from_json(json.loads(header["sites"]))
            generator = cls(sites, **json.loads(header["config"]))
            generator.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"GenCNP.load: {path} is not a complete generator file") from error
        return generator.eval()

"""Pathways by activation alone: all neurons that are active, or the most active ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pathways.baselines.scored import ScoredMethod


class ActiveNeurons(ScoredMethod):
    """Keeps the neurons that are active on the input, whatever the prediction.

    The upper end of every other method: with ReLU activations and baseline zero the gated logits
    are the clean ones, so that neurons beyond these are dead weight. Importance is the share of
    positions with a positive activation; a neuron is active when it is above 0.

    Args:
        target (GatedTarget): the target.
        kept, like, per_site, min_keep: how many neurons, see
            :class:`~pathways.baselines.scored.ScoredMethod`; without ``kept`` and ``like`` all
            that are active.

    Raises:
        ValueError: sizes as for ``ScoredMethod``.

    Source: the active subnetwork of arXiv:2103.16886; the share of positions is our choice.

    Example:
        >>> import torch
        >>> from pathways import GatedTarget
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        >>> for p, v in zip(net.parameters(), ([[1.0], [-1.0]], [0.0, 0.0])):
        ...     p.data = torch.tensor(v)
        >>> method = ActiveNeurons(GatedTarget(net, torch.zeros(1, 1)))
        >>> method(torch.tensor([[2.0], [-2.0]])).pathway.mask().int().tolist()
        [[1, 0], [0, 1]]
    """

    own_threshold = 0.0

    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and share of active positions ``[N, D]``, in [0, 1]."""
        return _site_values(self, images, lambda feature: (feature > 0).float())


class TopActivation(ScoredMethod):
    """Keeps the neurons with the largest activations, whatever the prediction.

    Importance is ``|a|``, averaged over positions for channels. Activations of different sites
    differ in scale: as many are kept at every site unless ``per_site`` is False.

    Args:
        target (GatedTarget): the target.
        kept, like, per_site, min_keep: how many neurons, see
            :class:`~pathways.baselines.scored.ScoredMethod`; per site by default.

    Raises:
        ValueError: sizes as for ``ScoredMethod``; activations that are not finite.

    Source: our choice, the plainest ranking that looks at the input.

    Example:
        >>> import torch
        >>> from pathways import GatedTarget
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> method = TopActivation(GatedTarget(net, torch.zeros(1, 4)), kept=0.25)
        >>> method(torch.randn(2, 4)).pathway.sizes().tolist()
        [2, 2]
    """

    per_site_default = True

    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and mean size of the activation ``[N, D]``, at least 0."""
        return _site_values(self, images, lambda feature: feature.float().abs())


def _site_values(
    method: ScoredMethod, images: Tensor, value: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Clean logits and one value per neuron: of its unit, or the mean over its channel."""
    logits, features = method.target.features(images)
    parts = [value(feature) for feature in features]
    if method.sites.granularity == "channel":
        parts = [part.flatten(2).mean(2) if part.dim() > 2 else part for part in parts]
    return logits, method.sites.flatten(parts)

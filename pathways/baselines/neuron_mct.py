"""NeuronMCT: marginal contributions of neurons, estimated by one gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from pathways.baselines.gradients import gate_gradients
from pathways.baselines.scored import ScoredMethod


class NeuronMCT(ScoredMethod):
    """Keeps the neurons whose removal changes the predicted class's logit f most, to first order.

    Importance of a unit is ``|a * df/da|`` at the clean activation a, of a channel
    ``|sum over positions of a * df/da|``; a baseline b other than zero makes it (a - b). It costs
    one forward and one backward pass.

    Args:
        target (GatedTarget): the target.
        kept, like, per_site, min_keep: how many neurons, see
            :class:`~pathways.baselines.scored.ScoredMethod`; over all sites together by default.

    Raises:
        ValueError: sizes as for ``ScoredMethod``; scores that are not finite.
        RuntimeError: the target runs a site where no gradient can reach it.

    Source: Khakzar et al., CVPR 2021 (arXiv:2103.16886), marginal contribution by Taylor expansion,
    which keeps 15 % of the units; channels are our choice.

    Example:
        >>> from pathways import GatedTarget
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> method = NeuronMCT(GatedTarget(net, torch.zeros(1, 4)), kept=0.25)
        >>> method(torch.randn(2, 4)).pathway.sizes().tolist()
        [2, 2]
    """

    def importance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Clean logits ``[N, K]`` and importance ``[N, D]``, at least 0; 0 for dead neurons."""
        gates = torch.ones(1, self.sites.num_neurons, device=images.device)
        logits, gradient = gate_gradients(self.target, images, gates)
        return logits, gradient.abs()

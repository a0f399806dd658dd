"""Ablation value: how much faithfulness depends on what replaces gated-off activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pathways.evaluation.metrics import Agreement, PathwayKL
from pathways.evaluation.runs import gated_logits, with_baseline
from pathways.pathway import Pathway
from pathways.target import GatedTarget


@dataclass(frozen=True)
class Ablation:
    """Faithfulness of pathways under one ablation value; NaN without inputs.

    Args:
        agreement (float): share of inputs whose prediction stays. Higher is better.
        kl (float): KL of gated from clean outputs, nats. Lower is better.
    """

    agreement: float
    kl: float

    def to_json(self) -> dict[str, float]:
        """A dictionary of numbers."""
        return asdict(self)


@torch.no_grad()
def ablation_agreement(
    target: GatedTarget,
    images: Tensor,
    logits: Tensor,
    pathway: Pathway,
    baselines: Mapping[str, Sequence[Tensor] | None],
    *,
    batch_size: int = 64,
) -> dict[str, Ablation]:
    """Run the same pathways with different values for gated-off activations.

    Agreement: higher is better, in [0, 1]; KL: lower is better. A pathway that is faithful only
    under the value it was found with owes its faithfulness to that value. Zero is far from the data
    where activations are large, the mean keeps what all inputs have in common. The target keeps its
    own baseline, also after an error: runs with another go through
    :func:`pathways.evaluation.runs.with_baseline`. The fingerprint of the pathways is not compared,
    since it covers the baseline they were found with.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs.
        logits (Tensor[N, K]): their clean logits.
        pathway (Pathway): N rows, or one for all.
        baselines (mapping): values by name, each as ``GatedTarget.baseline``; None is zero. See
            ``GatedTarget.mean_baseline``.
        batch_size (int): inputs per run.

    Returns:
        dict of Ablation: by name, in the order given; one target run per input and name.

    Raises:
        ValueError: a baseline, logits or a number of pathways that do not fit.

    Source: Miller et al. (arXiv:2407.08734) show how far circuit metrics depend on this choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> _ = net[0].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> target = GatedTarget(net, torch.zeros(1, 2))
        >>> x, pathway = torch.tensor([[2.0, 1.0]]), Pathway.from_mask(torch.eye(2), target.sites)
        >>> values = {"zero": None, "mean": [torch.tensor([3.0, 3.0])]}
        >>> found = ablation_agreement(target, x, target(x), pathway[0], values)
        >>> found["zero"].agreement, found["mean"].agreement
        (1.0, 0.0)
    """
    found = {}
    for name, baseline in baselines.items():
        other = with_baseline(target, baseline)
        gated = gated_logits(other, images, pathway, batch_size)
        agreement, kl = Agreement(), PathwayKL()
        agreement.update(logits.cpu(), gated)
        kl.update(logits.cpu(), gated)
        found[name] = Ablation(float(agreement.compute()), float(kl.compute()))
    return found

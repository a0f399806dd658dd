"""Necessity and minimality: what is left without the pathway, and without one site of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pathways.evaluation.leak import random_like
from pathways.evaluation.metrics import confidences
from pathways.evaluation.runs import gated_logits
from pathways.packing import site_words
from pathways.pathway import Pathway
from pathways.target import GatedTarget


@dataclass(frozen=True)
class Necessity:
    """Result of :func:`necessity`; means over inputs, NaN without any.

    Args:
        probability (float): softmax probability of the clean prediction without the pathway.
        ratio (float): the same divided by the clean probability, not clipped.
        agreement (float): share of inputs whose prediction stays without the pathway.
        random_probability (float): control, ``probability`` without random neurons instead, as many
            at every site.
        random_agreement (float): control, ``agreement`` without them.
        kept (float): share of neurons left, 1 minus that of the pathway.
    """

    probability: float
    ratio: float
    agreement: float
    random_probability: float
    random_agreement: float
    kept: float


def necessity(
    target: GatedTarget,
    images: Tensor,
    logits: Tensor,
    pathway: Pathway,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> Necessity:
    """Switch off the pathway and keep its complement: how much of the prediction is left.

    Lower is better for probability, ratio and agreement; the first and the last lie in [0, 1], the
    ratio in [0, K]. Sensitive to size: a large pathway leaves little to predict with, whatever its
    neurons, so compare with the random control of the same size. A pathway can be sufficient and
    not necessary where the target is redundant. Sensitive to what replaces gated-off activations.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs.
        logits (Tensor[N, K]): their clean logits.
        pathway (Pathway): N rows.
        batch_size (int): inputs per run.
        seed (int): of the random control.

    Returns:
        Necessity: two target runs per input.

    Raises:
        ValueError: another number of logits or pathways.

    Source: method section "sweeps"; the complement as a test of circuits is that of MIB
    (arXiv:2504.13151) and of the ablation literature; the random control is our choice.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> _ = net[0].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> target = GatedTarget(net, torch.zeros(1, 2))
        >>> x = torch.tensor([[1.0, 3.0]])
        >>> pathway = Pathway.from_mask(torch.tensor([[0, 1]]), target.sites)
        >>> result = necessity(target, x, target(x), pathway)
        >>> round(result.probability, 3), result.agreement, result.kept
        (0.269, 0.0, 0.5)
    """
    _check("necessity", target, images, logits, pathway)
    logits = logits.cpu()
    log_p, log_o, stays = _left(target, images, logits, pathway.complement(), batch_size)
    other = random_like(pathway, seed).complement()
    _, random_log_o, random_stays = _left(target, images, logits, other, batch_size)
    return Necessity(
        probability=float(log_o.exp().mean()),
        ratio=float((log_o - log_p).exp().mean()),
        agreement=float(stays.mean()),
        random_probability=float(random_log_o.exp().mean()),
        random_agreement=float(random_stays.mean()),
        kept=float(pathway.complement().kept().double().mean()),
    )


@dataclass(frozen=True)
class Minimality:
    """Result of :func:`minimality`.

    Args:
        redundant (float): share of (input, site) pairs whose removal leaves the prediction of the
            pathway; NaN without pairs.
        per_site (Tensor[L]): the same at each site, float64; NaN for a site nobody keeps.
        pairs (Tensor[L]): int64, inputs that keep something at the site.
    """

    redundant: float
    per_site: Tensor
    pairs: Tensor


def minimality(
    target: GatedTarget,
    images: Tensor,
    pathway: Pathway,
    *,
    batch_size: int = 64,
) -> Minimality:
    """Share of the pathway's sites that it does not need.

    One site at a time, all neurons of the pathway at that site are switched off and those at other
    sites stay; the prediction is compared with that of the whole pathway, which need not be the
    clean one. Sites of which an input keeps nothing do not count for it. Lower is better, in
    [0, 1]. Sensitive to the architecture: without skip connections a site cut off makes the logits
    constant, and the share of inputs of that constant class is what remains; with them a
    redundant block is seen. Sensitive to what replaces gated-off activations.

    Args:
        target (GatedTarget): the target.
        images (Tensor[N, ...]): inputs.
        pathway (Pathway): N rows.
        batch_size (int): inputs per run.

    Returns:
        Minimality: L + 1 target runs per input.

    Raises:
        ValueError: another number of pathways.

    Source: method section "sweeps"; whole sites instead of single neurons are our choice, for which
    the runs are affordable.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.ReLU())
        >>> _ = net[0].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> target = GatedTarget(net, torch.zeros(1, 2))
        >>> pathway = Pathway.from_mask(torch.ones(2, 4), target.sites)
        >>> minimality(target, torch.tensor([[1.0, 3.0], [3.0, 1.0]]), pathway).redundant
        0.5
    """
    if len(pathway) != len(images):
        raise ValueError(f"minimality: pathway must have {len(images)} rows, got {len(pathway)}")
    sites = pathway.sites
    predictions = gated_logits(target, images, pathway, batch_size).argmax(1)
    kept = pathway.sizes(per_site=True).cpu() > 0
    same = torch.zeros(len(sites), dtype=torch.int64)
    for index in range(len(sites)):
        rows = kept[:, index].nonzero().squeeze(1)
        words = pathway[rows].words.clone()
        words[:, site_words(sites, index)] = 0
        without = Pathway(words, sites, pathway.fingerprint)
        logits = gated_logits(target, images[rows], without, batch_size)
        same[index] = (logits.argmax(1) == predictions[rows]).sum()
    pairs = kept.sum(0)
    total = int(pairs.sum())
    return Minimality(
        redundant=int(same.sum()) / total if total else float("nan"),
        per_site=same.double() / pairs,
        pairs=pairs,
    )


def _left(
    target: GatedTarget, images: Tensor, logits: Tensor, rest: Pathway, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """log p and log o of the clean prediction, and whether it stays; float64 ``[N]`` each."""
    gated = gated_logits(target, images, rest, batch_size)
    return *confidences(logits, gated), (gated.argmax(1) == logits.argmax(1)).double()


def _check(
    where: str, target: GatedTarget, images: Tensor, logits: Tensor, pathway: Pathway
) -> None:
    if logits.shape != (len(images), target.num_classes):
        raise ValueError(
            f"{where}: logits must be [{len(images)}, {target.num_classes}], "
            f"got {tuple(logits.shape)}"
        )
    if len(pathway) != len(images):
        raise ValueError(f"{where}: pathway must have {len(images)} rows, got {len(pathway)}")

"""``extract``: from a target and a channel pathway to the smaller network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from pathways.export.capture import (
    capture_by_export,
    capture_by_fx,
    first_line,
    make_scriptable,
    site_marker,
)
from pathways.export.rewrite import _example, _where
from pathways.extraction.analysis import Analysis
from pathways.extraction.building import Builder
from pathways.extraction.calls import CannotFollow, make_functional
from pathways.extraction.network import ExtractedNetwork, Extraction
from pathways.freezing import frozen
from pathways.pathway import Pathway
from pathways.sites import Sites
from pathways.target import GatedTarget


class ExtractionError(ValueError):
    """A pathway that no smaller network was made of; the sentence names the reason."""


def extract(
    model: GatedTarget | nn.Module,
    pathway: Pathway | Tensor | Sequence[Tensor],
    *,
    example_input: Tensor | None = None,
) -> ExtractedNetwork:
    """The smaller dense network that a channel pathway is.

    Channels that the pathway does not keep are taken out of convolutions, normalisation, linear
    layers and whatever lies between. The logits are those of ``target.gated`` with the same
    pathway: a gated-off channel counts as its baseline value, which is 0 or what the target's
    ``baseline`` says, and what follows from these constants is folded into the biases where that is
    exact; where a padded convolution makes more of it than a bias, a map computed from one channel
    is added. Around an operation that is not understood channel by channel (attention,
    normalisation across channels, anything unusual), all channels are kept and the gate is applied
    exactly. The result is checked against the gated target before it is returned.

    Nothing of a residual stream can be removed that another block still carries: a network with
    skip connections gets smaller inside its blocks, and between them where both sides are closed.

    Args:
        model (GatedTarget or nn.Module): the target, or a plain classifier; left as it was found.
            A target with a baseline or an ``output_fn`` has to be given itself.
        pathway (Pathway, Tensor[D] or Tensor[1, D], or a sequence of Tensor[C]): one pathway of
            channels, such as ``class_pathways[3]``; a mask holds 0 and 1, flat over the sites or
            one tensor per site.
        example_input (Tensor[N, ...] or None): a batch that a plain classifier accepts; a target
            knows its own.

    Returns:
        ExtractedNetwork: a module in eval mode, on the device and of the dtype of the model, that
            shares no memory with it; ``summary()`` says what was removed.

    Raises:
        ExtractionError: not exactly one pathway, one of units or of another target, or a model that
            cannot be captured as a graph (module, line and reason are named).
        TypeError: a pathway or model of another type.

    Source: our own; that constants are followed and removed exactly is our choice.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> target = GatedTarget(net, torch.zeros(1, 4))
        >>> mask = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 0]])
        >>> small = extract(target, mask)
        >>> [tuple(p.shape) for p in small.parameters()]
        [(2, 4), (2,), (3, 2), (3,)]
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(small(x), target.gated(x, [mask.float()]), atol=1e-6)
        True
    """
    target = _target(model, pathway, example_input)
    pathway = _checked(pathway, target)
    images = _images(target, example_input)
    kind = type(target.model).__name__
    reasons = []
    with frozen(target.model):
        calls = [site for site, _ in target._discover(images[:2], target.sites.granularity)[0]]
        for way in ("torch.fx", "torch.export"):
            try:
                captured = (
                    capture_by_fx(target, calls)
                    if way == "torch.fx"
                    else capture_by_export(target, images[:2])
                )
            except Exception as error:
                reasons.append(f"{way} stopped {_where(error, target.model)}: {first_line(error)}")
                continue
            try:
                network, builder = _smaller(captured, target, pathway, images)
                difference = _difference(network, target, pathway, images)
            except CannotFollow as error:
                reasons.append(f"in the graph of {way}, {error}")
                continue
            except _Differs as error:
                reasons.append(f"{way} gave a network that {error}")
                continue
            return _described(network, builder, target, pathway, way, difference)
    raise ExtractionError(f"extract: {kind} cannot be made smaller: {'; '.join(reasons)}")


# ---------------------------------------------------------------------- arguments


def _target(
    model: GatedTarget | nn.Module,
    pathway: Pathway | Tensor | Sequence[Tensor],
    example_input: Tensor | None,
) -> GatedTarget:
    if isinstance(model, GatedTarget):
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"extract: model must be a GatedTarget or an nn.Module, got {type(model).__name__}"
        )
    if example_input is None:
        raise ExtractionError(
            f"extract: a plain {type(model).__name__} needs example_input, a batch that it "
            "accepts; or pass its GatedTarget"
        )
    if not isinstance(pathway, Pathway):
        return GatedTarget(model, example_input)
    wanted = set(pathway.sites)
    found = GatedTarget(model, example_input)
    missing = [site.key for site in pathway.sites if site not in set(found.sites)]
    if missing and pathway.sites.granularity == "channel":
        raise ExtractionError(
            f"extract: pathway must be one of this {type(model).__name__}, which has no site "
            f"{missing[0]} of that shape"
        )
    return GatedTarget(model, example_input, sites=lambda site: site in wanted)


def _checked(pathway: Pathway | Tensor | Sequence[Tensor], target: GatedTarget) -> Pathway:
    """One pathway of channels of the target, on the CPU."""
    _check_granularity(target.sites)
    if isinstance(pathway, Pathway):
        _check_granularity(pathway.sites)
        if pathway.sites != target.sites:
            raise ExtractionError(
                f"extract: pathway must have the sites of the target, got {pathway.sites!r} and "
                f"{target.sites!r}"
            )
        if pathway.fingerprint and pathway.fingerprint != target.fingerprint:
            raise ExtractionError(
                "extract: pathway must belong to the target, but the fingerprints differ: other "
                "weights, or another baseline, which only the GatedTarget itself knows (pathway "
                f"{pathway.fingerprint[:12]}..., target {target.fingerprint[:12]}...)"
            )
        pathway = pathway.to("cpu")
    else:
        pathway = _from_mask(pathway, target.sites)
    if len(pathway) != 1:
        raise ExtractionError(
            f"extract: pathway must be exactly one, got {len(pathway)} rows; choose one, such as "
            "pathway[0] or class_pathways[3]"
        )
    return pathway


def _check_granularity(sites: Sites) -> None:
    if sites.granularity != "channel":
        raise ExtractionError(
            f"extract: pathway must be one of channels, got granularity {sites.granularity!r}: a "
            "single unit of a channel cannot be removed from a dense layer"
        )


def _from_mask(mask: Tensor | Sequence[Tensor], sites: Sites) -> Pathway:
    if isinstance(mask, list | tuple) and all(isinstance(part, Tensor) for part in mask):
        if len(mask) != len(sites):
            raise ExtractionError(
                f"extract: pathway must hold one mask per site ({len(sites)}), got {len(mask)}"
            )
        parts = [part[None] if part.dim() == 1 else part for part in mask]
        for site, part in zip(sites, parts, strict=True):
            if part.shape[1:] != (site.channels,):
                raise ExtractionError(
                    f"extract: mask of site {site.key} must be [{site.channels}] or "
                    f"[1, {site.channels}], got {tuple(part.shape)}"
                )
        mask = torch.cat([part.to("cpu", torch.float64) for part in parts], 1)
    if not isinstance(mask, Tensor):
        raise TypeError(
            "extract: pathway must be a Pathway, a mask or a mask per site, got "
            f"{type(mask).__name__}"
        )
    try:
        return Pathway.from_mask((mask[None] if mask.dim() == 1 else mask).cpu(), sites)
    except ValueError as error:
        raise ExtractionError(f"extract: {error}") from error


def _images(target: GatedTarget, example_input: Tensor | None) -> Tensor:
    """Images to learn shapes from and to check with: three, so that no size equals the batch's."""
    if target.example_floating:
        return _example(target, 3)
    if example_input is None:
        return torch.zeros(3, *target.example_shape, dtype=torch.long, device=target.device)
    return example_input[:1].expand(3, *target.example_shape).to(target.device)


# ---------------------------------------------------------------------- work


def _smaller(
    captured: fx.GraphModule, target: GatedTarget, pathway: Pathway, images: Tensor
) -> tuple[fx.GraphModule, Builder]:
    markers = {
        node: int(node.args[1]) for node in captured.graph.nodes if node.target is site_marker()
    }
    make_scriptable(captured.graph)
    make_functional(captured)
    captured.graph.eliminate_dead_code()
    captured.recompile()
    markers = {node: site for node, site in markers.items() if node in set(captured.graph.nodes)}
    analysis = Analysis(captured, markers, pathway, target.baseline, images)
    builder = Builder(analysis)
    network = builder.build()
    make_scriptable(network.graph)
    network.recompile()
    return network.requires_grad_(True), builder


class _Differs(Exception):
    """A network that does not give the logits of the gated target."""


def _difference(network: nn.Module, target: GatedTarget, pathway: Pathway, images: Tensor) -> float:
    """Largest difference of logits from the gated target, on batches of two sizes."""
    worst = 0.0
    gates = [gate.to(images.device) for gate in pathway.gates(torch.bool)]
    for count in (3, 2):
        batch = images[:count]
        with torch.no_grad():
            wanted = target.gated(batch.clone(), gates)
            try:
                found = network(batch.clone())
            except Exception as error:
                raise _Differs(f"fails on a batch of {count}: {first_line(error)}") from error
        precision = 10 * torch.finfo(wanted.dtype).eps ** 0.5
        scale = max(1.0, float(wanted.abs().max()))
        if found.shape != wanted.shape or not torch.allclose(
            found, wanted, rtol=0, atol=precision * scale, equal_nan=True
        ):
            what = (
                f"shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
                if found.shape != wanted.shape
                else f"largest difference {float((found - wanted).abs().max()):.3g}"
            )
            raise _Differs(f"gives other logits than the gated model ({what})")
        worst = max(worst, float((found - wanted).abs().max()))
    return worst


def _described(
    network: fx.GraphModule,
    builder: Builder,
    target: GatedTarget,
    pathway: Pathway,
    way: str,
    difference: float,
) -> ExtractedNetwork:
    layers = builder.all_layers()
    extraction = Extraction(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        parameters_before=sum(parameter.numel() for parameter in target.model.parameters()),
        multiplications=sum(layer.multiplications for layer in layers),
        multiplications_before=sum(layer.multiplications_before for layer in layers),
        channels=int(pathway.sizes()),
        channels_before=target.sites.num_neurons,
        layers=layers,
        captured_by=way,
        largest_difference=difference,
    )
    return ExtractedNetwork(network, extraction).eval()

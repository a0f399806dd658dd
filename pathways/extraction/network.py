"""What an extraction gives: the smaller network and what was removed.

No ``from __future__ import annotations`` here: TorchScript reads annotations as objects.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, fx, nn


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of the smaller network beside the one it comes from.

    Args:
        name (str): path of the module in the target.
        kind (str): ``"Conv2d"``, ``"Linear"``, ...
        inputs, outputs (int): channels kept.
        inputs_before, outputs_before (int): channels of the target's layer.
        multiplications, multiplications_before (int): per image of the example's size.
    """

    name: str
    kind: str
    inputs: int
    inputs_before: int
    outputs: int
    outputs_before: int
    multiplications: int
    multiplications_before: int


@dataclass(frozen=True)
class Extraction:
    """What an extraction removed.

    Args:
        parameters, parameters_before (int): numbers in the parameters of both networks.
        multiplications, multiplications_before (int): of convolutions and linear layers, per image
            of the example's size.
        channels, channels_before (int): channels at the sites, in the pathway and in all.
        layers (list of Layer): in execution order; a layer of which nothing is left has no outputs.
        captured_by (str): ``"torch.fx"`` or ``"torch.export"``, which fixes the size of the images.
        largest_difference (float): from the logits of the gated target, on random images.
    """

    parameters: int
    parameters_before: int
    multiplications: int
    multiplications_before: int
    channels: int
    channels_before: int
    layers: list[Layer] = field(repr=False)
    captured_by: str
    largest_difference: float

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-able values."""
        return asdict(self)

    def table(self) -> str:
        """Layers and totals as a plain text table."""
        rows = [("layer", "kind", "inputs", "outputs", "multiplications")]
        for layer in self.layers:
            rows.append(
                (
                    layer.name,
                    layer.kind,
                    f"{layer.inputs} of {layer.inputs_before}",
                    f"{layer.outputs} of {layer.outputs_before}",
                    _share(layer.multiplications, layer.multiplications_before),
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        for what in ("channels", "parameters", "multiplications"):
            now, before = getattr(self, what), getattr(self, f"{what}_before")
            lines.append(f"{what}: {now} of {before} ({_share(now, before)})")
        return "\n".join(lines)


class ExtractedNetwork(nn.Module):
    """The smaller dense network that a channel pathway is; made by :func:`pathways.extract`.

    An ordinary module: it has parameters under the target's names, can be moved, copied, trained,
    scripted and exported, and shares nothing with the target.

    Args:
        network (GraphModule): ``network(images) -> logits``.
        extraction (Extraction): what was removed.
    """

    def __init__(self, network: fx.GraphModule, extraction: Extraction) -> None:
        super().__init__()
        self.network = network
        self.extraction = extraction

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, K]`` of images ``[N, ...]`` as the target takes them."""
        logits: Tensor = self.network(images)
        return logits

    def summary(self) -> str:
        """What was removed, layer by layer, as a plain text table."""
        return self.extraction.table()


def _share(now: int, before: int) -> str:
    return f"{100 * now / before:.1f} %" if before else "-"

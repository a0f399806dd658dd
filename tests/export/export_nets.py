"""Small versions of the architectures that exported targets come from."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathways import ClassPathways, Explainer, GatedTarget, GenCNP
from pathways.models import vgg


class ReusedBlock(nn.Module):
    """A bottleneck that owns one in-place ReLU and applies it three times, as torchvision's do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(ReusedBlock(8), nn.MaxPool2d(2), ReusedBlock(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x), inplace=True))
        return self.head(x.mean((2, 3)))


class PreActivation(nn.Module):
    """An in-place ReLU whose input is read again: the shortcut sees the ReLU's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.SiLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.conv(torch.relu_(x))
        out = out + x
        F.relu_(out)
        again = self.act(out)
        return self.head((again + out).mean((2, 3)))


class Fire(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, 4, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1 = nn.Conv2d(4, 4, 1)
        self.activation1 = nn.ReLU(inplace=True)
        self.expand3 = nn.Conv2d(4, 4, 3, padding=1)
        self.activation3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat([self.activation1(self.expand1(x)), self.activation3(self.expand3(x))], 1)


def squeezenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(inplace=True),
        Fire(8),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(8),
        nn.Dropout(0.5),
        nn.Conv2d(8, 5, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


class DenseLayer(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, 4, 3, padding=1)

    def forward(self, x: list[Tensor]) -> Tensor:
        return self.conv(F.relu(self.norm(torch.cat(x, 1))))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList([DenseLayer(4 + 4 * i) for i in range(3)])
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = F.relu(self.norm(torch.cat(features, 1)), inplace=True)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.head(torch.flatten(x, 1))


class BasicConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, **options: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = BasicConv(3, 8, kernel_size=3, padding=1)
        self.branch1 = BasicConv(8, 4, kernel_size=1)
        self.branch3a = BasicConv(8, 4, kernel_size=1)
        self.branch3b = BasicConv(4, 6, kernel_size=3, padding=1)
        self.pool = BasicConv(8, 2, kernel_size=1)
        self.head = nn.Linear(12, 5)

    def branches(self, x: Tensor) -> list[Tensor]:
        pooled = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        return [self.branch1(x), self.branch3b(self.branch3a(x)), self.pool(pooled)]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat(self.branches(self.stem(x)), 1)
        return self.head(x.flatten(2).mean(2))


def mobilenet() -> nn.Module:
    def separable(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        ]

    return nn.Sequential(
        *separable(3, 8),
        nn.AvgPool2d(2),
        *separable(8, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.act = nn.GELU()
        self.reduce = nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.reduce(self.act(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 2, stride=2),
        ConvNeXtBlock(8),
        ConvNeXtBlock(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def norm_after_relu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3),
        nn.LeakyReLU(0.1, inplace=True),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


class SqueezeExcitation(nn.Module):
    """SiLU, Hardswish and a squeeze-and-excitation gate, as in EfficientNet and MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.SiLU(inplace=True)
        self.down = nn.Conv2d(8, 4, 1)
        self.up = nn.Conv2d(4, 8, 1)
        self.conv = nn.Conv2d(8, 8, 3)
        self.hardswish = nn.Hardswish(inplace=True)
        self.prelu = nn.PReLU(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        gate = F.hardsigmoid(self.up(self.down(x.mean((2, 3), keepdim=True)).relu()))
        x = self.hardswish(self.conv(x * gate))
        return self.head(self.prelu(x).amax((2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 70), nn.ReLU(), nn.Linear(70, 9), nn.ELU(inplace=True), nn.Linear(9, 5)
    )


class Tokens(nn.Module):
    """Attention over patches: linear layers on ``[N, T, C]``, sites with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 16, 8) * 0.1)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.expand = nn.Linear(8, 12)
        self.reduce = nn.Linear(12, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        n, c, h, w = x.shape
        torch._assert(h * w == 16, "wrong image size")
        x = x.reshape(n, c, h * w).permute(0, 2, 1) + self.position
        y = self.norm(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        x = x + self.reduce(F.gelu(self.expand(x), approximate="tanh"))
        return self.head(x.mean(dim=1))


class ShapeControlled(nn.Module):
    """Control flow on shapes and a number of steps: torch.fx cannot follow, torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.SiLU(inplace=True)
        self.hidden = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu_(self.stem(x))
        while x.shape[-1] > 4:
            y = self.conv(x)
            y += x
            x = F.interpolate(self.act(y), scale_factor=0.5)
        x = x + torch.zeros(x.shape[0], 8, 1, 1, device=x.device)
        x = self.hidden(x.flatten(2).transpose(1, 2))
        return {"logits": self.head(x.mean(1)), "tokens": x}


class DataControlled(nn.Module):
    """Control flow on values: no graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if x.mean() > 1e6:
            x = x / x.mean()
        return self.head(x.mean((2, 3)))


def first_logits(output: dict[str, Tensor]) -> Tensor:
    return output["logits"]


IMAGE = (3, 16, 16)
NETS = {
    "vgg": (lambda: vgg(3, 5, (8, 8, 8, 8)), IMAGE),
    "resnet_reused_inplace": (ResNet, IMAGE),
    "preactivation_inplace": (PreActivation, IMAGE),
    "squeezenet": (squeezenet, IMAGE),
    "densenet": (DenseNet, IMAGE),
    "inception": (Inception, IMAGE),
    "mobilenet": (mobilenet, IMAGE),
    "convnext": (convnext, IMAGE),
    "norm_after_relu": (norm_after_relu, IMAGE),
    "squeeze_excitation": (SqueezeExcitation, IMAGE),
    "mlp": (mlp, (6,)),
    "tokens": (Tokens, IMAGE),
    "shape_controlled": (ShapeControlled, IMAGE),
}
OUTPUT_FNS = {"shape_controlled": first_logits}
# A SqueezeNet's last ReLU is its logits: gating it would switch classes off.
SELECTORS = {"squeezenet": lambda site: site.name != "7"}


def with_statistics(model, shape):
    """The model with BatchNorm statistics of inputs, so that its activations differ."""
    with torch.no_grad():
        model.train()
        for _ in range(3):
            model(torch.randn(8, *shape) * 2 + 0.5)
    return model


def make_target(name, granularity="channel", **options):
    """A target with weights of a seed; see :func:`with_statistics`."""
    torch.manual_seed(7)
    build, shape = NETS[name]
    model = with_statistics(build(), shape)
    options.setdefault("output_fn", OUTPUT_FNS.get(name))
    options.setdefault("sites", SELECTORS.get(name))
    return GatedTarget(model, torch.zeros(1, *shape), granularity=granularity, **options)


def make_explainer(name, granularity="channel", **options):
    return explainer_of(make_target(name, granularity, **options))


def explainer_of(target):
    """An explainer whose pathways are far from all or nothing and differ between inputs."""
    generator = GenCNP(target.sites, target.num_classes, width=8, heads=2, reads_logits=True)
    with torch.no_grad():
        for head in generator.decoders.heads:
            nn.init.normal_(head.project.weight)
            nn.init.normal_(head.project.bias, 1.0)
    return Explainer(target, generator)


def make_class_pathways(explainer, images):
    """Pathways for every class but the last one, which stays empty."""
    classes = torch.arange(len(images)) % (explainer.target.num_classes - 1)
    return ClassPathways.from_pathways(
        explainer(images).pathway, classes, num_classes=explainer.target.num_classes
    )

"""Small networks, one for every way a classifier can spell and place its activations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Head(nn.Module):
    """Convolution, body, global average, linear: what most of the networks below share."""

    def __init__(self, body: nn.Module, channels: int, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.body = body
        self.linear = nn.Linear(channels, 4)

    def forward(self, x):
        return self.linear(self.body(self.stem(x)).mean((2, 3)))


class Call(nn.Module):
    """A functional activation between two convolutions; its result is used, or what it wrote."""

    def __init__(self, function, use_result=True):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.function = function
        self.use_result = use_result

    def forward(self, x):
        result = self.function(x)
        return self.conv(result if self.use_result else x)


class ReusedReLU(nn.Module):
    """ResNet's block: one ReLU module, called twice, in place, after an in-place addition."""

    def __init__(self, inplace=True):
        super().__init__()
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class PreActivation(nn.Module):
    """Pre-activation ResNet, in place: the shortcut reads the tensor that the ReLU wrote into."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        out = self.conv1(self.relu(x))
        return self.conv2(F.relu_(out)) + x


class Overwritten(nn.Module):
    """An activation that a later in-place call writes into."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        y = F.relu(x)
        z = self.conv(F.gelu(x))
        y += z
        y.view(-1).mul_(0.5)
        return y


class Concat(nn.Module):
    """Inception-like branches, and a dense connection whose sum is activated in place."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.LeakyReLU(0.2, inplace=True))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(torch.cat([self.a(x), x, self.b(x)], dim=1))


class InvertedResidual(nn.Module):
    """MobileNet's block: expansion, depthwise convolution, ReLU6."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(6, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU6(inplace=True),
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU6(inplace=True),
            nn.Conv2d(12, 6, 1, bias=False),
            nn.BatchNorm2d(6),
        )

    def forward(self, x):
        return x + self.layers(3 * x)


class Halves(nn.Module):
    """In-place activations of channel slices: views that are not dense."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        first, second = x[:, :3], x[:, 3:]
        first.relu_()
        F.silu(second, inplace=True)
        return self.conv(x)


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.reduce = nn.Conv2d(6, 3, 1)
        self.expand = nn.Conv2d(3, 6, 1)
        self.act = nn.Hardswish()

    def forward(self, x):
        x = self.act(x)
        scale = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(scale)


class ConvNeXt(nn.Module):
    """Channels last for the linear layers."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 9)
        self.act = nn.GELU()
        self.down = nn.Linear(9, 6)

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(self.act(self.up(y))).permute(0, 3, 1, 2)


class Transformer(nn.Module):
    """ViT-like: patches, encoder layers of PyTorch, a class token."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(2, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        return self.linear(self.encoder(tokens)[:, 0])


class TokenMLP(nn.Module):
    """Features last, with layers between the linear one and its activation."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(2, 8, 4, stride=4)
        self.up = nn.Linear(8, 10)
        self.norm = nn.LayerNorm(10)
        self.dropout = nn.Dropout(0.5)
        self.down = nn.Linear(10, 4)
        self.bias = nn.Parameter(torch.randn(10))

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        hidden = F.relu(self.dropout(self.norm(self.up(tokens)) + self.bias))
        return self.down(hidden).mean(1)


class SharedBlock(nn.Module):
    """One block, applied three times, with a functional activation of its own."""

    def __init__(self):
        super().__init__()
        self.block = Call(F.relu)

    def forward(self, x):
        return self.block(self.block(self.block(x)))


class AfterActivation(nn.Sequential):
    """BatchNorm and pooling after the ReLU."""

    def __init__(self):
        super().__init__(
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(6),
            nn.Dropout(0.5),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(6),
        )


class OnInput(nn.Module):
    """A classifier of features that begins with an in-place activation of its input."""

    def __init__(self):
        super().__init__()
        self.act = nn.SiLU(inplace=True)
        self.linear = nn.Linear(12, 4)

    def forward(self, x):
        return self.linear(self.act(x))


def _image(batch):
    return torch.randn(batch, 2, 8, 8)


def _functional(function, use_result=True):
    return lambda: (Head(Call(function, use_result), 6), _image)


# Name -> function that makes (model, function that makes a batch of inputs).
NETS = {
    "reused": lambda: (Head(nn.Sequential(ReusedReLU(), ReusedReLU()), 6), _image),
    "reused-not-inplace": lambda: (Head(nn.Sequential(ReusedReLU(False)), 6), _image),
    "pre-activation": lambda: (Head(PreActivation(), 6), _image),
    "overwritten": lambda: (Head(Overwritten(), 6), _image),
    "concat": lambda: (Head(Concat(), 14), _image),
    "depthwise": lambda: (Head(InvertedResidual(), 6), _image),
    "halves": lambda: (Head(Halves(), 6), _image),
    "squeeze-excite": lambda: (Head(SqueezeExcite(), 6), _image),
    "convnext": lambda: (Head(ConvNeXt(), 6), _image),
    "transformer": lambda: (Transformer(), _image),
    "token-mlp": lambda: (TokenMLP(), _image),
    "shared-block": lambda: (Head(SharedBlock(), 6), _image),
    "after-activation": lambda: (Head(AfterActivation(), 6), _image),
    "on-input": lambda: (OnInput(), lambda n: torch.randn(n, 12)),
    "mlp": lambda: (
        nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 4)),
        lambda n: torch.randn(n, 12),
    ),
    "conv1d": lambda: (
        nn.Sequential(
            nn.Conv1d(2, 5, 3),
            nn.BatchNorm1d(5),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(5, 4),
        ),
        lambda n: torch.randn(n, 2, 11),
    ),
    "conv3d": lambda: (
        nn.Sequential(
            nn.Conv3d(1, 3, 3), nn.ReLU6(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 4)
        ),
        lambda n: torch.randn(n, 1, 5, 6, 4),
    ),
    "prelu": lambda: (Head(nn.PReLU(6), 6), _image),
    "F.relu": _functional(F.relu),
    "F.relu-positional-inplace": _functional(lambda x: F.relu(x, True), use_result=False),
    "F.relu-keyword-input": _functional(lambda x: F.relu(input=x)),
    "F.relu_": _functional(F.relu_, use_result=False),
    "torch.relu": _functional(torch.relu),
    "torch.relu-keyword-input": _functional(lambda x: torch.relu(input=x)),
    "torch.relu_": _functional(torch.relu_, use_result=False),
    "x.relu()": _functional(lambda x: x.relu()),
    "x.relu_()": _functional(lambda x: x.relu_(), use_result=False),
    "F.relu6-inplace": _functional(lambda x: F.relu6(4 * x, inplace=True)),
    "F.gelu": _functional(F.gelu),
    "F.gelu-tanh": _functional(lambda x: F.gelu(x, approximate="tanh")),
    "F.silu": _functional(F.silu),
    "F.silu-inplace": _functional(lambda x: F.silu(x, inplace=True), use_result=False),
    "F.hardswish-inplace": _functional(lambda x: F.hardswish(x, inplace=True), use_result=False),
    "F.mish": _functional(F.mish),
    "F.leaky_relu": _functional(lambda x: F.leaky_relu(x, 0.3)),
    "F.leaky_relu_": _functional(lambda x: F.leaky_relu_(x, 0.3), use_result=False),
    "F.elu-inplace": _functional(lambda x: F.elu(x, inplace=True), use_result=False),
    "F.elu_": _functional(F.elu_, use_result=False),
    "F.selu": _functional(F.selu),
    "F.selu_": _functional(F.selu_, use_result=False),
    "F.celu-inplace": _functional(lambda x: F.celu(x, 0.7, inplace=True), use_result=False),
    "F.celu_": _functional(F.celu_, use_result=False),
    "torch.celu": _functional(torch.celu),
    "F.prelu": _functional(lambda x: F.prelu(x, torch.tensor([0.1], dtype=x.dtype))),
    "hardtanh-0-6": _functional(lambda x: F.hardtanh(4 * x, 0.0, 6.0)),
}


class Case:
    """A network with fresh weights and non-trivial BatchNorm statistics, and inputs for it."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.name = name
        self.model, self.make = NETS[name]()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.bias, std=0.3)

    def images(self, batch: int = 3, seed: int = 1) -> torch.Tensor:
        torch.manual_seed(seed)
        return self.make(batch)


@pytest.fixture(params=list(NETS))
def case(request) -> Case:
    """Every network in turn."""
    return Case(request.param)


@pytest.fixture
def make_case():
    """Networks by name."""
    return Case

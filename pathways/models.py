"""Small reference classifiers for the demo and the examples; any ``nn.Module`` can be a target."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv_bn_relu(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def vgg(
    in_channels: int = 1,
    num_classes: int = 10,
    widths: tuple[int, ...] = (32, 32, 64, 64, 128, 128),
) -> nn.Sequential:
    """A VGG-like net: 3x3 convolutions, pooled after every second one, global average, linear.

    Args:
        in_channels (int): channels of the input ``[N, C, H, W]``; H and W at least 8.
        num_classes (int): K.
        widths (tuple of int): channels of the convolutions; the default has 0.29 M parameters.

    Example:
        >>> vgg()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    previous = in_channels
    for i, width in enumerate(widths):
        layers += _conv_bn_relu(previous, width)
        if i % 2 == 1 and i + 1 < len(widths):
            layers.append(nn.MaxPool2d(2))
        previous = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, num_classes)]
    return nn.Sequential(*layers)


def digits_net() -> nn.Sequential:
    """The demo's classifier for 16x16 digits: 66 k parameters, four convolutions.

    Example:
        >>> digits_net()(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """
    return vgg(widths=(32, 32, 64, 64))


class _ShortcutA(nn.Module):
    """ResNet's parameter-free shortcut: every second pixel, new channels zero on both sides."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], [0, 0, 0, 0, self.padding, self.padding])


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else _ShortcutA((outputs - inputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet20(nn.Module):
    """ResNet-20 for 32x32 images with option-A shortcuts (He et al., arXiv:1512.03385).

    Parameter names match akamaster/pytorch_resnet_cifar10, so that its weights load.

    Example:
        >>> ResNet20()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(16, 16, 1)
        self.layer2 = self._layer(16, 32, 2)
        self.layer3 = self._layer(32, 64, 2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            _BasicBlock(inputs, outputs, stride),
            _BasicBlock(outputs, outputs, 1),
            _BasicBlock(outputs, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


def resnet20() -> ResNet20:
    """An untrained :class:`ResNet20`; the factory to name on the command line."""
    return ResNet20()


def cifar_cnn() -> nn.Sequential:
    """The plain CIFAR-10 net of the package cifar-10-model, with BatchNorm after ReLU; untrained.

    Six 3x3 convolutions without padding, pooled after the second and the fourth, then three linear
    layers. The published net ends in one more ReLU, which would hide how unlikely the other classes
    are and does not change the prediction where any logit is positive.

    Example:
        >>> cifar_cnn()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    previous = 3
    for i, width in enumerate((64, 64, 128, 128, 64, 64)):
        layers += [nn.Conv2d(previous, width, 3), nn.ReLU(), nn.BatchNorm2d(width, eps=1e-3)]
        if i in (1, 3):
            layers.append(nn.MaxPool2d(2))
        previous = width
    for width in (1024, 512):
        layers += [nn.Flatten(), nn.Linear(previous, width), nn.ReLU()]
        previous = width
    return nn.Sequential(*layers, nn.Linear(previous, 10))

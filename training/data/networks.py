"""Networks of the literature for small images, made for any number of channels, image size and classes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.errors import InputError


class DigitsCnn(nn.Sequential):
    """Three convolutions and two linear layers for 8x8 digits: 23,810 weights and biases there.

    Its GEMMs have K = 9, 144, 216, 192, 48 and N = 16, 24, 48, 48, 10, so that they do and do not fill an array.
    """

    def __init__(self, in_channels: int = 1, image_size: int = 8, classes: int = 10) -> None:
        _check_image_size("DigitsCnn", image_size, 4)
        side = image_size // 4
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 16, 3, padding=1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(16, 24, 3, padding=1),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                conv3=nn.Conv2d(24, 48, 3, padding=1),
                relu3=nn.ReLU(),
                pool3=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                linear1=nn.Linear(48 * side * side, 48),
                relu4=nn.ReLU(),
                linear2=nn.Linear(48, classes),
            )
        )


class LeNet5(nn.Sequential):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling; images smaller than 32x32 are padded by 2 first."""

    def __init__(self, in_channels: int = 1, image_size: int = 28, classes: int = 10) -> None:
        _check_image_size("LeNet5", image_size, 12)
        padding = 2 if image_size < 32 else 0
        side = ((image_size + 2 * padding - 4) // 2 - 4) // 2
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 6, 5, padding=padding),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(6, 16, 5),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                linear1=nn.Linear(16 * side * side, 120),
                relu3=nn.ReLU(),
                linear2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
                linear3=nn.Linear(84, classes),
            )
        )


class Vgg11(nn.Module):
    """VGG configuration A (Simonyan & Zisserman 2015) with batch normalisation and one linear layer, for CIFAR."""

    def __init__(self, in_channels: int = 3, image_size: int = 32, classes: int = 10) -> None:
        super().__init__()
        _check_image_size("Vgg11", image_size, 32)
        layers: list[nn.Module] = []
        channels = in_channels
        for width, pooled in (
            (64, True),
            (128, True),
            (256, False),
            (256, True),
            (512, False),
            (512, True),
            (512, False),
            (512, True),
        ):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            if pooled:
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (image_size // 32) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [n, classes] of images float32 [n, in_channels, image_size, image_size]."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class PaddedShortcut(nn.Module):
    """The shortcut without weights, option A of He et al. 2016: every second pixel, new channels zero on both sides."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[n, in_channels, h, w] to [n, out_channels, ceil(h / 2), ceil(w / 2)]."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which a shortcut leads (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Literal["pad", "project"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            if shortcut == "pad":
                self.shortcut = PaddedShortcut(in_channels, out_channels)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
                )

    def forward(self, x: Tensor) -> Tensor:
        """[n, in_channels, h, w] to [n, out_channels, ceil(h / stride), ceil(w / stride)]."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class _ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks that halve the image from the second on, global average, linear."""

    def __init__(
        self,
        in_channels: int,
        classes: int,
        widths: tuple[int, ...],
        blocks: int,
        shortcut: Literal["pad", "project"],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(widths)
        channels = widths[0]
        for stage, width in enumerate(widths):
            layers = []
            for block in range(blocks):
                layers.append(ResidualBlock(channels, width, 2 if stage > 0 and block == 0 else 1, shortcut))
                channels = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [n, classes] of images float32 [n, in_channels, image_size, image_size]."""
        x = torch.relu(self.bn1(self.conv1(images)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class ResNet20(_ResNet):
    """ResNet-20 for CIFAR with option-A shortcuts (He et al. 2016, section 4.2): 0.27 M weights."""

    def __init__(self, in_channels: int = 3, image_size: int = 32, classes: int = 10) -> None:
        _check_image_size("ResNet20", image_size, 4)
        super().__init__(in_channels, classes, (16, 32, 64), 3, "pad")


class ResNet18(_ResNet):
    """ResNet-18 (He et al. 2016) with the 3x3 stem that is usual for CIFAR, and no pooling after it: 11 M weights."""

    def __init__(self, in_channels: int = 3, image_size: int = 32, classes: int = 10) -> None:
        _check_image_size("ResNet18", image_size, 8)
        super().__init__(in_channels, classes, (64, 128, 256, 512), 2, "project")


def _check_image_size(network: str, image_size: int, least: int) -> None:
    if image_size < least:
        raise InputError(f"images of {image_size}x{image_size} pixels are too small for {network}: expected {least} up")

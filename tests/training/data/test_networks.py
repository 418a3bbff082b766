"""Networks for several channels, image sizes and classes."""

import pytest
import torch

from simulator import ArrayConfig
from simulator.errors import InputError
from training.data.networks import DigitsCnn, LeNet5, PaddedShortcut, ResNet18, ResNet20, Vgg11
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers


@pytest.mark.parametrize(
    ("network", "parameters", "layers"),
    [
        (DigitsCnn, 23_810, 5),
        (LeNet5, 61_706, 5),
        (ResNet20, 269_722, 20),
        (ResNet18, 11_173_962, 21),
        (Vgg11, 9_231_114, 9),
    ],
)
def test_sizes_are_those_of_the_literature(network, parameters, layers):
    built = network()
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    assert sum(isinstance(module, kinds) for module in built.modules()) == layers


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (DigitsCnn, 8),
        (DigitsCnn, 9),
        (LeNet5, 28),
        (LeNet5, 32),
        (LeNet5, 12),
        (Vgg11, 64),
        (ResNet20, 33),
        (ResNet18, 8),
    ],
)
def test_networks_take_any_channels_size_and_classes(network, size):
    built = network(2, size, 7).eval()
    images = torch.randn(2, 2, size, size)
    config = ArrayConfig(16, 16)
    converted = convert(built, config, images, accelerator=Accelerator(config, engine="exact"))
    with torch.no_grad():
        assert built(images).shape == converted(images).shape == (2, 7)
    assert len(quantized_layers(converted)) >= 5


@pytest.mark.parametrize("network", [DigitsCnn, LeNet5, Vgg11, ResNet20, ResNet18])
def test_images_too_small_are_refused(network):
    with pytest.raises(InputError, match=f"3x3 pixels are too small for {network.__name__}"):
        network(1, 3, 10)


def test_the_padded_shortcut_takes_every_second_pixel():
    x = torch.arange(2 * 9.0).view(1, 2, 3, 3)
    found = PaddedShortcut(2, 4)(x)
    assert found[0].tolist() == [[[0, 0], [0, 0]], [[0, 2], [6, 8]], [[9, 11], [15, 17]], [[0, 0], [0, 0]]]

"""The table of docs/networks.md: each of its rows is what conversion does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from simulator import ArrayConfig
from simulator.errors import ConversionError
from training.layers.array_share import array_share
from training.layers.convert import convert, quantized_layers

PAGE = Path(__file__).parents[3] / "docs" / "networks.md"
IMAGES = torch.rand(3, 4, 6, 6)

# Of torch's own quantisation and compilation, whose parts warn that others will replace them.
pytestmark = pytest.mark.filterwarnings("ignore")


class Then(nn.Module):
    """Something of a network that has a linear layer, too."""

    def __init__(self, part: nn.Module | None, use: Callable[[Then, Tensor], Tensor]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.part = part
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        """The layer, then the rest."""
        return self.use(self, self.head(x.mean((2, 3))))


class Doubled(nn.Linear):
    """With a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Twice as much."""
        return 2 * super().forward(input)


def dynamic() -> nn.Module:
    """Quantised by torch."""
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 3)), {nn.Linear})


def exported() -> nn.Module:
    """A graph of operations."""
    return torch.export.export(nn.Conv2d(4, 2, 3), (IMAGES,)).module()


ARRAY: dict[str, list[Callable[[], nn.Module]]] = {
    "`Conv2d`: any stride, padding, dilation, groups": [
        lambda: nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=1, dilation=(1, 2), groups=2),
        lambda: nn.Conv2d(4, 2, 3, padding="same", padding_mode="reflect"),
    ],
    "`Linear`: on any number of dimensions": [lambda: nn.Linear(6, 3)],
    "`Conv2d`, `Linear` with `parametrizations` (weight norm)": [
        lambda: weight_norm(nn.Linear(6, 3)),
        lambda: weight_norm(nn.Conv2d(4, 2, 3)),
    ],
}
FLOAT: dict[str, list[tuple[Callable[[], nn.Module], int]]] = {
    "`BatchNorm2d`, `LayerNorm`, activations, pooling": [
        (lambda: Then(nn.LayerNorm(4), lambda net, h: net.part(h).relu()), 0),
        (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 2, 3), nn.MaxPool2d(2)), 0),
    ],
    "`Embedding`": [(lambda: Then(nn.Embedding(9, 4), lambda net, h: h + net.part(h.argmax(1))), 0)],
    "`functional.linear`, `conv2d`, `matmul`, attention by functions": [
        (lambda: Then(None, lambda net, h: functional.linear(h, net.head.weight)), 16),
        (lambda: Then(None, lambda net, h: h @ net.head.weight), 16),
        (lambda: Then(None, lambda net, h: functional.conv2d(h[:, None, None], net.head.weight[:, None, None])), 16),
        (lambda: Then(None, lambda net, h: functional.scaled_dot_product_attention(h, h, h)), 8),
    ],
}
REFUSED: dict[str, list[Callable[[], nn.Module]]] = {
    "`Conv1d`": [lambda: nn.Conv1d(4, 2, 3)],
    "`Conv3d`": [lambda: nn.Conv3d(4, 2, 3)],
    "`ConvTranspose1d`, `ConvTranspose2d`, `ConvTranspose3d`": [
        lambda: nn.ConvTranspose1d(4, 2, 3),
        lambda: nn.ConvTranspose2d(4, 2, 3),
        lambda: nn.ConvTranspose3d(4, 2, 3),
    ],
    "`MultiheadAttention`, `TransformerEncoderLayer`": [
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.TransformerEncoderLayer(4, 2),
    ],
    "`LSTM`, `GRU`, `RNN` and their cells": [
        lambda: nn.LSTM(4, 2),
        lambda: nn.GRU(4, 2),
        lambda: nn.RNN(4, 2),
        lambda: nn.LSTMCell(4, 2),
        lambda: nn.GRUCell(4, 2),
        lambda: nn.RNNCell(4, 2),
    ],
    "`Bilinear`": [lambda: nn.Bilinear(4, 4, 2)],
    "`LazyConv2d`, `LazyLinear`": [lambda: nn.LazyConv2d(4, 3), lambda: nn.LazyLinear(2)],
    "a `Conv2d` or `Linear` with a `forward` of its own": [lambda: Doubled(6, 3)],
    "a `Conv2d` or `Linear` with hooks (old `weight_norm`)": [lambda: nn.utils.weight_norm(nn.Linear(6, 3))],
    "weights in float64, float16 or bfloat16": [
        lambda: nn.Linear(6, 3).double(),
        lambda: nn.Linear(6, 3).half(),
        lambda: nn.Linear(6, 3).bfloat16(),
    ],
    "weights in int8, `torch.ao.quantization`, exported programs": [dynamic, exported],
    "TorchScript": [lambda: torch.jit.trace(nn.Conv2d(4, 2, 3), IMAGES)],
}


def rows() -> dict[str, tuple[str, str]]:
    """What the table says of each thing in a network."""
    found = re.findall(r"^\| (.+?) \| (array|float|refused) \| ?(.*?) ?\|$", PAGE.read_text(), re.MULTILINE)
    return {part: (then, rest) for part, then, rest in found}


def test_every_row_is_tested() -> None:
    tested = {**dict.fromkeys(ARRAY, "array"), **dict.fromkeys(FLOAT, "float"), **dict.fromkeys(REFUSED, "refused")}
    assert {part: then for part, (then, _) in rows().items()} == tested


@pytest.mark.parametrize("part", ARRAY)
def test_what_runs_on_the_array(part: str) -> None:
    for build in ARRAY[part]:
        network = nn.Sequential(build())
        converted = convert(network, ArrayConfig(8, 8), IMAGES)
        assert list(quantized_layers(converted)) == ["0"]
        assert array_share(converted, IMAGES[:1]).value == 1


@pytest.mark.parametrize("part", FLOAT)
def test_what_stays_in_float_is_counted(part: str) -> None:
    for build, products in FLOAT[part]:
        converted = convert(build(), ArrayConfig(8, 8), IMAGES)
        assert len(quantized_layers(converted)) == 1
        assert sum(array_share(converted, IMAGES[:1]).in_float.values()) == products


@pytest.mark.parametrize("part", REFUSED)
def test_what_is_refused(part: str) -> None:
    for build in REFUSED[part]:
        with pytest.raises(ConversionError) as caught:
            convert(nn.Sequential(build()), ArrayConfig(8, 8), IMAGES)
        said = str(caught.value)
        assert "\n" not in said
        # Each of the words that the page marks as code, as far as they are advice to follow at once.
        (_, advice) = rows()[part]
        for name in re.findall(r"`(Conv2d|Linear)`", advice):
            assert name in said

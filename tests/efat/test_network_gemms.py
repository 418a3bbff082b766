"""GEMMs of networks by name against those that the layers run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from efat.network_gemms import network_gemms
from simulator import ArrayConfig, simulate_gemm
from simulator.cycles.counts import count_network
from simulator.cycles.scalesim import GemmLayer
from simulator.errors import InputError
from training import put_on_chip
from training.data.workloads import WORKLOADS, Workload, own_network
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers
from training.layers.quantized import GemmRun


@pytest.mark.parametrize("name", ["digits-cnn", "lenet5", "resnet20"])
def test_gemms_are_those_that_run(name: str) -> None:
    workload, batch = WORKLOADS[name], 2
    images = torch.rand(batch, *workload.input_shape)
    network = workload.build(workload.input_shape[0], workload.input_shape[1], workload.classes).eval()
    config = ArrayConfig(8, 8)
    network = convert(network, config, (images,))
    put_on_chip(network, Accelerator(config))
    runs: list[GemmLayer] = []

    def observe(run: GemmRun) -> None:
        runs.append(GemmLayer(run.layer, run.x.shape[0], run.x.shape[1], run.w.shape[1]))

    for layer in quantized_layers(network).values():
        layer.observer = observe
    with torch.inference_mode():
        network(images)
    assert network_gemms(name, batch) == runs


def test_each_group_is_a_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(channels: int, size: int, classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * (size - 2) ** 2, classes))

    monkeypatch.setitem(WORKLOADS, "grouped", Workload("grouped", build, (4, 5, 5), classes=7))
    assert network_gemms("grouped", 3) == [GemmLayer("0", 27, 18, 3, groups=2), GemmLayer("2", 3, 54, 7)]


def test_images_may_have_another_size() -> None:
    assert network_gemms("lenet5", image=(3, 32, 32))[0] == GemmLayer("conv1", 28 * 28, 75, 6)
    with pytest.raises(InputError, match="images are 1x28x32: network 'lenet5' wants square ones"):
        network_gemms("lenet5", image=(1, 28, 32))


OWN = """
import torch
from torch import nn


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4)
        self.pointwise = nn.Conv2d(8, 6, 1)
        self.twice = nn.Linear(6, 6)

    def forward(self, x):
        x = self.pointwise(torch.relu(self.depthwise(x)) + torch.ones(8, 1, 1))
        x = x.mean((2, 3))
        return self.twice.forward(input=self.twice(x))


class Values(Blocks):
    def forward(self, x):
        return super().forward(x if x.sum().item() >= 0 else x * 2)


class Unreached(Blocks):
    def forward(self, x):
        return self.depthwise(x)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3)
"""


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Path("gemms_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("gemms_own", None)


@pytest.mark.parametrize("network", ["Blocks", "Values"])
def test_gemms_of_ones_own_network_are_those_that_the_cycle_engine_steps(own: None, network: str, seed: int) -> None:
    torch.manual_seed(seed)
    layers = network_gemms(f"gemms_own:{network}", 2, (4, 5, 6))
    assert layers == [
        GemmLayer("depthwise", 2 * 3 * 3, 9, 2, groups=4),
        GemmLayer("pointwise", 2 * 3 * 3, 8, 6),
        GemmLayer("twice", 2, 6, 6),
        GemmLayer("twice", 2, 6, 6),
    ]
    config, images = ArrayConfig(4, 3), torch.rand(2, 4, 5, 6)
    converted = convert(own_network(f"gemms_own:{network}"), config, (images,))
    stepped: list[tuple[str, int]] = []

    def observe(run: GemmRun) -> None:
        stepped.append((run.layer, simulate_gemm(run.x.numpy(), run.w.numpy(), config).cycles))

    for layer in quantized_layers(converted).values():
        layer.observer = observe
    with torch.inference_mode():
        converted(images)
    counts = count_network(config, layers)
    assert len(stepped) == 4 + 1 + 2
    assert counts.serial == sum(cycles for _, cycles in stepped)
    assert counts.layers[0].timing.serial == sum(cycles for name, cycles in stepped if name == "depthwise")
    alone = count_network(config, [replace(layers[0], groups=1)] * 4)
    first = counts.layers[0]
    assert first.timing.double_buffered == alone.double_buffered
    assert first.timing.folds == alone.folds
    assert first.traffic == alone.traffic


@pytest.mark.parametrize(
    ("network", "image", "message"),
    [
        ("Blocks", None, "is your own and its images may have any size: give it with --input, such as 3x32x32"),
        (
            "Blocks",
            (3, 5, 6),
            "does not take 3x5x6 images: .*in layer 'depthwise'.*; give the size of its images with --",
        ),
        ("Unreached", (4, 5, 6), "layer 'pointwise' is never reached by an image"),
        ("Sequence", (4, 5, 6), "layer 'conv' is a Conv1d, which cannot be converted: write it as a Conv2d"),
        ("Missing", (4, 5, 6), "has no 'Missing'"),
    ],
)
def test_networks_that_cannot_be_counted_are_refused(
    own: None, network: str, image: tuple[int, int, int] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        network_gemms(f"gemms_own:{network}", 2, image)


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(InputError, match="network 'alexnet' is unknown: choose one of digits-cnn, lenet5"):
        network_gemms("alexnet")

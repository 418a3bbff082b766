"""GEMMs of networks by name against those that the layers run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efat.network_gemms import network_gemms
from simulator import ArrayConfig
from simulator.scalesim import GemmLayer
from training import convert, place
from training.convert import quantized_layers
from training.errors import InputError
from training.layers import Accelerator, GemmRun
from training.workloads import WORKLOADS, Workload


@pytest.mark.parametrize("name", ["digits-cnn", "lenet5", "resnet20"])
def test_gemms_are_those_that_run(name: str) -> None:
    workload, batch = WORKLOADS[name], 2
    images = torch.rand(batch, *workload.input_shape)
    network = workload.build(workload.input_shape[0], workload.input_shape[1], workload.classes).eval()
    config = ArrayConfig(8, 8)
    network = convert(network, config, (images,))
    place(network, Accelerator(config))
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
    assert network_gemms("grouped", 3) == [
        GemmLayer("0[0]", 27, 18, 3),
        GemmLayer("0[1]", 27, 18, 3),
        GemmLayer("2", 3, 54, 7),
    ]


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(InputError, match="network 'alexnet' is unknown: choose one of digits-cnn, lenet5"):
        network_gemms("alexnet")

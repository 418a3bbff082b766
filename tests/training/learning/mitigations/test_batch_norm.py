"""Statistics of batch normalisation that are measured on the chip."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.errors import InputError
from training.data.batches import Batches
from training.data.datasets import Dataset
from training.layers.accelerator import Accelerator
from training.layers.convert import convert
from training.layers.trainable import move, trainable, trainable_layers
from training.learning.mitigations import BatchNormStatistics

CONFIG = ArrayConfig(8, 8)


@pytest.fixture
def data(seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    return Dataset("noise", torch.rand(40, 2, 6, 6, generator=generator), torch.arange(40) % 3, 3)


def test_statistics_are_those_of_the_sums_on_the_chip(data: Dataset, seed: int) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(), nn.Flatten())
    network.append(nn.Linear(80, 3))
    faults = FaultMap.from_faults(CONFIG, [Fault(1, 2, Site.PSUM, 12, Kind.STUCK_AT_1)])
    model = trainable(network, convert(network, CONFIG, data.images))
    move(model, Accelerator(CONFIG, faults), {})
    batches = Batches(data, 10, seed)

    BatchNormStatistics(batches=3).settle(model, batches)

    first = next(iter(trainable_layers(model).values())).eval()
    means, variances = [], []
    for iteration in range(3):
        sums = first(batches.at(iteration)[0])
        means.append(sums.mean((0, 2, 3)))
        variances.append(sums.var((0, 2, 3)))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert norm.momentum == 0.1
    assert not model.training
    assert not norm.training


def test_a_network_without_batch_normalisation_is_left_alone(data: Dataset) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.BatchNorm1d(3, track_running_stats=False))
    model = trainable(network, convert(network, CONFIG, data.images))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    BatchNormStatistics().settle(model, Batches(data, 10, 0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_batches_are_refused() -> None:
    with pytest.raises(InputError, match="measured on 0 batches: expected 1 or more"):
        BatchNormStatistics(batches=0)

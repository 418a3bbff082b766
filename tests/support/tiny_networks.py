"""Small networks on small chips, for what is done with whole networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from simulator import ArrayConfig, Fault, FaultMap, FaultModel, Kind, Site, sample_faults
from simulator.lots.chips import Chip
from training.data.datasets import Dataset
from training.layers.accelerator import Accelerator
from training.layers.convert import convert
from training.layers.deployment import Deployment
from training.layers.trainable import trainable, trainable_layers
from training.learning.mitigations.mitigation import Mitigation

ARRAY = ArrayConfig(5, 4)
OWN_PE = (Site.WEIGHT, Site.PRODUCT, Site.PSUM)


def tiny_network() -> nn.Sequential:
    """Two convolutions, one of them grouped, and a linear layer, for images of 2x4x4 in three classes."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 2, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def tiny_images(count: int, seed: int) -> Dataset:
    """Images whose class is where they are bright."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = random.normal(size=(count, 2, 4, 4)).astype(np.float32)
    images[np.arange(count), 0, labels] += 2
    return Dataset(f"tiny {seed}", torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), 3)


def on_fault_free(network: nn.Module, config: ArrayConfig = ARRAY) -> nn.Module:
    """The network ready to learn, on a chip where nothing is broken."""
    return trainable(network, convert(network, config, tiny_images(20, 0).images))


def faulty_chip(seed: int, rate: float = 0.3, config: ArrayConfig = ARRAY) -> Chip:
    """A chip whose faults cost their own PE each."""
    return Chip("chip-7", sample_faults(config, FaultModel(rate, sites=dict.fromkeys(OWN_PE, 1.0)), seed))


def with_broken_accumulators(chip: Chip, *columns: int) -> Chip:
    """The chip with bits of column accumulators stuck."""
    broken = [Fault(0, column, Site.ACCUMULATOR, 9, Kind.STUCK_AT_1) for column in columns]
    return replace(chip, faults=chip.faults | FaultMap.from_faults(chip.faults.config, broken))


def undeployed(model: nn.Module, chip: Chip) -> Deployment:
    """How a network sits on a chip before anything is done: in order, with the chip's own bypass."""
    config = chip.faults.config
    bypass = np.zeros((config.rows, config.cols), np.bool_) if chip.bypass is None else chip.bypass
    scales = {name: float(layer.activation_scale) for name, layer in trainable_layers(model).items()}
    return Deployment(config.as_dict(), bypass, scales, {})


def deploy(model: nn.Module, chip: Chip, *mitigations: Mitigation) -> Deployment:
    """What mitigations make of it, one after the other."""
    deployment = undeployed(model, chip)
    for mitigation in mitigations:
        deployment = mitigation.deploy(deployment, chip, model)
    return deployment


def accelerator(chip: Chip, *, bypass: bool) -> Accelerator:
    """The chip, with all that its faults require bypassed or nothing."""
    return Accelerator(chip.faults.config, chip.faults, chip.faults.required_bypass() if bypass else None)

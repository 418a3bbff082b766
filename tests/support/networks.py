"""Networks of tests: small ones, and such as users bring."""

from __future__ import annotations

import itertools
import threading
from collections import UserDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

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
    return Deployment(config.record, bypass, scales, {})


def deploy(model: nn.Module, chip: Chip, *mitigations: Mitigation) -> Deployment:
    """What mitigations make of it, one after the other."""
    deployment = undeployed(model, chip)
    for mitigation in mitigations:
        deployment = mitigation.deploy(deployment, chip, model)
    return deployment


def accelerator(chip: Chip, *, bypass: bool) -> Accelerator:
    """The chip, with all that its faults require bypassed or nothing."""
    return Accelerator(chip.faults.config, chip.faults, chip.faults.required_bypass() if bypass else None)


Use = Callable[[Any, Tensor], Any]


class Network(nn.Module):
    """A convolution and two linear layers, and what is done with them."""

    def __init__(self, use: Use, **kept: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(1, 4, 3, stride=2)
        self.b = nn.Linear(36, 8)
        self.c = nn.Linear(8, 3)
        self.use = use
        for name, value in kept.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        """What is done."""
        return self.use(self, x)

    def features(self, x: Tensor) -> Tensor:
        """All but the last layer."""
        return torch.relu(self.b(torch.relu(self.a(x)).flatten(1)))

    def scores(self, x: Tensor) -> Tensor:
        """All layers."""
        return self.c(self.features(x))


def _making(use: Use, **kept: Any) -> Callable[[], nn.Module]:
    return lambda: Network(use, **kept)


# Outputs that are no scores.
pair = _making(lambda net, x: (net.scores(x), net.features(x)))
named = _making(lambda net, x: {"logits": net.scores(x)})
own_dict = _making(lambda net, x: UserDict(logits=net.scores(x)))
nothing = _making(lambda net, x: None)
flat = _making(lambda net, x: net.scores(x).flatten())
maps = _making(lambda net, x: net.a(x))
squeezed = _making(lambda net, x: net.scores(x).squeeze())
classes = _making(lambda net, x: net.scores(x).argmax(1))
double = _making(lambda net, x: net.scores(x).double())
half = _making(lambda net, x: net.scores(x).half())
not_numbers = _making(lambda net, x: net.scores(x) / 0)
few = _making(lambda net, x: net.scores(x)[:, :2])


# Layers that are called or used in other ways.
by_keyword = _making(lambda net, x: net.c(input=torch.relu(net.b(input=net.a(input=x).flatten(1)))))
by_forward = _making(lambda net, x: net.c.forward(net.features(x)))
by_type = _making(lambda net, x: net.scores(x) * sum(isinstance(layer, nn.Linear) for layer in net.children()))
by_size = _making(lambda net, x: net.c(net.features(x)[:, : net.c.in_features]) / net.a.out_channels)
without_bias = _making(lambda net, x: net.scores(x) - net.c.bias)
tied = _making(lambda net, x: net.c(functional.linear(net.features(x), net.b.weight.t()) @ net.b.weight.t()))
typed = _making(lambda net, x: net.scores(x.to(next(net.parameters()).dtype)))
internals = _making(lambda net, x: net.c(net.features(x)) + 0 * net.a._reversed_padding_repeated_twice[0])
unused = _making(lambda net, x: x.flatten(1) @ net.b.weight.new_ones(64, 3))


# Networks that keep things, or change.
def _cached(net: Any, x: Tensor) -> Tensor:
    net.kept = {"features": [net.features(x)]}
    return net.c(net.kept["features"][0])


cached = _making(_cached)


def cached_before() -> nn.Module:
    """With a result of its own, computed with gradients."""
    network = cached()
    network(torch.rand(2, 1, 8, 8))
    return network


locked = _making(lambda net, x: net.scores(x), lock=threading.Lock())
generating = _making(lambda net, x: net.scores(x), numbers=(number for number in range(3)))
counting = _making(lambda net, x: net.scores(x) + next(net.count), count=itertools.count())
noisy = _making(lambda net, x: net.scores(x) + torch.from_numpy(np.random.default_rng().normal(size=3)).float())
dropping = _making(lambda net, x: net.scores(functional.dropout(x, 0.5, training=True)))


def _subtracts(net: Any, x: Tensor) -> Tensor:
    x -= 0.5
    return net.scores(x)


in_place = _making(_subtracts)


class Eval(Network):
    """Returns nothing from `train` and `eval`."""

    def train(self, mode: bool = True) -> Any:
        """Changes the mode."""
        super().train(mode)


def no_return() -> nn.Module:
    """See `Eval`."""
    return Eval(lambda net, x: net.scores(x))


def _weight_norm(old: bool) -> nn.Module:
    network = Network(lambda net, x: net.scores(x))
    network.c = nn.utils.weight_norm(network.c) if old else weight_norm(network.c)
    return network


def parametrised() -> nn.Module:
    """A layer whose weights are computed from others."""
    return _weight_norm(old=False)


def _sharing(network: Network) -> nn.Module:
    network.use = lambda net, x: net.c(net.d(torch.relu(net.e(net.features(x)))))
    network.d, network.e = nn.Linear(8, 8), nn.Linear(8, 8)
    network.d.weight = network.e.weight
    return network


def shared() -> nn.Module:
    """Two layers with the same weights."""
    return _sharing(Network(lambda net, x: x))


def old_norm() -> nn.Module:
    """The same by a hook, and with a tensor that is computed with gradients."""
    return _weight_norm(old=True)


def no_inputs() -> nn.Module:
    """A layer without weights."""
    return Network(lambda net, x: net.scores(x) + net.d(net.features(x)[:, :0]), d=nn.Linear(0, 3))


def no_outputs() -> nn.Module:
    """A layer without outputs."""
    return Network(lambda net, x: net.scores(x) + net.d(net.features(x)).sum(1, keepdim=True), d=nn.Linear(8, 0))


# Networks that fail, at times.
def _of_many(net: Any, x: Tensor) -> Tensor:
    if len(x) > 8:
        raise RuntimeError("too many\nimages")
    return net.scores(x)


def _of_some_sizes(net: Any, x: Tensor) -> Tensor:
    if len(x) not in (1, 2, 8, 24):
        raise KeyError("size")
    return net.scores(x)


def _of_values(net: Any, x: Tensor) -> Tensor:
    return net.c(net.features(x)) if net.features(x).sum() > 0 else net.c(net.b(net.a(x).flatten(1)))


def _in_training(net: Any, x: Tensor) -> Any:
    return (net.scores(x), net.features(x)) if net.training else net.scores(x)


def _detached(net: Any, x: Tensor) -> Tensor:
    return net.scores(x).detach() if net.training else net.scores(x)


def _exits(net: Any, x: Tensor) -> Tensor:
    raise SystemExit("bye")


of_many = _making(_of_many)
of_some_sizes = _making(_of_some_sizes)
of_values = _making(_of_values)
of_numpy = _making(lambda net, x: net.c(torch.from_numpy(net.features(x).numpy())))
in_training = _making(_in_training)
detached = _making(_detached)
exits = _making(_exits)


def exits_when_made() -> nn.Module:
    """Ends the program."""
    raise SystemExit(3)


def scripted() -> nn.Module:
    """Compiled."""
    return torch.jit.trace(Network(lambda net, x: net.scores(x)), torch.rand(2, 1, 8, 8))


def frozen() -> nn.Module:
    """Nothing of it learns."""
    return Network(lambda net, x: net.scores(x)).requires_grad_(requires_grad=False)

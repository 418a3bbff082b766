"""Which network runs on a chip and how it sits there: the same for all chips, the chip's own, or that of its group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from efat.retraining.manifest import Manifest, ManifestGroup, read_chip_deployment, read_group_weights
from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray
from simulator.errors import InputError
from simulator.lots.chips import Chip
from training.data.batches import Batches
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import Deployment
from training.layers.weights import put_weights
from training.learning.mitigations.combination import Mitigations
from training.learning.retrain import mitigated


class ChipNetwork(NamedTuple):
    """What runs on a chip.

    Attributes:
        network: quantised, its operands where they sit there; it is not put on the chip.
        bypass: what has to be bypassed for its weights, bool [R, C]; None for nothing.
        reference: the network that it is compared with: without anything done about this chip's faults.
        group: chips of one name run the same weights, and have the same reference.
    """

    network: nn.Module
    bypass: BoolArray | None
    reference: nn.Module
    group: str = ""


ChipNetworks = Callable[[Chip], ChipNetwork]
"""Gives what runs on a chip. It is good until the next chip is asked for: a network may be there once."""


def one_network(quantised: nn.Module, deployment: Deployment | None = None) -> ChipNetworks:
    """The same for all chips; `deployment` says how it sits on the chip that it was retrained for."""
    found = ChipNetwork(quantised, None if deployment is None else deployment.bypass, quantised)
    return lambda _: found


def mitigated_networks(
    network: nn.Module, quantised: nn.Module, mitigations: Mitigations, batches: Batches | None
) -> ChipNetworks:
    """The same for all chips, and for each what mitigations do about its faults without retraining.

    The network is given in float, and quantised; batches are as for `training.learning.retrain.mitigated`.
    """
    scales = {name: float(layer.activation_scale) for name, layer in quantized_layers(quantised).items()}

    def of_chip(chip: Chip) -> ChipNetwork:
        found, deployment = mitigated(network, chip, mitigations, scales, batches)
        return ChipNetwork(found, deployment.bypass, quantised)

    return of_chip


class GroupNetworks:
    """For each chip of a manifest the weights of its group, of which only the last are kept in memory.

    Args:
        manifest: has the chips.
        folder: where it is.
        config: the array.
        network: the float network, whose weights are replaced.
    """

    def __init__(self, manifest: Manifest, folder: Path, config: ArrayConfig, network: nn.Module) -> None:
        self._manifest, self._folder = manifest, folder
        self._config, self._network = config, network
        self._last: tuple[ManifestGroup, nn.Module, Deployment] | None = None

    def __call__(self, chip: Chip) -> ChipNetwork:
        """The weights of the group, where the chip's deployment has them.

        Raises:
            FileNotFoundError: a file that they are read from is not there.
            InputError: such a file is damaged, or does not fit the network or the chip.
        """
        group = self._manifest.group_named[self._manifest.chip_named[chip.id].group]
        if self._last is None or self._last[0] != group:
            self._last = None  # Two networks are never in memory at a time.
            weights, of_group = read_group_weights(self._folder, group)
            of_group.check_array(self._config)
            put_weights(self._network, weights, self._folder / group.weights, str(self._manifest.setup.network))
            quantised = convert(self._network, self._config, (), activation_scales=of_group.activation_scales)
            self._last = group, quantised, of_group
        _, quantised, of_group = self._last
        deployment = _fitting_deployment(self._manifest, self._folder, chip, of_group)
        deployment.put(quantised, Accelerator.fault_free(self._config))
        return ChipNetwork(quantised, deployment.bypass, quantised, group.name)


def check_networks(manifest: Manifest, folder: Path, chips: Sequence[Chip]) -> None:
    """Check all files that chips need, before anything runs on them.

    Raises:
        FileNotFoundError: a file is not there.
        InputError: a file is damaged, or does not fit the chip.
    """
    groups: dict[str, Deployment] = {}
    for chip in chips:
        name = manifest.chip_named[chip.id].group
        if name not in groups:
            _, groups[name] = read_group_weights(folder, manifest.group_named[name])
            groups[name].check_array(chip.faults.config)
        _fitting_deployment(manifest, folder, chip, groups[name])


def _fitting_deployment(manifest: Manifest, folder: Path, chip: Chip, of_group: Deployment) -> Deployment:
    """How the weights of its group sit on a chip, with its faults and fuses as they are now."""
    found = manifest.chip_named[chip.id]
    deployment = read_chip_deployment(folder, found)
    deployment.check_array(chip.faults.config)
    more = 0 if chip.bypass is None else int((chip.bypass & ~deployment.bypass).sum())
    if more:
        raise InputError(
            f"the fuses of chip {chip.id} bypass {more} PEs more than when it was retrained: retrain it as it is now"
        )
    if deployment.activation_scales != of_group.activation_scales:
        raise InputError(
            f"chip {chip.id} has other steps of activations than its group {found.group}: "
            "retrain the lot anew with efat retrain"
        )
    return deployment

"""Which network runs on a chip and how it sits there: the same for all chips, the chip's own, or that of its group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

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


class ChipNetworks(ABC):
    """What runs on each chip.

    Attributes:
        deployment: how the weights sit on the chip that they were retrained for, on whatever chip they run; None for
            weights of no chip, and where each chip has a deployment of its own.
    """

    deployment: Deployment | None = None

    @abstractmethod
    def group(self, chip: Chip) -> str:
        """Name of the chips that run the same weights as this one."""

    @abstractmethod
    def network(self, chip: Chip) -> nn.Module:
        """The quantised network of a chip, its operands where they sit there; it is not put on the chip.

        Raises:
            FileNotFoundError: a file that it is read from is not there.
            InputError: such a file is damaged, or does not fit the network or the chip.
        """

    def compared_with(self, chip: Chip) -> nn.Module:
        """The quantised network that a chip's is compared with: without anything done about this chip's faults.

        Raises:
            FileNotFoundError: as `network`.
            InputError: as `network`.
        """
        return self.network(chip)

    @abstractmethod
    def bypass(self, chip: Chip) -> BoolArray | None:
        """What has to be bypassed for the weights of a chip, bool [R, C]; None for nothing.

        Raises:
            FileNotFoundError: as `network`.
            InputError: as `network`.
        """


class OneNetwork(ChipNetworks):
    """The same network for all chips.

    Args:
        quantised: the network, its operands in their places.
        deployment: how it sits on the chip that it was retrained for; None for a network of no chip.
    """

    def __init__(self, quantised: nn.Module, deployment: Deployment | None = None) -> None:
        self.deployment = deployment
        self._quantised = quantised

    def group(self, chip: Chip) -> str:
        """All chips are of one group, without a name."""
        return ""

    def network(self, chip: Chip) -> nn.Module:
        """The network."""
        return self._quantised

    def bypass(self, chip: Chip) -> BoolArray | None:
        """What the deployment bypasses."""
        return None if self.deployment is None else self.deployment.bypass


class MitigatedNetworks(ChipNetworks):
    """The same network for all chips, and for each what a mitigation does about its faults without retraining.

    Only that of the last chip is kept in memory.

    Args:
        network: the float network.
        quantised: the same, quantised.
        strategy: what is done.
        batches: of training images; see `training.learning.retrain.mitigated`.
    """

    def __init__(
        self, network: nn.Module, quantised: nn.Module, strategy: Mitigations, batches: Batches | None = None
    ) -> None:
        self._network = network
        self._quantised = quantised
        self._strategy = strategy
        self._batches = batches
        self._last: tuple[str, nn.Module, Deployment] | None = None

    def group(self, chip: Chip) -> str:
        """All chips are of one group, without a name."""
        return ""

    def network(self, chip: Chip) -> nn.Module:
        """The network as the mitigation has it on the chip."""
        return self._mitigated(chip)[0]

    def compared_with(self, chip: Chip) -> nn.Module:
        """The network as it is."""
        return self._quantised

    def bypass(self, chip: Chip) -> BoolArray:
        """What the mitigation bypasses, and the chip's fuses."""
        return self._mitigated(chip)[1].bypass

    def _mitigated(self, chip: Chip) -> tuple[nn.Module, Deployment]:
        if self._last is None or self._last[0] != chip.id:
            self._last = None  # Two networks are never in memory at a time.
            scales = {name: float(layer.activation_scale) for name, layer in quantized_layers(self._quantised).items()}
            self._last = chip.id, *mitigated(self._network, chip, self._strategy, scales, self._batches)
        return self._last[1:]


class GroupNetworks(ChipNetworks):
    """For each chip of a manifest the weights of its group. Only those of the last chip are kept in memory.

    Args:
        manifest: the manifest.
        folder: where it is.
        config: the array.
        network: the float network, whose weights are replaced.
    """

    def __init__(self, manifest: Manifest, folder: Path, config: ArrayConfig, network: nn.Module) -> None:
        self._manifest = manifest
        self._folder = folder
        self._config = config
        self._network = network
        self._loaded: tuple[ManifestGroup, nn.Module, Deployment] | None = None
        self._seated: tuple[str, Deployment] | None = None

    def group(self, chip: Chip) -> str:
        """Name of its group in the manifest."""
        return self._manifest.chip_named[chip.id].group

    def network(self, chip: Chip) -> nn.Module:
        """The network with the weights of the group, its operands where the chip's deployment has them."""
        quantised, of_group = self._group_network(self._manifest.group_named[self.group(chip)])
        deployment = self._deployment(chip)
        _check_steps(chip.id, deployment, self.group(chip), of_group)
        deployment.put(quantised, Accelerator.fault_free(self._config))
        return quantised

    def bypass(self, chip: Chip) -> BoolArray:
        """What the chip's deployment bypasses."""
        return self._deployment(chip).bypass

    def _group_network(self, group: ManifestGroup) -> tuple[nn.Module, Deployment]:
        if self._loaded is None or self._loaded[0] != group:
            self._loaded = None  # Two networks are never in memory at a time.
            weights, deployment = read_group_weights(self._folder, group)
            deployment.check_array(self._config)
            put_weights(self._network, weights, self._folder / group.weights, str(self._manifest.setup.network))
            quantised = convert(self._network, self._config, (), activation_scales=deployment.activation_scales)
            self._loaded = group, quantised, deployment
        return self._loaded[1:]

    def _deployment(self, chip: Chip) -> Deployment:
        if self._seated is None or self._seated[0] != chip.id:
            self._seated = chip.id, read_fitting_deployment(self._manifest, self._folder, chip)
        return self._seated[1]


def read_fitting_deployment(manifest: Manifest, folder: Path, chip: Chip) -> Deployment:
    """How the weights of its group sit on a chip.

    Args:
        manifest: has the chip.
        folder: where it is.
        chip: with its faults and fuses as they are now.

    Raises:
        FileNotFoundError: its file is not there.
        InputError: its file is damaged, is of another array, or leaves out PEs that the chip's fuses bypass.
    """
    deployment = read_chip_deployment(folder, manifest.chip_named[chip.id])
    deployment.check_array(chip.faults.config)
    if chip.bypass is not None and (chip.bypass & ~deployment.bypass).any():
        more = int((chip.bypass & ~deployment.bypass).sum())
        raise InputError(
            f"the fuses of chip {chip.id} bypass {more} PEs more than when it was retrained: retrain it as it is now"
        )
    return deployment


def check_networks(manifest: Manifest, folder: Path, chips: Sequence[Chip]) -> None:
    """Check all files that chips need, before anything runs on them.

    Args:
        manifest: has the chips.
        folder: where it is.
        chips: the chips.

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
        _check_steps(chip.id, read_fitting_deployment(manifest, folder, chip), name, groups[name])


def _check_steps(chip: str, deployment: Deployment, group: str, of_group: Deployment) -> None:
    if deployment.activation_scales != of_group.activation_scales:
        raise InputError(
            f"chip {chip} has other steps of activations than its group {group}: retrain the lot anew with efat retrain"
        )

"""How a network sits on a chip: what is bypassed, where weights sit, the steps of activations; kept with its weights.

The file is safetensors: the parameters of the float network under their names, and beside them
`efat.bypass` (uint8 [R, C], 1 for bypassed), `efat.activation_scale.LAYER` (float32, no
dimensions), and, where operands do not sit in order, `efat.rows.LAYER` and `efat.columns.LAYER`
(int32 [groups, positions], see `training.layers.placement`). The metadata says which array it is
for and what it was made from. docs/formats.md describes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from simulator import ArrayConfig, FaultMap
from simulator.config import ArrayRecord
from simulator.dtypes import BoolArray
from simulator.errors import InputError, first_line
from simulator.files import replaced
from training.layers.accelerator import Accelerator, Engine
from training.layers.convert import put_on_chip, quantized_layers
from training.layers.placement import Placement
from training.layers.weights import read_weights

PREFIX = "efat."
FORMAT = "efat-deployment"
VERSION = 1

_BYPASS = PREFIX + "bypass"
_SCALE = PREFIX + "activation_scale."
_ROWS = PREFIX + "rows."
_COLUMNS = PREFIX + "columns."


@dataclass(frozen=True, eq=False)
class Deployment:
    """How a network sits on a chip.

    Args:
        array: the array; its multiplier does not matter.
        bypass: bool [R, C], the PEs to bypass.
        activation_scales: the value of one step of each layer's input, by the layer's name.
        placements: where operands sit, by the layer's name; layers that are not named sit in order.
        about: where it is from, for people, if it is from a file: short texts by name; see `write_deployed`.
    """

    array: ArrayRecord
    bypass: BoolArray
    activation_scales: Mapping[str, float]
    placements: Mapping[str, Placement]
    about: Mapping[str, str] = field(default_factory=dict)

    def with_bypass(self, bypass: BoolArray) -> Deployment:
        """The same with other PEs bypassed, bool [R, C]."""
        return replace(self, bypass=bypass)

    def with_placements(self, placements: Mapping[str, Placement]) -> Deployment:
        """The same with other places."""
        return replace(self, placements=dict(placements))

    def check_array(self, config: ArrayConfig) -> None:
        """Refuse another array.

        Raises:
            InputError: sizes or widths differ.
        """
        different = self.array.difference(replace(config.record, multiplier=self.array.multiplier))
        if different is not None:
            name, expected, found = different
            raise InputError(
                f"the weights were retrained for an array with {name}={expected}, and this one has {found}: run them "
                "on a chip of the array they are for"
            )

    def put(self, network: nn.Module, accelerator: Accelerator) -> None:
        """Put a converted network on a chip, in place: its layers run on it, from where their operands sit.

        Args:
            network: from `training.layers.convert`, with `activation_scales` of this deployment.
            accelerator: the chip, with what is bypassed in it.

        Raises:
            InputError: a layer that operands are placed for is not there, or is of another shape, or the chip has other
                widths than the network.
        """
        layers = quantized_layers(network)
        for name, placement in self.placements.items():
            if name not in layers:
                raise InputError(f"the weights place a layer {name!r} that the network has not: use those made for it")
            expected = layers[name].gemm_shape
            found = (placement.groups, placement.rows.shape[1], placement.columns.shape[1])
            if found != expected:
                raise InputError(
                    f"the weights place layer {name!r} with groups, K and N of {found}: the network has {expected}"
                )
            # One column for all outputs is the least that can be used; more would take any amount of memory.
            rows, cols = accelerator.config.rows, accelerator.config.cols
            largest = (-(-expected[1] // rows) * rows, expected[2] * cols)
            extents = int(placement.rows.max()) + 1, int(placement.columns.max()) + 1
            if extents[0] > largest[0] or extents[1] > largest[1]:
                raise InputError(
                    f"the weights place layer {name!r} at rows and columns up to {extents}, over all folds: "
                    f"the array has no use for more than {largest}"
                )
        put_on_chip(network, accelerator)
        for name, layer in layers.items():
            layer.placement = self.placements.get(name)

    def accelerator(self, config: ArrayConfig, faults: FaultMap | None, engine: Engine = "emulation") -> Accelerator:
        """A chip with its faults, and this deployment's PEs bypassed."""
        return Accelerator(config, faults, self.bypass, engine=engine)


def write_deployed(path: Path, weights: Mapping[str, Tensor], deployment: Deployment, about: Mapping[str, str]) -> None:
    """Write what `deployed_bytes` gives, in one piece; the file's folder is there."""
    content = deployed_bytes(weights, deployment, about)
    with replaced(path) as beside:
        beside.write_bytes(content)


def deployed_bytes(weights: Mapping[str, Tensor], deployment: Deployment, about: Mapping[str, str]) -> bytes:
    """A file of weights and how they sit on their chip; the same content gives the same bytes.

    Args:
        weights: the float network's parameters and buffers, by name.
        deployment: how they sit on the chip.
        about: where it is from, for people: short texts by name.
    """
    # Each in memory of its own: a layer that is used under two names would be refused as a tensor written twice.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    tensors[_BYPASS] = torch.from_numpy(deployment.bypass.astype(np.uint8))
    for name, scale in deployment.activation_scales.items():
        tensors[_SCALE + name] = torch.tensor(scale, dtype=torch.float32)
    for name, placement in deployment.placements.items():
        tensors[_ROWS + name] = torch.from_numpy(placement.rows.astype(np.int32))
        tensors[_COLUMNS + name] = torch.from_numpy(placement.columns.astype(np.int32))
    metadata = {**about, "format": FORMAT, "version": str(VERSION), "array": json.dumps(asdict(deployment.array))}
    content = save(tensors, metadata)
    # The library has the metadata in another order in every process.
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def read_deployed(path: Path) -> tuple[dict[str, Tensor], Deployment | None]:
    """Weights from a file, and how they sit on their chip if the file says so.

    Args:
        path: what `write_deployed` wrote, or any file that `training.layers.weights.read_weights` reads.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is malformed.
    """
    return _split(read_weights(path), path, lambda: _metadata_of(path))


def deployed_from(content: bytes, path: Path) -> tuple[dict[str, Tensor], Deployment | None]:
    """The same from what `deployed_bytes` gave; `path` is where that is from, for messages.

    Raises:
        InputError: they are malformed.
    """
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, KeyError, RuntimeError, RecursionError) as error:
        raise _unreadable(path, error) from None
    return _split(tensors, path, lambda: header.get("__metadata__", {}))


def _split(
    tensors: Mapping[str, Tensor], path: Path, metadata: Callable[[], Mapping[str, str]]
) -> tuple[dict[str, Tensor], Deployment | None]:
    """Weights, and how they sit on their chip, from all that a file has."""
    weights = {name: value for name, value in tensors.items() if not name.startswith(PREFIX)}
    extra = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
    if not extra:
        return weights, None
    array, about = _read_metadata(path, metadata())
    try:
        return weights, replace(_deployment(array, extra), about=about)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {first_line(error)}; write it anew with efat retrain-chip") from None


def _metadata_of(path: Path) -> Mapping[str, str]:
    try:
        with safe_open(path, "pt") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is not a readable safetensors file ({first_line(error)}): is it complete?")


def _read_metadata(path: Path, metadata: Mapping[str, str]) -> tuple[ArrayRecord, dict[str, str]]:
    """The array a file is for, and what else it says of itself."""
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} has tensors named {PREFIX}* and is no {FORMAT} file: rename them in your network")
    if metadata.get("version") != str(VERSION):
        raise InputError(
            f"{path} is of version {str(metadata.get('version'))[:20]!r} of its format: this program reads {VERSION}"
        )
    try:
        array = ArrayRecord(**json.loads(metadata.get("array", "")))
    except (TypeError, ValueError, RecursionError):
        raise InputError(f"{path} does not say which array it is for: write it anew with efat retrain-chip") from None
    about = {name: value for name, value in metadata.items() if name not in ("format", "version", "array")}
    return array, about


def _deployment(array: ArrayRecord, tensors: Mapping[str, Tensor]) -> Deployment:
    # Rows and columns of a layer come together.
    pairs = ((_ROWS, _COLUMNS), (_COLUMNS, _ROWS))
    partners = [other + name.removeprefix(kind) for name in tensors for kind, other in pairs if name.startswith(kind)]
    missing = [name for name in (_BYPASS, *partners) if name not in tensors]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    bypass = tensors[_BYPASS]
    if bypass.dtype != torch.uint8 or tuple(bypass.shape) != array.shape or int(bypass.max()) > 1:
        raise ValueError(
            f"{_BYPASS} is {bypass.dtype} {list(bypass.shape)}: expected uint8 {list(array.shape)} of zeros and ones"
        )
    scales = {name.removeprefix(_SCALE): _scale(name, tensors[name]) for name in tensors if name.startswith(_SCALE)}
    layers = [name.removeprefix(_ROWS) for name in tensors if name.startswith(_ROWS)]
    placements = {
        layer: Placement(tensors[_ROWS + layer].numpy(), tensors[_COLUMNS + layer].numpy()) for layer in layers
    }
    return Deployment(array, bypass.numpy().astype(np.bool_), scales, placements)


def _scale(name: str, value: Tensor) -> float:
    if value.dtype != torch.float32 or value.ndim:
        raise ValueError(f"{name} is {value.dtype} {list(value.shape)}: expected one float32 without dimensions")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} is {float(value)}: expected finite and positive")
    return float(value)

"""Weights of a network from a file: safetensors or a PyTorch state dict. Nothing in the file is unpickled or run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from simulator.errors import InputError, first_line

_WRAPPERS = ("state_dict", "model_state_dict")
_PARALLEL_PREFIX = "module."
_COUNTER = "num_batches_tracked"
_SHOWN = 3


def load_weights(network: nn.Module, path: Path, described: str) -> None:
    """Read weights into a network, all of them or, if anything does not fit, none; messages call it `described`.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is of neither format, holds more than weights, or the weights are those of another network.
    """
    put_weights(network, read_weights(path), path, described)


def put_weights(network: nn.Module, weights: Mapping[str, Tensor], path: Path, described: str) -> None:
    """Put weights that were read from a path into a network, all of them or, if anything does not fit, none.

    Raises:
        InputError: the weights are those of another network.
    """
    expected = network.state_dict()
    problems = _differences(weights, expected)
    if problems:
        _check_float(path, weights, expected)
        raise InputError(f"{path} does not fit {described}: {'; '.join(problems)}")
    network.load_state_dict({**expected, **weights})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by key from safetensors, or from what `torch.save` wrote of a state dict.

    That may be wrapped in a dictionary under `state_dict` or `model_state_dict`, and its keys prefixed with `module.`,
    as data-parallel training does.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is of neither format, or holds more than weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        beginning = file.read(16)
    _check_no_model(path, beginning)
    found = _read_safetensors(path) if beginning[8:9] == b"{" else _read_state_dict(path)
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds a {type(found).__name__}: expected a state dict, saved with .state_dict()")
    _check_float(path, found)
    weights: dict[str, Tensor] = {}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path} holds a {type(value).__name__} under {key!r}: expected only tensors, or all of them under "
                "'state_dict'"
            )
        weights[key] = value
    if weights and all(key.startswith(_PARALLEL_PREFIX) for key in weights):
        weights = {key.removeprefix(_PARALLEL_PREFIX): value for key, value in weights.items()}
    return weights


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({first_line(error)}): is it complete?") from None


def _read_state_dict(path: Path) -> object:
    try:
        found: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        # torch.load raises nearly anything on a file that is no state dict, and nothing but the file can be wrong.
        # What it says is advice to those who trust the file: to unpickle it.
        raise InputError(
            f"{path} is not a state dict of tensors: it is damaged, or there are other things in it; save weights with "
            "safetensors or torch.save(network.state_dict(), ...)"
        ) from None
    return found


def _differences(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    missing = [key for key in expected if key not in weights and not key.endswith(_COUNTER)]
    unexpected = [key for key in weights if key not in expected]
    shared = [key for key in expected if key in weights]
    shapes = [
        f"{key} is {list(weights[key].shape)}, expected {list(expected[key].shape)}"
        for key in shared
        if weights[key].shape != expected[key].shape
    ]
    types = [
        f"{key} is {weights[key].dtype}"
        for key in shared
        if expected[key].is_floating_point() and not weights[key].is_floating_point()
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes), ("not float", types))
    more = ", ..."
    return [
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{more if len(names) > _SHOWN else ''})"
        for kind, names in kinds
        if names
    ]


def _check_no_model(path: Path, beginning: bytes) -> None:
    """Refuse a file of a format that holds a whole model rather than weights."""
    kind = None
    if beginning[4:8] == b"TFL3":
        kind = "a TFLite model"
    elif path.suffix.lower() == ".onnx":
        kind = "an ONNX model"
    elif beginning.startswith(b"\x89HDF"):
        kind = "an HDF5 file, of Keras maybe"
    elif beginning.startswith(b"GGUF"):
        kind = "a GGUF model"
    elif zipfile.is_zipfile(path):
        kind = _archive(path)
    if kind is not None:
        raise InputError(
            f"{path} is {kind}, and not weights of a PyTorch network: build the network in PyTorch, as "
            "package.module:function, and give its float32 weights (torch.save(network.state_dict(), ...))"
        )


def _archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return None  # whoever reads it says what is wrong
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive"
    if any(name.endswith(("/models/model.json", "serialized_exported_program.json")) for name in names):
        return "an exported program of PyTorch"
    return None


def _check_float(path: Path, weights: Mapping[Any, object], expected: Mapping[str, Tensor] | None = None) -> None:
    """Refuse weights that are quantised; integers that the expected ones are, too, are none of them."""
    for key, value in weights.items():
        packed = isinstance(key, str) and "_packed_params" in key
        if isinstance(value, Tensor) and expected is not None and value.dtype in (torch.int8, torch.uint8):
            packed |= key not in expected or expected[key].is_floating_point()
        if packed or (isinstance(value, Tensor) and value.is_quantized):
            found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"{path} holds weights that are quantised already ({key} is {found}): give the float32 weights that "
                "it was made from, which is quantised here for the array"
            )

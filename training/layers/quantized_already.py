"""Networks and files of weights that are quantised already, or compiled, and what to give instead."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from simulator.errors import ConversionError, InputError

_INSTEAD = "give the float32 {} that it was made from, which is quantised here for the array"
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.quantizable", "torchao.")
_PREPARED = (
    "torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization.fake_quantize",
    "torch.ao.quantization.observer",
)  # fmt: skip
_INTEGERS = (torch.int8, torch.uint8)


def check_float_network(network: nn.Module) -> None:
    """Refuse a network that is quantised, prepared for it or a graph of operations, which has no layers to convert.

    Args:
        network: as a user gave it.

    Raises:
        ConversionError: it is such.
    """
    for name, module in network.named_modules():
        homes = [base.__module__ for base in type(module).__mro__]
        what = f"layer {name!r} is a {type(module).__name__}" if name else f"the network is a {type(module).__name__}"
        if any(home.startswith(_QUANTISED) for home in homes):
            raise ConversionError(f"{what} of torch.ao, quantised already: {_INSTEAD.format('network')}")
        if any(home.startswith(_PREPARED) for home in homes):
            raise ConversionError(
                f"{what} of torch.ao: the network is prepared for quantisation; give it as it was before, and load "
                "what was learned since with load_state_dict(..., strict=False)"
            )
        if isinstance(module, torch.jit.ScriptModule) or "torch._dynamo.eval_frame" in homes:
            raise ConversionError(f"{what}, compiled: give the Python module that it was made from")
        if isinstance(module, fx.GraphModule):
            _check_graph(module, what)


def _check_graph(module: fx.GraphModule, what: str) -> None:
    targets = [str(node.target) for node in module.graph.nodes if node.op in ("call_function", "call_method")]
    if any("quantize" in target for target in targets):
        raise ConversionError(f"{what} with operations that quantise: {_INSTEAD.format('network')}")
    if any(target.startswith("aten.") for target in targets):
        raise ConversionError(f"{what}, exported to operations without layers: give the Python module it was made from")


def check_weights_file(path: Path) -> None:
    """Refuse a file of a format that holds a whole model rather than weights.

    Args:
        path: the file; only its beginning and, of an archive, its names are read.

    Raises:
        InputError: it is such a file.
    """
    with path.open("rb") as file:
        beginning = file.read(16)
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


def check_float_weights(
    path: Path, weights: Mapping[Any, object], expected: Mapping[str, Tensor] | None = None
) -> None:
    """Refuse weights that are quantised.

    Args:
        path: where they are from.
        weights: what a file holds, by key.
        expected: what the network has, by key, if it does not fit: integers that it has, too, are none of its weights.

    Raises:
        InputError: they are quantised.
    """
    for key, value in weights.items():
        packed = isinstance(key, str) and "_packed_params" in key
        if isinstance(value, Tensor) and expected is not None and value.dtype in _INTEGERS:
            packed |= key not in expected or expected[key].is_floating_point()
        if packed or (isinstance(value, Tensor) and value.is_quantized):
            found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"{path} holds weights that are quantised already ({key} is {found}): {_INSTEAD.format('weights')}"
            )

"""The array of a lot of chips, multiplier included, in the lot's HDF5 file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from simulator.config import DEFAULT_MULTIPLIER, ArrayConfig
from simulator.errors import InputError
from simulator.gates.designs import DESIGNS
from simulator.gates.netlist import MOST_LOCATIONS, MOST_PINS, Netlist
from simulator.multipliers.multiplier import Multiplier

FORMAT = "efat-chips"
VERSION = 2
"""Version 1 had no multiplier."""

MOST_TABLES = 1 << 10
LONGEST_NAME_BYTES = 128


class LotError(InputError):
    """A file of chips cannot be read or written as asked; one line says why."""


def write_array(file: h5py.File, config: ArrayConfig) -> None:
    """Write the fields of the array as attributes, and a multiplier that is not built in as datasets.

    Raises:
        LotError: the multiplier has more tables than a file takes.
    """
    file.attrs["format"] = np.bytes_(FORMAT)
    file.attrs["version"] = VERSION
    for field in fields(ArrayConfig):
        if field.name != "multiplier":
            file.attrs[field.name] = getattr(config, field.name)
    multiplier = config.multiplier
    if isinstance(multiplier, str):
        file.attrs["multiplier"] = np.bytes_(multiplier)
        return
    name = "".join(character if character.isprintable() else "?" for character in multiplier.name)
    file.attrs["multiplier"] = np.bytes_(name.encode(errors="replace")[:LONGEST_NAME_BYTES])
    if multiplier.netlist is not None:
        for part in ("gates", "inputs", "outputs"):
            _write(file, f"multiplier_{part}", getattr(multiplier.netlist, part))
        return
    assert multiplier.tables is not None
    if len(multiplier.tables) > MOST_TABLES:
        raise LotError(f"multiplier {name} has {len(multiplier.tables)} tables: a lot takes at most {MOST_TABLES}")
    _write(file, "multiplier_tables", multiplier.tables)


def _write(file: h5py.File, name: str, array: npt.NDArray[Any]) -> None:
    file.create_dataset(name, data=array, chunks=True, compression=1, shuffle=True, fletcher32=True)


def read_array(file: h5py.File, path: Path) -> ArrayConfig:
    """Read what `write_array` wrote, checking all of it.

    Args:
        file: the opened file.
        path: its name, for messages.

    Raises:
        LotError: not a file of chips, one of a newer version, or values that cannot be.
    """
    if text_attribute(file, "format") != FORMAT:
        raise LotError(f"{path} is an HDF5 file of another kind: expected attribute format={FORMAT!r}")
    version = file.attrs.get("version")
    if not isinstance(version, np.integer) or not 1 <= version <= VERSION:
        raise LotError(f"{path} has format version {version}: this program reads 1 to {VERSION}; update it")
    values: dict[str, Any] = {}
    for item in fields(ArrayConfig):
        if item.name == "multiplier":
            continue
        value = file.attrs.get(item.name)
        if not isinstance(value, np.integer | np.bool_):
            raise LotError(f"{path}: attribute {item.name} is {value!r}: expected a number")
        values[item.name] = value.item()
    try:
        config = ArrayConfig(**values)
        values["multiplier"] = _read_multiplier(file, path, config) if version > 1 else DEFAULT_MULTIPLIER
        return ArrayConfig(**values)
    except LotError:
        raise
    except (TypeError, ValueError) as error:
        raise LotError(f"{path}: {error}") from error


def _read_multiplier(file: h5py.File, path: Path, config: ArrayConfig) -> str | Multiplier:
    name = text_attribute(file, "multiplier")
    if name is None:
        raise LotError(f"{path}: attribute multiplier is missing: expected a text")
    sides = (1 << config.weight_bits, 1 << config.act_bits)
    if "multiplier_tables" in file:
        tables = _array(file, path, "multiplier_tables", np.int16, (MOST_TABLES, *sides))
        return Multiplier(name, tables=tables, act_signed=config.act_signed)
    if "multiplier_gates" in file:
        gates = _array(file, path, "multiplier_gates", np.uint8, (MOST_LOCATIONS,))
        inputs = _array(file, path, "multiplier_inputs", np.int32, (MOST_LOCATIONS, MOST_PINS))
        outputs = _array(file, path, "multiplier_outputs", np.int32, (config.product_bits,))
        netlist = Netlist(gates, inputs, outputs, config.weight_bits, config.act_bits, act_signed=config.act_signed)
        return Multiplier(name, netlist, act_signed=config.act_signed)
    if name not in DESIGNS:
        raise LotError(f"{path}: multiplier is {name!r}, and its gates or tables are missing")
    return name


def _array(file: h5py.File, path: Path, name: str, dtype: type[np.generic], most: tuple[int, ...]) -> npt.NDArray[Any]:
    """A dataset of at most so many rows of just this shape."""
    dataset = own_dataset(file, name)
    shape = None if dataset is None else dataset.shape
    if (
        dataset is None
        or shape is None
        or dataset.dtype != dtype
        or len(shape) != len(most)
        or shape[0] > most[0]
        or shape[1:] != most[1:]
    ):
        what = "missing" if dataset is None else f"{dataset.dtype} {shape}"
        raise LotError(f"{path}: dataset {name!r} is {what}: expected {np.dtype(dtype)}, at most {most}")
    array: npt.NDArray[Any] = dataset[:]
    return array


def text_attribute(file: h5py.File, name: str) -> str | None:
    """A text of fixed length, None if there is none: those of variable length are kept in a heap without checksums."""
    if name not in file.attrs or file.attrs.get_id(name).dtype.kind != "S":
        return None
    value = file.attrs[name]
    return _printable(value.decode()) if isinstance(value, bytes) else None


def _printable(text: str) -> str:
    """The text without what could steer the terminal it is shown on."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def own_dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """A dataset stored in this very file: links and storage that lead to other files are not followed."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return None
    dataset = file[name]
    outside = not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external is not None
    return None if outside else dataset

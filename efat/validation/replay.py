"""A case as a JSON file, which `efat validate --replay` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from efat.validation.cases import Case
from simulator import ArrayConfig, FaultMap
from simulator.dtypes import Int64Array
from simulator.errors import InputError, first_line
from simulator.faults import FAULT_DTYPE
from simulator.files import replaced

VERSION = 1
LARGEST_FILE = 64 << 20
_FIELDS = FAULT_DTYPE.names or ()


def save_case(path: Path, case: Case) -> None:
    """Write a case."""
    content = {
        "efat_validate_case": VERSION,
        "array": case.config.as_dict(),
        "x": case.x.tolist(),
        "w": case.w.tolist(),
        "shape": [len(case.x), *case.w.shape],
        "fault_fields": list(_FIELDS),
        "faults": case.faults.table.tolist(),
        "bypass": np.argwhere(case.bypass).tolist(),
    }
    with replaced(path) as beside:
        beside.write_text(json.dumps(content) + "\n")


def load_case(path: Path) -> Case:
    """Read a case.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no case, or holds something impossible.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path} has {path.stat().st_size} bytes: expected a saved case of at most {LARGEST_FILE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"{path} is no JSON file: {first_line(error)}; expected one that efat validate wrote"
        ) from None
    if not isinstance(content, dict) or content.get("efat_validate_case") != VERSION:
        raise InputError(f"{path} is no case of version {VERSION}: expected a file that efat validate wrote")
    try:
        return _case(content)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise InputError(f"{path} is damaged: {what}") from None


def _case(content: dict[str, Any]) -> Case:
    config = ArrayConfig(**content["array"])
    m, k, n = (int(size) for size in content["shape"])
    faults = _integers(content["faults"], (-1, len(_FIELDS)))
    bypass = np.zeros((config.rows, config.cols), np.bool_)
    places = _integers(content["bypass"], (-1, 2))
    if ((places < 0) | (places >= bypass.shape)).any():
        raise ValueError(f"a bypassed PE lies outside the array of {config.rows}x{config.cols}")
    bypass[places[:, 0], places[:, 1]] = True
    columns = {name: faults[:, place] for place, name in enumerate(_FIELDS)}
    return Case(
        config,
        _integers(content["x"], (m, k)),
        _integers(content["w"], (k, n)),
        FaultMap.from_arrays(config, **columns),
        bypass,
    )


def _integers(values: Any, shape: tuple[int, int]) -> Int64Array:
    array = np.array(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"it holds {array.dtype} where integers were expected")
    return array.astype(np.int64).reshape(shape)

"""Fault lists as testers write them: CSV with a line for each fault and for each PE that fuses bypass.

The header is `chip,row,col,site,bit,kind,cycle`, in any order. Site and kind are names, in upper or lower case; `cycle`
is empty except for FLIPs (the column may be missing). A line with the site `BYPASS` says that the chip's fuses bypass
a PE; its `bit`, `kind` and `cycle` are empty. A chip with neither is a line with its id and nothing else.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray, Int64Array
from simulator.errors import InputError
from simulator.faults import FAULT_DTYPE, PERMANENT, FaultMap, Kind, Site
from simulator.files import FAULT_LIST, other_kind, replaced
from simulator.lots.chips import Chip

BYPASS = "BYPASS"
"""What stands for the site where a PE is bypassed by fuses."""

COLUMNS = ("chip", "row", "col", "site", "bit", "kind", "cycle")
_REQUIRED = COLUMNS[:-1]
_BLOCK_LINES = 4096
_CODES = {"site": {site.name: int(site) for site in Site}, "kind": {kind.name: int(kind) for kind in Kind}}
_NAMES = {field: {code: name for name, code in codes.items()} for field, codes in _CODES.items()}


def read_fault_list(path: str | Path, config: ArrayConfig) -> list[Chip]:
    """The chips of a list of faults and of PEs that fuses bypass, in the order in which their ids first appear.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: something in it cannot be; the line is named.
    """
    path = Path(path)
    chips, lines, columns = _read_columns(path)
    ids = list(dict.fromkeys(chips))
    number = {chip_id: position for position, chip_id in enumerate(ids)}
    owner = np.fromiter((number[chip_id] for chip_id in chips), np.int64, len(chips))
    line = np.asarray(lines, np.int64)

    kept = np.arange(len(chips))
    if "" in columns["row"]:
        empty = [not any(cells) for cells in zip(*columns.values(), strict=True)]
        kept = np.flatnonzero(~np.asarray(empty))
        columns = _chosen(columns, kept)
    masks: dict[int, BoolArray] = {}
    if any(cell.upper() == BYPASS for cell in set(columns["site"])):
        fused = np.asarray([cell.upper() == BYPASS for cell in columns["site"]])
        masks = _bypass(path, config, _chosen(columns, np.flatnonzero(fused)), line[kept][fused], owner[kept][fused])
        columns, kept = _chosen(columns, np.flatnonzero(~fused)), kept[~fused]
    table = np.empty(len(kept), FAULT_DTYPE)
    for name, cells in columns.items():
        table[name] = (
            _codes(path, name, cells, line[kept]) if name in _CODES else _numbers(path, name, cells, line[kept])
        )
    order = np.argsort(owner[kept], kind="stable")
    bounds = np.searchsorted(owner[kept][order], np.arange(len(ids) + 1))
    found = []
    for i, chip_id in enumerate(ids):
        mine = order[bounds[i] : bounds[i + 1]]
        try:
            found.append(Chip(chip_id, FaultMap(config, table[mine]), masks.get(i)))
        except ValueError as error:
            culprit = _first_bad_line(config, table[mine], line[kept][mine])
            where = f"line {culprit}" if culprit is not None else f"chip {chip_id!r}"
            raise InputError(f"{path}, {where}: {error}") from error
    if not found:
        raise InputError(f"{path} has a header but no chips")
    return found


class Written(NamedTuple):
    """Numbers of faults and of bypassed PEs."""

    faults: int
    bypassed: int


def write_fault_list(path: str | Path, chips: Iterable[Chip]) -> Written:
    """Write a list from which `read_fault_list` makes the same chips, which are taken one by one.

    The file appears, or replaces an older one, only when it is complete.
    """
    faults = bypassed = 0
    with replaced(Path(path)) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for chip in chips:
            writer.writerows(_csv_rows(chip))
            faults += len(chip.faults)
            bypassed += chip.bypassed_by_fuses
    return Written(faults, bypassed)


def _csv_rows(chip: Chip) -> Iterator[tuple[Any, ...]]:
    if not len(chip.faults) and not chip.bypassed_by_fuses:
        yield (chip.id, "", "", "", "", "", "")
    sites, kinds = _NAMES["site"], _NAMES["kind"]
    for row, col, site, bit, kind, cycle in chip.faults.table.tolist():
        yield chip.id, row, col, sites[site], bit, kinds[kind], "" if cycle == PERMANENT else cycle
    if chip.bypass is not None:
        for row, col in np.argwhere(chip.bypass).tolist():
            yield chip.id, row, col, BYPASS, "", "", ""


def _chosen(columns: dict[str, list[str]], lines: Int64Array) -> dict[str, list[str]]:
    return {name: [cells[i] for i in lines] for name, cells in columns.items()}


def _bypass(
    path: Path, config: ArrayConfig, columns: dict[str, list[str]], lines: Int64Array, owner: Int64Array
) -> dict[int, BoolArray]:
    """The bypass masks of the chips that have one, from the lines about bypassed PEs."""
    for name in ("bit", "kind", "cycle"):
        given = np.asarray([cell.strip() != "" for cell in columns[name]])
        _refuse(path, lines, given, name, columns[name], "nothing, as a bypassed PE has none")
    places = {name: _numbers(path, name, columns[name], lines) for name in ("row", "col")}
    for name, side in (("row", config.rows), ("col", config.cols)):
        found = places[name].tolist()
        _refuse(path, lines, places[name] >= side, f"{name} of a bypassed PE", found, f"0..{side - 1}")
    masks = {}
    for chip in np.unique(owner).tolist():
        masks[chip] = np.zeros((config.rows, config.cols), np.bool_)
        masks[chip][places["row"][owner == chip], places["col"][owner == chip]] = True
    return masks


def _read_columns(path: Path) -> tuple[list[str], list[int], dict[str, list[str]]]:
    """Chip ids, line numbers, and the cells of every other column."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a CSV file with the columns {','.join(COLUMNS)}")
    wrong = other_kind(path, FAULT_LIST, own=(FAULT_LIST,))
    if wrong is not None:
        raise InputError(wrong)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            missing = [name for name in _REQUIRED if name not in header]
            unknown = [name for name in header if name not in COLUMNS]
            if missing or unknown or len(set(header)) != len(header):
                raise InputError(f"{path}, line 1: header is {','.join(header)!r}: expected {','.join(COLUMNS)}")
            first_line, read = reader.line_num, 0
            lines: list[int] = []
            listed: list[list[str]] = [[] for _ in header]
            # Block by block: a list for every line of a long file would keep the garbage collector busy.
            while block := list(islice(reader, _BLOCK_LINES)):
                read += len(block)
                numbers: Sequence[int] = range(reader.line_num - len(block) + 1, reader.line_num + 1)
                numbers, block = _checked(path, len(header), numbers, block)
                lines.extend(numbers)
                for whole, part in zip(listed, zip(*block, strict=True), strict=False):
                    whole.extend(part)
            if reader.line_num != first_line + read:
                raise InputError(f"{path}: a cell has a line break in it: expected one line for each fault")
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from error
    columns = dict(zip(header, listed, strict=True))
    for name in ("chip", "site", "kind"):
        stripped = {cell: cell.strip() for cell in set(columns[name])}
        columns[name] = [stripped[cell] for cell in columns[name]]
    chips = columns.pop("chip")
    if "" in chips:
        raise InputError(f"{path}, line {lines[chips.index('')]}: chip is empty: expected the id of a chip")
    columns.setdefault("cycle", [""] * len(chips))
    return chips, lines, {name: columns[name] for name in COLUMNS[1:]}


def _checked(
    path: Path, width: int, lines: Sequence[int], block: list[list[str]]
) -> tuple[Sequence[int], list[list[str]]]:
    """Lines without the empty ones; all must have as many cells as the header."""
    widths = set(map(len, block))
    if widths == {width}:
        return lines, block
    kept = [(line, cells) for line, cells in zip(lines, block, strict=True) if cells]
    for line, cells in kept:
        if len(cells) != width:
            raise InputError(f"{path}, line {line}: {len(cells)} cells: expected {width}, as in the header")
    return [line for line, _ in kept], [cells for _, cells in kept]


def _codes(path: Path, name: str, cells: list[str], lines: Int64Array) -> Int64Array:
    known = _CODES[name]
    codes = {cell: known.get(cell.upper(), -1) for cell in set(cells)}
    values = np.fromiter((codes[cell] for cell in cells), np.int64, len(cells))
    names = [*known, BYPASS] if name == "site" else known
    _refuse(path, lines, values < 0, name, cells, f"one of {', '.join(names)}")
    return values


def _numbers(path: Path, name: str, cells: list[str], lines: Int64Array) -> Int64Array:
    if name == "cycle":
        if not any(cells):
            return np.full(len(cells), PERMANENT)
        cells = [cell or str(PERMANENT) for cell in cells]
    limits = np.iinfo(FAULT_DTYPE[name])
    numbers = np.empty(0, np.int64)
    try:
        if "_" in "".join(cells):
            raise ValueError("Python and NumPy read 1_0 as 10, others do not")
        numbers = np.asarray(cells, np.str_).astype(np.int64)
        wrong = (numbers < limits.min) | (numbers > limits.max)
    except (ValueError, OverflowError):
        wrong = np.asarray([not _is_number(cell) for cell in cells], np.bool_)
    whole = f"a whole number, {limits.min} to {limits.max}"
    expected = "a clock cycle, or nothing for a permanent fault" if name == "cycle" else whole
    _refuse(path, lines, wrong, name, cells, expected)
    return numbers


def _refuse(path: Path, lines: Int64Array, wrong: BoolArray, name: str, cells: Sequence[object], expected: str) -> None:
    if wrong.any():
        i = int(np.argmax(wrong))
        raise InputError(f"{path}, line {lines[i]}: {name} is {cells[i]!r}: expected {expected}")


def _is_number(cell: str) -> bool:
    try:
        return "_" not in cell and abs(int(cell)) < 1 << 63
    except ValueError:
        return False


def _first_bad_line(config: ArrayConfig, table: npt.NDArray[np.void], lines: Int64Array) -> int | None:
    """The line of the first fault that is wrong by itself, or None when only several together are."""
    for i in range(len(table)):
        with suppress(ValueError):
            FaultMap(config, table[i : i + 1])
            continue
        return int(lines[i])
    return None

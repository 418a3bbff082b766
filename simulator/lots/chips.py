"""Lots of chips in one HDF5 file: the array they share, and each chip's faults and bypass mask; and random chips.

Layout of a file (docs/formats.md says it field by field): attributes `format`, `version`, the fields of `ArrayConfig`,
and the provenance; the multiplier, if it is not built in; `faults`, one table of all chips' faults, chip after chip;
`offsets` [chips + 1] into it; `chip_ids` [chips]; `bypass` [chips, bytes], packed bits of each chip's bypass mask.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator import hdf5
from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray
from simulator.errors import InputError, did_you_mean
from simulator.faults import FAULT_DTYPE, FaultMap
from simulator.files import FAULT_LIST
from simulator.gates.cells import MOST_PINS
from simulator.gates.designs import DESIGNS
from simulator.gates.netlist import MOST_LOCATIONS, Netlist
from simulator.multipliers.multiplier import Multiplier
from simulator.sampling import FaultModel, sample_faults

LONGEST_ID_BYTES = 64
MOST_CHIPS = 10_000_000
FORMAT = hdf5.Format(
    "efat-chips",
    2,
    "efat chips generate` or `efat chips import",
    "an HDF5 file of chips",
    hints={FAULT_LIST: "make a lot of it with 'efat chips import'"},
)
"""Version 1 had no multiplier."""

_BLOCK_CHIPS = 256
_BLOCK_FAULTS = 1 << 21
"""Chips are read together up to either, so that memory has a bound; a chip of more is read alone."""
_MOST_FAULTS_PER_PE = 1 << 10
_MOST_TABLES = 1 << 10
_LONGEST_NAME_BYTES = 128


def _dataset(name: str, dtype: npt.DTypeLike, most: int, dimensions: int = 1) -> hdf5.Dataset:
    return hdf5.Dataset(name, np.dtype(dtype), most, dimensions, compressed=True)


_FAULTS = _dataset("faults", FAULT_DTYPE, 1 << 62)
_OFFSETS = _dataset("offsets", np.int64, MOST_CHIPS + 1)
_CHIP_IDS = _dataset("chip_ids", f"S{LONGEST_ID_BYTES}", MOST_CHIPS)
_BYPASS = _dataset("bypass", np.uint8, 1 << 62, 2)
_TABLES = _dataset("multiplier_tables", np.int16, _MOST_TABLES << 16, 3)
_GATES = _dataset("multiplier_gates", np.uint8, MOST_LOCATIONS)
_INPUTS = _dataset("multiplier_inputs", np.int32, MOST_LOCATIONS * MOST_PINS, 2)
_OUTPUTS = _dataset("multiplier_outputs", np.int32, 1 << 10)

Progress = Callable[[int], None]
"""Called with the number of chips just written."""


@dataclass(frozen=True, eq=False)
class Chip:
    """One fabricated chip.

    Args:
        id: its name in the lot, 1..64 bytes in UTF-8, without control characters.
        faults: what is broken in it.
        bypass: bool [rows, cols], the PEs its fuses bypass; None for none.

    Raises:
        InputError: an id that cannot be one, or a bypass mask of the wrong shape or type.
    """

    id: str
    faults: FaultMap
    bypass: BoolArray | None = None

    def __post_init__(self) -> None:
        if (
            not 1 <= len(self.id.encode()) <= LONGEST_ID_BYTES
            or not self.id.isprintable()
            or self.id != self.id.strip()
        ):
            raise InputError(
                f"chip id {self.id!r}: expected 1 to {LONGEST_ID_BYTES} bytes of printable text, no spaces around it"
            )
        shape = (self.faults.config.rows, self.faults.config.cols)
        if self.bypass is not None and (self.bypass.dtype != np.bool_ or self.bypass.shape != shape):
            raise InputError(
                f"chip {self.id!r}: bypass is {self.bypass.dtype} {self.bypass.shape}: expected bool {shape}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chip):
            return NotImplemented
        return self.id == other.id and self.faults == other.faults and np.array_equal(self._mask(), other._mask())

    __hash__ = None  # type: ignore[assignment]

    @property
    def bypassed_by_fuses(self) -> int:
        """Number of PEs that its fuses bypass."""
        return 0 if self.bypass is None else int(self.bypass.sum())

    def digest(self) -> str:
        """SHA-256 (hex) of the array, the faults and the bypassed PEs: equal exactly for chips that behave alike.

        Without bypassed PEs it is that of the faults.
        """
        faults = self.faults.digest()
        if not self.bypassed_by_fuses:
            return faults
        return hashlib.sha256(f"{faults}\n".encode() + np.packbits(self._mask()).tobytes()).hexdigest()

    def has_digest(self, digest: str | None) -> bool:
        """Whether a file that has this digest is about this chip.

        Files of programs before the digest covered bypassed PEs have that of the faults.
        """
        return digest in (self.digest(), self.faults.digest())

    def as_dict(self) -> dict[str, Any]:
        """Its summary, for JSON."""
        return {
            "chip": self.id,
            **self.faults.summary().as_dict(),
            "bypassed_by_fuses": self.bypassed_by_fuses,
            "digest": self.digest(),
        }

    def _mask(self) -> BoolArray:
        config = self.faults.config
        return np.zeros((config.rows, config.cols), np.bool_) if self.bypass is None else self.bypass


class ChipLot:
    """A lot of chips in a file, opened for reading; chips are read one at a time. Use it in a `with` statement.

    Args:
        path: an HDF5 file that `write_lot` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is not a file of chips, is damaged, or is of a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = FORMAT.open(self.path)
        try:
            with FORMAT.reported(self.path):
                self.config = _read_array(self._file)
                self._find_chips()
        except BaseException:
            self._file.close()
            raise
        self._position = {chip_id: position for position, chip_id in enumerate(self.chip_ids)}

    chip_ids: list[str]
    """Ids of all chips, in the order they were written."""

    @property
    def provenance(self) -> dict[str, str]:
        """Where the lot comes from, as its writer described it."""
        with FORMAT.reported(self.path):
            names = [name for name in self._file.attrs if name.startswith("provenance.")]
            return {name.removeprefix("provenance."): hdf5.text_attribute(self._file, name) or "" for name in names}

    def __enter__(self) -> ChipLot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self.chip_ids)

    def __getitem__(self, chip_id: str) -> Chip:
        """Read one chip.

        Raises:
            InputError: there is no such chip, or its faults are damaged.
        """
        position = self._position.get(chip_id)
        if position is None:
            some = ", ".join(self.chip_ids[:3]) + (", ..." if len(self) > 3 else "")
            hint = did_you_mean(chip_id, self.chip_ids) or f": it has {some}"
            raise InputError(f"{self.path}: no chip {chip_id!r} among its {len(self)} chips{hint}")
        return next(self._read(position, position + 1))

    def __iter__(self) -> Iterator[Chip]:
        """Read all chips, some hundred at a time."""
        start = 0
        while start < len(self):
            most = self._offsets[start] + _BLOCK_FAULTS
            fitting = int(np.searchsorted(self._offsets, most, side="right")) - 1
            stop = max(start + 1, min(fitting, start + _BLOCK_CHIPS, len(self)))
            yield from self._read(start, stop)
            start = stop

    def _read(self, start: int, stop: int) -> Iterator[Chip]:
        offsets = self._offsets[start : stop + 1]
        with FORMAT.reported(self.path):
            table = self._faults[offsets[0] : offsets[-1]]
            masks = self._bypass[start:stop]
        bits = np.unpackbits(masks, axis=1, count=self.config.pe_count).astype(np.bool_)
        for i, chip_id in enumerate(self.chip_ids[start:stop]):
            rows = table[offsets[i] - offsets[0] : offsets[i + 1] - offsets[0]]
            try:
                faults = FaultMap(self.config, rows)
            except InputError as error:
                raise InputError(f"{self.path}: chip {chip_id!r}: {error}") from error
            mask = bits[i].reshape(self.config.rows, self.config.cols)
            yield Chip(chip_id, faults, mask if mask.any() else None)

    def _find_chips(self) -> None:
        """Read all but the faults and the bypass masks, and check how the datasets fit together."""
        config, file = self.config, self._file
        self._faults, self._bypass = _FAULTS.find(file), _BYPASS.find(file)
        self.chip_ids = hdf5.texts("a chip id", _CHIP_IDS.find(file)[:])
        chips, faults = len(self.chip_ids), len(self._faults)
        offsets = _OFFSETS.find(file)
        if offsets.shape != (chips + 1,) or self._bypass.shape != (chips, -(-config.pe_count // 8)):
            raise InputError(
                f"offsets {offsets.shape} and bypass {self._bypass.shape} do not fit {chips} chips of "
                f"{config.rows}x{config.cols} PEs"
            )
        self._offsets = offsets[:]
        counts = np.diff(self._offsets)
        if self._offsets[0] != 0 or (counts < 0).any() or self._offsets[-1] != faults:
            raise InputError(f"offsets do not divide its {faults} faults among {chips} chips")
        most = config.pe_count * _MOST_FAULTS_PER_PE
        if counts.max(initial=0) > most:
            raise InputError(f"a chip has {counts.max()} faults: expected at most {most}")
        if len(set(self.chip_ids)) != chips:
            raise InputError("chip ids are not unique")


def write_lot(
    path: str | Path,
    config: ArrayConfig,
    chips: Iterable[Chip],
    *,
    provenance: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a new lot, and return the number of chips. The file appears, or replaces another, only when it is complete.

    Args:
        path: the file.
        config: the array all chips have.
        chips: the chips, taken one by one.
        provenance: where they come from, for people: generator, seed, version and the like.
        progress: called with the number of chips just written.

    Raises:
        InputError: a chip is of another array, or two have the same id.
        OSError: the file cannot be written.
    """
    with FORMAT.created(Path(path)) as file:
        _write_array(file, config)
        for name, text in (provenance or {}).items():
            hdf5.write_text(file, f"provenance.{name}", text)
        _FAULTS.create(file)
        _OFFSETS.create(file, chunk=1024)
        _CHIP_IDS.create(file, chunk=1024)
        _BYPASS.create(file, (-(-config.pe_count // 8),), 16)
        hdf5.append(file["offsets"], np.zeros(1, np.int64))
        return _extend(file, config, chips, set(), progress)


def append_chips(path: str | Path, chips: Iterable[Chip], *, progress: Progress | None = None) -> int:
    """Add chips to a lot, and return their number. The file is copied and replaced: it has all of them or none.

    Args:
        path: a file that `write_lot` wrote.
        chips: the chips, taken one by one.
        progress: called with the number of chips just written.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is no lot, a chip is of another array, or an id is there already.
        OSError: the file cannot be written.
    """
    path = Path(path)
    with ChipLot(path) as lot:
        config, known = lot.config, set(lot.chip_ids)
    with hdf5.extended(path) as file:
        return _extend(file, config, chips, known, progress)


def _extend(file: Any, config: ArrayConfig, chips: Iterable[Chip], known: set[str], progress: Progress | None) -> int:
    written = 0
    remaining = iter(chips)
    while block := list(islice(remaining, _BLOCK_CHIPS)):
        for chip in block:
            if chip.faults.config != config:
                raise InputError(f"chip {chip.id!r} is of another array: {chip.faults.config}, expected {config}")
            if chip.id in known:
                raise InputError(f"chip id {chip.id!r} is there twice: ids must differ within a lot")
            known.add(chip.id)
        hdf5.append(file["faults"], np.concatenate([chip.faults.table for chip in block]))
        hdf5.append(file["offsets"], np.cumsum([len(chip.faults) for chip in block]) + file["offsets"][-1])
        hdf5.append(file["chip_ids"], np.array([chip.id.encode() for chip in block], _CHIP_IDS.dtype))
        hdf5.append(file["bypass"], np.stack([np.packbits(chip._mask()) for chip in block]))
        written += len(block)
        if progress is not None:
            progress(len(block))
    return written


def _write_array(file: Any, config: ArrayConfig) -> None:
    """Write the fields of the array as attributes, and a multiplier that is not built in as datasets."""
    for field in fields(ArrayConfig):
        if field.name != "multiplier":
            file.attrs[field.name] = getattr(config, field.name)
    multiplier = config.multiplier
    if isinstance(multiplier, str):
        hdf5.write_text(file, "multiplier", multiplier)
        return
    name = "".join(character if character.isprintable() else "?" for character in multiplier.name)
    file.attrs["multiplier"] = np.bytes_(name.encode(errors="replace")[:_LONGEST_NAME_BYTES])
    if multiplier.netlist is not None:
        for dataset, part in ((_GATES, "gates"), (_INPUTS, "inputs"), (_OUTPUTS, "outputs")):
            dataset.write(file, getattr(multiplier.netlist, part))
        return
    assert multiplier.tables is not None
    if len(multiplier.tables) > _MOST_TABLES:
        raise InputError(f"multiplier {name} has {len(multiplier.tables)} tables: a lot takes at most {_MOST_TABLES}")
    _TABLES.write(file, multiplier.tables)


def _read_array(file: Any) -> ArrayConfig:
    names = [field.name for field in fields(ArrayConfig) if field.name not in ("multiplier", "act_signed")]
    values: dict[str, Any] = {name: hdf5.integer_attribute(file, name) for name in names}
    values["act_signed"] = hdf5.truth_attribute(file, "act_signed")
    config = ArrayConfig(**values)
    if file.attrs["version"] == 1:
        return config
    return replace(config, multiplier=_read_multiplier(file, config))


def _read_multiplier(file: Any, config: ArrayConfig) -> str | Multiplier:
    name = hdf5.text_attribute(file, "multiplier")
    if name is None:
        raise InputError("attribute multiplier is missing: expected a text")
    if _TABLES.name in file:
        sides = (1 << config.weight_bits, 1 << config.act_bits)
        tables = _TABLES.find(file, sides)[:]
        return Multiplier(name, tables=tables, act_signed=config.act_signed)
    if _GATES.name in file:
        parts = _GATES.find(file)[:], _INPUTS.find(file, (MOST_PINS,))[:], _OUTPUTS.find(file)[:]
        netlist = Netlist(*parts, config.weight_bits, config.act_bits, act_signed=config.act_signed)
        return Multiplier(name, netlist, act_signed=config.act_signed)
    if name not in DESIGNS:
        raise InputError(f"multiplier is {name!r:.80}, and its gates or tables are missing")
    return name


def generate_chips(config: ArrayConfig, model: FaultModel, count: int, seed: int) -> Iterator[Chip]:
    """Chips with random faults, named chip-0000 and so on.

    Each has its own random stream, of `seed` and its number, so a lot does not depend on the order it is made in.
    """
    low, high = model.rates
    for number in range(count):
        rate_seed, fault_seed = np.random.SeedSequence(seed, spawn_key=(number,)).spawn(2)
        share = np.random.default_rng(rate_seed).random()
        if low == high:
            rate = low
        elif low == 0:
            rate = high * share
        else:
            rate = min(high, math.exp(math.log(low) + share * math.log(high / low)))
        yield Chip(f"chip-{number:04d}", sample_faults(config, replace(model, rate=rate), fault_seed))


def provenance(source: str, seed: int | None = None) -> dict[str, str]:
    """Where a lot comes from, to be written into its file."""
    described = {"source": source, "program": f"efat {version('efat')}"}
    if seed is not None:
        described["seed"] = str(seed)
    return described

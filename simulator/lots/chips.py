"""Lots of chips in one HDF5 file: the array they share, and each chip's faults and bypass mask.

Layout of a file (docs/formats.md says it field by field): attributes `format`, `version`, the fields of
`ArrayConfig` (`simulator.lots.array`), and the provenance; `faults`, one table of all chips' faults, chip after chip;
`offsets` [chips + 1] into it; `chip_ids` [chips]; `bypass` [chips, bytes], packed bits of each chip's bypass mask.

Nothing in a file is trusted: format, version, shapes, sizes and every index are checked before use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from simulator.config import ArrayConfig
from simulator.dtypes import BoolArray, Int64Array
from simulator.faults import FAULT_DTYPE, FaultMap
from simulator.files import FAULT_LIST, other_kind, replaced
from simulator.lots.array import LotError, own_dataset, read_array, text_attribute, write_array
from simulator.suggestions import did_you_mean

LONGEST_ID_BYTES = 64
MOST_CHIPS = 10_000_000

__all__ = ["Chip", "ChipLot", "LotError", "append_chips", "write_lot"]

_ID_DTYPE = np.dtype(f"S{LONGEST_ID_BYTES}")
_BLOCK_CHIPS = 256
_CHUNK_FAULTS = 1 << 14
_HDF5_VERSION = "v110"
"""Files of HDF5 1.10 (2016) and later have checksums on all but the data, which get theirs from a filter, and texts of
variable length, which are not used here. On damage that no checksum covers, the HDF5 library can loop for ever."""
_MOST_FAULTS_PER_PE = 1 << 10

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
        LotError: an id that cannot be one, or a bypass mask of the wrong shape or type.
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
            raise LotError(
                f"chip id {self.id!r}: expected 1 to {LONGEST_ID_BYTES} bytes of printable text, no spaces around it"
            )
        shape = (self.faults.config.rows, self.faults.config.cols)
        if self.bypass is not None and (self.bypass.dtype != np.bool_ or self.bypass.shape != shape):
            raise LotError(
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

    def _mask(self) -> BoolArray:
        config = self.faults.config
        return np.zeros((config.rows, config.cols), np.bool_) if self.bypass is None else self.bypass


class ChipLot:
    """A lot of chips in a file, opened for reading; chips are read one at a time. Use it in a `with` statement.

    Args:
        path: an HDF5 file that `write_lot` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        LotError: it is not a file of chips, is damaged, or is of a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            with _damage_reported(self.path):
                self.config = read_array(self._file, self.path)
                index = _read_index(self._file, self.path, self.config)
        except BaseException:
            self._file.close()
            raise
        self._faults, self._bypass, self._offsets, self.chip_ids = index
        self._position = {chip_id: position for position, chip_id in enumerate(self.chip_ids)}

    chip_ids: list[str]
    """Ids of all chips, in the order they were written."""

    @property
    def provenance(self) -> dict[str, str]:
        """Where the lot comes from, as its writer described it."""
        with _damage_reported(self.path):
            names = [name for name in self._file.attrs if name.startswith("provenance.")]
            return {name.removeprefix("provenance."): text_attribute(self._file, name) or "" for name in names}

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
            LotError: there is no such chip, or its faults are damaged.
        """
        position = self._position.get(chip_id)
        if position is None:
            hint = did_you_mean(chip_id, self.chip_ids) or f": it has {_some(self.chip_ids)}"
            raise LotError(f"{self.path}: no chip {chip_id!r} among its {len(self)} chips{hint}")
        return next(self._read(position, position + 1))

    def __iter__(self) -> Iterator[Chip]:
        """Read all chips, some hundred at a time."""
        for start in range(0, len(self), _BLOCK_CHIPS):
            yield from self._read(start, min(start + _BLOCK_CHIPS, len(self)))

    def _read(self, start: int, stop: int) -> Iterator[Chip]:
        offsets = self._offsets[start : stop + 1]
        with _damage_reported(self.path):
            table = self._faults[offsets[0] : offsets[-1]]
            masks = self._bypass[start:stop]
        bits = np.unpackbits(masks, axis=1, count=self.config.pe_count).astype(np.bool_)
        for i in range(stop - start):
            chip_id = self.chip_ids[start + i]
            rows = table[offsets[i] - offsets[0] : offsets[i + 1] - offsets[0]]
            try:
                faults = FaultMap(self.config, rows)
            except ValueError as error:
                raise LotError(f"{self.path}: chip {chip_id!r}: {error}") from error
            mask = bits[i].reshape(self.config.rows, self.config.cols)
            yield Chip(chip_id, faults, mask if mask.any() else None)


def write_lot(
    path: str | Path,
    config: ArrayConfig,
    chips: Iterable[Chip],
    *,
    provenance: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a new lot. The file appears, or replaces an older one, only when it is complete.

    Args:
        path: the file.
        config: the array all chips have.
        chips: the chips, taken one by one.
        provenance: where they come from, for people: generator, seed, version and the like.
        progress: called from time to time.

    Returns:
        Number of chips written.

    Raises:
        LotError: a chip is of another array, or two have the same id.
        OSError: the file cannot be written.
    """
    with replaced(Path(path)) as beside, h5py.File(beside, "w", libver=_HDF5_VERSION) as file:
        write_array(file, config)
        for name, text in (provenance or {}).items():
            file.attrs[f"provenance.{name}"] = np.bytes_(text.encode(errors="backslashreplace"))
        packed = -(-config.pe_count // 8)
        _create(file, "faults", (), FAULT_DTYPE, _CHUNK_FAULTS)
        _create(file, "offsets", (), np.dtype(np.int64), 1024)
        _create(file, "chip_ids", (), _ID_DTYPE, 1024)
        _create(file, "bypass", (packed,), np.dtype(np.uint8), 16)
        _append(file["offsets"], np.zeros(1, np.int64))
        return _extend(file, config, chips, set(), progress)


def append_chips(path: str | Path, chips: Iterable[Chip], *, progress: Progress | None = None) -> int:
    """Add chips to a lot. The file is copied, extended and replaced, so it always holds either all of them or none.

    Args:
        path: a file that `write_lot` wrote.
        chips: the chips, taken one by one.
        progress: called from time to time.

    Returns:
        Number of chips added.

    Raises:
        FileNotFoundError: there is no such file.
        LotError: the file is no lot, a chip is of another array, or an id is there already.
        OSError: the file cannot be written.
    """
    path = Path(path)
    with ChipLot(path) as lot:
        config, known = lot.config, set(lot.chip_ids)
    with replaced(path, copy=True) as beside, h5py.File(beside, "r+", libver=_HDF5_VERSION) as file:
        return _extend(file, config, chips, known, progress)


def _extend(
    file: h5py.File, config: ArrayConfig, chips: Iterable[Chip], known: set[str], progress: Progress | None
) -> int:
    written = 0
    block: list[Chip] = []
    for chip in chips:
        if chip.faults.config != config:
            raise LotError(f"chip {chip.id!r} is of another array: {chip.faults.config}, expected {config}")
        if chip.id in known:
            raise LotError(f"chip id {chip.id!r} is there twice: ids must differ within a lot")
        known.add(chip.id)
        block.append(chip)
        if len(block) == _BLOCK_CHIPS:
            written += _write_block(file, block, progress)
            block = []
    return written + _write_block(file, block, progress)


def _write_block(file: h5py.File, block: Sequence[Chip], progress: Progress | None) -> int:
    if block:
        _append(file["faults"], np.concatenate([chip.faults.table for chip in block]))
        ends = np.cumsum([len(chip.faults) for chip in block]) + file["offsets"][-1]
        _append(file["offsets"], ends)
        _append(file["chip_ids"], np.array([chip.id.encode() for chip in block], _ID_DTYPE))
        _append(file["bypass"], np.stack([np.packbits(chip._mask()) for chip in block]))
        if progress is not None:
            progress(len(block))
    return len(block)


def _create(file: h5py.File, name: str, row: tuple[int, ...], dtype: np.dtype[Any], chunk: int) -> None:
    """An empty dataset that grows by rows, compressed and with checksums."""
    file.create_dataset(
        name,
        (0, *row),
        dtype,
        maxshape=(None, *row),
        chunks=(chunk, *row),
        compression=1,
        shuffle=True,
        fletcher32=True,
    )


def _append(dataset: h5py.Dataset, values: npt.NDArray[Any]) -> None:
    start = len(dataset)
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Turn whatever HDF5 says of a damaged file, in errors of many types, into a `LotError`."""
    try:
        yield
    except LotError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise LotError(f"{path} is damaged: {_first_line(error)}") from error


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; make a lot with `efat chips generate` or `efat chips import`")
    wrong = other_kind(
        path,
        "an HDF5 file of chips",
        own=("an HDF5 file",),
        hints={FAULT_LIST: "make a lot of it with 'efat chips import'"},
    )
    if wrong is not None:
        raise LotError(wrong)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise LotError(f"{path} is not an HDF5 file, or is cut short: {_first_line(error)}") from error


def _read_index(
    file: h5py.File, path: Path, config: ArrayConfig
) -> tuple[h5py.Dataset, h5py.Dataset, Int64Array, list[str]]:
    """Check how the datasets fit together, without reading the faults."""
    packed = -(-config.pe_count // 8)
    expected = {
        "faults": (FAULT_DTYPE, 1),
        "offsets": (np.dtype(np.int64), 1),
        "chip_ids": (_ID_DTYPE, 1),
        "bypass": (np.dtype(np.uint8), 2),
    }
    found: dict[str, h5py.Dataset] = {}
    for name, (dtype, dimensions) in expected.items():
        dataset = own_dataset(file, name)
        if dataset is None or dataset.dtype != dtype or dataset.ndim != dimensions:
            what = f"{dataset.dtype} with {dataset.ndim} dimensions" if dataset is not None else "missing"
            raise LotError(f"{path}: dataset {name!r} is {what}: expected {dtype} with {dimensions}")
        found[name] = dataset
    chips = len(found["chip_ids"])
    if chips > MOST_CHIPS:
        raise LotError(f"{path} claims {chips} chips: expected at most {MOST_CHIPS}")
    if found["offsets"].shape != (chips + 1,) or found["bypass"].shape != (chips, packed):
        raise LotError(
            f"{path}: offsets {found['offsets'].shape} and bypass {found['bypass'].shape} do not fit "
            f"{chips} chips of {config.rows}x{config.cols} PEs"
        )
    offsets = found["offsets"][:]
    names = found["chip_ids"][:].tolist()
    if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(found["faults"]):
        raise LotError(f"{path}: offsets do not divide its {len(found['faults'])} faults among {chips} chips")
    most = config.pe_count * _MOST_FAULTS_PER_PE
    if chips and int(np.diff(offsets).max()) > most:
        raise LotError(f"{path}: a chip has {int(np.diff(offsets).max())} faults: expected at most {most}")
    try:
        chip_ids = [name.decode() for name in names]
    except UnicodeDecodeError as error:
        raise LotError(f"{path}: a chip id is not UTF-8 text: {error.object!r}") from error
    if not "".join(chip_ids).isprintable():
        raise LotError(f"{path}: a chip id is not printable text")
    if len(set(chip_ids)) != chips:
        raise LotError(f"{path}: chip ids are not unique")
    return found["faults"], found["bypass"], offsets, chip_ids


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

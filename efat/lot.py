"""A lot of chips in a file: made at random, imported from a tester's list, or opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from efat.display import Shown, Table
from simulator.config import ArrayConfig
from simulator.errors import InputError
from simulator.lots.chips import Chip, ChipLot, generate_chips, provenance, write_lot
from simulator.lots.csv import Written, read_csv, write_csv
from simulator.sampling import FaultModel

MOST_CHIPS = 1_000_000


class Lot(Shown):
    """Chips in an HDF5 file, which is read when it is asked for something; it is a path wherever one is wanted.

    Args:
        path: a file that `generate`, `read_csv`, `write` or `simulator.write_lot` wrote.

    Attributes:
        path: the file.
        config: its array.
        chip_ids: names of its chips, in the order they were written.
        provenance: where it comes from, as its writer described it.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is not a file of chips, is damaged, or is of a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with ChipLot(self.path) as opened:
            self.config = opened.config
            self.chip_ids = opened.chip_ids
            self.provenance = opened.provenance

    @classmethod
    def open(cls, path: str | Path) -> Lot:
        """The lot in a file; see `Lot`.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is not a file of chips, is damaged, or is of a newer version.
        """
        return cls(path)

    @classmethod
    def generate(
        cls,
        path: str | Path,
        array: ArrayConfig,
        faults: FaultModel,
        *,
        count: int,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Lot:
        """Make a lot of chips with random faults; a file that is there is replaced.

        The same arguments give the same lot, and chip number i is the same in lots of any size.

        Args:
            path: the file to write.
            array: the array.
            faults: what they look like; from a range of rates each chip's is drawn.
            count: number of chips.
            seed: of the lot, from 0; each chip derives its own stream from it.
            progress: called with the number of chips just written.

        Raises:
            InputError: there can be no such lot.
            OSError: it cannot be written.
        """
        if not 1 <= count <= MOST_CHIPS:
            raise InputError(f"count is {count}: expected 1..{MOST_CHIPS:,} chips")
        if seed < 0:
            raise InputError(f"seed is {seed}: expected a whole number from 0")
        low, high = faults.rates
        source = f"random, {faults.pattern} pattern, rate {low:g}:{high:g}"
        chips = generate_chips(array, faults, count, seed)
        return cls.write(path, array, chips, provenance=provenance(source, seed), progress=progress)

    @classmethod
    def read_csv(cls, faults: str | Path, path: str | Path, array: ArrayConfig) -> Lot:
        """Make a lot from a tester's list of faults and bypassed PEs; a file that is there is replaced.

        Args:
            faults: the list (CSV), as `simulator.lots.csv.read_csv` reads it.
            path: the file to write.
            array: the array the faults are of.

        Raises:
            FileNotFoundError: there is no such list.
            InputError: something in it cannot be; the line is named.
            OSError: the lot cannot be written.
        """
        source = provenance(f"imported from {Path(faults).name}")
        return cls.write(path, array, read_csv(faults, array), provenance=source)

    @classmethod
    def write(
        cls,
        path: str | Path,
        array: ArrayConfig,
        chips: Iterable[Chip],
        *,
        provenance: dict[str, str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Lot:
        """Make a lot of chips that are there; a file that is there is replaced.

        Args:
            path: the file to write.
            array: the array of all of them.
            chips: the chips, taken one by one.
            provenance: where they come from.
            progress: called with the number of chips just written.

        Raises:
            InputError: chips of another array, or two of one name.
            OSError: it cannot be written.
        """
        write_lot(path, array, chips, provenance=provenance, progress=progress)
        return cls(path)

    def write_csv(self, path: str | Path) -> Written:
        """Write the faults and bypassed PEs as a list, from which `read_csv` makes the same chips.

        Args:
            path: the file (CSV); one that is there is replaced.

        Returns:
            Numbers of faults and of bypassed PEs.

        Raises:
            InputError: the lot is damaged.
            OSError: it cannot be written.
        """
        return write_csv(path, self)

    def __len__(self) -> int:
        return len(self.chip_ids)

    def __iter__(self) -> Iterator[Chip]:
        with ChipLot(self.path) as opened:
            yield from opened

    def __getitem__(self, chip_id: str) -> Chip:
        with ChipLot(self.path) as opened:
            return opened[chip_id]

    def __fspath__(self) -> str:
        return str(self.path)

    def table(self) -> Table:
        """A row for each chip."""
        config = self.config
        rows = []
        for chip in self:
            found = chip.faults.summary()
            rows.append(
                (
                    chip.id,
                    found["faults"],
                    found["faulty_pes"],
                    f"{found['fault_rate']:.2%}",
                    found["required_bypass"],
                    chip.bypassed_by_fuses,
                    found["unusable_columns"],
                )
            )
        columns = ("chip", "faults", "faulty PEs", "rate", "must bypass", "fused PEs", "unusable columns")
        return Table(f"{self.path}: {len(self)} chips of {config.rows}x{config.cols} PEs", columns, rows)

"""A lot of chips in a file: made at random, imported from a tester's list, or opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efat.display import MOST_ROWS, Shown, Table
from simulator.config import ArrayConfig
from simulator.errors import InputError
from simulator.lots.chips import Chip, ChipLot, Progress, generate_chips, write_lot
from simulator.lots.chips import provenance as described_provenance
from simulator.lots.csv import Written, read_fault_list, write_fault_list
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
        """The lot in a file, as `Lot(path)`."""
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
        progress: Progress | None = None,
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
        return cls.write(path, array, chips, provenance=described_provenance(source, seed), progress=progress)

    @classmethod
    def read_csv(cls, faults: str | Path, path: str | Path, array: ArrayConfig) -> Lot:
        """Make a lot from a tester's list of faults and bypassed PEs; a file that is there is replaced.

        Args:
            faults: the list (CSV), as `simulator.read_fault_list` reads it.
            path: the file to write.
            array: the array the faults are of.

        Raises:
            FileNotFoundError: there is no such list.
            InputError: something in it cannot be; the line is named.
            OSError: the lot cannot be written.
        """
        source = f"imported from {Path(faults).name}"
        return cls.write(path, array, read_fault_list(faults, array), provenance=source)

    @classmethod
    def write(
        cls,
        path: str | Path,
        array: ArrayConfig,
        chips: Iterable[Chip],
        *,
        provenance: str | dict[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Lot:
        """Make a lot of chips that are there; a file that is there is replaced.

        Args:
            path: the file to write.
            array: the array of all of them.
            chips: the chips, taken one by one.
            provenance: where they come from, as a text or as several by name.
            progress: called with the number of chips just written.

        Raises:
            InputError: chips of another array, or two of one name.
            OSError: it cannot be written.
        """
        described = described_provenance(provenance) if isinstance(provenance, str) else provenance
        write_lot(path, array, chips, provenance=described, progress=progress)
        return cls(path)

    def write_csv(self, path: str | Path, *, progress: Progress | None = None) -> Written:
        """Write the faults and bypassed PEs as a list, from which `read_csv` makes the same chips.

        Args:
            path: the file (CSV); one that is there is replaced.
            progress: called with the number of chips just written.

        Returns:
            Numbers of faults and of bypassed PEs.

        Raises:
            InputError: the lot is damaged, or the file is that of the lot.
            OSError: it cannot be written.
        """
        if Path(path).exists() and Path(path).samefile(self.path):
            raise InputError(f"{path} is the lot itself: choose another name for the list")
        return write_fault_list(path, self._chips(progress))

    def __len__(self) -> int:
        return len(self.chip_ids)

    def __iter__(self) -> Iterator[Chip]:
        return self._chips()

    def _chips(self, progress: Progress | None = None) -> Iterator[Chip]:
        with ChipLot(self.path) as opened:
            for chip in opened:
                yield chip
                if progress is not None:
                    progress(1)

    def __getitem__(self, chip_id: str) -> Chip:
        with ChipLot(self.path) as opened:
            return opened[chip_id]

    def __fspath__(self) -> str:
        return str(self.path)

    def as_dict(self, *, progress: Progress | None = None) -> dict[str, Any]:
        """The array, where the lot comes from, and each chip's summary, for JSON; `progress` counts chips."""
        chips = [chip.as_dict() for chip in self._chips(progress)]
        return {"array": self.config.as_dict(), "provenance": self.provenance, "chips": chips}

    def parts(self, *, progress: Progress | None = None) -> Iterator[Table | str]:
        """A row for each chip (the first ones of a long lot), and the lot's totals; `progress` counts chips."""
        config = self.config
        rows: list[tuple[object, ...]] = []
        rates, bypasses, fused = [], [], []
        for chip in self._chips(progress):
            found = chip.faults.summary()
            rates.append(found.fault_rate)
            bypasses.append(found.required_bypass_rate)
            fused.append(chip.bypassed_by_fuses)
            if len(rows) < MOST_ROWS:
                counts = (found.required_bypass, chip.bypassed_by_fuses, found.unusable_columns)
                rate = f"{found.fault_rate:.2%}"
                rows.append((chip.id, found.faults, found.faulty_pes, rate, *counts, chip.digest()[:12]))
        sign = "signed" if config.act_signed else "unsigned"
        multiplier = config.multiplier if isinstance(config.multiplier, str) else config.multiplier.name
        title = (
            f"{len(self)} chips of {config.rows}x{config.cols} PEs: {config.weight_bits}-bit weights, {config.act_bits}"
            f"-bit {sign} activations, {config.acc_bits}-bit sums, multiplier {multiplier}; "
            f"{self.provenance.get('source', 'unknown source')}"
        )
        heads = ("faults", "faulty\nPEs", "rate", "must\nbypass", "fused\nPEs", "unusable\ncolumns", "digest")
        more = len(self) - MOST_ROWS
        yield Table(title, ("chip", *heads), rows, [f"... and {more:,} more: --json has them all"] if more > 0 else [])
        if not isinstance(config.multiplier, str):
            from simulator.gates.signs import Signs, error_note

            note = error_note(config.multiplier.products, Signs(True, config.act_signed))
            yield f"Multiplier {config.multiplier.name}: {note}."
        if rates:
            yield (
                f"Faulty PEs per chip: {min(rates):.2%} to {max(rates):.2%}, mean {np.mean(rates):.2%}. "
                f"PEs that must be bypassed: {min(bypasses):.2%} to {max(bypasses):.2%}, mean {np.mean(bypasses):.2%}."
            )
        if any(fused):
            yield (
                f"Fused PEs, which a chip's fuses bypass: {min(fused)} to {max(fused)} per chip, "
                f"in {np.count_nonzero(fused)} of {len(fused)} chips."
            )

"""Multipliers of PEs: built-in designs, what faults of gates do, errors of product tables, and multipliers of files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from efat.campaigns.campaign import Notes, warned
from efat.display import Shown, Table
from efat.figures.multiplier import draw_fault_classes
from simulator.errors import did_you_mean
from simulator.files import replaced
from simulator.gates.designs import DESIGNS, build_netlist
from simulator.gates.files import is_netlist_name, read_netlist_file
from simulator.gates.netlist import Netlist, netlist_products
from simulator.gates.signs import Signs, error_note, sign_doubt
from simulator.multipliers.fault_classes import FaultClass, FaultSummary, compare, fault_classes
from simulator.multipliers.files import TableSigns, for_array, read_multiplier, read_table
from simulator.multipliers.multiplier import Multiplier
from simulator.multipliers.product_tables import ProductTable, read_products

_WORDS = {True: "signed", False: "unsigned"}
_LEGEND = (
    "bits: of the product, inverted for some input. inputs: with a wrong product. nearest bit: the stuck bit of\n"
    "the product that gives the same product most often; bit wrong: inputs for which it gives another one."
)


@dataclass(frozen=True, eq=False, repr=False)
class MultiplierDesigns(Shown):
    """The built-in designs for some operands.

    Attributes:
        netlists: their gates, by name.
        faults: what all stuck-at faults of their gates do, by name; empty if that was not asked for.
    """

    netlists: Mapping[str, Netlist]
    faults: Mapping[str, FaultSummary] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        found = {name: _netlist_dict(netlist) for name, netlist in self.netlists.items()}
        for name, summary in self.faults.items():
            found[name]["faults"] = summary._asdict()
        return found

    def parts(self) -> Iterator[Table | str]:
        """A row for each design, and a column for each if faults were evaluated."""
        first = next(iter(self.netlists.values()))
        yield f"{first.weight_bits}-bit signed weights by {first.act_bits}-bit {_WORDS[first.act_signed]} activations"
        yield Table(
            "",
            ["design", "gates", "deepest", "fault locations"],
            [
                [name, str(len(netlist.gates)), str(netlist.depth), str(netlist.locations)]
                for name, netlist in self.netlists.items()
            ],
        )
        if self.faults:
            yield _comparison(self.faults)


def multiplier_designs(
    weight_bits: int = 8,
    act_bits: int = 8,
    *,
    act_signed: bool = True,
    faults: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MultiplierDesigns:
    """The built-in designs of multipliers: their gates, and where faults can sit.

    Args:
        weight_bits: width of weights (signed), 2..8.
        act_bits: width of activations, 2..8.
        act_signed: whether activations are signed.
        faults: whether all stuck-at faults of their gates are evaluated on all inputs, too.
        progress: called with the numbers of faults that are evaluated, and of all of them.

    Raises:
        InputError: a width that cannot be.
    """
    netlists = {name: build_netlist(name, weight_bits, act_bits, act_signed=act_signed) for name in DESIGNS}
    of = sum(2 * netlist.locations for netlist in netlists.values())
    told, evaluated = _counting(progress, of), netlists if faults else {}
    return MultiplierDesigns(
        netlists, {name: compare(fault_classes(netlist, told)) for name, netlist in evaluated.items()}
    )


@dataclass(frozen=True, eq=False, repr=False)
class GateFaults(Shown):
    """What every stuck-at fault of a multiplier's gates does, on all inputs.

    Attributes:
        name: of the multiplier.
        netlist: its gates.
        classes: faults with the same products are one class; those that disturb most inputs come first.
        summary: of all classes.
        note: which ports of a file were taken; None for a design.
        most: how many classes are shown.
    """

    name: str
    netlist: Netlist
    classes: Sequence[FaultClass]
    summary: FaultSummary
    note: str | None = None
    most: int = 20

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "multiplier": self.name,
            **_netlist_dict(self.netlist),
            "comparison": self.summary._asdict(),
            "classes": [self._class_dict(one) for one in self.classes],
        }

    def write_csv(self, path: str | Path) -> None:
        """Write a line for each class; `members` lists its faults as `location:kind`.

        Args:
            path: the file (CSV); one that is there is replaced.

        Raises:
            OSError: it cannot be written.
        """
        lines = []
        for one in self.classes:
            row = self._class_dict(one)
            line = {**row, "faults": len(one.faults)}
            line |= {f"bit_{place}": fraction for place, fraction in enumerate(line.pop("bits"))}
            line["members"] = " ".join(f"{fault['location']}:{fault['kind']}" for fault in row["faults"])
            lines.append(line)
        with replaced(Path(path)) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]) if lines else ["fault"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)

    def draw(self, path: str | Path) -> None:
        """Draw which product bits each class inverts, and how classes lie to the stuck bits of the product.

        Args:
            path: the file (PNG); one that is there is replaced.

        Raises:
            OSError: it cannot be written.
        """
        draw_fault_classes(self.name, self.netlist, self.classes, Path(path))

    def parts(self) -> Iterator[Table | str]:
        """All faults next to stuck bits of the product, and the classes that disturb most inputs."""
        if self.note is not None:
            yield self.note
        yield _comparison({self.name: self.summary})
        shown = self.classes[: self.most]
        if not shown:
            return
        yield Table(
            f"The {len(shown)} of {len(self.classes)} classes that disturb most inputs; s-a: stuck at",
            ["one of its faults", "bits", "nearest bit", "faults", "inputs", "mean error", "worst", "bit wrong"],
            [
                [
                    self._fault_name(one),
                    _bit_ranges(one),
                    f"{one.nearest.bit} s-a-{one.nearest.stuck}",
                    str(len(one.faults)),
                    f"{one.disturbed:.2%}",
                    f"{one.errors.mean_absolute:.5g}",
                    str(one.errors.worst_case),
                    f"{one.nearest.differs:.2%}",
                ]
                for one in shown
            ],
            left=3,
            most=len(shown),
        )
        yield _LEGEND

    def _fault_name(self, one: FaultClass) -> str:
        return f"{self.netlist.location_name(one.faults[0].location)} s-a-{one.faults[0].stuck}"

    def _class_dict(self, one: FaultClass) -> dict[str, Any]:
        return {
            "fault": self._fault_name(one),
            "faults": [{"location": fault.location, "kind": f"STUCK_AT_{fault.stuck}"} for fault in one.faults],
            "disturbed": one.disturbed,
            "bits": one.bits.tolist(),
            "bits_hit": one.bits_touched,
            "patterns": one.patterns,
            "mean_absolute_error": one.errors.mean_absolute,
            "worst_case_error": one.errors.worst_case,
            "mean_error": one.errors.mean,
            "nearest_bit": one.nearest.bit,
            "nearest_kind": f"STUCK_AT_{one.nearest.stuck}",
            "bit_model_wrong": one.nearest.differs,
        }


def gate_faults(
    multiplier: str | Path | Netlist = DESIGNS[0],
    weight_bits: int = 8,
    act_bits: int = 8,
    *,
    act_signed: bool = True,
    ports: tuple[str | None, str | None, str | None] = (None, None, None),
    most: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> GateFaults:
    """Evaluate every stuck-at fault of a multiplier's gates on all inputs.

    Args:
        multiplier: the name of a built-in design, a netlist, or the file of one (structural Verilog or BLIF).
        weight_bits: width of a design's weights, 2..8; netlists say theirs.
        act_bits: width of a design's activations, likewise.
        act_signed: whether activations of a design or a file are signed.
        ports: of a file, for weight, activation and product; None for guessed ones.
        most: how many classes are shown.
        progress: called with the numbers of faults that are evaluated, and of all of them.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: a width that cannot be, or a file without the gates of a multiplier.
    """
    name, note = str(multiplier), None
    if isinstance(multiplier, Netlist):
        name, netlist = "netlist", multiplier
    elif isinstance(multiplier, str) and name in DESIGNS:
        netlist = build_netlist(name, weight_bits, act_bits, act_signed=act_signed)
    else:
        if isinstance(multiplier, str) and not Path(name).exists():
            raise FileNotFoundError(
                f"{name}: neither a file nor one of the designs {', '.join(DESIGNS)}{did_you_mean(name, DESIGNS)}"
            )
        read = read_netlist_file(multiplier, *ports, act_signed=act_signed)
        name, netlist, note = Path(multiplier).name, read.netlist, str(read)
    classes = fault_classes(netlist, _counting(progress, 2 * netlist.locations))
    classes.sort(key=lambda one: -one.disturbed)
    return GateFaults(name, netlist, classes, compare(classes), note, most)


@dataclass(frozen=True, eq=False, repr=False)
class ProductErrors(Shown):
    """How far products are from the exact ones, over all pairs of operands.

    Attributes:
        name: of what was read.
        products: a table of them.
        note: which ports of a netlist were taken; None for a table.
    """

    name: str
    products: ProductTable
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the products, as JSON takes it."""
        rows, columns = self.products.products.shape
        errors = self.products.errors
        return {
            "form": self.products.form,
            "first": self.products.first,
            "symmetric": self.products.symmetric,
            "weight_bits": rows.bit_length() - 1,
            "act_bits": columns.bit_length() - 1,
            "weight_signed": self.products.weight_signed,
            "act_signed": self.products.act_signed,
            "mean_absolute_error": errors.mean_absolute,
            "worst_case_error": errors.worst_case,
            "error_probability": errors.probability,
            "mean_error": errors.mean,
            "doubt": sign_doubt(self.products.products, self.products.signs) or None,
        }

    def write(self, path: str | Path) -> None:
        """Write the products as a NumPy file, int16 or uint16 [2**weight_bits, 2**act_bits].

        Args:
            path: the file (`.npy`); one that is there is replaced.

        Raises:
            OSError: it cannot be written.
        """
        kind = np.int16 if any(self.products.signs) else np.uint16
        with replaced(Path(path)) as beside:
            np.save(beside, self.products.products.astype(kind), allow_pickle=False)

    def parts(self) -> Iterator[Table | str]:
        """What was read, its errors, and whether its signs are in doubt."""
        if self.note is not None:
            yield self.note
        found, said = self.products, self.as_dict()
        order = f", {found.first} first" + (" (symmetric)" if found.symmetric else "")
        yield (
            f"{self.name}: {found.form}, {said['weight_bits']}-bit {_WORDS[found.weight_signed]} weights by "
            f"{said['act_bits']}-bit {_WORDS[found.act_signed]} activations{'' if found.form == 'netlist' else order}"
        )
        errors = (
            ("mean absolute error", found.errors.mean_absolute),
            ("worst-case error", found.errors.worst_case),
            ("mean error (bias)", found.errors.mean),
        )
        # Also as a fraction of all numbers that a product's bits have, as EvoApproxLib gives it.
        rows = [[text, f"{error:.6g}", f"{error / found.products.size:.4%}"] for text, error in errors]
        rows.append(["error probability", f"{found.errors.probability:.4%}", ""])
        yield Table("", ["error over all pairs", "value", "of 2^bits"], rows)
        if said["doubt"]:
            yield f"Doubtful: {said['doubt']}."


def product_errors(
    path: str | Path,
    weight_bits: int = 8,
    act_bits: int = 8,
    *,
    act_signed: bool = True,
    signs: TableSigns | None = None,
    ports: tuple[str | None, str | None, str | None] = (None, None, None),
) -> ProductErrors:
    """The errors of a product table or a netlist, over all pairs of operands.

    Args:
        path: a netlist (structural Verilog or BLIF), or a table: a NumPy file, a C file with one array, or raw words.
        weight_bits: width of a table's weights, 2..8; netlists say theirs.
        act_bits: width of a table's activations, likewise.
        act_signed: whether activations of the array are signed.
        signs: what the file does not say of its operands; with `magnitudes` the table is made into one of signed
            weights.
        ports: of a netlist, for weight, activation and product; None for guessed ones.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it holds no multiplier, or its signs are not stated or cannot be.
    """
    path, signs, note = Path(path), signs or TableSigns(), None
    if is_netlist_name(path):
        weight_signed = signs.weight_signed is not False
        acts = act_signed if signs.act_signed is None else signs.act_signed
        read = read_netlist_file(path, *ports, weight_signed=weight_signed, act_signed=acts)
        table = ProductTable(netlist_products(read.netlist), *read.netlist.signs, "netlist", "weight")
        note = str(read)
    else:
        table = read_products(
            path,
            act_signed=signs.act_signed,
            weight_signed=signs.weight_signed,
            weight_bits=weight_bits,
            act_bits=act_bits,
            first=signs.first,
        )
    if signs.magnitudes:
        table = for_array(table, path, act_signed=act_signed, magnitudes=True)
    return ProductErrors(str(path), table, note)


def array_multiplier(
    name: str | Path,
    weight_bits: int = 8,
    act_bits: int = 8,
    *,
    act_signed: bool = True,
    faulty: Sequence[str | Path] = (),
    signs: TableSigns | None = None,
    notes: Notes = warned,
) -> str | Multiplier:
    """What every PE of an array multiplies with, as `simulator.ArrayConfig` takes it.

    Args:
        name: a built-in design, a netlist file (`.v`, `.sv`, `.blif`), or the file of a product table.
        weight_bits: width of the array's weights, 2..8.
        act_bits: width of the array's activations, 2..8.
        act_signed: whether the array's activations are signed.
        faulty: files of product tables that PEs with a multiplier fault multiply by; each is a fault location.
        signs: what the files of tables do not say of their operands.
        notes: told which ports of a netlist were taken, and how near products are to the exact ones.

    Raises:
        FileNotFoundError: there is neither such a design nor such a file.
        InputError: a file holds no multiplier, or one for other operands.
    """
    name = str(name)
    if name in DESIGNS and not faulty:
        return name
    array_signs, signs = Signs(True, act_signed), signs or TableSigns()
    normal = read_multiplier(name, weight_bits=weight_bits, act_bits=act_bits, act_signed=act_signed, signs=signs)
    if is_netlist_name(name):
        notes(str(read_netlist_file(name, act_signed=act_signed)))
    elif name not in DESIGNS:
        notes(f"{name}: product table, {error_note(normal.products, array_signs)}")
    if not faulty:
        return normal
    tables = [
        read_table(path, weight_bits=weight_bits, act_bits=act_bits, act_signed=act_signed, signs=signs)
        for path in faulty
    ]
    for path, table in zip(faulty, tables, strict=True):
        notes(f"{path}: product table of faulty PEs, {error_note(table, array_signs)}")
    label = f"{normal.name}, faulty {', '.join(Path(path).name for path in faulty)}"
    return Multiplier.from_tables(label, normal.products, tables, act_signed=act_signed)


def _counting(progress: Callable[[int, int], None] | None, of: int) -> Callable[[int], None]:
    done = 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, of)

    return told


def _netlist_dict(netlist: Netlist) -> dict[str, Any]:
    return {
        "weight_bits": netlist.weight_bits,
        "act_bits": netlist.act_bits,
        "weight_signed": netlist.weight_signed,
        "act_signed": netlist.act_signed,
        "gates": len(netlist.gates),
        "depth": netlist.depth,
        "locations": netlist.locations,
        "digest": netlist.digest,
    }


def _comparison(summaries: Mapping[str, FaultSummary]) -> Table:
    """What all faults do, next to the product-bit model: a column for each multiplier."""
    rows: list[tuple[str, Callable[[FaultSummary], str]]] = [
        ("faults", lambda one: str(one.faults)),
        ("  that change no product", lambda one: str(one.undetectable)),
        ("classes", lambda one: str(one.classes)),
        ("  that equal a stuck bit of the product", lambda one: str(one.equal_classes)),
        ("    faults in these", lambda one: str(one.equal_faults)),
        ("  that never invert two bits of one product", lambda one: str(one.single_bit)),
        ("median of classes (10 % to 90 % of them):", lambda _: ""),
        ("  inputs with a wrong product", lambda one: _percent(one.disturbed)),
        ("  mean absolute error", lambda one: _spread(one.mean_error)),
        ("  product bits inverted for some input", lambda one: _spread(one.bits)),
        ("  inputs where the nearest stuck bit is wrong", lambda one: _percent(one.differs)),
    ]
    return Table(
        "Stuck-at faults of gate outputs and pins, next to stuck bits of the product",
        ["faults with the same products are one class", *summaries],
        [[text, *map(value, summaries.values())] for text, value in rows],
    )


def _percent(values: tuple[float, float, float]) -> str:
    low, middle, high = (100 * value for value in values)
    return f"{middle:.1f}% ({low:.0f}-{high:.0f})"


def _spread(values: tuple[float, float, float]) -> str:
    low, middle, high = values
    return f"{middle:.4g} ({low:.2g}-{high:.4g})"


def _bit_ranges(one: FaultClass) -> str:
    """The product bits that a class inverts for some input: `0, 3-5`."""
    parts: list[tuple[int, int]] = []
    for bit in one.bits.nonzero()[0].tolist():
        first = parts.pop()[0] if parts and parts[-1][1] == bit - 1 else bit
        parts.append((first, bit))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts) or "none"

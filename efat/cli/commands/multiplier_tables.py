"""What `efat multiplier` prints and writes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from efat.cli.render import results_table
from simulator.faults import Kind
from simulator.files import replaced
from simulator.gates.netlist import Netlist
from simulator.multipliers.fault_classes import FaultClass, GateFault
from simulator.multipliers.fault_comparison import Comparison, compare
from simulator.multipliers.product_tables import ProductTable
from simulator.multipliers.signs import sign_doubt

_STUCK = {Kind.STUCK_AT_0: "s-a-0", Kind.STUCK_AT_1: "s-a-1"}
"""Stuck at 0 and stuck at 1, as testers write them."""


def netlist_dict(netlist: Netlist) -> dict[str, Any]:
    """A netlist's size, as JSON takes it."""
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


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """A comparison with the product-bit model, as JSON takes it."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(comparison).items()}


def show_designs(netlists: Mapping[str, Netlist], console: Console) -> None:
    """Print a row for each design."""
    first = next(iter(netlists.values()))
    sign = "signed" if first.act_signed else "unsigned"
    console.print(f"{first.weight_bits}-bit signed weights by {first.act_bits}-bit {sign} activations")
    table = results_table(
        "",
        left=["design"],
        right=["gates", "deepest", "fault locations"],
    )
    for name, netlist in netlists.items():
        table.add_row(name, str(len(netlist.gates)), str(netlist.depth), str(netlist.locations))
    console.print(table)


def show_comparisons(comparisons: Mapping[str, Comparison], console: Console) -> None:
    """Print what all faults of some multipliers do, next to the product-bit model, a column for each multiplier."""
    table = results_table(
        "Stuck-at faults of gate outputs and pins, next to stuck bits of the product",
        left=["faults with the same products are one class"],
        right=list(comparisons),
    )
    rows: list[tuple[str, Callable[[Comparison], str]]] = [
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
    for text, value in rows:
        table.add_row(text, *(value(one) for one in comparisons.values()))
    console.print(table)


def _percent(values: tuple[float, float, float]) -> str:
    low, middle, high = (100 * value for value in values)
    return f"{middle:.1f}% ({low:.0f}-{high:.0f})"


def _spread(values: tuple[float, float, float]) -> str:
    low, middle, high = values
    return f"{middle:.4g} ({low:.2g}-{high:.4g})"


def fault_name(netlist: Netlist, fault: GateFault) -> str:
    """A fault for people."""
    return f"{netlist.location_name(fault.location)} {_STUCK[fault.kind]}"


def bit_ranges(one: FaultClass) -> str:
    """The product bits that a class inverts for some input: `0, 3-5`."""
    hit = [bit for bit, fraction in enumerate(one.bits.tolist()) if fraction > 0]
    parts: list[list[int]] = []
    for bit in hit:
        if parts and parts[-1][1] == bit - 1:
            parts[-1][1] = bit
        else:
            parts.append([bit, bit])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts) or "none"


def show_classes(netlist: Netlist, classes: Sequence[FaultClass], total: int, console: Console) -> None:
    """Print a row for each class."""
    if not classes:
        return
    table = results_table(
        f"The {len(classes)} of {total} classes that disturb most inputs; s-a: stuck at",
        left=["one of its faults", "bits", "nearest bit"],
        right=["faults", "inputs", "mean error", "worst", "bit wrong"],
    )
    for one in classes:
        table.add_row(
            fault_name(netlist, one.faults[0]),
            bit_ranges(one),
            f"{one.nearest.bit} {_STUCK[one.nearest.kind]}",
            str(len(one.faults)),
            f"{one.disturbed:.2%}",
            f"{one.errors.mean_absolute:.5g}",
            str(one.errors.worst_case),
            f"{one.nearest.differs:.2%}",
        )
    console.print(table)
    console.print(
        "bits: of the product, inverted for some input. inputs: with a wrong product. nearest bit: the stuck bit of\n"
        "the product that gives the same product most often; bit wrong: inputs for which it gives another one."
    )


def class_dict(netlist: Netlist, one: FaultClass) -> dict[str, Any]:
    """A class, as JSON and CSV take it."""
    return {
        "fault": fault_name(netlist, one.faults[0]),
        "faults": [{"location": fault.location, "kind": fault.kind.name} for fault in one.faults],
        "disturbed": one.disturbed,
        "bits": one.bits.tolist(),
        "bits_hit": one.bits_touched,
        "patterns": one.patterns,
        "mean_absolute_error": one.errors.mean_absolute,
        "worst_case_error": one.errors.worst_case,
        "mean_error": one.errors.mean,
        "nearest_bit": one.nearest.bit,
        "nearest_kind": one.nearest.kind.name,
        "bit_model_wrong": one.nearest.differs,
    }


def fault_dict(name: str, netlist: Netlist, classes: Sequence[FaultClass]) -> dict[str, Any]:
    """All classes, as JSON takes them."""
    return {
        "multiplier": name,
        **netlist_dict(netlist),
        "comparison": comparison_dict(compare(classes)),
        "classes": [class_dict(netlist, one) for one in classes],
    }


def _csv_rows(netlist: Netlist, classes: Sequence[FaultClass]) -> Iterator[dict[str, Any]]:
    for one in classes:
        row = class_dict(netlist, one)
        bits = row.pop("bits")
        members = " ".join(f"{fault.location}:{fault.kind.name}" for fault in one.faults)
        yield {
            **row,
            "faults": len(one.faults),
            **{f"bit_{place}": fraction for place, fraction in enumerate(bits)},
            "members": members,
        }


def write_classes(path: Path, netlist: Netlist, classes: Sequence[FaultClass]) -> None:
    """Write a line of CSV for each class; `members` lists its faults as `location:kind`."""
    rows = list(_csv_rows(netlist, classes))
    with replaced(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["fault"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table_dict(found: ProductTable) -> dict[str, Any]:
    """A product table's errors, as JSON takes them."""
    rows, columns = found.products.shape
    errors = found.errors
    return {
        "form": found.form,
        "first": found.first,
        "symmetric": found.symmetric,
        "weight_bits": rows.bit_length() - 1,
        "act_bits": columns.bit_length() - 1,
        "weight_signed": found.weight_signed,
        "act_signed": found.act_signed,
        "mean_absolute_error": errors.mean_absolute,
        "worst_case_error": errors.worst_case,
        "error_probability": errors.probability,
        "mean_error": errors.mean,
        "doubt": sign_doubt(found.products, found.signs) or None,
    }


def show_table(name: str, found: ProductTable, console: Console) -> None:
    """Print a product table's errors."""
    values = table_dict(found)
    signs = {True: "signed", False: "unsigned"}
    order = "" if found.form == "netlist" else f", {found.first} first" + (" (symmetric)" if found.symmetric else "")
    console.print(
        f"{name}: {found.form}, {values['weight_bits']}-bit {signs[found.weight_signed]} weights by "
        f"{values['act_bits']}-bit {signs[found.act_signed]} activations{order}"
    )
    table = results_table(
        "",
        left=["error over all pairs"],
        right=["value", "of 2^bits"],
    )
    for text, error in (
        ("mean absolute error", found.errors.mean_absolute),
        ("worst-case error", found.errors.worst_case),
        ("mean error (bias)", found.errors.mean),
    ):
        # Also as a fraction of all numbers that a product's bits have, as EvoApproxLib gives it.
        table.add_row(text, f"{error:.6g}", f"{error / found.products.size:.4%}")
    table.add_row("error probability", f"{found.errors.probability:.4%}", "")
    console.print(table)
    if values["doubt"]:
        console.print(f"Doubtful: {values['doubt']}.")

"""`efat multiplier`: what PEs multiply with, and what faults inside it do."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from efat.cli.machine_options import TABLE_OPTIONS, is_netlist, ports_text, table_signs
from efat.cli.options import bundled, check_json, check_output, fail, gathered, json_option, write_json
from efat.cli.parameters import DESIGNS, INPUT_FILE
from efat.cli.printing import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console

    from simulator.gates.files import NetlistFile
    from simulator.gates.netlist import Netlist
    from simulator.multipliers.fault_classes import FaultClass, FaultSummary, GateFault
    from simulator.multipliers.product_tables import ProductTable

_WIDTH = click.IntRange(2, 8)


@click.group()
def multiplier() -> None:
    """Show multipliers, what faults inside them do, and the errors of product tables."""


class _Operands(NamedTuple):
    weight_bits: int
    act_bits: int
    unsigned_acts: bool

    def netlist(self, design: str) -> Netlist:
        from simulator.gates.designs import build_netlist

        return build_netlist(design, self.weight_bits, self.act_bits, act_signed=not self.unsigned_acts)


class _Ports(NamedTuple):
    weight_port: str | None
    act_port: str | None
    product_port: str | None


_operand_options = gathered(
    "operands",
    _Operands,
    click.option("--weight-bits", type=_WIDTH, default=8, show_default=True, help="Width of weights."),
    click.option("--act-bits", type=_WIDTH, default=8, show_default=True, help="Width of activations."),
    click.option("--unsigned-acts", is_flag=True, help="Activations are unsigned."),
)
_port_options = gathered(
    "ports",
    _Ports,
    click.option("--weight-port", metavar="NAME", help="Port of a netlist that is the weight.  [default: guessed]"),
    click.option("--act-port", metavar="NAME", help="Port that is the activation.  [default: guessed]"),
    click.option("--product-port", metavar="NAME", help="Port that is the product.  [default: the only output]"),
)


@multiplier.command(
    name="list",
    short_help="The built-in designs: gates, and where faults can sit.",
    epilog="""\b
Examples:
  efat multiplier list
  efat multiplier list --weight-bits 4 --act-bits 4 --faults
""",
)
@_operand_options
@click.option("--faults", is_flag=True, help="Evaluate all their stuck-at faults, too (some seconds).")
@json_option("what is shown")
def list_(operands: _Operands, faults: bool, json_path: Path | None) -> None:
    """List the built-in designs: their gates, and where faults can sit."""
    check_json(json_path)
    from efat.cli.render import console, progress_bar, results_table
    from simulator.multipliers.fault_classes import compare, fault_classes

    netlists = {design: operands.netlist(design) for design in DESIGNS}
    comparisons = {}
    if faults:
        with progress_bar("faults", sum(2 * netlist.locations for netlist in netlists.values())) as progress:
            comparisons = {name: compare(fault_classes(netlist, progress)) for name, netlist in netlists.items()}
    if json_path is not None:
        rows = {name: _netlist_dict(netlist) for name, netlist in netlists.items()}
        for name, comparison in comparisons.items():
            rows[name]["faults"] = comparison._asdict()
        write_json(json_path, rows)
    sign = "unsigned" if operands.unsigned_acts else "signed"
    console().print(f"{operands.weight_bits}-bit signed weights by {operands.act_bits}-bit {sign} activations")
    table = results_table("", left=["design"], right=["gates", "deepest", "fault locations"])
    for name, netlist in netlists.items():
        table.add_row(name, str(len(netlist.gates)), str(netlist.depth), str(netlist.locations))
    console().print(table)
    if comparisons:
        _show_comparisons(comparisons, console())


@multiplier.command(
    short_help="What every stuck-at fault of the gates does.",
    epilog="""\b
Examples:
  efat multiplier faults --design wallace
  efat multiplier faults --netlist mine.v --weight-port b --csv classes.csv
  efat multiplier faults --design array --weight-bits 4 --act-bits 4 --png faults.png

\b
A netlist is structural Verilog or BLIF, as Yosys writes it:
  yosys -p "read_verilog mine.v; synth -flatten; abc -g gates; opt_clean; write_verilog -noattr gates.v"
""",
)
@click.option("--design", type=click.Choice(DESIGNS), help="A built-in design.  [default: array]")
@click.option("--netlist", "netlist_path", type=INPUT_FILE, metavar="FILE", help="A netlist file instead of a design.")
@_operand_options
@_port_options
@click.option("--top", type=click.IntRange(min=0), default=20, show_default=True, help="Classes to print.")
@click.option("--csv", "csv_path", type=INPUT_FILE, metavar="FILE", help="Write all classes to this file.")
@json_option("all classes")
@click.option("--png", type=INPUT_FILE, metavar="FILE", help="Draw what all classes do into this file.")
@click.pass_context
def faults(
    context: click.Context,
    design: str | None,
    netlist_path: Path | None,
    operands: _Operands,
    ports: _Ports,
    top: int,
    csv_path: Path | None,
    json_path: Path | None,
    png: Path | None,
) -> None:
    """Evaluate every stuck-at fault of a multiplier's gates on all inputs.

    Faults with the same products are one class. Each class is compared with the simpler model of a product bit that is
    stuck: how often do the nearest such fault and the class give different products?
    """
    outputs = _check_outputs([csv_path, json_path, png], [] if netlist_path is None else [netlist_path])
    if netlist_path is None:
        _refuse(context, _Ports._fields, "only a --netlist has ports to choose")
    elif design is not None:
        fail("--design and --netlist: expected one of them")
    else:
        _refuse(context, _WIDTHS, "the netlist says how wide its operands are")
    if str(json_path) == "-":
        _refuse(context, ("top",), "--json - prints all classes and no table")
    from efat.cli.render import console, progress_bar
    from simulator.multipliers.fault_classes import compare, fault_classes

    if netlist_path is None:
        name = design or DESIGNS[0]
        netlist = operands.netlist(name)
    else:
        read = _read_netlist(netlist_path, ports, act_signed=not operands.unsigned_acts)
        name, netlist = netlist_path.name, read.netlist
    with progress_bar("faults", 2 * netlist.locations) as progress:
        classes = fault_classes(netlist, progress)
    classes.sort(key=lambda one: -one.disturbed)
    comparison = compare(classes)
    rows = [_class_dict(netlist, one) for one in classes]
    if csv_path is not None:
        _write_csv(csv_path, rows)
    if json_path is not None:
        content = {"multiplier": name, **_netlist_dict(netlist), "comparison": comparison._asdict(), "classes": rows}
        write_json(json_path, content)
    if png is not None:
        from efat.figures.multiplier import draw_fault_classes

        draw_fault_classes(name, netlist, classes, png)
    if netlist_path is not None:
        say(ports_text(read))
    _show_comparisons({name: comparison}, console())
    if classes[:top]:
        _show_classes(netlist, classes[:top], len(classes), console())
    for path in outputs:
        say(f"Wrote {path}")


@multiplier.command(
    short_help="Errors of a product table or a netlist.",
    epilog="""\b
Examples:
  efat multiplier table mul8s_1L2H.h
  efat multiplier table mul8u_17C8.bin --table-unsigned --sign-magnitude --write mul8s_17C8.npy
  efat multiplier table mine.blif

\b
Tables are NumPy files, the raw 16-bit words of TFApprox, and the C headers of AdaPT (lut[256][256]). Of
EvoApproxLib mul8s_* have signed operands and mul8u_* unsigned ones; weights of the array are signed, so that
the latter need --sign-magnitude.
""",
)
@click.argument("file", type=INPUT_FILE)
@_operand_options
@bundled(*TABLE_OPTIONS)
@_port_options
@click.option("--write", "write_path", type=INPUT_FILE, metavar="FILE", help="Write the products as a NumPy file.")
@json_option("what is shown")
@click.pass_context
def table(
    context: click.Context,
    file: Path,
    operands: _Operands,
    table_signed: bool | None,
    sign_magnitude: bool,
    table_first: str | None,
    ports: _Ports,
    write_path: Path | None,
    json_path: Path | None,
) -> None:
    """Report the errors of FILE, a product table or a netlist, over all pairs of operands."""
    _check_outputs([write_path, json_path], [file])
    if write_path is not None and write_path.suffix != ".npy":
        fail(f"--write {write_path}: expected a name that ends in .npy")
    from efat.cli.render import console
    from simulator.gates.netlist import netlist_products
    from simulator.multipliers.files import for_array
    from simulator.multipliers.product_tables import ProductTable, read_products

    unsigned_acts = operands.unsigned_acts
    if not sign_magnitude and table_signed is False:
        _refuse(context, ("unsigned_acts",), "--table-unsigned says so already")
    if is_netlist(str(file)):
        _refuse(context, _WIDTHS, "the netlist says how wide its operands are")
        _refuse(context, ("table_first",), "a netlist's operands are ports: choose them with --weight-port")
        signed = table_signed is not False
        read = _read_netlist(file, ports, weight_signed=signed, act_signed=signed and not unsigned_acts)
        found = ProductTable(netlist_products(read.netlist), *read.netlist.signs, "netlist", "weight")
    else:
        _refuse(context, _Ports._fields, "only a netlist has ports to choose")
        if not sign_magnitude and table_signed is None:
            _refuse(context, ("unsigned_acts",), "say with --table-signed that the table has signed weights")
        signs = table_signs(table_signed, unsigned_acts, sign_magnitude, table_first)
        found = read_products(
            file,
            act_signed=signs.act_signed,
            weight_signed=signs.weight_signed,
            weight_bits=operands.weight_bits,
            act_bits=operands.act_bits,
            first=signs.first,
        )
    if sign_magnitude:
        found = for_array(found, file, act_signed=not unsigned_acts, magnitudes=True)
    if write_path is not None:
        import numpy as np

        from simulator.files import replaced

        with replaced(write_path) as beside:
            np.save(beside, found.products.astype(np.int16 if any(found.signs) else np.uint16), allow_pickle=False)
    values = _table_dict(found)
    if json_path is not None:
        write_json(json_path, values)
    if is_netlist(str(file)):
        say(ports_text(read))
    _show_table(str(file), found, values, console())
    if write_path is not None:
        say(f"Wrote {write_path}")


_WIDTHS = ("weight_bits", "act_bits")


def _check_outputs(paths: list[Path | None], inputs: list[Path]) -> list[Path]:
    """Those that are files."""
    outputs = [path for path in paths if path is not None and str(path) != "-"]
    for number, path in enumerate(outputs):
        check_output(path, inputs=inputs)
        if path.resolve() in [other.resolve() for other in outputs[:number]]:
            fail(f"{path} is named for two outputs: choose another name")
    return outputs


def _refuse(context: click.Context, names: Iterable[str], reason: str) -> None:
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            fail(f"--{name.replace('_', '-')}: {reason}")


def _read_netlist(path: Path, ports: _Ports, *, weight_signed: bool = True, act_signed: bool) -> NetlistFile:
    from simulator.gates.files import read_netlist_file

    return read_netlist_file(path, *ports, weight_signed=weight_signed, act_signed=act_signed)


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


def _show_comparisons(comparisons: Mapping[str, FaultSummary], console: Console) -> None:
    """What all faults do, next to the product-bit model: a column for each multiplier."""
    from efat.cli.render import results_table

    table = results_table(
        "Stuck-at faults of gate outputs and pins, next to stuck bits of the product",
        left=["faults with the same products are one class"],
        right=list(comparisons),
    )
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
    for text, value in rows:
        table.add_row(text, *(value(one) for one in comparisons.values()))
    console.print(table)


def _percent(values: tuple[float, float, float]) -> str:
    low, middle, high = (100 * value for value in values)
    return f"{middle:.1f}% ({low:.0f}-{high:.0f})"


def _spread(values: tuple[float, float, float]) -> str:
    low, middle, high = values
    return f"{middle:.4g} ({low:.2g}-{high:.4g})"


def _fault_name(netlist: Netlist, fault: GateFault) -> str:
    return f"{netlist.location_name(fault.location)} s-a-{fault.stuck}"


def _bit_ranges(one: FaultClass) -> str:
    """The product bits that a class inverts for some input: `0, 3-5`."""
    parts: list[tuple[int, int]] = []
    for bit in one.bits.nonzero()[0].tolist():
        first = parts.pop()[0] if parts and parts[-1][1] == bit - 1 else bit
        parts.append((first, bit))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts) or "none"


def _show_classes(netlist: Netlist, classes: Sequence[FaultClass], total: int, console: Console) -> None:
    from efat.cli.render import results_table

    table = results_table(
        f"The {len(classes)} of {total} classes that disturb most inputs; s-a: stuck at",
        left=["one of its faults", "bits", "nearest bit"],
        right=["faults", "inputs", "mean error", "worst", "bit wrong"],
    )
    for one in classes:
        table.add_row(
            _fault_name(netlist, one.faults[0]),
            _bit_ranges(one),
            f"{one.nearest.bit} s-a-{one.nearest.stuck}",
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


def _class_dict(netlist: Netlist, one: FaultClass) -> dict[str, Any]:
    return {
        "fault": _fault_name(netlist, one.faults[0]),
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


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each class; `members` lists its faults as `location:kind`."""
    from simulator.files import replaced

    lines = []
    for row in rows:
        line = {**row, "faults": len(row["faults"])}
        line |= {f"bit_{place}": fraction for place, fraction in enumerate(line.pop("bits"))}
        line["members"] = " ".join(f"{fault['location']}:{fault['kind']}" for fault in row["faults"])
        lines.append(line)
    with replaced(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else ["fault"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _table_dict(found: ProductTable) -> dict[str, Any]:
    from simulator.gates.signs import sign_doubt

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


def _show_table(name: str, found: ProductTable, values: Mapping[str, Any], console: Console) -> None:
    from efat.cli.render import results_table

    signs = {True: "signed", False: "unsigned"}
    order = "" if found.form == "netlist" else f", {found.first} first" + (" (symmetric)" if found.symmetric else "")
    console.print(
        f"{name}: {found.form}, {values['weight_bits']}-bit {signs[found.weight_signed]} weights by "
        f"{values['act_bits']}-bit {signs[found.act_signed]} activations{order}"
    )
    table = results_table("", left=["error over all pairs"], right=["value", "of 2^bits"])
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

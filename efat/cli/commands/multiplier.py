"""`efat multiplier`: what PEs multiply with, and what faults inside it do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from efat.cli.machine_options import TABLE_OPTIONS, is_netlist, table_signs
from efat.cli.options import bundled, check_json, check_output, fail, gathered, json_option, write_json
from efat.cli.parameters import DESIGNS, INPUT_FILE
from efat.cli.printing import say

if TYPE_CHECKING:
    from collections.abc import Iterable

_WIDTH = click.IntRange(2, 8)


@click.group()
def multiplier() -> None:
    """Show multipliers, what faults inside them do, and the errors of product tables."""


class _Operands(NamedTuple):
    weight_bits: int
    act_bits: int
    unsigned_acts: bool


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
    import efat
    from efat.cli.render import show, stages_bar

    with stages_bar() as progress:
        found = efat.multiplier_designs(
            *operands[:2], act_signed=not operands.unsigned_acts, faults=faults, progress=partial(progress, "faults")
        )
    if json_path is not None:
        write_json(json_path, found.as_dict())
    show(found)


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
    import efat
    from efat.cli.render import show, stages_bar

    with stages_bar() as progress:
        found = efat.gate_faults(
            netlist_path or design or DESIGNS[0],
            *operands[:2],
            act_signed=not operands.unsigned_acts,
            ports=ports,
            most=top,
            progress=partial(progress, "faults"),
        )
    if csv_path is not None:
        found.write_csv(csv_path)
    if json_path is not None:
        write_json(json_path, found.as_dict())
    if png is not None:
        found.draw(png)
    show(found)
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
    if not sign_magnitude and table_signed is False:
        _refuse(context, ("unsigned_acts",), "--table-unsigned says so already")
    if is_netlist(str(file)):
        _refuse(context, _WIDTHS, "the netlist says how wide its operands are")
        _refuse(context, ("table_first",), "a netlist's operands are ports: choose them with --weight-port")
    else:
        _refuse(context, _Ports._fields, "only a netlist has ports to choose")
        if not sign_magnitude and table_signed is None:
            _refuse(context, ("unsigned_acts",), "say with --table-signed that the table has signed weights")
    import efat
    from efat.cli.render import show

    found = efat.product_errors(
        file,
        *operands[:2],
        act_signed=not operands.unsigned_acts,
        signs=table_signs(table_signed, operands.unsigned_acts, sign_magnitude, table_first),
        ports=ports,
    )
    if write_path is not None:
        found.write(write_path)
    if json_path is not None:
        write_json(json_path, found.as_dict())
    show(found)
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

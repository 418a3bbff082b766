"""Multipliers that the command line names, and the options for what a file does not say of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from efat.cli.options import fail, input_errors
from efat.cli.printing import say

if TYPE_CHECKING:
    from simulator.gates.files import NetlistFile
    from simulator.multipliers.files import TableSigns
    from simulator.multipliers.multiplier import Multiplier

_Command = TypeVar("_Command", bound=Callable[..., Any])

DESIGNS = ("array", "wallace", "dadda")
"""Names of `simulator.multipliers.multiplier.DESIGNS`, without importing NumPy for them; a test keeps the two equal."""

DEFAULT_DESIGN = DESIGNS[0]


def table_options(command: _Command) -> _Command:
    """The options that say what a file with a product table does not."""
    options = (
        click.option(
            "--table-signed/--table-unsigned",
            default=None,
            help="Whether a product table's operands are signed (its activations only without --unsigned-acts).",
        ),
        click.option(
            "--sign-magnitude",
            is_flag=True,
            help="Multiply magnitudes by a table of unsigned operands, and signs apart.",
        ),
        click.option(
            "--table-first",
            type=click.Choice(["weight", "activation"]),
            help="The operand a table counts through slowly.  [default: weight; activation for raw words]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def table_signs(
    table_signed: bool | None, unsigned_acts: bool, sign_magnitude: bool, table_first: str | None
) -> TableSigns:
    """What the values of `table_options` say."""
    from simulator.multipliers.files import TableSigns

    return TableSigns(
        weight_signed=table_signed,
        act_signed=table_signed if table_signed is None else table_signed and not unsigned_acts,
        magnitudes=sign_magnitude,
        first=table_first,  # type: ignore[arg-type]
    )


def refuse_table_options(what: str, table_signed: bool | None, sign_magnitude: bool, table_first: str | None) -> None:
    """Refuse options of product tables where none is read.

    Args:
        what: what there is instead.
        table_signed: value of the option `--table-signed/--table-unsigned`.
        sign_magnitude: of `--sign-magnitude`.
        table_first: of `--table-first`.

    Raises:
        click.ClickException: one of them is given.
    """
    signed = {None: "", True: "--table-signed", False: "--table-unsigned"}[table_signed]
    given = signed or ("--sign-magnitude" if sign_magnitude else "--table-first" if table_first else "")
    if given:
        fail(f"{given} has no effect: it is for product tables, and {what}; leave it out")


def chosen_multiplier(
    name: str,
    faulty: tuple[Path, ...],
    *,
    weight_bits: int,
    act_bits: int,
    unsigned_acts: bool,
    signs: TableSigns,
) -> str | Multiplier:
    """The multiplier of an array: a built-in design by its name, anything else read.

    Says on the terminal which ports of a netlist were taken, and how near products are to the exact ones.

    Args:
        name: of a design or a file.
        faulty: files of the tables that PEs with a faulty multiplier multiply by.
        weight_bits: width of weights.
        act_bits: width of activations.
        unsigned_acts: whether these are unsigned.
        signs: what files of tables do not say.
    """
    from simulator.gates.files import read_netlist_file
    from simulator.multipliers.files import read_multiplier, read_table
    from simulator.multipliers.multiplier import Multiplier
    from simulator.multipliers.signs import Signs, error_note

    if name in DESIGNS and not faulty:
        return name
    array_signs = Signs(True, not unsigned_acts)
    with input_errors():
        normal = read_multiplier(
            name, weight_bits=weight_bits, act_bits=act_bits, act_signed=not unsigned_acts, signs=signs
        )
        if is_netlist(name):
            say(ports_text(read_netlist_file(name, act_signed=not unsigned_acts)))
        elif name not in DESIGNS:
            say(f"{name}: product table, {error_note(normal.products, array_signs)}")
        if not faulty:
            return normal
        tables = [
            read_table(path, weight_bits=weight_bits, act_bits=act_bits, act_signed=not unsigned_acts, signs=signs)
            for path in faulty
        ]
        for path, table in zip(faulty, tables, strict=True):
            say(f"{path}: product table of faulty PEs, {error_note(table, array_signs)}")
        names = ", ".join(path.name for path in faulty)
        label = f"{normal.name}, faulty {names}"
        return Multiplier.from_tables(label, normal.products, tables, act_signed=not unsigned_acts)


def is_netlist(name: str) -> bool:
    """Whether a multiplier's name is that of a netlist file, rather than of a design or a product table."""
    from simulator.multipliers.files import NETLIST_SUFFIXES

    return name not in DESIGNS and Path(name).suffix.lower() in NETLIST_SUFFIXES


def ports_text(read: NetlistFile) -> str:
    """Which ports of a netlist were taken, and how near it is to exact: files say neither."""
    netlist = read.netlist
    return (
        f"{read.model}: {len(netlist.gates)} gates; weight is port {read.weight_port} ({netlist.weight_bits} bits), "
        f"activation {read.act_port} ({netlist.act_bits} bits), product {read.product_port};\n"
        f"{netlist.signs}: {read.error_note}"
    )

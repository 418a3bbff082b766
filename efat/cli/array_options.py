"""The options that describe an array: its size, the widths of its nets, and what its PEs multiply with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from efat.cli.multiplier_options import (
    DEFAULT_DESIGN,
    DESIGNS,
    chosen_multiplier,
    is_netlist,
    refuse_table_options,
    table_options,
    table_signs,
)
from efat.cli.options import ARRAY_HELP, INPUT_FILE, ArraySize, fail, input_errors

if TYPE_CHECKING:
    from simulator import ArrayConfig

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class ArrayRequest:
    """The array that a user describes.

    Attributes:
        array: rows and columns.
        weight_bits: width of weights.
        act_bits: width of activations.
        unsigned_acts: whether these are unsigned.
        acc_bits: width of partial sums.
        multiplier: name of a design, or a file.
        faulty_multipliers: tables that PEs with a MULTIPLIER fault multiply by.
        table_signed: whether the operands of tables are signed; None if not said.
        sign_magnitude: whether tables multiply magnitudes.
        table_first: the operand that tables count through slowly; None if not said.
    """

    array: tuple[int, int]
    weight_bits: int
    act_bits: int
    unsigned_acts: bool
    acc_bits: int
    multiplier: str
    faulty_multipliers: tuple[Path, ...]
    table_signed: bool | None
    sign_magnitude: bool
    table_first: str | None

    def config(self) -> ArrayConfig:
        """The array; says on the terminal what was found in a multiplier's file.

        Raises:
            click.ClickException: there is no such array, a file of a multiplier is wrong, or an option has no effect.
        """
        from simulator import ArrayConfig

        if (self.multiplier in DESIGNS or is_netlist(self.multiplier)) and not self.faulty_multipliers:
            kind = "a built-in design" if self.multiplier in DESIGNS else "a netlist"
            refuse_table_options(
                f"--multiplier {self.multiplier} is {kind}", self.table_signed, self.sign_magnitude, self.table_first
            )
        if self.faulty_multipliers and self.multiplier in DESIGNS and self.multiplier != DEFAULT_DESIGN:
            fail(
                f"--multiplier {self.multiplier} has no effect beside --faulty-multiplier: all designs multiply "
                "exactly, and the gates are not kept; leave it out"
            )
        with input_errors():
            config = ArrayConfig(*self.array, self.weight_bits, self.act_bits, not self.unsigned_acts, self.acc_bits)
        chosen = chosen_multiplier(
            self.multiplier,
            self.faulty_multipliers,
            weight_bits=self.weight_bits,
            act_bits=self.act_bits,
            unsigned_acts=self.unsigned_acts,
            signs=table_signs(self.table_signed, self.unsigned_acts, self.sign_magnitude, self.table_first),
        )
        return config if chosen == DEFAULT_DESIGN else replace(config, multiplier=chosen)


def array_options(command: _Command) -> _Command:
    """Options for an array; the command gets them as one argument `described`, an `ArrayRequest`."""
    return _with_options(command, required=True)


def optional_array_options(command: _Command) -> _Command:
    """The same for a command that may be given an array otherwise; without `--array` it gets None."""
    return _with_options(command, required=False)


def _with_options(command: _Command, *, required: bool) -> _Command:
    options = (
        click.option("--array", required=required, type=ArraySize(), help=ARRAY_HELP),
        click.option("--weight-bits", type=int, default=8, show_default=True, help="Width of weights, 2..8."),
        click.option("--act-bits", type=int, default=8, show_default=True, help="Width of activations, 2..8."),
        click.option("--unsigned-acts", is_flag=True, help="Activations are unsigned."),
        click.option("--acc-bits", type=int, default=32, show_default=True, help="Width of partial sums, up to 32."),
        click.option(
            "--multiplier",
            default=DEFAULT_DESIGN,
            show_default=True,
            metavar="NAME|FILE",
            help=f"What every PE multiplies with: {', '.join(DESIGNS)}, a netlist (.v, .sv, .blif) or a product table.",
        ),
        click.option(
            "--faulty-multiplier",
            "faulty_multipliers",
            multiple=True,
            type=INPUT_FILE,
            metavar="FILE",
            help="A product table that PEs with a multiplier fault multiply by; repeatable, each is a fault location.",
        ),
    )

    @functools.wraps(command)
    def with_request(**values: Any) -> Any:
        given = {field.name: values.pop(field.name) for field in fields(ArrayRequest)}
        if given["array"] is None:
            _refuse_without_array(list(given))
        return command(described=None if given["array"] is None else ArrayRequest(**given), **values)

    decorated: Any = table_options(with_request)
    for option in reversed(options):
        decorated = option(decorated)
    result: _Command = decorated
    return result


def _refuse_without_array(names: list[str]) -> None:
    """Refuse what describes an array where there is none."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            fail(f"{parameter.opts[0]} describes an array: give its size with --array, or leave this out")

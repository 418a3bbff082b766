"""The options that describe an array (its size, the widths of its nets, its multiplier) and its random faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from efat.cli.options import ARRAY_HELP, fail, gathered
from efat.cli.parameters import DESIGNS, INPUT_FILE, KINDS, SITES, ArraySize, Weighted
from efat.cli.printing import say

if TYPE_CHECKING:
    from simulator import ArrayConfig, FaultModel, TableSigns

_Command = TypeVar("_Command", bound=Callable[..., Any])

DEFAULT_DESIGN = DESIGNS[0]


TABLE_OPTIONS = (
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
"""Options that say what a file with a product table does not; see `table_signs`."""


@dataclass(frozen=True)
class ArrayRequest:
    """The array that a user describes; the fields are the values of `array_options`."""

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
        """The array; says on the terminal what was found in a multiplier's file."""
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
        config = ArrayConfig(*self.array, self.weight_bits, self.act_bits, not self.unsigned_acts, self.acc_bits)
        if self.multiplier == DEFAULT_DESIGN and not self.faulty_multipliers:
            return config
        from efat import array_multiplier

        chosen = array_multiplier(
            self.multiplier,
            self.weight_bits,
            self.act_bits,
            act_signed=not self.unsigned_acts,
            faulty=self.faulty_multipliers,
            signs=table_signs(self.table_signed, self.unsigned_acts, self.sign_magnitude, self.table_first),
            notes=say,
        )
        return replace(config, multiplier=chosen)


def array_options(*, required: bool = True) -> Callable[[_Command], _Command]:
    """Options for an array; the command gets them as one argument `described`, an `ArrayRequest`.

    Args:
        required: whether the command may not be given an array otherwise; without `--array` it then gets None.
    """
    return gathered(
        "described",
        _array_request,
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
        *TABLE_OPTIONS,
    )


def _array_request(**values: Any) -> ArrayRequest | None:
    if values["array"] is None:
        _refuse_without_array(list(values))
        return None
    return ArrayRequest(**values)


def _refuse_without_array(names: list[str]) -> None:
    """Refuse what describes an array where there is none."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            fail(f"{parameter.opts[0]} describes an array: give its size with --array, or leave this out")


def table_signs(
    table_signed: bool | None, unsigned_acts: bool, sign_magnitude: bool, table_first: str | None
) -> TableSigns:
    """What the values of `table_options` say."""
    from simulator import TableSigns

    return TableSigns(
        weight_signed=table_signed,
        act_signed=table_signed if table_signed is None else table_signed and not unsigned_acts,
        magnitudes=sign_magnitude,
        first=table_first,  # type: ignore[arg-type]
    )


def refuse_table_options(what: str, table_signed: bool | None, sign_magnitude: bool, table_first: str | None) -> None:
    """Refuse the values of `TABLE_OPTIONS` where no table is read; `what` says what there is instead."""
    signed = {None: "", True: "--table-signed", False: "--table-unsigned"}[table_signed]
    given = signed or ("--sign-magnitude" if sign_magnitude else "--table-first" if table_first else "")
    if given:
        fail(f"{given} has no effect: it is for product tables, and {what}; leave it out")


def is_netlist(name: str) -> bool:
    """Whether a multiplier's name is that of a netlist file, rather than of a design or a product table."""
    from simulator import is_netlist_name

    return name not in DESIGNS and is_netlist_name(name)


@dataclass(frozen=True)
class FaultRequest:
    """The random faults that a user describes: nets and kinds with their relative weights, none for the default."""

    sites: tuple[tuple[str, float], ...]
    kinds: tuple[tuple[str, float], ...]
    pattern: str
    cluster_alpha: float

    def model(self, rate: float | tuple[float, float], cycles: int | None = None) -> FaultModel:
        """The fault model of a fault rate or a range of them, and of clock cycles that flips are drawn from."""
        from simulator import FaultModel, Kind, Site

        chosen: dict[str, object] = {}
        if self.sites:
            chosen["sites"] = {Site[name]: weight for name, weight in self.sites}
        if self.kinds:
            chosen["kinds"] = {Kind[name]: weight for name, weight in self.kinds}
        return FaultModel(
            rate,
            pattern=self.pattern,  # type: ignore[arg-type]
            cluster_alpha=self.cluster_alpha,
            cycles=cycles,
            **chosen,  # type: ignore[arg-type]
        )

    def refuse_without_effect(self, context: click.Context) -> None:
        """Refuse what is said twice, and options that change nothing beside the others."""
        for option, named in (("--site", self.sites), ("--kind", self.kinds)):
            names = [name for name, _ in named]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                fail(f"{option} {twice.lower()} is given twice: expected it once, such as {twice.lower()}=2")
        of_pes = not self.sites or any(name != "ACCUMULATOR" and weight > 0 for name, weight in self.sites)
        for name in ("pattern", "cluster_alpha"):
            if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
                continue
            option = f"--{name.replace('_', '-')}"
            if not of_pes:
                fail(f"{option} has no effect: only accumulators break, and each column has one; leave it out")
            if name == "cluster_alpha" and self.pattern != "clustered":
                fail(f"{option} has no effect: the pattern is {self.pattern}; add --pattern clustered or leave it out")

    def check_multiplier(self, config: ArrayConfig, faulty_multipliers: tuple[Path, ...] = ()) -> None:
        """Refuse faults of multipliers that have no place for them, and faulty tables that no fault would use."""
        asked = any(name == "MULTIPLIER" and weight > 0 for name, weight in self.sites)
        if faulty_multipliers and not asked:
            fail("--faulty-multiplier: no fault would use it: add --site multiplier")
        if asked and not config.pe_multiplier.locations:
            fail(
                f"--site multiplier: {config.pe_multiplier.name} is a table for all PEs and has no place for faults: "
                "give what faulty PEs multiply by with --faulty-multiplier"
            )


def fault_options(kinds: tuple[str, ...] = KINDS) -> Callable[[_Command], _Command]:
    """Options for random faults; the command gets them as one argument `described_faults`, a `FaultRequest`.

    Args:
        kinds: the kinds there are to choose from.
    """
    return gathered(
        "described_faults",
        _fault_request,
        click.option(
            "--site",
            "sites",
            multiple=True,
            type=Weighted("site", SITES),
            help="Net that breaks, with a relative weight; repeatable: "
            f"{', '.join(name.lower() for name in SITES)}.  [default: all but multiplier and accumulator, equally]",
        ),
        click.option(
            "--kind",
            "kinds",
            multiple=True,
            type=Weighted("kind", kinds),
            help="How it breaks, with a relative weight; repeatable: "
            f"{', '.join(name.lower() for name in kinds)}.  [default: both stuck values, equally]",
        ),
        click.option(
            "--pattern",
            type=click.Choice(["uniform", "clustered", "lines"]),
            default="uniform",
            show_default=True,
            help="Where broken PEs lie: independently; in negative-binomial clusters; in whole rows and columns.",
        ),
        click.option(
            "--cluster-alpha", type=float, default=0.5, show_default=True, help="Clustering: smaller clusters more."
        ),
    )


def _fault_request(**values: Any) -> FaultRequest:
    request = FaultRequest(**values)
    request.refuse_without_effect(click.get_current_context())
    return request

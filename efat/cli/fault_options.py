"""The options that say what random faults look like."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from efat.cli.options import KINDS, SITES, Weighted, fail, input_errors

if TYPE_CHECKING:
    from simulator import ArrayConfig, FaultModel

_Command = TypeVar("_Command", bound=Callable[..., Any])

PERMANENT_KINDS = tuple(name for name in KINDS if name != "FLIP")


@dataclass(frozen=True)
class FaultRequest:
    """The random faults that a user describes.

    Attributes:
        sites: nets that break and their relative weights; empty for the default.
        kinds: how they break, likewise.
        pattern: where broken PEs lie.
        cluster_alpha: clustering of the pattern `clustered`.
    """

    sites: tuple[tuple[str, float], ...]
    kinds: tuple[tuple[str, float], ...]
    pattern: str
    cluster_alpha: float

    def model(self, rate: float | tuple[float, float], cycles: int | None = None) -> FaultModel:
        """The fault model of a fault rate or a range of them, and of clock cycles that flips are drawn from.

        Raises:
            click.ClickException: there is no such model.
        """
        from simulator import FaultModel, Kind, Site

        chosen: dict[str, object] = {}
        if self.sites:
            chosen["sites"] = {Site[name]: weight for name, weight in self.sites}
        if self.kinds:
            chosen["kinds"] = {Kind[name]: weight for name, weight in self.kinds}
        with input_errors():
            return FaultModel(
                rate,
                pattern=self.pattern,  # type: ignore[arg-type]
                cluster_alpha=self.cluster_alpha,
                cycles=cycles,
                **chosen,  # type: ignore[arg-type]
            )

    def refuse_without_effect(self, context: click.Context) -> None:
        """Refuse what is said twice, and options that change nothing beside the others.

        Raises:
            click.ClickException: so it is.
        """
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
        """Refuse faults of multipliers that have no place for them, and faulty tables that no fault would use.

        Args:
            config: the array.
            faulty_multipliers: tables that PEs with a MULTIPLIER fault multiply by.

        Raises:
            click.ClickException: so it is.
        """
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
    options = (
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

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def with_request(**values: Any) -> Any:
            request = FaultRequest(**{field.name: values.pop(field.name) for field in fields(FaultRequest)})
            request.refuse_without_effect(click.get_current_context())
            return command(described_faults=request, **values)

        decorated: Any = with_request
        for option in reversed(options):
            decorated = option(decorated)
        result: _Command = decorated
        return result

    return decorate

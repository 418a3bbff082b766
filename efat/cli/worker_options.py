"""The options that say where units of work run: here, in worker processes, or on a Ray cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from efat.cli.options import fail

if TYPE_CHECKING:
    from efat.campaigns.campaign import Executor

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class WorkerRequest:
    """Where a user wants work to run.

    Attributes:
        workers: processes; 0 for none but this one, None for one for each core.
        ray: address of a Ray cluster; None for none.
    """

    workers: int | None
    ray: str | None

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        values = {"--workers": self.workers, "--ray": self.ray}
        return [name for name, value in values.items() if value is not None]

    def executor(self) -> Executor:
        """What runs it.

        Raises:
            click.ClickException: both are asked for.
        """
        from efat.campaigns.workers import executor_of

        return executor_of(self.where)

    @property
    def where(self) -> int | str | None:
        """What functions take as `workers`.

        Raises:
            click.ClickException: both are asked for.
        """
        if self.ray is not None and self.workers is not None:
            fail("--workers and --ray are both given: choose one")
        return self.workers if self.ray is None else self.ray


def worker_options(command: _Command) -> _Command:
    """Options for where work runs; the command gets them as one argument `workers`, a `WorkerRequest`."""
    options = (
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            metavar="N",
            help="Worker processes; 0 for none but this one.  [default: one per core]",
        ),
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Address of a Ray cluster to run on, whose machines see the same files at the same paths.",
        ),
    )

    @functools.wraps(command)
    def gathered(*, workers: int | None, ray: str | None, **others: Any) -> Any:
        return command(workers=WorkerRequest(workers, ray), **others)

    found: Any = gathered
    for option in reversed(options):
        found = option(found)
    return found  # type: ignore[no-any-return]

"""The options that say which faults of an array are tried."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from efat.cli.options import KINDS, SITES, Fraction, fail, unknown_name

if TYPE_CHECKING:
    from efat.propagation.request import Request
    from efat.propagation.subject import Subject

_Command = TypeVar("_Command", bound=Callable[..., Any])

LARGEST_BIT = 65_535


class Named(click.ParamType):  # type: ignore[type-arg]
    """One of some names, in capitals or not, with hyphens or underscores.

    Args:
        what: what is named, for messages.
        names: the names there are.
    """

    name = "NAME"

    def __init__(self, what: str, names: tuple[str, ...]) -> None:
        self._what = what
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse it."""
        found: str = value.strip().upper().replace("-", "_")
        if found not in self._names:
            self.fail(unknown_name(value, self._what, self._names), param, ctx)
        return found

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Complete the names."""
        import click.shell_completion as completion

        names = (name.lower() for name in self._names)
        return [completion.CompletionItem(name) for name in names if name.startswith(incomplete.lower())]


class SiteBits(click.ParamType):  # type: ignore[type-arg]
    """Bits of a net: SITE=BITS, such as psum=0-7,31."""

    name = "SITE=BITS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        given, _, text = value.partition("=")
        site = Named("site", SITES).convert(given, param, ctx)
        bits: set[int] = set()
        for part in text.split(","):
            found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
            low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
            if not low <= high <= LARGEST_BIT:
                self.fail(f"{value!r}: expected bits or ranges with commas, such as {site.lower()}=0-3,7", param, ctx)
            bits.update(range(low, high + 1))
        return site, tuple(sorted(bits))


@dataclass(frozen=True)
class PropagationRequest:
    """The faults that a user wants to be tried.

    Attributes:
        sites: nets that can be faulty; empty for the default.
        kinds: how; empty for the default.
        bits: bits of nets that can be faulty.
        samples: how many are tried; None if it is said otherwise.
        exhaustive: whether all are.
        margin: as many as it takes to know the share of critical ones so well; None if it is said otherwise.
        confidence: of intervals.
        stratify: whether each bit of each net has its part.
        seed: of the sample.
    """

    sites: tuple[str, ...]
    kinds: tuple[str, ...]
    bits: tuple[tuple[str, tuple[int, ...]], ...]
    samples: int | None
    exhaustive: bool
    margin: float | None
    confidence: float
    stratify: bool
    seed: int

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            click.ClickException: so they do.
        """
        given = {
            "--samples": self.samples is not None,
            "--exhaustive": self.exhaustive,
            "--margin": self.margin is not None,
        }
        names = [name for name, is_given in given.items() if is_given]
        if len(names) > 1:
            fail(f"{' and '.join(names)} are given: choose one")
        sites = [site for site, _ in self.bits]
        for site in sites:
            if sites.count(site) > 1:
                fail(f"--bit {site.lower()} is given twice: give all bits of a net at once, such as 0-3,7")

    def of(self, subject: Subject) -> Request:
        """The same of a network.

        Raises:
            InputError: it cannot be.
        """
        from efat.propagation.request import DEFAULT_KINDS, DEFAULT_MARGIN, DEFAULT_SITES, Request
        from simulator import Kind, Site

        margin = DEFAULT_MARGIN if self.samples is None and not self.exhaustive and self.margin is None else self.margin
        return Request(
            subject,
            sites=[Site[name] for name in self.sites] or DEFAULT_SITES,
            kinds=[Kind[name] for name in self.kinds] or DEFAULT_KINDS,
            bits={Site[name]: bits for name, bits in self.bits},
            samples=self.samples,
            exhaustive=self.exhaustive,
            margin=margin,
            confidence=self.confidence,
            stratify=self.stratify,
            seed=self.seed,
        )


def propagation_options(command: _Command) -> _Command:
    """Options for the faults that are tried; the command gets them as one argument `asked`, a `PropagationRequest`."""
    options = (
        click.option(
            "--site",
            "sites",
            multiple=True,
            type=Named("site", SITES),
            help=f"Net that can be faulty; repeatable: {', '.join(name.lower() for name in SITES)}.  "
            "[default: all but multiplier]",
        ),
        click.option(
            "--bit",
            "bits",
            multiple=True,
            type=SiteBits(),
            help="Bits of a net that can be faulty, such as psum=0-7,31; repeatable.  [default: all]",
        ),
        click.option(
            "--kind",
            "kinds",
            multiple=True,
            type=Named("kind", KINDS),
            help=f"How nets are faulty; repeatable: {', '.join(name.lower() for name in KINDS)}.  "
            "[default: both stuck values]",
        ),
        click.option("--samples", type=int, metavar="N", help="Try N faults, drawn at random."),
        click.option("--exhaustive", is_flag=True, help="Try all faults."),
        click.option(
            "--margin",
            type=Fraction("the share may be off by {}"),
            metavar="E",
            help="Try as many faults as it takes to know the share of critical ones to within E.  [default: 0.02]",
        ),
        click.option(
            "--confidence",
            type=Fraction(),
            metavar="C",
            default=0.95,
            show_default=True,
            help="Confidence of intervals.",
        ),
        click.option(
            "--stratify/--no-stratify",
            default=True,
            show_default=True,
            help="Give each bit of each net its part of the sample.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0, max=2**53),
            metavar="S",
            default=0,
            show_default=True,
            help="Seed of the sample.",
        ),
    )

    @functools.wraps(command)
    def with_request(**values: Any) -> Any:
        asked = PropagationRequest(**{field.name: values.pop(field.name) for field in fields(PropagationRequest)})
        asked.check()
        return command(asked=asked, **values)

    decorated: Any = with_request
    for option in reversed(options):
        decorated = option(decorated)
    result: _Command = decorated
    return result

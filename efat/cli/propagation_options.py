"""The options that say which faults of an array are tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from efat.cli.options import fail, gathered
from efat.cli.parameters import KINDS, SITES, Fraction, Named, SiteBits

if TYPE_CHECKING:
    from efat.propagation.request import Request
    from efat.propagation.subject import Subject

_Command = TypeVar("_Command", bound=Callable[..., Any])


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


def _checked(**values: Any) -> PropagationRequest:
    asked = PropagationRequest(**values)
    asked.check()
    return asked


propagation_options = gathered(
    "asked",
    _checked,
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
"""Options for the faults that are tried; the command gets them as one argument `asked`, a `PropagationRequest`."""

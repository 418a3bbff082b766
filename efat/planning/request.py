"""What users ask of a plan."""

from __future__ import annotations

import re
from dataclasses import dataclass

from efat.planning.selection import Constraint
from simulator.errors import InputError
from simulator.suggestions import did_you_mean


@dataclass(frozen=True)
class Request:
    """What a plan is to be like.

    Args:
        constraint: what each chip must do.
        strategy: `fixed`, `select`, `merge-K` with a number for K, or `efat`.
        statistic: over the repeats of the resilience analysis: see `efat.planning.selection.Statistic`.
        predictor: what severity is; None for what foretells accuracy best of what the strategy can use.
        aligned: whether `efat` aligns chips; None for what is predicted to cost less.
        step: iterations by which a group that misses the constraint is topped up; None for a sixteenth of the largest
            level that was measured.
        budget: most iterations for a group; None for twice the largest level.
        network: the network that the table names; None to take it from there, which a network of the user's own is not.

    Raises:
        InputError: another strategy, steps or a budget that cannot be.
    """

    constraint: Constraint
    strategy: str = "efat"
    statistic: str = "max"
    predictor: str | None = None
    aligned: bool | None = None
    step: int | None = None
    budget: int | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        if self.strategy not in ("fixed", "select", "efat") and self.merged is None:
            raise InputError(
                f"strategy {self.strategy!r} is unknown: expected fixed, select, efat, or merge-K with a number of "
                f"chips for K, such as merge-5{did_you_mean(self.strategy, ('fixed', 'select', 'efat', 'merge-5'))}"
            )
        if self.aligned and self.strategy != "efat":
            raise InputError(f"strategy {self.strategy} does not align chips: only efat does")
        if self.step is not None and self.step < 1:
            raise InputError(f"steps are of {self.step} iterations: expected 1 or more")
        if self.budget is not None and self.budget < 0:
            raise InputError(f"budget is {self.budget} iterations: expected 0 or more")

    @property
    def merged(self) -> int | None:
        """How many chips `merge-K` merges; None for other strategies."""
        match = re.fullmatch(r"merge-([1-9]\d{0,6})", self.strategy)
        return None if match is None else int(match[1])

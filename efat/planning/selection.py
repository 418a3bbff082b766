"""How much retraining a chip needs to meet a constraint, from a table measured on random chips.

A chip that meets the constraint without retraining (level 0) needs none, whatever retraining would do to it. Another
one needs the least measured level at which it meets the constraint, at that and at every later level up to its best:
one that meets it once by luck needs more, and what happens after its best does not matter, as retraining ends before.
It needs an infinite amount if it misses at its best. A rate's amount is a statistic over its random chips, and a
severity's amount follows from those of the rates; see `ResilienceMap`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import force_setattr

from efat.planning.fusion import AmountMap
from efat.records import Record
from efat.resilience.severity import PREDICTORS
from efat.resilience.table import ResilienceTable
from simulator.dtypes import BoolArray, Float64Array, Int64Array
from simulator.errors import InputError

MOST_PARTS = 200
"""Into which the chips are divided to compare predictors. With no more chips, each is foretold from all others."""


def predictor_errors(table: ResilienceTable, candidates: Sequence[str] | None = None) -> dict[str, float | None]:
    """How well predictors foretell the accuracy of chips that were left out.

    Each chip is left out in turn (of more than `MOST_PARTS`, several at once), and its accuracy at each level foretold
    from the others by isotonic regression on the predictor. Chips whose retraining had diverged are left aside.

    Args:
        table: what was measured.
        candidates: predictors in the table; None for all.

    Returns:
        Root of the mean squared error, in accuracy points (hundredths), by the predictor, the simplest first, as in
        `PREDICTORS`; None if there was nothing to compare.

    Raises:
        InputError: there are no candidates, or one is not in the table.
    """
    names = list(table.predictors) if candidates is None else list(candidates)
    if not names:
        raise InputError(f"there are no predictors to choose from: expected some of {', '.join(table.predictors)}")
    severity = {name: table.severity(name).reshape(-1) for name in names}
    accuracy = table.accuracy.reshape(-1, len(table.levels))
    return {name: _error(severity[name], accuracy) for name in PREDICTORS if name in severity}


def best_predictor(errors: Mapping[str, float | None]) -> str:
    """The predictor with the least error; of equally good ones, up to rounding, the first.

    Args:
        errors: from `predictor_errors`.
    """
    known = {name: math.inf if error is None else error for name, error in errors.items()}
    least = min(known.values())
    return next(name for name, error in known.items() if error <= least * (1 + 1e-9) + 1e-9)


def _error(severity: Float64Array, accuracy: Float64Array) -> float | None:
    """Root of the mean squared error in points: of severity [chips] for accuracy [chips, levels]."""
    from sklearn.isotonic import IsotonicRegression

    squares: list[Float64Array] = []
    for reached in accuracy.T:
        known = np.isfinite(reached)
        x, y = severity[known], reached[known]
        parts = min(len(x), MOST_PARTS)
        if parts < 2:
            continue
        for part in range(parts):
            left_out = np.arange(len(x)) % parts == part
            regression = IsotonicRegression(increasing=False, out_of_bounds="clip")
            regression.fit(x[~left_out], y[~left_out])
            squares.append((regression.predict(x[left_out]) - y[left_out]) ** 2)
    return 100 * math.sqrt(float(np.concatenate(squares).mean())) if squares else None


class Constraint(Record, frozen=True):
    """What a chip's accuracy must be: one of the two.

    Both are taken as the decimal numbers that they are written as, and what follows is computed exactly: 0.97 of 10,000
    images are 9,700, whereas 0.57 * 100 in floating point is more than 57 and would ask for 58.

    Args:
        accuracy: the least fraction of images to classify correctly, 0..1.
        max_drop: how far below the original network, quantised and on a fault-free array, that fraction may be, 0..1.
        margin: how much more is asked for on tuning images, 0..1: what just meets a constraint on images that decided
            may just miss it on others.

    Raises:
        InputError: both or none, or a number outside 0..1.
    """

    accuracy: float | None = None
    max_drop: float | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if (self.accuracy is None) == (self.max_drop is None):
            raise InputError(
                f"accuracy is {self.accuracy} and max_drop is {self.max_drop}: expected one of them as the constraint"
            )
        for name in ("accuracy", "max_drop", "margin"):
            value = getattr(self, name)
            if value is not None or name == "margin":
                if value is None or not 0 <= value <= 1:
                    raise InputError(f"{name} is {value}: expected a fraction, 0..1, such as 0.01 for one percent")
                force_setattr(self, name, float(value))

    def required(self, table: ResilienceTable) -> int:
        """The least number of tuning images that a chip must classify correctly, 0..`table.images`.

        With the margin, and never more than all of them.
        """
        return self.required_to_end(table.images, table.fault_free_correct)

    def required_to_end(self, images: int, fault_free_correct: int) -> int:
        """The same for any number of tuning images; see `required_of`."""
        return self._required(images, fault_free_correct, _exactly(self.margin))

    def required_of(self, images: int, fault_free_correct: int) -> int:
        """The least number of images that decided nothing that a chip must classify correctly, 0..`images`.

        Args:
            images: how many there are.
            fault_free_correct: how many of them the original network, quantised and without faults, gets right.
        """
        return self._required(images, fault_free_correct, Fraction(0))

    def _required(self, images: int, fault_free_correct: int, margin: Fraction) -> int:
        if self.accuracy is not None:
            least = _exactly(self.accuracy) * images
        else:
            assert self.max_drop is not None
            least = fault_free_correct - _exactly(self.max_drop) * images
        return min(max(0, math.ceil(least + margin * images)), images)


@dataclass(frozen=True)
class Statistic:
    """How the random chips of a rate together say what it takes.

    - `max`: all of them must meet the constraint, so it is what the one takes that takes most.
    - `quantile:F`: the fraction F of them must, rounded up to whole chips, so it is the least level that is enough for
      that many: `quantile:0.9` of 5 chips is the same as `max`, of 20 chips 2 may miss.
    - `mean`: their mean accuracy must. At each level the means are made non-increasing in the rate by isotonic
      regression, since a larger rate with a better mean is chance. A chip that diverged counts as -1 images.

    Args:
        name: `max`, `quantile` or `mean`.
        fraction: of the chips that must meet the constraint, above 0, at most 1; 1 for `max`, None for `mean`.
    """

    name: str = "max"
    fraction: Fraction | None = Fraction(1)

    @classmethod
    def parse(cls, text: str) -> Statistic:
        """A statistic from the text that names it.

        Raises:
            InputError: another text.

        >>> str(Statistic.parse("quantile:0.90"))
        'quantile:0.9'
        >>> str(Statistic.parse("quantile:90%"))
        'quantile:0.9'
        """
        name, _, number = text.strip().lower().partition(":")
        if name == "mean" and not number:
            return cls("mean", None)
        if name == "max" and not number:
            return cls()
        whole = 100 if number.endswith("%") else 1
        try:
            part = float(number.removesuffix("%")) if name == "quantile" else math.nan
        except ValueError:
            part = math.nan
        if not 0 < part <= whole:
            raise InputError(
                f"statistic {text[:40]!r} is unknown: expected max, mean, or quantile: and the fraction of chips that "
                "must meet the constraint, above 0 and at most 1, such as quantile:0.9 or quantile:90%"
            )
        return cls("quantile", _exactly(part) / whole)

    def __str__(self) -> str:
        return f"quantile:{float(self.fraction)!r}" if self.name == "quantile" and self.fraction else self.name

    def must_meet(self, repeats: int) -> int | None:
        """How many of a rate's chips must meet the constraint, 1..`repeats`; None for the mean."""
        return None if self.fraction is None else math.ceil(self.fraction * repeats)


@dataclass(frozen=True, eq=False)
class ResilienceMap:
    """How much retraining chips need by their severity, to meet a constraint.

    With `max` a chip of some severity gets the largest of

    - what every measured chip took that is no worse than it, and
    - the amount of the first rate whose worst measured chip is at least as bad: so between the chips of two rates it is
      that of the larger rate;

    and between two measured chips it gets what the worse one gets. So no measured chip gets less than it took, and
    amounts never fall with the severity. With a quantile it is alike, but of the chips no worse as many of each rate do
    not count as may miss the constraint, those that took most; so it is never more than with `max`. With the mean, the
    amount of a rate stands at the mean severity of its chips, and that of the last one at the worst chip measured, too;
    a chip gets the largest amount up to the first one that stands at or above its severity.

    Beyond the worst measured chip the amount is infinite. A severity of 0 is the network that retraining starts
    from, on chips that remove nothing of it: if that meets the constraint, they need nothing, unless a measured chip of
    severity 0 misses it as deployed.

    Args:
        table: what was measured.
        constraint: what a chip must do.
        statistic: over the chips of a rate; see `Statistic`.
        predictor: what severity is, a name in `table.predictors`; None for the one that foretells accuracy best.

    Attributes:
        required: images that a chip must classify correctly.
        needed: float64 [rates, repeats], the iterations that each chip needs; infinite where none were enough.
        per_rate: float64 [rates], the amount of each rate by the statistic.
        reached: int64 [rates], the most images that could be required at each rate, by the statistic; -1 for none.
        amounts: iterations by the predictor.

    Raises:
        InputError: a statistic or predictor that is not there.
    """

    table: ResilienceTable
    constraint: Constraint
    statistic: Statistic | str = "max"
    predictor: str | None = None
    required: int = field(init=False)
    needed: Float64Array = field(init=False)
    per_rate: Float64Array = field(init=False)
    reached: Int64Array = field(init=False)
    amounts: AmountMap = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.statistic, str):
            self._set("statistic", Statistic.parse(self.statistic))
        if self.predictor is None:
            self._set("predictor", best_predictor(predictor_errors(self.table)))
        self._set("required", self.constraint.required(self.table))
        severity = self.table.severity(self._predictor)
        unharmed = severity == 0
        none_needed = self.table.start_correct >= self.required and bool(
            (self.table.correct[..., 0][unharmed] >= self.required).all()
        )
        needed = _least_level(self.table.levels, self.table.correct, self.required)
        if none_needed:
            needed[unharmed] = 0
        self._set("needed", needed)
        self._set("per_rate", self._amount_of_rates(self.required, needed))
        self._set("reached", self._reached())
        points = self._mean_points(severity) if self._must_meet is None else self._points(severity)
        self._set("amounts", _amount_map(*points, zero=none_needed))

    @property
    def unmeetable(self) -> str | None:
        """Says that no amount is enough for any chip that is affected, and what is reachable; None if some is."""
        if np.isfinite(self.amounts.amounts[-1]) or self._severity_within_reach > 0:
            return None
        rate = int(np.argmax(np.where(self._affected, self.reached, -2)))
        reached = int(self.reached[rate])
        where = f"rate {self.table.rates[rate]:g}"
        refusal = (
            f"the constraint cannot be met: {self._images(self.required)} are required of chips ({self.statistic})"
        )
        if reached >= self.required:
            return (
                f"{refusal}, which those of {where} reach, and others that are no worse do not; measure more repeats, "
                "or ask for less"
            )
        if len(self.table.levels) > 1 and (self.table.correct[..., 1:] < 0).all():
            return f"{refusal}, and retraining diverged at every rate; measure with a lower learning rate"
        level = self._amount_of_rates(reached, _least_level(self.table.levels, self.table.correct, reached))[rate]
        return (
            f"{refusal}, and the most that is reached is {self._images(reached)}, at {where} after {level:.0f} of "
            f"up to {self.table.levels[-1]} iterations; ask for less, or measure lower rates or more iterations"
        )

    @property
    def limited(self) -> str | None:
        """Says up to which severity some amount is enough, if that is not all that was measured; None if it is."""
        most = self._severity_within_reach
        if np.isfinite(self.amounts.amounts[-1]) or most == 0:
            return None
        return (
            f"{self._images(self.required)} are reached only up to a severity ({self._predictor}) of {most:.4g}, after "
            f"{float(self.amounts.amount(most)):.0f} iterations; chips up to {self.amounts.severities[-1]:.4g} were "
            f"measured, with up to {self.table.levels[-1]} iterations"
        )

    @property
    def _predictor(self) -> str:
        assert self.predictor is not None
        return self.predictor

    @property
    def _must_meet(self) -> int | None:
        assert isinstance(self.statistic, Statistic)
        return self.statistic.must_meet(self.table.repeats)

    @property
    def _severity_within_reach(self) -> float:
        """The largest with a finite amount; 0 if there is none but 0."""
        return float(self.amounts.severities[np.isfinite(self.amounts.amounts)].max(initial=0))

    @property
    def _affected(self) -> BoolArray:
        """Rates with a chip that is affected, or all if there is none: bool [rates]."""
        affected: BoolArray = self.table.severity(self._predictor).max(axis=1) > 0
        return affected if affected.any() else ~affected

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _images(self, count: int) -> str:
        images = self.table.images
        return f"{count} of {images} images ({100 * count / images:.2f} %)"

    def _amount_of_rates(self, required: int, needed: Float64Array) -> Float64Array:
        if self._must_meet is not None:
            return np.asarray(np.sort(needed, axis=1)[:, self._must_meet - 1])
        return _least_level(self.table.levels, self._smooth_means(), required - self._tolerance)

    def _reached(self) -> Int64Array:
        """Whoever misses at its best level needs an infinite amount, so that level decides."""
        if self._must_meet is not None:
            best = np.sort(self.table.correct.max(axis=2), axis=1)[:, ::-1]
            return np.asarray(best[:, self._must_meet - 1])
        return np.asarray(np.floor(self._smooth_means().max(axis=1) + self._tolerance).astype(np.int64))

    def _smooth_means(self) -> Float64Array:
        """Mean images by rate, which never rise with it: float64 [rates, levels]."""
        from sklearn.isotonic import isotonic_regression

        means = self.table.correct.mean(axis=1)
        return np.stack([isotonic_regression(values, increasing=False) for values in means.T], axis=1)

    @property
    def _tolerance(self) -> float:
        """Half the least by which a mean of whole images, over chips of any rates, can miss a whole number."""
        return 0.5 / (len(self.table.rates) * self.table.repeats)

    def _points(self, severity: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Severities of all chips, ascending, and the amount of each."""
        assert self._must_meet is not None
        worst = severity.max(axis=1)
        points = np.unique(severity)
        amounts = []
        for point in points:
            # Of each rate the one that takes most, but for those that may miss: among chips no worse than this one.
            taken = np.sort(np.where(severity <= point, self.needed, 0), axis=1)[:, self._must_meet - 1]
            next_rates = worst == worst[worst >= point].min()
            amounts.append(max(taken.max(), self.per_rate[next_rates].max()))
        return points, np.array(amounts)

    def _mean_points(self, severity: Float64Array) -> tuple[Float64Array, Float64Array]:
        # Rounding makes a mean depend on the order, and differ from numbers that are all equal.
        severity = np.sort(severity, axis=1)
        means = np.clip(severity.mean(axis=1), severity[:, 0], severity[:, -1])
        points = np.append(means, severity.max())
        amounts = np.append(self.per_rate, self.per_rate.max())
        order = np.argsort(points, kind="stable")
        return points[order], np.maximum.accumulate(amounts[order])


def _amount_map(points: Float64Array, amounts: Float64Array, *, zero: bool) -> AmountMap:
    """Of points that are equal or follow with the same amount, only the last is kept.

    Args:
        points: float64 [points], ascending.
        amounts: float64 [points], non-decreasing.
        zero: whether a severity of 0 takes nothing, whatever the points say.
    """
    if zero:
        affected = points > 0
        points, amounts = np.append(0.0, points[affected]), np.append(0.0, amounts[affected])
    last = np.append(points[1:] > points[:-1], True)
    points, amounts = points[last], amounts[last]
    last = np.append(amounts[1:] > amounts[:-1], True)
    return AmountMap(points[last], amounts[last])


def _least_level(levels: Int64Array, correct: npt.NDArray[Any], required: float) -> Float64Array:
    """The least level that is enough, as the module says; infinite if none is.

    Args:
        levels: int64 [levels].
        correct: [..., levels], images at each.
        required: images.

    Returns:
        float64 [...].
    """
    meets = correct >= required
    best = np.argmax(correct, axis=-1)[..., None]
    # What comes after the best one is of no matter.
    so_far = meets | (np.arange(len(levels)) > best)
    stays = np.logical_and.accumulate(so_far[..., ::-1], axis=-1)[..., ::-1]
    at_best = np.take_along_axis(meets, best, axis=-1)[..., 0]
    needed = np.where(at_best, levels[np.argmax(stays, axis=-1)], np.inf)
    return np.asarray(np.where(meets[..., 0], 0.0, needed))


def _exactly(value: float) -> Fraction:
    """The shortest decimal number that is this float: what was typed."""
    return Fraction(repr(float(value)))

"""How well a network does on random chips after different amounts of retraining: a table, and its HDF5 file.

The retraining of a lot is planned from it; `efat.planning.selection` says how. docs/formats.md
describes the file. Nothing in one is trusted: format, version, shapes, types and every value are
checked before use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from efat.display import Shown, Table
from efat.records import Positive, Record, as_json, typed
from efat.resilience.severity import PREDICTORS
from efat.setup import Setup, name_of
from simulator import FaultModel
from simulator.config import ArrayRecord
from simulator.dtypes import Float64Array, Int64Array
from simulator.errors import InputError
from simulator.hdf5 import Dataset, Format, check_range, refuse

FILE_NAME = "resilience.h5"
PICTURE = "resilience.png"
"""Names in the folder of `efat resilience`."""

MOST_CHIPS = 10_000
"""Random chips of all rates."""
MOST_VALUES = 1 << 22
"""Accuracies in a table."""
MOST_IMAGES = 10_000_000
MOST_ITERATIONS = 1 << 40

_PREDICTOR = "predictor_"
_FORMAT = Format(
    "efat-resilience",
    3,
    "efat resilience",
    "the table that `efat resilience` writes",
    oldest=2,
    digested=3,
    integers={
        "images": (1, MOST_IMAGES),
        "float_correct": (0, MOST_IMAGES),
        "fault_free_correct": (0, MOST_IMAGES),
        "start_correct": (0, MOST_IMAGES),
        "harden_iterations": (0, MOST_ITERATIONS),
        "seed": (0, (1 << 63) - 1),
    },
    objects=("array", "fault_model", "setup_identity", "setup"),
    datasets=(
        Dataset("rates", np.dtype(np.float64), MOST_VALUES),
        Dataset("levels", np.dtype(np.int64), MOST_VALUES),
        Dataset("correct", np.dtype(np.int64), MOST_VALUES, dimensions=3),
        *(
            Dataset(_PREDICTOR + name, np.dtype(np.float64), MOST_VALUES, dimensions=2, optional=True)
            for name in PREDICTORS
        ),
    ),
)


class RandomFaults(Record, frozen=True):
    """What the faults of random chips look like, whatever their rate; names of sites and kinds: see `FaultModel`."""

    sites: Mapping[str, float]
    kinds: Mapping[str, float]
    bits: Mapping[str, tuple[float, ...]]
    pattern: str
    cluster_alpha: float
    cluster_side: Positive

    @classmethod
    def of(cls, model: FaultModel) -> RandomFaults:
        """Those of a model."""
        return cls(
            {site.name: weight for site, weight in model.sites.items()},
            {kind.name: weight for kind, weight in model.kinds.items()},
            {site.name: tuple(weights) for site, weights in model.bits.items()},
            model.pattern,
            model.cluster_alpha,
            model.cluster_side,
        )


@dataclass(frozen=True, eq=False, repr=False)
class ResilienceTable(Shown):
    """How many images a network classifies correctly on random chips, after different amounts of retraining.

    Args:
        rates: float64 [rates], the nominal fraction of PEs that are faulty, 0..1, strictly ascending.
        levels: int64 [levels], retraining in iterations, strictly ascending; the first is 0: as deployed.
        correct: int64 [rates, repeats, levels], the tuning images that the exact emulation of each chip classifies
            correctly, 0..`images`; -1 from the level on at which its retraining had diverged.
        images: number of tuning images, 1 or more; other test images verify.
        predictors: float64 [rates, repeats], 0..1, by a name in `PREDICTORS`, how bad each chip is: the fraction of PEs
            that are faulty (`faulty_pes`), the fraction of weights that sit on PEs that must be bypassed if operands
            sit in order (`weights`), the fraction of weights that are pruned as deployed (`pruned`), and the mean over
            layers of the fraction of the sum of squared weights that these have (`saliency`). At least one of them.
        float_correct: images that the float network classifies correctly.
        fault_free_correct: those of the original network, quantised, on a fault-free array.
        start_correct: those of the network that retraining starts from, likewise; it differs if that is a hardened one.
        array: of the random chips.
        fault_model: what the random chips are drawn from.
        setup: what learned from what, and how; its weights are those that retraining starts from.
        setup_identity: digests of what decides results, by name.
        harden_iterations: iterations spent on hardening; 0 if the network is not hardened.
        seed: of the random chips, 0..2**63 - 1.
        path: the file that it is in; None if it is in none.

    Attributes:
        FILES: names of what `efat.measure_resilience` writes for people into its folder.

    Raises:
        InputError: a value that cannot be.
    """

    rates: Float64Array
    levels: Int64Array
    correct: Int64Array
    images: int
    predictors: Mapping[str, Float64Array]
    float_correct: int
    fault_free_correct: int
    start_correct: int
    array: ArrayRecord
    fault_model: RandomFaults
    setup: Setup
    setup_identity: Mapping[str, str]
    harden_iterations: int
    seed: int
    path: Path | None = None

    FILES: ClassVar = (FILE_NAME, PICTURE)

    def __post_init__(self) -> None:
        unknown = [name for name in self.predictors if name not in PREDICTORS]
        if unknown or not self.predictors:
            raise InputError(
                f"predictor is {unknown[0]!r}: expected one of {', '.join(PREDICTORS)}"
                if unknown
                else f"there are no predictors: expected at least one of {', '.join(PREDICTORS)}"
            )
        values = self._values()
        found = {name: values.pop(_PREDICTOR + name) for name in PREDICTORS if name in self.predictors}
        # They are records already.
        for name in ("array", "fault_model", "setup"):
            del values[name]
        for name, value in {**values, "predictors": found}.items():
            object.__setattr__(self, name, value)
        for name in ("rates", "levels", "correct"):
            if not values[name].size:
                raise InputError(f"{name} is {values[name].dtype} {values[name].shape}: expected values, not empty")
        for name in ("float_correct", "fault_free_correct", "start_correct"):
            check_range(name, values[name], 0, self.images)
        rates, repeats, levels = self.correct.shape
        if len(self.rates) != rates or len(self.levels) != levels:
            raise InputError(
                f"correct has shape {self.correct.shape}: expected [{len(self.rates)} rates, repeats, "
                f"{len(self.levels)} levels]"
            )
        if rates * repeats > MOST_CHIPS or self.correct.size > MOST_VALUES:
            raise InputError(
                f"correct has shape {self.correct.shape}: expected at most {MOST_CHIPS} chips and {MOST_VALUES} values"
            )
        _check_ascending("rate", self.rates, 0, 1)
        _check_ascending("level", self.levels, 0, MOST_ITERATIONS)
        if self.levels[0] != 0:
            raise InputError(f"the first level is {self.levels[0]} iterations: expected 0, as deployed")
        check_range("correct images", self.correct, -1, self.images)
        diverged = self.correct < 0
        if (diverged[..., :-1] & ~diverged[..., 1:]).any():
            raise InputError("correct is -1, diverged, before a level at which it is not: expected -1 from there on")
        for name, severity in found.items():
            if severity.shape != (rates, repeats):
                raise InputError(
                    f"predictor {name} has shape {severity.shape}: expected {(rates, repeats)}, rates and repeats"
                )
            check_range(f"predictor {name}", severity, 0, 1)
        if not all(isinstance(value, str) for value in self.setup_identity.values()):
            raise InputError("setup_identity has a value that is not a text: expected digests by name")

    @classmethod
    def load(cls, path: str | Path) -> ResilienceTable:
        """The table in a file, checked.

        Args:
            path: a file that `efat resilience` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is something else, damaged, or of another version.
        """
        return read_table(Path(path))

    @property
    def repeats(self) -> int:
        """Random chips of each rate."""
        return int(self.correct.shape[1])

    @property
    def accuracy(self) -> Float64Array:
        """Correct fraction of the tuning images, float64 [rates, repeats, levels]; NaN where it had diverged."""
        return np.where(self.correct < 0, np.nan, self.correct / self.images)

    def severity(self, predictor: str) -> Float64Array:
        """How bad each random chip is by a predictor, float64 [rates, repeats].

        Raises:
            InputError: it is not in the table.
        """
        if predictor not in self.predictors:
            raise InputError(
                f"predictor {predictor!r} is not in the table: expected one of {', '.join(self.predictors)}"
            )
        return self.predictors[predictor]

    @property
    def iterations_spent(self) -> int:
        """Iterations that it took to make the table, hardening included.

        A chip whose retraining diverged counts as if it had gone on: that is how long it would take to make another.
        """
        return self.harden_iterations + len(self.rates) * self.repeats * int(self.levels[-1])

    def table(self) -> Table:
        """A row for each rate: mean and worst accuracy of its chips, in percent, after each amount of retraining."""
        setup, array, images = self.setup, self.array, self.images
        values = "mean (worst) accuracy in %" if self.repeats > 1 else "accuracy in %"
        chips = f"{self.repeats} random chips" if self.repeats > 1 else "1 random chip"
        worse = worsening(self)
        return Table(
            f"{name_of(setup.network)} with {setup.mitigation} on {array} PEs, "
            f"{chips} for each rate:\n{values} after so many iterations, {images:,} tuning images",
            ["faulty PEs", *(f"{level:,}" for level in self.levels.tolist())],
            [
                [f"{100 * rate:g} %", *map(_cell, of_rate.T)]
                for rate, of_rate in zip(self.rates, self.accuracy, strict=True)
            ],
            [] if worse is None else [f"Note: {worse}."],
        )

    def parts(self) -> Iterator[Table | str]:
        """The table, what comes out without faults, and what all of it took."""
        shown = self.table()
        yield replace(shown, notes=())
        facts = [
            ("accuracy of float32", f"{self.float_correct / self.images:.1%}"),
            ("accuracy quantised, fault-free", f"{self.fault_free_correct / self.images:.1%}"),
        ]
        if self.harden_iterations:
            facts.append(("the same, hardened", f"{self.start_correct / self.images:.1%}"))
            facts.append(("iterations of hardening", f"{self.harden_iterations:,}"))
        facts.append(("iterations in all", f"{self.iterations_spent:,}"))
        yield Table("Without faults, and costs", ["", ""], facts)
        yield from shown.notes

    def _values(self) -> dict[str, Any]:
        """What the file holds, checked."""
        predictors = {_PREDICTOR + name: values for name, values in self.predictors.items()}
        records = {name: as_json(getattr(self, name)) for name in _FORMAT.objects}
        return _FORMAT.checked({**vars(self), **predictors, **records})


def worsening(table: ResilienceTable) -> str | None:
    """Says from which level on retraining makes chips worse, if it does: at the rate where they lose most.

    The mean accuracy over the chips of a rate has fallen where it is below that of an earlier level by half a point or
    more, and by more than the standard error of such a difference of independent images, at that and at every later
    level. Of that error the accuracy is taken with one image more of either kind: near 100 % few images tell nothing.

    Args:
        table: what was measured.
    """
    means = np.maximum(table.correct, 0).mean(axis=1) / table.images
    best = np.maximum.accumulate(means, axis=1)
    about = (best * table.images + 1) / (table.images + 2)
    least = np.maximum(np.sqrt(2 * about * (1 - about) / table.images), 0.005)
    below = best - means >= least
    stays = np.logical_and.accumulate(below[:, ::-1], axis=1)[:, ::-1]
    if not stays[:, -1].any():
        return None
    rate = int(np.argmax(np.where(stays[:, -1], best[:, -1] - means[:, -1], -1)))
    first = int(np.argmax(stays[rate]))
    top = int(np.argmax(means[rate, :first]))
    return (
        f"retraining makes chips worse from {table.levels[first]} iterations on: at rate {table.rates[rate]:g} from "
        f"{means[rate, top]:.1%} ({table.levels[top]} iterations) to {means[rate, -1]:.1%} ({table.levels[-1]}); "
        "lower --learning-rate"
    )


def write_table(path: Path, table: ResilienceTable) -> None:
    """Write a table. The file appears, or replaces an older one, only when it is complete."""
    _FORMAT.write(path, table._values())


def read_table(path: Path) -> ResilienceTable:
    """Read a table, checking all of it."""

    def make(values: dict[str, Any]) -> ResilienceTable:
        kinds = {"array": ArrayRecord, "fault_model": RandomFaults, "setup": Setup}
        values |= {name: typed(kind, values[name], name) for name, kind in kinds.items()}
        found = {name: values.pop(_PREDICTOR + name) for name in PREDICTORS if _PREDICTOR + name in values}
        return ResilienceTable(**values, predictors=found, path=path)

    return _FORMAT.read(path, make)


def telling_levels(levels: Sequence[int], most: int) -> list[int]:
    """Places of a few levels: the first, the last, and between them closer together where there is less retraining.

    Args:
        levels: ascending, the first is 0.
        most: how many places to give, at most; 2 or more.

    >>> telling_levels([0, 10, 20, 30, 40, 50, 60, 70, 80], 5)
    [0, 1, 2, 4, 8]
    """
    if len(levels) <= most:
        return list(range(len(levels)))
    left = dict.fromkeys(range(1, len(levels) - 1))
    chosen = [0, len(levels) - 1]
    for target in np.geomspace(levels[1], levels[-1], most - 1)[:-1]:
        nearest = min(left, key=lambda place: abs(np.log(levels[place] / target)))
        del left[nearest]
        chosen.append(nearest)
    return sorted(chosen)


def _cell(accuracies: Float64Array) -> str:
    """Mean and worst of some chips, float64 [repeats]; NaN of those whose retraining diverged."""
    if np.isnan(accuracies).all():
        return "diverged"
    mean = f"{100 * np.nanmean(accuracies):.1f}"
    if len(accuracies) == 1:
        return mean
    worst = "diverged" if np.isnan(accuracies).any() else f"{100 * accuracies.min():.1f}"
    return f"{mean} ({worst})"


def _check_ascending(name: str, values: Float64Array | Int64Array, least: float, most: float) -> None:
    check_range(f"a {name}", values, least, most)
    refuse(f"a {name}", values[1:], values[1:] <= values[:-1], f"more than the {name} before")

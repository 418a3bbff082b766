"""One round of a propagation campaign: which faults have to be injected, the units that do it, and what they gave."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from efat.campaigns.campaign import Campaign, Unit, UnitFile
from efat.propagation.columns import FAULTS_DTYPE, LAYERS_DTYPE, OPERATIONS_DTYPE, OUTCOMES, Rule
from efat.propagation.population import Population
from efat.propagation.units import FAULTS, LAYERS, OPERATIONS
from simulator.faults import Int64Array

if TYPE_CHECKING:
    from efat.propagation.collapsing.collapse import Collapse

MOST_FAULT_IMAGES = 20_000
"""Of a unit, faults times images: some seconds."""
MOST_UPSETS = 2_000
"""Of a unit: an upset is of one image, but each needs its own way through the layers."""
LEAST_UNITS = 8
"""A round is cut into as many if it has as many faults, so that there is something to do for several workers."""

WHERE = ("row", "col", "site", "bit", "kind", "layer", "group", "cycle", "image")
"""Columns that say which fault it is."""

_OUTCOME_COLUMNS = ("images", *OUTCOMES, "correct_lost", "correct_gained", "first_layer", "last_layer")
COUNTED = tuple(name for name in OPERATIONS_DTYPE.names or () if name not in ("stratum", "operation"))
"""Columns of operations that are sums."""

Table = npt.NDArray[np.void]


class Found(NamedTuple):
    """What became of the faults of a round.

    Attributes:
        faults: `FAULTS_DTYPE` [faults], by `index`.
        layers: `LAYERS_DTYPE` [rows]; `fault` is a row of `faults`.
        operations: int64 [strata, operations, counts], counts as in `OPERATIONS_DTYPE`.
    """

    faults: Table
    layers: Table
    operations: Int64Array


@dataclass(frozen=True, eq=False)
class Round:
    """Faults of a sample, and those that are injected for them.

    Attributes:
        number: of the round, from 0.
        indices: int64 [faults], places in the population, ascending.
        faults: `POPULATION_DTYPE` [faults].
        strata: int64 [faults].
        rules: uint8 [faults], each a `Rule`.
        same_as: int64 [faults], the place in the population of the fault that is injected in its place, -1 for none.
        injected: `POPULATION_DTYPE` [injected], each once.
        place: int64 [faults], the row of `injected` that says what a fault does, -1 for faults that never act.
    """

    number: int
    indices: Int64Array
    faults: Table
    strata: Int64Array
    rules: npt.NDArray[np.uint8]
    same_as: Int64Array
    injected: Table
    place: Int64Array

    @classmethod
    def of(cls, number: int, indices: Int64Array, population: Population, collapse: Collapse) -> Round:
        """See what has to be injected for some faults, by exact rules."""
        faults = population.faults(indices)
        rules, representative = collapse.rules(faults)
        equivalent, injects = rules == Rule.EQUIVALENT, np.isin(rules, (Rule.SIMULATED, Rule.EQUIVALENT))
        same_as = np.full(len(faults), -1, np.int64)
        same_as[equivalent] = population.indices(representative[equivalent])
        acting = faults.copy()
        acting[equivalent] = representative[equivalent]
        place = np.full(len(faults), -1, np.int64)
        injected, place[injects] = np.unique(acting[injects], return_inverse=True)
        strata = population.stratum_of(indices)
        return cls(number, indices, faults, strata, rules, same_as, injected, place)

    def units(self, shared: Mapping[str, Any], images: int) -> list[Unit]:
        """The work that is to be done, the same whoever does it.

        Args:
            shared: arguments of all units.
            images: of the network; an upset is of one of them.
        """
        groups = self._groups()[0]
        units = []
        for name, part in self._parts(images):
            arguments = {"faults": self.injected[part], "strata": groups[part]}
            inputs = {what: hashlib.sha256(values.tobytes()).hexdigest() for what, values in arguments.items()}
            units.append(Unit(name, {**shared, **arguments}, inputs))
        return units

    def found(self, campaign: Campaign, images: int, strata: int, operations: int) -> Found:
        """What the units gave, put together for the faults of the sample.

        Args:
            campaign: has the units.
            images: as for `units`.
            strata: how many there are.
            operations: of the network.

        Raises:
            InputError: a file of a unit changed since it was done.
        """
        patterns = self._groups()[1]
        rows = np.zeros(len(self.injected), FAULTS_DTYPE)
        layers = [np.empty(0, LAYERS_DTYPE)]
        totals = np.zeros((strata, operations, len(COUNTED)), np.int64)
        for name, part in self._parts(images):
            rows[part] = _table(campaign.file(name, FAULTS))
            of_layers = _table(campaign.file(name, LAYERS))
            of_layers["fault"] += part.start
            layers.append(of_layers)
            counted = _table(campaign.file(name, OPERATIONS))
            counts = np.stack([counted[name].astype(np.int64) for name in COUNTED], axis=1)
            for group, operation, of_row in zip(
                counted["stratum"].tolist(), counted["operation"].tolist(), counts, strict=True
            ):
                for stratum, times in patterns[group]:
                    totals[stratum, operation] += times * of_row
        return Found(self._faults(rows, images), self._layers(np.concatenate(layers)), totals)

    def _parts(self, images: int) -> list[tuple[str, slice]]:
        """Names of the units, and which of the injected faults they have."""
        count = len(self.injected)
        upsets = bool((self.injected["image"] >= 0).any())
        most = MOST_UPSETS if upsets else max(1, MOST_FAULT_IMAGES // images)
        units = max(-(-count // most), min(count, LEAST_UNITS))
        return [
            (f"round-{self.number:02d}-{place:06d}", slice(place * count // units, (place + 1) * count // units))
            for place in range(units)
        ]

    def _groups(self) -> tuple[Int64Array, list[tuple[tuple[int, int], ...]]]:
        """Injected faults that stand for faults of the same strata, as often, are counted together by the units.

        Returns:
            Numbers of groups int64 [injected]; and for each group the strata, and how often each.
        """
        stands_for: list[Counter[int]] = [Counter() for _ in self.injected]
        for place, stratum in zip(self.place.tolist(), self.strata.tolist(), strict=True):
            if place >= 0:
                stands_for[place][stratum] += 1
        patterns: dict[tuple[tuple[int, int], ...], int] = {}
        numbers = [patterns.setdefault(tuple(sorted(found.items())), len(patterns)) for found in stands_for]
        return np.array(numbers, np.int64), list(patterns)

    def _faults(self, injected: Table, images: int) -> Table:
        rows = np.zeros(len(self.faults), FAULTS_DTYPE)
        rows["index"], rows["rule"], rows["same_as"] = self.indices, self.rules, self.same_as
        for name in WHERE:
            rows[name] = self.faults[name]
        acts = self.place >= 0
        for name in _OUTCOME_COLUMNS:
            rows[name][acts] = injected[name][self.place[acts]]
        never = np.where(self.faults["image"] >= 0, 1, images)
        rows["images"][~acts] = rows["inactive"][~acts] = never[~acts]
        rows["first_layer"][~acts] = rows["last_layer"][~acts] = -1
        return rows

    def _layers(self, injected: Table) -> Table:
        """Rows of the injected faults, once for each fault that they stand for."""
        injected = injected[np.argsort(injected["fault"], kind="stable")]
        fault = np.nonzero(self.place >= 0)[0]
        begin, end = (np.searchsorted(injected["fault"], self.place[fault], side) for side in ("left", "right"))
        times = end - begin
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        rows: Table = injected[np.repeat(begin, times) + within]
        rows["fault"] = np.repeat(fault, times)
        return rows


def _table(file: UnitFile) -> Table:
    """What a unit wrote."""
    found: Table = np.load(io.BytesIO(file.read()), allow_pickle=False)
    return found

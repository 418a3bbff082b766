"""Faults that need not be simulated: what they do, or that they do nothing, is known from weights and activations.

Every rule is exact. A permanent fault that changes no accumulator of the first layer leaves the inputs of the second as
they are without it, and so on; so whether a fault changes anything is judged by the activations that occur without any.
One that does may bring about any activations further on: faults are called equivalent only if they are so for all
activations there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from efat.propagation.population import LayerUse, Population, stratum_codes
from efat.propagation.request import Stratum
from efat.propagation.tables import Rule
from simulator import ArrayConfig, Kind, Site
from simulator.dtypes import Int64Array, UInt8Array
from simulator.errors import InputError

if TYPE_CHECKING:
    from efat.propagation.collapsing.kernel import Operands


class Collapse:
    """Says of each fault by which rule its outcome is known; the first of these that holds.

    `Rule.UNUSED`: no weight of any layer is where the fault acts, or no output in its column, and nothing changes; for
    a FLIP also if nothing is kept of what its net carries in that cycle. `Rule.SAME_VALUE`: no product and no sum
    changes, with the weights and activations that occur. `Rule.EQUIVALENT`: another fault does the same with any
    activations, and stands for it: the first such one by site, bit and kind, then by place. It is one of:

    - WEIGHT, PRODUCT and MULTIPLIER faults of a PE with the same products of all its weights;
    - WEIGHT_LOAD and ACTIVATION faults that differ in PEs only that multiply the same with and without them, and
      WEIGHT_LOAD faults that act in just one PE and the same WEIGHT fault there;
    - PSUM faults of rows between which nothing is added to the bit or those below it; in the first row the same
      PRODUCT fault; in the last row the same ACCUMULATOR fault, if all layers that use the column have one k-fold.

    FLIPs stand for themselves only.

    Args:
        config: the array, without faults and with everything in order.
        layers: all layers that run on it.
        strata: of the faults there are, so that none stands for another that is not among them; all permanent ones if
            None. FLIPs are of no account here. Without `Site.MULTIPLIER` no gates are evaluated.
    """

    def __init__(
        self, config: ArrayConfig, layers: Sequence[LayerUse], strata: Sequence[Stratum] | None = None
    ) -> None:
        # Numba takes 0.4 s to import.
        from efat.propagation.collapsing.flips import FlipRules
        from efat.propagation.collapsing.stuck import StuckRules

        operands = _operands(config, layers)
        stuck = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)
        if strata is None:
            strata = [(site, bit, kind) for site in Site for bit in range(site.bits(config)) for kind in stuck]
        self._config = config
        self._shapes = tuple(layer.shape for layer in layers)
        self._strata = [(Site(site), int(bit), Kind(kind)) for site, bit, kind in strata if kind in stuck]
        self._codes = np.array([stratum_codes(*stratum) for stratum in self._strata], np.int64)
        self._stuck = StuckRules(config, operands, self._strata)
        self._flips = FlipRules(config, operands)

    def rules(self, table: npt.NDArray[np.void]) -> tuple[UInt8Array, npt.NDArray[np.void]]:
        """The rule of each fault, uint8 [faults], and the fault that stands for it, both `POPULATION_DTYPE` [faults].

        That is itself unless the rule is `Rule.EQUIVALENT`, and then one that is `Rule.SIMULATED`.

        Raises:
            ValueError: permanent faults of other strata than those there are.
        """
        rule, standing = np.empty(len(table), np.uint8), table.copy()
        flip = table["kind"] == Kind.FLIP
        self._check_known(stratum_codes(*(table[name][~flip] for name in ("site", "bit", "kind"))))
        rule[flip] = self._flips.rules(table[flip])
        rule[~flip], standing[~flip] = self._stuck.rules(table[~flip])
        return rule, standing

    def counts(self, population: Population) -> dict[Rule, int]:
        """How many faults of a whole population each rule is for, without listing them.

        Raises:
            ValueError: another array or other layers, or other strata than those there are.
        """
        of_strata = self.stratum_counts(population)
        return {rule: int(sum(counts[rule] for counts in of_strata)) for rule in Rule}

    def stratum_counts(self, population: Population) -> list[dict[Rule, int]]:
        """Count the faults of each rule in each stratum of a population; see `counts`."""
        if population.config != self._config:
            raise ValueError(f"the population is of {population.config}: expected {self._config}")
        if population.layers != self._shapes:
            raise ValueError(f"the population has layers {population.layers}: expected {self._shapes}")
        flips = [stratum for stratum in population.strata if stratum[2] is Kind.FLIP]
        stuck = [stratum for stratum in population.strata if stratum[2] is not Kind.FLIP]
        if stuck:
            self._check_known(stratum_codes(*zip(*stuck, strict=True)))
        of_stuck = dict(zip(stuck, self._stuck.counts(stuck).tolist(), strict=True))
        of_flips = dict(zip(flips, self._flips.counts(flips).tolist(), strict=True))
        counts = []
        for stratum in population.strata:
            flip = stratum[2] is Kind.FLIP
            numbers = of_flips[stratum] if flip else of_stuck[stratum]
            counts.append({rule: numbers[rule] * (population.images if flip else 1) for rule in Rule})
        return counts

    def _check_known(self, codes: Int64Array) -> None:
        unknown = ~np.isin(codes, self._codes)
        if unknown.any():
            code = int(codes[unknown][0])
            site, bit, kind = Site(code >> 24), (code >> 8) & 0xFFFF, Kind(code & 0xFF)
            raise ValueError(f"bit {bit} of {site.name} with {kind.name}: expected one of the strata of the faults")


def _operands(config: ArrayConfig, layers: Sequence[LayerUse]) -> Operands:
    from efat.propagation.collapsing.kernel import Operands
    from efat.propagation.collapsing.products import packed

    for layer in layers:
        groups, _, k = layer.weights.shape
        expected = (groups, k, 1 << config.act_bits)
        if layer.seen.shape != expected:
            # Kernels do not check where they read.
            raise InputError(f"activations of layer {layer.name} are of {layer.seen.shape}: expected {expected}")
    sizes = np.array([(len(layer.weights), layer.m, *layer.weights.shape[:0:-1]) for layer in layers], np.int64)
    groups, m, k, n = (np.ascontiguousarray(size) for size in sizes.reshape(-1, 4).T)
    mask = (1 << config.weight_bits) - 1
    return Operands(
        rows=config.rows,
        cols=config.cols,
        groups=groups,
        m=m,
        k=k,
        n=n,
        first_weight=np.array([0, *accumulate((groups * n * k).tolist())][:-1], np.int64),
        first_seen=np.array([0, *accumulate((groups * k).tolist())][:-1], np.int64),
        weights=np.concatenate(
            [(layer.weights.reshape(-1).astype(np.int64) & mask).astype(np.uint8) for layer in layers]
        ),
        seen=np.concatenate([packed(layer.seen.reshape(-1, 1 << config.act_bits)) for layer in layers]),
    )

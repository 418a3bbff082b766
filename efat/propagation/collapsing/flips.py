"""Which FLIPs change nothing: those that touch nothing that is kept, and those whose products stay what they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from efat.propagation.collapsing.kernel import (
    Operands,
    Touched,
    count_quiet_activation_flips,
    count_quiet_flips,
    find_quiet_flips,
)
from efat.propagation.collapsing.products import disturbed_products
from efat.propagation.request import Stratum
from efat.propagation.tables import Rule
from simulator import ArrayConfig, Kind, Site
from simulator.dtypes import BoolArray, Int64Array, UInt8Array, UInt64Array
from simulator.engine.timing import load_cycles, stream_cycles

_OF_OPERANDS = (Site.WEIGHT, Site.WEIGHT_LOAD, Site.ACTIVATION, Site.MULTIPLIER)
"""Their FLIPs may leave a product as it is; all others change a sum wherever they touch one."""


class FlipRules:
    """The rules for FLIPs, each in one clock cycle of the inference of one image."""

    def __init__(self, config: ArrayConfig, operands: Operands) -> None:
        self._config = config
        self._operands = operands
        self._disturbed: dict[Site, UInt64Array] = {}

    def rules(self, table: npt.NDArray[np.void]) -> UInt8Array:
        """The rule of each FLIP of `POPULATION_DTYPE` [faults], uint8 [faults]; none is `Rule.EQUIVALENT`."""
        kept, touched = self._touched(table)
        quiet = np.zeros(len(table), np.bool_)
        for site in _OF_OPERANDS:
            chosen = np.flatnonzero((table["site"] == site) & kept)
            if len(chosen):
                found = np.empty(len(chosen), np.bool_)
                of_site = Touched(*(values[chosen] for values in touched))
                find_quiet_flips(self._operands, self._disturbed_by(site), of_site, found)
                quiet[chosen] = found
        rule = np.full(len(table), Rule.SIMULATED, np.uint8)
        rule[quiet] = Rule.SAME_VALUE
        rule[~kept | (quiet & (touched.k >= self._operands.k[touched.layer]))] = Rule.UNUSED
        return rule

    def counts(self, strata: Sequence[Stratum]) -> Int64Array:
        """How many FLIPs of some strata each rule is for in all cycles of one image, int64 [strata, rules]."""
        counts = np.zeros((len(strata), len(Rule)), np.int64)
        for site in sorted({site for site, _, _ in strata}):
            cycles, kept = self._cycles(site)
            quiet = self._count_quiet(site) if site in _OF_OPERANDS else None
            for place, (of_stratum, bit, _) in enumerate(strata):
                if of_stratum is site:
                    unused, same = (0, 0) if quiet is None else quiet[bit]
                    counts[place] = kept - unused - same, cycles - kept + unused, same, 0
        return counts

    def _touched(self, table: npt.NDArray[np.void]) -> tuple[BoolArray, Touched]:
        """Whether what FLIPs touch is kept at all, bool [FLIPs], and what it is."""
        config, operands = self._config, self._operands
        rows, cols = config.rows, config.cols
        columns = ("layer", "group", "row", "col", "bit", "cycle")
        layer, group, row, col, bit, cycle = (table[name].astype(np.int64) for name in columns)
        m, k, n = operands.m[layer], operands.k[layer], operands.n[layer]
        fold, in_fold = np.divmod(cycle, self._cycles_per_fold()[layer])
        n_fold, k_fold = np.divmod(fold, -(-k // rows))
        streaming = in_fold - load_cycles(config)
        row_of_x = streaming - row - col
        kept = (row_of_x >= 0) & (row_of_x < m)
        site = table["site"]
        # A register keeps it until the last row of X has gone by.
        kept |= (site == Site.WEIGHT) & (streaming >= 0) & (row_of_x < m)
        leaving = streaming - (rows - 1) - col
        kept = np.where(site == Site.ACCUMULATOR, (leaving >= 0) & (leaving < m), kept)
        # In load cycle i the net of row r carries the weight that ends on row R - 1 - i + r.
        passing, end_row = site == Site.WEIGHT_LOAD, rows - 1 - in_fold + row
        kept = np.where(passing, (streaming < 0) & (end_row < rows), kept)
        first_n = n_fold * cols + col
        stop_n = np.where(site == Site.ACTIVATION, np.minimum(n, (n_fold + 1) * cols), first_n + 1)
        of_k = k_fold * rows + np.where(passing, end_row, row)
        return kept & (first_n < n), Touched(layer, group, of_k, first_n, stop_n, bit)

    def _cycles_per_fold(self) -> Int64Array:
        return np.array([load_cycles(self._config) + stream_cycles(self._config, int(m)) for m in self._operands.m])

    def _cycles(self, site: Site) -> tuple[int, int]:
        """Cycles of all nets of a site, and those in which the net carries something that is kept."""
        config, operands = self._config, self._operands
        nets = config.cols if site is Site.ACCUMULATOR else config.pe_count
        cycles = kept = 0
        sizes = (operands.groups, operands.m, operands.k, operands.n, self._cycles_per_fold())
        for groups, m, k, n, per_fold in zip(*(size.tolist() for size in sizes), strict=True):
            depth = -(-k // config.rows)
            cycles += nets * groups * depth * -(-n // config.cols) * per_fold
            if site is Site.ACCUMULATOR:
                of_columns = n * m
            elif site is Site.WEIGHT_LOAD:
                of_columns = n * config.rows * (config.rows + 1) // 2
            else:
                of_columns = n * config.rows * m
            if site is Site.WEIGHT:
                before = n * config.rows * (config.rows - 1) // 2 + config.rows * int(
                    (np.arange(n) % config.cols).sum()
                )
                of_columns += before
            kept += groups * depth * of_columns
        return cycles, kept

    def _count_quiet(self, site: Site) -> Int64Array:
        """FLIPs of operands that change no product, int64 [bits, 2]: in rows without weights, and with them."""
        disturbed = self._disturbed_by(site)
        if site is Site.ACTIVATION:
            counts = np.zeros((disturbed.shape[1], 2), np.int64)
            count_quiet_activation_flips(self._operands, disturbed, counts)
            return counts
        of_sites = np.zeros((disturbed.shape[1], 2, 3), np.int64)
        count_quiet_flips(self._operands, disturbed, of_sites)
        chosen: Int64Array = of_sites[:, :, (Site.MULTIPLIER, Site.WEIGHT, Site.WEIGHT_LOAD).index(site)]
        return chosen

    def _disturbed_by(self, site: Site) -> UInt64Array:
        if site not in self._disturbed:
            net = Site.WEIGHT if site is Site.WEIGHT_LOAD else site
            faults = [(net, bit, Kind.FLIP) for bit in range(net.bits(self._config))]
            self._disturbed[site] = disturbed_products(self._config, faults)
        return self._disturbed[site]

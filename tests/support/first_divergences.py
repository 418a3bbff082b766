"""What the beginning of a fault's action must be, from traces of everything that the array does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from efat.explanation.divergence import FirstDivergence
from simulator import Fault, FaultMap, Kind, Site, Trace, gemm_timing, simulate_gemm
from simulator.bits import as_number
from simulator.engine.masks import stuck_masks
from simulator.engine.timing import Timing


@dataclass(frozen=True, eq=False)
class TracedGemm:
    """A GEMM without one of the faults and with it, in all cycles."""

    x: npt.NDArray[np.int64]
    w: npt.NDArray[np.int64]
    others: FaultMap
    faults: FaultMap
    bypass: npt.NDArray[np.bool_]
    taken: dict[int, int]
    """The output at each position of columns."""

    @property
    def timing(self) -> Timing:
        """Its cycles."""
        return gemm_timing(self.faults.config, *self.x.shape, self.w.shape[1])

    @property
    def depth(self) -> int:
        """The k-folds."""
        return -(-len(self.w) // self.faults.config.rows)

    @cached_property
    def traces(self) -> list[Trace]:
        """Without the fault and with it."""
        traces = []
        for some in (self.others, self.faults):
            record = (0, self.timing.serial)
            trace = simulate_gemm(self.x, self.w, some.config, some, bypass=self.bypass, record=record).trace
            assert trace is not None
            traces.append(trace)
        return traces

    @cached_property
    def stored(self) -> list[npt.NDArray[np.int64]]:
        """What accumulators hold after each k-fold, int64 [k-folds, M, positions], without the fault and with it."""
        return [self._stored(*pair) for pair in zip(self.traces, (self.others, self.faults), strict=True)]

    def _stored(self, trace: Trace, faults: FaultMap) -> npt.NDArray[np.int64]:
        config, positions = faults.config, self.w.shape[1]
        found = np.zeros((self.depth, len(self.x), positions), np.int64)
        for position in range(positions):
            fold, column = position // config.cols * self.depth, position % config.cols
            stuck = [fault for fault in faults if (fault.site, fault.col) == (Site.ACCUMULATOR, column)]
            for row in range(len(self.x)):
                total = 0
                for of_k in range(self.depth):
                    start = (fold + of_k) * self.timing.cycles_per_fold
                    # The sum leaves the last row.
                    total += int(trace.south[start + config.rows + row + config.rows - 1 + column, -1, column])
                    for fault in stuck:
                        bit = 1 << fault.bit
                        total = total & ~bit if fault.kind == Kind.STUCK_AT_0 else total | bit
                    total = int(as_number(total, config.acc_bits, signed=True))
                    found[of_k, row, position] = total
        return found

    @property
    def differs(self) -> bool:
        """Whether any output ends up different."""
        return any(self._spoilt(fold) for fold in range(self.timing.folds))

    def check(self, found: FirstDivergence, fault: Fault) -> None:
        """Hold what was found about the fault against all of this."""
        config = self.faults.config
        fold = next(fold for fold in range(self.timing.folds) if self._spoilt(fold))
        row, column = self._spoilt(fold)[0]
        position = fold // self.depth * config.cols + column
        start, stored = fold * self.timing.cycles_per_fold, found.stored
        assert (found.fold, stored.row_of_x, stored.output) == (fold, row, self.taken[position])
        assert [stored.was, stored.became] == [sums[fold % self.depth, row, position] for sums in self.stored]
        assert stored.cycle == start + 2 * config.rows - 1 + row + column
        assert start <= found.cycle <= stored.cycle
        assert found.was != found.became
        if fault.site is Site.ACCUMULATOR:
            assert (found.cycle, found.was, found.became) == (stored.cycle, stored.was, stored.became)
            return
        was, became = (_on_net(*pair, fault) for pair in zip(self.traces, (self.others, self.faults), strict=True))
        assert (found.was, found.became) == (was[found.cycle], became[found.cycle])
        for cycle in range(start, found.cycle):
            # The net may be wrong before, in cycles in which it does not matter.
            assert was[cycle] == became[cycle] or not self._matters(fault, fold, cycle - start)

    def _spoilt(self, fold: int) -> list[tuple[int, int]]:
        """Rows of X and columns whose sum differs at the end of a fold, and at the end of the GEMM, too."""
        return self._spoilt_by_fold[fold]

    @cached_property
    def _spoilt_by_fold(self) -> list[list[tuple[int, int]]]:
        return [self._spoilt_in(fold) for fold in range(self.timing.folds)]

    def _spoilt_in(self, fold: int) -> list[tuple[int, int]]:
        first = fold // self.depth * self.faults.config.cols
        positions = range(first, min(first + self.faults.config.cols, self.w.shape[1]))
        without, with_fault = self.stored
        return [
            (row, position - first)
            for row in range(len(self.x))
            for position in positions
            if position in self.taken
            if without[-1, row, position] != with_fault[-1, row, position]
            if without[fold % self.depth, row, position] != with_fault[fold % self.depth, row, position]
        ]

    def _matters(self, fault: Fault, fold: int, cycle: int) -> bool:
        """Whether what a net carries in a cycle of a fold has to do with a sum that is spoilt."""
        config, first = self.faults.config, self._spoilt(fold)[0][0]
        if fault.site is not Site.WEIGHT_LOAD:
            row = cycle - config.rows - fault.row - fault.col
            return any(row == spoilt for spoilt, _ in self._spoilt(fold))
        south = config.rows - 1 - cycle + fault.row
        if south >= config.rows or self.bypass[south, fault.col]:
            return False
        met = fold * self.timing.cycles_per_fold + config.rows + first + south + fault.col
        one, other = (trace.product[met, south, fault.col] for trace in self.traces)
        return bool(one != other)


def _on_net(trace: Trace, faults: FaultMap, fault: Fault) -> npt.NDArray[np.int32]:
    """What the net of a PE carries in each cycle; of a fault inside the multiplier the product."""
    place = slice(None), fault.row, fault.col
    if fault.site is Site.WEIGHT:
        keep, force = (mask[fault.row, fault.col] for mask in stuck_masks(faults, Site.WEIGHT, np.int16))
        used: npt.NDArray[np.int32] = (trace.weight[place] & keep) | force
        return used
    names = {Site.WEIGHT_LOAD: "shift", Site.ACTIVATION: "east", Site.PSUM: "south"}
    values: npt.NDArray[np.int32] = getattr(trace, names.get(fault.site, "product"))[place]
    return values

"""Worked by hand on a 2x2 array, from the definition of the machine in docs/machine.md.

The GEMM is X = [[1, 2], [3, 4]] by W = [[5, 6], [7, 8]], so that PE (r, c) holds W[r, c] and

    outputs = [[1*5 + 2*7, 1*6 + 2*8], [3*5 + 4*7, 3*6 + 4*8]] = [[19, 22], [43, 50]]

One fold: cycles 0 and 1 load, then M + R + C - 2 = 4 cycles stream. Row m of X is at PE
(r, c) in streaming cycle m + r + c, so in clock cycle 2 + m + r + c. Bits are numbered from 0, bit b weighs 2^b.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site, gemm_timing, simulate_gemm
from simulator.multipliers.multiplier import Multiplier, exact_products

X = [[1, 2], [3, 4]]
W = [[5, 6], [7, 8]]
CONFIG = ArrayConfig(2, 2)
AT_0, AT_1, FLIP = Kind.STUCK_AT_0, Kind.STUCK_AT_1, Kind.FLIP


def outputs(*faults: Fault, **named: object) -> list[list[int]]:
    result = simulate_gemm(X, W, CONFIG, FaultMap.from_faults(CONFIG, faults), **named)  # type: ignore[arg-type]
    return result.outputs.tolist()


def test_no_fault() -> None:
    assert outputs() == [[19, 22], [43, 50]]


def test_weight_stuck() -> None:
    # PE (0, 1) multiplies by 6 = 0b110 with bit 0 set: 7. Column 1: 1*7 + 2*8 = 23 and 3*7 + 4*8 = 53.
    assert outputs(Fault(0, 1, Site.WEIGHT, 0, AT_1)) == [[19, 23], [43, 53]]
    # Bit 1 cleared: 4. Column 1: 1*4 + 16 = 20 and 3*4 + 32 = 44.
    assert outputs(Fault(0, 1, Site.WEIGHT, 1, AT_0)) == [[19, 20], [43, 44]]
    # Bit 7 is the sign: 6 - 128 = -122. Column 1: -122 + 16 = -106 and -366 + 32 = -334.
    assert outputs(Fault(0, 1, Site.WEIGHT, 7, AT_1)) == [[19, -106], [43, -334]]


def test_weight_flip_lasts_to_the_end_of_the_fold() -> None:
    # PE (0, 0) meets row 0 in cycle 2 and row 1 in cycle 3. From cycle 3 on its 5 is 5 ^ 1 = 4: 3*4 + 4*7 = 40.
    assert outputs(Fault(0, 0, Site.WEIGHT, 0, FLIP, cycle=3)) == [[19, 22], [40, 50]]
    # From cycle 2 on both rows: 1*4 + 14 = 18.
    assert outputs(Fault(0, 0, Site.WEIGHT, 0, FLIP, cycle=2)) == [[18, 22], [40, 50]]
    # A second flip of the same bit brings the 5 back: row 0 meets 4, row 1 meets 5.
    twice = [Fault(0, 0, Site.WEIGHT, 0, FLIP, cycle=cycle) for cycle in (2, 3)]
    assert outputs(*twice) == [[18, 22], [43, 50]]
    # Cycle 1 is the last load cycle, which overwrites the register at its end; cycle 4 is after both rows have passed.
    assert outputs(Fault(0, 0, Site.WEIGHT, 0, FLIP, cycle=1)) == [[19, 22], [43, 50]]
    assert outputs(Fault(0, 0, Site.WEIGHT, 0, FLIP, cycle=4)) == [[19, 22], [43, 50]]


def test_weight_load_stuck_spoils_the_rest_of_the_column() -> None:
    # Row 1's weight passes row 0 on its way. Bit 1 of the operand net of PE (0, 0) stuck at 1: 5 -> 7 in row 0, and
    # 7 -> 7 in row 1: 1*7 + 14 = 21 and 3*7 + 28 = 49.
    assert outputs(Fault(0, 0, Site.WEIGHT_LOAD, 1, AT_1)) == [[21, 22], [49, 50]]
    # Bit 0 stuck at 0: 5 -> 4 and 7 -> 6: 1*4 + 2*6 = 16 and 3*4 + 4*6 = 36.
    assert outputs(Fault(0, 0, Site.WEIGHT_LOAD, 0, AT_0)) == [[16, 22], [36, 50]]
    # In row 1 only row 1's weight passes: 7 -> 6: 5 + 12 = 17 and 15 + 24 = 39.
    assert outputs(Fault(1, 0, Site.WEIGHT_LOAD, 0, AT_0)) == [[17, 22], [39, 50]]


def test_weight_load_flip_spoils_the_one_weight_that_passes() -> None:
    # Load cycle 0 feeds row 1's weight 7, load cycle 1 row 0's 5. At PE (0, 0), cycle 0: 7 ^ 8 = 15 ends in row 1:
    # 5 + 2*15 = 35 and 15 + 4*15 = 75. Cycle 1: 5 ^ 8 = 13 in row 0: 13 + 14 = 27 and 39 + 28 = 67.
    assert outputs(Fault(0, 0, Site.WEIGHT_LOAD, 3, FLIP, cycle=0)) == [[35, 22], [75, 50]]
    assert outputs(Fault(0, 0, Site.WEIGHT_LOAD, 3, FLIP, cycle=1)) == [[27, 22], [67, 50]]
    # In row 1 the 7 arrives in cycle 1; in cycle 0 its register's initial 0 passes, which row 1 does not keep.
    assert outputs(Fault(1, 0, Site.WEIGHT_LOAD, 3, FLIP, cycle=1)) == [[35, 22], [75, 50]]
    assert outputs(Fault(1, 0, Site.WEIGHT_LOAD, 3, FLIP, cycle=0)) == [[19, 22], [43, 50]]


def test_activation_stuck_spoils_the_rest_of_the_row() -> None:
    # Row 0 of the array carries 1 and 3. Bit 2 stuck at 1 at PE (0, 0): 5 and 7 in both columns:
    # 5*5 + 14 = 39, 5*6 + 16 = 46; 7*5 + 28 = 63, 7*6 + 32 = 74.
    assert outputs(Fault(0, 0, Site.ACTIVATION, 2, AT_1)) == [[39, 46], [63, 74]]
    # At PE (0, 1) only column 1 sees it.
    assert outputs(Fault(0, 1, Site.ACTIVATION, 2, AT_1)) == [[19, 46], [43, 74]]
    # Bit 0 stuck at 0: 1 -> 0 and 3 -> 2: 0 + 14 = 14, 0 + 16; 10 + 28 = 38, 12 + 32 = 44.
    assert outputs(Fault(0, 0, Site.ACTIVATION, 0, AT_0)) == [[14, 16], [38, 44]]


def test_activation_flip_travels_east() -> None:
    # Row 1's x is 4 for m = 1, at PE (1, 0) in cycle 2 + 1 + 1 = 4: 4 ^ 1 = 5 there and in column 1 a cycle later:
    # 15 + 5*7 = 50 and 18 + 5*8 = 58.
    assert outputs(Fault(1, 0, Site.ACTIVATION, 0, FLIP, cycle=4)) == [[19, 22], [50, 58]]


def test_product_stuck() -> None:
    # PE (1, 1) computes 2*8 = 16 = 0b10000 and 4*8 = 32 = 0b100000. Bit 4 stuck at 0: 0 and 32: 6 + 0 = 6.
    assert outputs(Fault(1, 1, Site.PRODUCT, 4, AT_0)) == [[19, 6], [43, 50]]
    # Bit 15 is the sign of the 16-bit product: 16 - 32768 and 32 - 32768, sign-extended into the sum.
    assert outputs(Fault(1, 1, Site.PRODUCT, 15, AT_1)) == [[19, 22 - 32768], [43, 50 - 32768]]


def test_product_flip_spoils_one_product() -> None:
    # m = 0 is at PE (1, 1) in cycle 2 + 0 + 1 + 1 = 4: 16 ^ 1 = 17.
    assert outputs(Fault(1, 1, Site.PRODUCT, 0, FLIP, cycle=4)) == [[19, 23], [43, 50]]


def test_psum_stuck() -> None:
    # After row 0, column 0 carries 5 and 15. Bit 1 stuck at 0 there: 5 and 13; then 5 + 14 = 19 and 13 + 28 = 41.
    assert outputs(Fault(0, 0, Site.PSUM, 1, AT_0)) == [[19, 22], [41, 50]]
    # After row 1 it carries 19 = 0b10011 and 43 = 0b101011. Bit 2 stuck at 1: 23 and 47.
    assert outputs(Fault(1, 0, Site.PSUM, 2, AT_1)) == [[23, 22], [47, 50]]
    # Bit 31 is the sign.
    assert outputs(Fault(1, 0, Site.PSUM, 31, AT_1)) == [[19 - 2**31, 22], [43 - 2**31, 50]]


def test_psum_flip_spoils_one_sum() -> None:
    # m = 1 is on the adder of PE (1, 0) in cycle 2 + 1 + 1 + 0 = 4: 43 ^ 64 = 107.
    assert outputs(Fault(1, 0, Site.PSUM, 6, FLIP, cycle=4)) == [[19, 22], [107, 50]]


def test_accumulator_applies_to_every_write() -> None:
    # K = 4 on two rows is two k-folds. X = [[1, 2, 3, 4]] by a column of ones gives 3, then 3 + 7 = 10.
    x, w = [[1, 2, 3, 4]], [[1], [1], [1], [1]]

    def run(*faults: Fault) -> int:
        return int(simulate_gemm(x, w, CONFIG, FaultMap.from_faults(CONFIG, faults)).outputs[0, 0])

    assert run() == 10
    # Bit 0 stuck at 0: 3 -> 2, then 2 + 7 = 9 -> 8.
    assert run(Fault(0, 0, Site.ACCUMULATOR, 0, AT_0)) == 8
    # Bit 2 stuck at 1: 3 -> 7, then 7 + 7 = 14 = 0b1110, which has it.
    assert run(Fault(0, 0, Site.ACCUMULATOR, 2, AT_1)) == 14
    # A fold takes 2*2 + 2 + 1 - 2 = 5 cycles. The first is written in cycle 2 + 0 + (2 - 1) + 0 = 3, the second in 8.
    # 3 ^ 4 = 7 stays in the sum: 7 + 7 = 14. Then 10 ^ 4 = 14.
    assert run(Fault(0, 0, Site.ACCUMULATOR, 2, FLIP, cycle=3)) == 14
    assert run(Fault(0, 0, Site.ACCUMULATOR, 2, FLIP, cycle=8)) == 14
    assert run(Fault(0, 0, Site.ACCUMULATOR, 0, FLIP, cycle=3)) == 9
    assert run(Fault(0, 0, Site.ACCUMULATOR, 0, FLIP, cycle=8)) == 11
    assert [run(Fault(0, 0, Site.ACCUMULATOR, 0, FLIP, cycle=cycle)) for cycle in (0, 4, 5, 7, 9)] == [10] * 5


def test_accumulator_stuck_with_one_fold() -> None:
    # 19 = 0b10011 and 43 = 0b101011 with bit 3 set: 27 and 43.
    assert outputs(Fault(0, 0, Site.ACCUMULATOR, 3, AT_1)) == [[27, 22], [43, 50]]


def test_flips_first_then_stuck_bits() -> None:
    # The flip of a stuck bit is lost, that of another bit is not: product 16 -> 16 ^ 1 ^ 16 = 1, bit 4 stuck at 1: 17.
    faults = [
        Fault(1, 1, Site.PRODUCT, 4, AT_1),
        Fault(1, 1, Site.PRODUCT, 4, FLIP, cycle=4),
        Fault(1, 1, Site.PRODUCT, 0, FLIP, cycle=4),
    ]
    # m = 1: 32 with bit 4 set is 48: 18 + 48 = 66.
    assert outputs(*faults) == [[19, 6 + 17], [43, 66]]


def test_bypass_passes_the_sum_on() -> None:
    bypass = np.array([[True, False], [False, False]])
    # Without the product of PE (0, 0): 14 and 28. What is broken inside it is hidden, too.
    hidden = [Fault(0, 0, Site.PSUM, 20, AT_1), Fault(0, 0, Site.PRODUCT, 3, AT_1), Fault(0, 0, Site.WEIGHT, 6, AT_1)]
    assert outputs(bypass=bypass) == [[14, 22], [28, 50]]
    assert outputs(*hidden, bypass=bypass) == [[14, 22], [28, 50]]
    # A broken activation operand still goes on to PE (0, 1): 5*6 + 16 = 46 and 7*6 + 32 = 74.
    assert outputs(Fault(0, 0, Site.ACTIVATION, 2, AT_1), bypass=bypass) == [[14, 46], [28, 74]]
    # And so does a broken weight operand to PE (1, 0): 7 -> 6: 12 and 24.
    assert outputs(Fault(0, 0, Site.WEIGHT_LOAD, 0, AT_0), bypass=bypass) == [[12, 22], [24, 50]]


def test_sums_wrap() -> None:
    # Four products of 127 * 127 = 16129 make 64516, in 16 bits 64516 - 65536 = -1020.
    narrow = ArrayConfig(2, 2, acc_bits=16)
    assert simulate_gemm([[127] * 4], [[127]] * 4, narrow).outputs.tolist() == [[-1020]]
    # 2 * 128 * 128 = 32768 is -32768, in the south register of PE (1, 0) after cycle 2 + 1.
    trace = simulate_gemm([[-128, -128]], [[-128], [-128]], narrow, record=(3, 4)).trace
    assert trace is not None
    assert trace.south.tolist() == [[[0, 0], [-32768, 0]]]


def test_unsigned_activations() -> None:
    # 255 * 5 = 1275. Bit 7 of the activation stuck at 0: 127 * 5 = 635.
    config = ArrayConfig(1, 1, act_signed=False)
    assert simulate_gemm([[255]], [[5]], config).outputs.tolist() == [[1275]]
    stuck = FaultMap.from_faults(config, [Fault(0, 0, Site.ACTIVATION, 7, AT_0)])
    assert simulate_gemm([[255]], [[5]], config, stuck).outputs.tolist() == [[635]]


def test_registers_cycle_by_cycle() -> None:
    trace = simulate_gemm(X, W, CONFIG, record=(0, 6)).trace
    assert trace is not None
    # Load: row 1's weights enter first, then move down as row 0's enter; all are taken over at the end of cycle 1.
    assert trace.shift[0].tolist() == [[7, 8], [0, 0]]
    assert trace.shift[1].tolist() == [[5, 6], [7, 8]]
    assert trace.weight[:2].tolist() == [[[0, 0], [0, 0]], [[5, 6], [7, 8]]]
    # Stream: activations one step east, sums one step south per cycle. Cycles 2, 3, 4, 5.
    assert trace.east[2:].tolist() == [[[1, 0], [0, 0]], [[3, 1], [2, 0]], [[0, 3], [4, 2]], [[0, 0], [0, 4]]]
    assert trace.south[2:].tolist() == [
        [[5, 0], [0, 0]],
        [[15, 6], [19, 0]],
        [[0, 18], [43, 22]],
        [[0, 0], [0, 50]],
    ]
    assert trace.product[3].tolist() == [[15, 6], [14, 0]]


@pytest.mark.parametrize(("shape", "printed"), [((196, 192, 384), 20879), ((196, 1176, 64), 21459)])
def test_cycles_are_scale_sims_plus_one(shape: tuple[int, int, int], printed: int) -> None:
    # SCALE-Sim 3.0.0 prints these totals for a 32x32 weight-stationary array and GEMMs of (M, N, K); it counts from 0.
    m, n, k = shape
    assert gemm_timing(ArrayConfig(32, 32), m, k, n).serial == printed + 1


def test_a_gate_of_the_multiplier_stuck() -> None:
    # The first gates of every built-in multiplier are the AND gates of the weight's bit 0 with the activation's bits:
    # location 1 is the output of w[0] and a[1]. PE (0, 0) holds 5 = 0b101 and meets 1 and 3 = 0b11. Stuck at 0, the
    # partial product of 3 with weight 2 is lost: 3*5 - 2 + 4*7 = 41. Row 0 meets a[1] = 0: nothing changes.
    assert outputs(Fault(0, 0, Site.MULTIPLIER, 1, AT_0)) == [[19, 22], [41, 50]]
    # Stuck at 1, row 0 gets it too: 1*5 + 2 + 14 = 21. PE (0, 1) holds 6, whose bit 0 is 0: both of its rows get it.
    assert outputs(Fault(0, 0, Site.MULTIPLIER, 1, AT_1)) == [[21, 22], [43, 50]]
    assert outputs(Fault(0, 1, Site.MULTIPLIER, 1, AT_1)) == [[19, 24], [43, 52]]
    # The same gate's input pins: w[0] on pin 0, a[1] on pin 1; their locations follow all outputs, gate by gate.
    gates = 321
    assert outputs(Fault(0, 1, Site.MULTIPLIER, gates + 2, AT_1)) == [[19, 22], [43, 52]]
    assert outputs(Fault(0, 0, Site.MULTIPLIER, gates + 3, AT_1)) == [[21, 22], [43, 50]]


def test_a_gate_of_the_multiplier_flips() -> None:
    # PE (0, 0) meets row 0 in cycle 2 (1 * 5: the partial product of a[1] is 0, and becomes 1) and row 1 in cycle 3.
    assert outputs(Fault(0, 0, Site.MULTIPLIER, 1, FLIP, cycle=2)) == [[21, 22], [43, 50]]
    assert outputs(Fault(0, 0, Site.MULTIPLIER, 1, FLIP, cycle=3)) == [[19, 22], [41, 50]]
    assert outputs(Fault(0, 0, Site.MULTIPLIER, 1, FLIP, cycle=1)) == [[19, 22], [43, 50]]


def test_a_bypass_hides_the_multiplier() -> None:
    bypass = np.array([[True, False], [False, False]])
    expected = outputs(bypass=bypass)
    assert expected == [[14, 22], [28, 50]]
    assert outputs(Fault(0, 0, Site.MULTIPLIER, 1, AT_1), bypass=bypass) == expected


def test_a_table_in_place_of_a_faulty_multiplier() -> None:
    # Every product one too large, in PE (1, 1) only.
    table = exact_products(8, 8) + np.int16(1)
    config = ArrayConfig(2, 2, multiplier=Multiplier.from_tables("one more", None, [table]))
    faults = FaultMap.from_faults(config, [Fault(1, 1, Site.MULTIPLIER, 0, AT_1)])
    assert simulate_gemm(X, W, config, faults).outputs.tolist() == [[19, 23], [43, 51]]
    # The same table as the multiplier of all PEs: two products in each sum.
    everywhere = ArrayConfig(2, 2, multiplier=Multiplier.from_tables("one more", table, []))
    assert simulate_gemm(X, W, everywhere).outputs.tolist() == [[21, 24], [45, 52]]

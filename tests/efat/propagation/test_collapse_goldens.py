"""Rules about faults on arrays and weights so small that they can be checked by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from efat.propagation.collapsing.collapse import Collapse, Rule
from efat.propagation.population import POPULATION_DTYPE, LayerUse, Population
from efat.propagation.request import Stratum
from simulator import ArrayConfig, Kind, Site
from simulator.errors import InputError
from simulator.multipliers.multiplier import Multiplier, exact_products
from tests.support.strategies import random_tables

STUCK = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)


def table_of(*faults: tuple[int, int, Site, int, Kind]) -> npt.NDArray[np.void]:
    """Permanent faults."""
    return np.array([(*fault, -1, -1, -1, -1) for fault in faults], POPULATION_DTYPE)


def use_of(weights: list[list[int]], seen: list[list[int]], *, act_bits: int = 3, m: int = 2) -> LayerUse:
    """A layer from weights [N, K] and the activations that each column of X has, both without a group."""
    marks = np.zeros((1, len(seen), 1 << act_bits), np.bool_)
    for place, values in enumerate(seen):
        marks[0, place, values] = True
    return LayerUse("layer", m, np.array([weights], np.int8), marks)


# Unsigned activations; weights 1 and 2 on rows 0 and 1, row 2 below them; nothing in column 1.
GOLDEN = ArrayConfig(3, 2, 3, 3, act_signed=False, acc_bits=8)
GOLDEN_USE = use_of([[1, 2]], [[0, 2, 6], [1, 5]])


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        # Nothing is kept of column 1, though an activation gets there.
        ((0, 1, Site.PSUM, 4, Kind.STUCK_AT_1), Rule.UNUSED),
        ((0, 1, Site.ACTIVATION, 0, Kind.STUCK_AT_1), Rule.UNUSED),
        ((0, 1, Site.ACCUMULATOR, 0, Kind.STUCK_AT_1), Rule.UNUSED),
        # Below the weights a product stuck at 1 is added, and one stuck at 0 is what it was; any weight times 0 is 0.
        ((2, 0, Site.PRODUCT, 1, Kind.STUCK_AT_1), Rule.SIMULATED),
        ((2, 0, Site.PRODUCT, 1, Kind.STUCK_AT_0), Rule.UNUSED),
        ((2, 0, Site.WEIGHT, 1, Kind.STUCK_AT_1), Rule.UNUSED),
        ((2, 0, Site.WEIGHT_LOAD, 1, Kind.STUCK_AT_1), Rule.UNUSED),
        ((2, 0, Site.ACTIVATION, 1, Kind.STUCK_AT_1), Rule.UNUSED),
        # Bit 0 of weight 1 is 1, and bit 0 of weight 2 is 0.
        ((0, 0, Site.WEIGHT, 0, Kind.STUCK_AT_1), Rule.SAME_VALUE),
        ((0, 0, Site.WEIGHT, 0, Kind.STUCK_AT_0), Rule.SIMULATED),
        ((1, 0, Site.WEIGHT_LOAD, 0, Kind.STUCK_AT_0), Rule.SAME_VALUE),
        # Activations 0, 2 and 6 on row 0; 1 and 5 on row 1.
        ((0, 0, Site.ACTIVATION, 0, Kind.STUCK_AT_0), Rule.SAME_VALUE),
        ((0, 0, Site.ACTIVATION, 1, Kind.STUCK_AT_1), Rule.SIMULATED),
        ((1, 0, Site.ACTIVATION, 0, Kind.STUCK_AT_1), Rule.SAME_VALUE),
        ((1, 0, Site.ACTIVATION, 1, Kind.STUCK_AT_0), Rule.SAME_VALUE),
        # Products 0, 2 and 6 on row 0.
        ((0, 0, Site.PRODUCT, 0, Kind.STUCK_AT_0), Rule.SAME_VALUE),
        ((0, 0, Site.PRODUCT, 3, Kind.STUCK_AT_0), Rule.SAME_VALUE),
        ((0, 0, Site.PRODUCT, 2, Kind.STUCK_AT_0), Rule.SIMULATED),
        # Sums are even, positive and at most 6 + 10.
        ((1, 0, Site.PSUM, 0, Kind.STUCK_AT_0), Rule.SAME_VALUE),
        ((1, 0, Site.PSUM, 7, Kind.STUCK_AT_0), Rule.SAME_VALUE),
        ((1, 0, Site.PSUM, 5, Kind.STUCK_AT_0), Rule.SAME_VALUE),
        ((1, 0, Site.PSUM, 4, Kind.STUCK_AT_0), Rule.SIMULATED),
        ((0, 0, Site.ACCUMULATOR, 6, Kind.STUCK_AT_0), Rule.SAME_VALUE),
    ],
)
def test_golden_faults_that_change_nothing(fault: tuple[int, int, Site, int, Kind], rule: Rule) -> None:
    found, standing = Collapse(GOLDEN, [GOLDEN_USE]).rules(table_of(fault))
    assert Rule(found[0]) is rule
    assert standing == table_of(fault)


@pytest.mark.parametrize(
    ("fault", "standing"),
    [
        # Row 2 has no weight: what is stuck on the load chain from row 1 on is stuck in row 1 alone.
        ((1, 0, Site.WEIGHT_LOAD, 0, Kind.STUCK_AT_1), (1, 0, Site.WEIGHT, 0, Kind.STUCK_AT_1)),
        # Bit 0 of weight 1 is stuck at what it is.
        ((0, 0, Site.WEIGHT_LOAD, 0, Kind.STUCK_AT_1), (1, 0, Site.WEIGHT, 0, Kind.STUCK_AT_1)),
        # With bit 0 stuck at 0 the weight on row 0 is 0, and so is its product with bit 0 and nothing else.
        ((0, 0, Site.WEIGHT_LOAD, 0, Kind.STUCK_AT_0), (0, 0, Site.WEIGHT, 0, Kind.STUCK_AT_0)),
        # Nothing is added on row 2, all sums are stored once.
        ((2, 0, Site.PSUM, 4, Kind.STUCK_AT_1), (1, 0, Site.PSUM, 4, Kind.STUCK_AT_1)),
        ((0, 0, Site.ACCUMULATOR, 4, Kind.STUCK_AT_1), (1, 0, Site.PSUM, 4, Kind.STUCK_AT_1)),
        # An even number is added on row 1: bit 0 is that of the first product.
        ((0, 0, Site.ACCUMULATOR, 0, Kind.STUCK_AT_1), (0, 0, Site.PRODUCT, 0, Kind.STUCK_AT_1)),
        ((1, 0, Site.PSUM, 0, Kind.STUCK_AT_1), (0, 0, Site.PRODUCT, 0, Kind.STUCK_AT_1)),
        ((0, 0, Site.PSUM, 4, Kind.STUCK_AT_1), (0, 0, Site.PRODUCT, 4, Kind.STUCK_AT_1)),
        # The highest bit of a product is that of its sign, and all above it in a sum.
        ((0, 0, Site.PSUM, 5, Kind.STUCK_AT_1), (0, 0, Site.PSUM, 5, Kind.STUCK_AT_1)),
        ((0, 0, Site.PRODUCT, 5, Kind.STUCK_AT_1), (0, 0, Site.PRODUCT, 5, Kind.STUCK_AT_1)),
    ],
)
def test_golden_faults_that_are_the_same(
    fault: tuple[int, int, Site, int, Kind], standing: tuple[int, int, Site, int, Kind]
) -> None:
    found, other = Collapse(GOLDEN, [GOLDEN_USE]).rules(table_of(fault))
    assert Rule(found[0]) is (Rule.SIMULATED if fault == standing else Rule.EQUIVALENT)
    assert other == table_of(standing)


def test_only_faults_that_are_there_stand_for_others() -> None:
    accumulator = (0, 0, Site.ACCUMULATOR, 4, Kind.STUCK_AT_1)
    adder = (2, 0, Site.PSUM, 4, Kind.STUCK_AT_1)
    collapse = Collapse(GOLDEN, [GOLDEN_USE], [accumulator[2:]])
    assert collapse.rules(table_of(accumulator))[0].tolist() == [Rule.SIMULATED]
    with pytest.raises(ValueError, match="bit 4 of PSUM with STUCK_AT_1: expected one of the strata"):
        collapse.rules(table_of(accumulator, adder))
    # Bit 0 of the sum is that of the first product, bit 4 is not.
    for bit in (0, 4):
        strata: list[Stratum] = [(Site.ACCUMULATOR, bit, Kind.STUCK_AT_1)]
        counts = Collapse(GOLDEN, [GOLDEN_USE], strata).counts(Population(GOLDEN, [GOLDEN_USE.shape], strata, 1))
        assert counts == {Rule.SIMULATED: 1, Rule.UNUSED: 1, Rule.SAME_VALUE: 0, Rule.EQUIVALENT: 0}
    both = Collapse(GOLDEN, [GOLDEN_USE], [accumulator[2:], adder[2:]])
    assert both.rules(table_of(accumulator))[1].tolist() == table_of((1, 0, *adder[2:])).tolist()


def test_a_layer_of_two_folds_keeps_the_accumulator_by_itself() -> None:
    # Four reduction indices on three rows; stuck at 1 in the last row it is added twice.
    two_folds = use_of([[1, 2, 2, 1]], [[0, 2, 6]] * 4)
    for uses, bit in itertools.product(([two_folds], [GOLDEN_USE, two_folds]), (0, 4)):
        fault = table_of((0, 0, Site.ACCUMULATOR, bit, Kind.STUCK_AT_1))
        found, standing = Collapse(GOLDEN, uses).rules(fault)
        assert found.tolist() == [Rule.SIMULATED]
        assert standing == fault
        strata: list[Stratum] = [(Site.ACCUMULATOR, bit, Kind.STUCK_AT_1)]
        counts = Collapse(GOLDEN, uses, strata).counts(Population(GOLDEN, [use.shape for use in uses], strata, 1))
        assert counts == {Rule.SIMULATED: 1, Rule.UNUSED: 1, Rule.SAME_VALUE: 0, Rule.EQUIVALENT: 0}


def test_layers_share_the_array() -> None:
    # Each layer by itself leaves the bit as it is; together they do not.
    even, odd = use_of([[2]], [[1, 3]]), use_of([[3]], [[1, 3]])
    stuck = [table_of((0, 0, Site.WEIGHT, 0, kind)) for kind in STUCK]
    for uses, rules in (
        ([even], [Rule.SAME_VALUE, Rule.SIMULATED]),
        ([odd], [Rule.SIMULATED, Rule.SAME_VALUE]),
        ([even, odd], [Rule.SIMULATED, Rule.SIMULATED]),
    ):
        collapse = Collapse(GOLDEN, uses)
        assert [Rule(collapse.rules(fault)[0][0]) for fault in stuck] == rules


def test_approximate_multipliers_multiply_zeros_to_something() -> None:
    # 0 times 0 is 1, and 1 times 0 is 0: a weight stuck at 1 acts below the weights.
    table = exact_products(3, 3, act_signed=False)
    table[0, 0] = 1
    odd = table.copy()
    odd[0, 0] = 0
    multiplier = Multiplier.from_tables("zeros", table, [odd], act_signed=False)
    collapse = Collapse(replace(GOLDEN, multiplier=multiplier), [GOLDEN_USE])
    faults = table_of(
        (2, 0, Site.WEIGHT, 0, Kind.STUCK_AT_1),
        (2, 0, Site.WEIGHT, 0, Kind.STUCK_AT_0),
        (2, 0, Site.PRODUCT, 0, Kind.STUCK_AT_1),
        (2, 0, Site.MULTIPLIER, 0, Kind.STUCK_AT_1),
        (2, 0, Site.PSUM, 0, Kind.STUCK_AT_1),
    )
    rule, standing = collapse.rules(faults)
    assert [Rule(found) for found in rule] == [
        Rule.SIMULATED, Rule.UNUSED, Rule.UNUSED, Rule.EQUIVALENT, Rule.SIMULATED,
    ]  # fmt: skip
    assert standing[3] == faults[0]


def test_gates_that_drive_a_product_bit_are_that_bit() -> None:
    config = ArrayConfig(1, 1, 4, 4, multiplier="wallace")
    netlist = config.pe_multiplier.netlist
    assert netlist is not None
    use = use_of([list(range(-8, 8))], [list(range(16))] * 16, act_bits=4)
    collapse = Collapse(config, [use])
    drivers = netlist.outputs.astype(np.int64) - 8
    for kind in STUCK:
        faults = table_of(*((0, 0, Site.MULTIPLIER, gate, kind) for gate in drivers.tolist()))
        rule, standing = collapse.rules(faults)
        assert (rule == Rule.EQUIVALENT).all()
        assert standing["site"].tolist() == [Site.PRODUCT] * 8
        assert standing["bit"].tolist() == list(range(8))


def flips_of(*faults: tuple[int, int, Site, int, int]) -> npt.NDArray[np.void]:
    """FLIPs by row, column, site, bit and cycle, in the first layer and image."""
    return np.array([(*fault[:4], Kind.FLIP, 0, 0, fault[4], 0) for fault in faults], POPULATION_DTYPE)


def test_golden_flips() -> None:
    # Three load cycles, and row m of X is at PE (r, c) in streaming cycle m + r + c; seven cycles in all.
    expected = {
        # The weight of row 1 passes row 0 in load cycle 1 and is loaded in row 1 in cycle 2.
        (0, 0, Site.WEIGHT_LOAD, 0, 1): Rule.SIMULATED,
        (1, 0, Site.WEIGHT_LOAD, 0, 2): Rule.SIMULATED,
        (1, 0, Site.WEIGHT_LOAD, 0, 0): Rule.UNUSED,
        (0, 0, Site.WEIGHT_LOAD, 0, 0): Rule.UNUSED,
        (0, 0, Site.WEIGHT_LOAD, 0, 3): Rule.UNUSED,
        # Stored weights matter from the first streaming cycle to the last row of X.
        (1, 0, Site.WEIGHT, 0, 2): Rule.UNUSED,
        (1, 0, Site.WEIGHT, 0, 3): Rule.SIMULATED,
        (1, 0, Site.WEIGHT, 0, 5): Rule.SIMULATED,
        (1, 0, Site.WEIGHT, 0, 6): Rule.UNUSED,
        (2, 0, Site.WEIGHT, 0, 5): Rule.UNUSED,
        (1, 0, Site.ACTIVATION, 0, 3): Rule.UNUSED,
        (1, 0, Site.ACTIVATION, 0, 4): Rule.SIMULATED,
        (1, 1, Site.ACTIVATION, 0, 5): Rule.UNUSED,
        (2, 0, Site.ACTIVATION, 0, 5): Rule.UNUSED,
        (2, 0, Site.PRODUCT, 0, 5): Rule.SIMULATED,
        (2, 0, Site.PRODUCT, 0, 4): Rule.UNUSED,
        (2, 1, Site.PSUM, 0, 6): Rule.UNUSED,
        (0, 0, Site.ACCUMULATOR, 0, 5): Rule.SIMULATED,
        (0, 0, Site.ACCUMULATOR, 0, 4): Rule.UNUSED,
    }
    rule, _ = Collapse(GOLDEN, [GOLDEN_USE]).rules(flips_of(*expected))
    assert dict(zip(expected, (Rule(found) for found in rule), strict=True)) == expected
    # Weights that meet zeros only, and activations that meet weight 0.
    zeros = use_of([[1, 0]], [[0], [1, 5]])
    unseen = flips_of((0, 0, Site.WEIGHT, 1, 3), (1, 0, Site.ACTIVATION, 1, 4), (1, 0, Site.WEIGHT, 1, 4))
    rule, _ = Collapse(GOLDEN, [zeros]).rules(unseen)
    assert rule.tolist() == [Rule.SAME_VALUE, Rule.SAME_VALUE, Rule.SIMULATED]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"activations of layer layer are of \(1, 2, 4\): expected \(1, 2, 8\)"):
        Collapse(GOLDEN, [LayerUse("layer", 1, np.zeros((1, 2, 2), np.int8), np.ones((1, 2, 4), np.bool_))])
    collapse = Collapse(GOLDEN, [GOLDEN_USE])
    strata: list[Stratum] = [(Site.WEIGHT, 0, Kind.STUCK_AT_0)]
    for population, message in (
        (Population(replace(GOLDEN, rows=4), [GOLDEN_USE.shape], strata, 1), "rows=3"),
        (Population(GOLDEN, [GOLDEN_USE.shape] * 2, strata, 1), "layers"),
    ):
        with pytest.raises(ValueError, match=message):
            collapse.counts(population)


def test_tables_of_several_locations_are_told_apart(seed: int) -> None:
    random = np.random.default_rng(seed)
    multiplier = random_tables(random, 3, 3, act_signed=False)
    collapse = Collapse(replace(GOLDEN, multiplier=multiplier), [use_of([[1]], [list(range(8))])])
    assert multiplier.tables is not None
    for location in range(multiplier.locations):
        faults = table_of(*((0, 0, Site.MULTIPLIER, location, kind) for kind in STUCK))
        rule, standing = collapse.rules(faults)
        if (multiplier.tables[location + 1, 1] == multiplier.tables[0, 1]).all():
            assert rule.tolist() == [Rule.SAME_VALUE] * 2
        else:
            # Whatever is stuck there, the PE multiplies by the same table.
            assert rule[1] == Rule.EQUIVALENT
            assert standing[0] == standing[1]

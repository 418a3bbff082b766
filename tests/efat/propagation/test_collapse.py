"""What is known of faults without simulating them is so: by both engines, and by going through whole populations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import configs, random_tables

from efat.propagation.collapse import Collapse, Rule
from efat.propagation.population import POPULATION_DTYPE, LayerUse, Population, Stratum
from simulator import ArrayConfig, Fault, FaultMap, Kind, Site, simulate_gemm
from simulator.multiplier import Multiplier, exact_products
from training.chip_faults import chip_faults
from training.emulation import faulty_gemm
from training.flips import upsets

STUCK = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)
WITHOUT_CHOICE = (Site.PRODUCT, Site.PSUM, Site.ACCUMULATOR)
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layer:
    """Operands of a layer on some images: x int64 [images, groups, m, K], weights int8 [groups, N, K]."""

    x: Int64Array
    weights: npt.NDArray[np.int8]

    def use(self, config: ArrayConfig) -> LayerUse:
        """What is told of it."""
        _, groups, m, k = self.x.shape
        patterns = self.x & ((1 << config.act_bits) - 1)
        seen = np.zeros((groups, k, 1 << config.act_bits), np.bool_)
        for group in range(groups):
            for place in range(k):
                seen[group, place, patterns[:, group, :, place].reshape(-1)] = True
        return LayerUse("layer", m, self.weights, seen)


@dataclass(frozen=True)
class Case:
    """An array, what runs on it, and faults."""

    config: ArrayConfig
    layers: tuple[Layer, ...]
    strata: tuple[Stratum, ...]

    def __repr__(self) -> str:
        layers = "\n".join(f"x={layer.x.tolist()}\nw={layer.weights.tolist()}" for layer in self.layers)
        locations = sorted({bit for site, bit, _ in self.strata if site is Site.MULTIPLIER})
        return f"{self.config}\n{layers}\nlocations={locations}"

    def collapse(self) -> Collapse:
        """What says the rules."""
        return Collapse(self.config, self.uses(), self.strata)

    def uses(self) -> list[LayerUse]:
        """What is told of the layers."""
        return [layer.use(self.config) for layer in self.layers]

    def population(self, kinds: tuple[Kind, ...] = tuple(Kind)) -> Population:
        """All faults of some kinds."""
        strata = [stratum for stratum in self.strata if stratum[2] in kinds]
        return Population(self.config, [use.shape for use in self.uses()], strata, len(self.layers[0].x))


def some_numbers(random: np.random.Generator, shape: tuple[int, ...], limits: tuple[int, int]) -> Int64Array:
    """Integers within limits, among which rules find something: few different ones, zeros, even ones, of one sign."""
    low, high = limits
    style = random.integers(7)
    values = random.integers(low, high + 1, shape)
    if style == 0:
        return np.where(random.random(shape) < 0.3, values, 0)
    if style == 1:
        return random.choice(random.integers(low, high + 1, 2), shape)
    if style == 2:
        return np.maximum(values, 0)
    if style == 3:
        return values & ~int(random.integers(0, high + 1))
    if style == 4:
        # The same for each row of the array, or rather for the last index.
        return np.broadcast_to(
            random.integers(low, high + 1, shape[-1]) * random.integers(0, 2, shape[-1]), shape
        ).copy()
    if style == 5:
        return np.clip(values, -1, 1)
    return values


@st.composite
def cases(draw: st.DrawFn, *, one_fold: bool = False, locations: int = 6) -> Case:
    """One to three layers on an array of at most 6 x 6 PEs, and all strata of some sites, but few of a multiplier."""
    config = draw(configs())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    config = replace(config, rows=int(random.integers(1, 7)), cols=int(random.integers(1, 7)))
    images, layers = int(random.integers(1, 4)), []
    for _ in range(random.integers(1, 4)):
        groups, m, n = (int(random.integers(1, most)) for most in (3, 4, 9))
        k = int(random.integers(1, 1 + (config.rows if one_fold else 13)))
        layers.append(
            Layer(
                some_numbers(random, (images, groups, m, k), config.act_range),
                some_numbers(random, (groups, n, k), config.weight_range).astype(np.int8),
            )
        )
    strata = []
    left_out = random.permutation(Site)[: random.choice([0, 0, 2, 4])].tolist()
    within_pe = Site(random.choice([Site.WEIGHT, Site.PRODUCT]))
    for site in sorted({*Site} - {*left_out} | {within_pe}):
        bits = np.arange(site.bits(config))
        if site is Site.MULTIPLIER:
            bits = np.sort(random.permutation(bits)[:locations])
        strata += [(site, bit, kind) for bit in bits.tolist() for kind in Kind]
    return Case(config, tuple(layers), tuple(strata))


def fault_of(row: np.void) -> Fault:
    """A row of a population's table as a fault of one array."""
    kind = Kind(int(row["kind"]))
    cycle = int(row["cycle"]) if kind is Kind.FLIP else None
    return Fault(int(row["row"]), int(row["col"]), Site(int(row["site"])), int(row["bit"]), kind, cycle)


def outputs(case: Case, row: np.void | None, layers: tuple[Layer, ...]) -> list[Int64Array]:
    """What both engines make of all GEMMs that a fault can act in, or of all."""
    found = []
    faults = FaultMap.from_faults(case.config, [] if row is None else [fault_of(row)])
    for number, layer in enumerate(layers):
        groups, k = layer.x.shape[1], layer.x.shape[3]
        for group in range(groups):
            x, w = layer.x[:, group].reshape(-1, k), layer.weights[group].T.astype(np.int64)
            if row is not None and row["kind"] == Kind.FLIP:
                if (row["layer"], row["group"]) != (number, group):
                    continue
                x = layer.x[row["image"], group]
            simulated = simulate_gemm(x, w, case.config, faults).outputs
            emulated = faulty_gemm(torch.from_numpy(x), torch.from_numpy(w), case.config, faults).numpy()
            np.testing.assert_array_equal(emulated, simulated)
            found.append(simulated.astype(np.int64))
    return found


def changes(case: Case, row: np.void, clean: list[Int64Array]) -> bool:
    """Whether a fault changes any output, in the images that it is there for."""
    if row["kind"] == Kind.FLIP:
        before = sum(layer.x.shape[1] for layer in case.layers[: row["layer"]])
        m = case.layers[row["layer"]].x.shape[2]
        clean = [clean[before + row["group"]][m * row["image"] : m * (row["image"] + 1)]]
    return not same(outputs(case, row, case.layers), clean)


def with_other_inputs(case: Case, random: np.random.Generator) -> tuple[Layer, ...]:
    """The layers with inputs that faults further up may have made."""
    low, high = case.config.act_range
    return tuple(Layer(random.integers(low, high + 1, layer.x.shape), layer.weights) for layer in case.layers)


def pick(random: np.random.Generator, table: npt.NDArray[np.void], rule: npt.NDArray[np.uint8]) -> Int64Array:
    """The place of one fault for each site, rule, and being a FLIP."""
    keys = np.stack([table["site"], rule, table["kind"] == Kind.FLIP])
    _, group = np.unique(keys, axis=1, return_inverse=True)
    order = random.permutation(len(table))
    _, first = np.unique(group.reshape(-1)[order], return_index=True)
    chosen: Int64Array = random.permutation(order[first])
    return chosen


def same(one: list[Int64Array], other: list[Int64Array]) -> bool:
    return len(one) == len(other) > 0 and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(max_examples=8)
@given(cases(), st.integers(0, 2**32 - 1))
def test_rules_are_so_on_both_engines(case: Case, seed: int) -> None:
    random = np.random.default_rng(seed)
    collapse = case.collapse()
    clean = outputs(case, None, case.layers)
    for kinds in (STUCK, (Kind.FLIP,)):
        population = case.population(kinds)
        table = population.faults(population.sample(min(population.size, 20_000), seed))
        rule, standing = collapse.rules(table)
        np.testing.assert_array_equal(standing[rule != Rule.EQUIVALENT], table[rule != Rule.EQUIVALENT])
        if kinds != STUCK:
            assert (rule != Rule.EQUIVALENT).all()
        of_standing, _ = collapse.rules(standing[rule == Rule.EQUIVALENT])
        assert (of_standing == Rule.SIMULATED).all()
        assert (population.indices(standing) >= 0).all()
        for place in pick(random, table, rule)[:12]:
            fault = table[place]
            if rule[place] in (Rule.UNUSED, Rule.SAME_VALUE):
                assert not changes(case, fault, clean), fault
            elif rule[place] == Rule.EQUIVALENT:
                other = with_other_inputs(case, random)
                assert fault != standing[place]
                assert same(outputs(case, fault, other), outputs(case, standing[place], other)), fault
            elif fault["kind"] == Kind.FLIP and fault["site"] in WITHOUT_CHOICE:
                assert changes(case, fault, clean), fault


@settings(max_examples=6)
@given(cases(one_fold=True), st.integers(0, 2**32 - 1))
def test_faults_within_a_pe_that_are_left_change_something(case: Case, seed: int) -> None:
    # With one k-fold nothing can make up for a product that changes.
    collapse, population = case.collapse(), case.population(STUCK)
    table = population.faults(np.arange(population.size))
    within = np.isin(table["site"], (Site.WEIGHT, Site.PRODUCT, Site.MULTIPLIER))
    table = table[within]
    rule, _ = collapse.rules(table)
    clean = outputs(case, None, case.layers)
    for place in pick(np.random.default_rng(seed), table, rule):
        expected = rule[place] in (Rule.SIMULATED, Rule.EQUIVALENT)
        assert changes(case, table[place], clean) == expected, table[place]


@settings(max_examples=6)
@given(cases(one_fold=True), st.integers(0, 2**32 - 1))
def test_faults_within_a_pe_that_are_left_differ_from_each_other(case: Case, seed: int) -> None:
    random = np.random.default_rng(seed)
    collapse, population = case.collapse(), case.population(STUCK)
    table = population.faults(np.arange(population.size))
    row, col = random.integers(case.config.rows), random.integers(case.config.cols)
    within = np.isin(table["site"], (Site.WEIGHT, Site.PRODUCT, Site.MULTIPLIER))
    table = table[within & (table["row"] == row) & (table["col"] == col)]
    rule, _ = collapse.rules(table)
    left = random.permutation(table[rule == Rule.SIMULATED])[:12]
    low, high = case.config.act_range
    every = np.arange(low, high + 1)[:, None, None, None]
    layers = tuple(
        Layer(np.tile(every, (1, len(layer.weights), 1, layer.weights.shape[2])), layer.weights)
        for layer in case.layers
    )
    found = {tuple(part.tobytes() for part in outputs(case, fault, layers)) for fault in left}
    assert len(found) == len(left)


@settings(max_examples=8)
@given(cases(), st.integers(0, 2**32 - 1))
def test_counts_are_those_of_the_whole_population(case: Case, seed: int) -> None:
    collapse = case.collapse()
    chosen = np.random.default_rng(seed).permutation(len(case.strata))
    of_kind = {kind: [case.strata[place] for place in chosen if case.strata[place][2] is kind] for kind in Kind}
    strata = of_kind[Kind.FLIP][:2] + of_kind[Kind.STUCK_AT_0][:40] + of_kind[Kind.STUCK_AT_1]
    population = Population(case.config, [use.shape for use in case.uses()], strata, 2)
    expected = np.zeros((len(strata), len(Rule)), np.int64)
    for start in range(0, population.size, 1 << 18):
        indices = np.arange(start, min(population.size, start + (1 << 18)))
        rule, _ = collapse.rules(population.faults(indices))
        np.add.at(expected, (population.stratum_of(indices), rule), 1)
    assert collapse.stratum_counts(population) == [dict(zip(Rule, counts, strict=True)) for counts in expected.tolist()]
    assert collapse.counts(population) == dict(zip(Rule, expected.sum(0).tolist(), strict=True))


@settings(max_examples=8)
@given(cases(), st.integers(0, 2**32 - 1))
def test_flips_touch_what_they_touch_in_the_emulation(case: Case, seed: int) -> None:
    config, collapse, population = case.config, case.collapse(), case.population((Kind.FLIP,))
    # One of each of twelve strata, so that no net outnumbers others.
    counts = np.zeros(len(population.strata), np.int64)
    counts[np.random.default_rng(seed).permutation(len(counts))[:12]] = 4
    table = population.faults(population.sample(counts, seed))
    rule, _ = collapse.rules(table)
    bypass = np.zeros((config.rows, config.cols), np.bool_)
    for fault, found in zip(table, rule, strict=True):
        layer = case.layers[fault["layer"]]
        _, _, m, k = layer.x.shape
        n = layer.weights.shape[1]
        chip = chip_faults(FaultMap.from_faults(config, [fault_of(fault)]), bypass)
        touched = False
        for upset in upsets(chip, m, k, n):
            n_fold, k_fold = divmod(upset.fold, -(-k // config.rows))
            touched = n_fold * config.cols + upset.first_column < n
            used = k_fold * config.rows + upset.row < k
        if not touched:
            assert found == Rule.UNUSED, fault
        elif fault["site"] in WITHOUT_CHOICE:
            assert found == Rule.SIMULATED, fault
        else:
            assert found in (Rule.SIMULATED, Rule.SAME_VALUE if used else Rule.UNUSED), fault


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


def test_what_does_not_fit_is_refused(seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = random.integers(-4, 4, (1, 2, 2)).astype(np.int8)
    seen = random.random((1, 2, 8)) < 0.5
    for use, message in (
        (LayerUse("layer", 0, weights, seen), "m 0"),
        (LayerUse("layer", 1, weights[0], seen), "expected int8"),
        (LayerUse("layer", 1, np.full_like(weights, 4), seen), r"outside -4\.\.3"),
        (LayerUse("layer", 1, weights, seen[:, :, :4]), "seen bool"),
    ):
        with pytest.raises(ValueError, match=message):
            Collapse(GOLDEN, [use])
    collapse = Collapse(GOLDEN, [GOLDEN_USE])
    strata: list[Stratum] = [(Site.WEIGHT, 0, Kind.STUCK_AT_0)]
    for population, message in (
        (Population(replace(GOLDEN, rows=4), [GOLDEN_USE.shape], strata, 1), "rows=3"),
        (Population(GOLDEN, [GOLDEN_USE.shape] * 2, strata, 1), "layers"),
    ):
        with pytest.raises(ValueError, match=message):
            collapse.counts(population)
    with pytest.raises(ValueError, match="dtype"):
        collapse.rules(np.zeros(3, [("row", "u1")]))


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

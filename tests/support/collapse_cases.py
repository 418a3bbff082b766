"""Random layers on small arrays, in which rules about faults find something, and what both engines make of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st

from efat.propagation.collapsing.collapse import Collapse
from efat.propagation.population import LayerUse, Population
from efat.propagation.request import Stratum
from simulator import ArrayConfig, Fault, FaultMap, Kind, Site, simulate_gemm
from simulator.dtypes import Int64Array
from tests.support.strategies import configs
from training.emulation.gemm import faulty_gemm

STUCK = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)


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
    left_out = random.permutation([*Site])[: random.choice([0, 0, 2, 4])].tolist()
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
    """Whether outputs are equal; there are some."""
    return len(one) == len(other) > 0 and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

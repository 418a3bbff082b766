"""What one fault adds to a layer's accumulators, held against both engines on the layer's own GEMMs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site, gemm_timing, simulate_gemm
from simulator.dtypes import Int32Array
from simulator.multipliers.multiplier import Multiplier
from tests.support.strategies import configs, convolutions, linear_layers, random_tables
from training import faulty_gemm
from training.injection.fault_effect import FaultEffect, add, fault_effect
from training.injection.layer_gemm import GemmInMemory, Memory
from training.layers.accelerator import Accelerator
from training.layers.quantized import QuantizedConv2d, QuantizedLayer, QuantizedLinear

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


@dataclass(frozen=True)
class EffectCase:
    """A layer, images in memory, and a fault."""

    gemm: GemmInMemory
    memory: Memory
    fault: Fault
    group: int | None

    def __repr__(self) -> str:
        gemm = self.gemm
        return (
            f"{gemm.layer} of {list(gemm.input_shape)} on {gemm.config}\nM, K, N={gemm.m}, {gemm.k}, {gemm.n} "
            f"group={self.group} {self.fault}\nw={gemm.weights.tolist()}\nmemory={self.memory.tolist()}"
        )


def quantized(layer: nn.Conv2d | nn.Linear, config: ArrayConfig) -> QuantizedLayer:
    """On an array without faults; normal numbers beyond 2.5 are clipped."""
    chip = Accelerator(config)
    kind = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
    return kind(layer, 2.5 / config.act_range[1], chip, "layer")  # type: ignore[arg-type]


@st.composite
def effect_cases(draw: st.DrawFn, site: Site | None = None) -> EffectCase:
    """Any layer on any small array, its weights and activations as quantised or over the whole range of numbers."""
    config = draw(configs())
    layer, x = draw(linear_layers() | convolutions())
    shape = tuple(x.shape[-3:]) if isinstance(layer, nn.Conv2d) else tuple(x.shape[-draw(st.integers(1, x.ndim)) :])
    gemm = GemmInMemory.of(quantized(layer, config), shape)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    memory = gemm.memory(torch.from_numpy(random.normal(size=(draw(st.integers(1, 3)), *shape)).astype(np.float32)))
    if draw(st.booleans()):
        memory = random.integers(*config.act_range, memory.shape, endpoint=True).astype(memory.dtype)
        weights = random.integers(*config.weight_range, gemm.weights.shape, endpoint=True).astype(np.int8)
        weights *= random.random(weights.shape) < draw(st.sampled_from([0.3, 1]))
        weights.flags.writeable = False
        gemm = replace(gemm, weights=weights)
    site = draw(st.sampled_from(Site)) if site is None else site
    fault = Fault(
        0 if site == Site.ACCUMULATOR else draw(st.integers(0, config.rows - 1)),
        draw(st.integers(0, config.cols - 1)),
        site,
        draw(st.integers(0, site.bits(config) - 1)),
        draw(st.sampled_from((Kind.STUCK_AT_0, Kind.STUCK_AT_1))),
    )
    timing = gemm_timing(config, gemm.m, gemm.k, gemm.n)
    if draw(st.booleans()):
        cycle = draw(st.integers(0, timing.serial - 1))
        if gemm.m and draw(st.booleans()):
            cycle = busy_cycle(gemm, fault, draw(st.integers(0, timing.folds - 1)), draw(st.integers(0, gemm.m - 1)))
        fault = replace(fault, kind=Kind.FLIP, cycle=cycle)
    return EffectCase(gemm, memory, fault, draw(st.none() | st.integers(0, gemm.groups - 1)))


def busy_cycle(gemm: GemmInMemory, fault: Fault, fold: int, m: int) -> int:
    """A cycle of a fold in which the net of a fault carries what is kept, for row `m` of X if it has to do with one."""
    config = gemm.config
    start = fold * gemm_timing(config, gemm.m, gemm.k, gemm.n).cycles_per_fold
    if fault.site == Site.WEIGHT_LOAD:
        return start + fault.row + m % (config.rows - fault.row)
    return start + config.rows + m + fault.col + (config.rows - 1 if fault.site == Site.ACCUMULATOR else fault.row)


def operands(gemm: GemmInMemory, image: Memory, group: int) -> tuple[Memory, Memory]:
    """X [M, K] of one image and one group, and W [K, N]."""
    return image[gemm.start[:, None] + gemm.offset[group]], gemm.weights[group].T


def run(case: EffectCase, faults: FaultMap | None, *, cycles: bool = False) -> Int32Array:
    """Accumulators [S, outputs, M] of GEMMs run whole, one for each image and group."""
    gemm = case.gemm
    outputs = np.empty((len(case.memory), gemm.outputs, gemm.m), np.int32)
    for image, into in zip(case.memory, outputs, strict=True):
        for group in range(gemm.groups):
            x, w = operands(gemm, image, group)
            broken = faults if case.group in (None, group) else None
            if cycles:
                found = simulate_gemm(x, w, gemm.config, broken).outputs
            else:
                found = faulty_gemm(torch.from_numpy(x), torch.from_numpy(w.copy()), gemm.config, broken).numpy()
            into[group * gemm.n : (group + 1) * gemm.n] = found.T
    return outputs


def check(case: EffectCase, *, cycles: bool) -> FaultEffect | None:
    """Compare the effect with whole GEMMs."""
    gemm, config = case.gemm, case.gemm.config
    accumulated = run(case, None)
    expected = run(case, FaultMap.from_faults(config, [case.fault]), cycles=cycles)
    effect = fault_effect(gemm, case.fault, case.memory, accumulated, case.group)
    if effect is None:
        assert np.array_equal(accumulated, expected)
        return None
    outputs, delta = effect
    assert outputs.dtype == np.int64
    assert (np.diff(outputs) > 0).all()
    assert delta.dtype == np.int32
    assert delta.shape == (len(case.memory), len(outputs), gemm.m)
    assert np.array_equal(add(accumulated, effect, config.acc_bits), expected)
    # What does not change has 0, not another number that comes to the same.
    assert np.array_equal(delta != 0, accumulated[:, outputs] != expected[:, outputs])
    assert delta.any()
    return effect


@pytest.mark.parametrize("site", Site)
def test_effects_are_those_of_the_emulation(site: Site) -> None:
    @settings(max_examples=20)
    @given(case=effect_cases(site))
    def compare(case: EffectCase) -> None:
        check(case, cycles=False)

    compare()


@settings(max_examples=25)
@given(case=effect_cases())
def test_effects_are_those_of_the_cycle_engine(case: EffectCase) -> None:
    check(case, cycles=True)


LAYERS: list[tuple[nn.Conv2d | nn.Linear, tuple[int, ...]]] = [
    (nn.Conv2d(5, 7, 3, padding=1), (5, 9, 10)),
    (nn.Conv2d(4, 14, 3, stride=2, padding=1, groups=2), (4, 13, 12)),
    (nn.Conv2d(3, 7, (2, 3), stride=3, dilation=(2, 1)), (3, 14, 15)),
    (nn.Linear(33, 8), (11, 33)),
]
"""Several folds on the array below, long lines of images and vectors far apart."""


@pytest.mark.parametrize("exact", [True, False])
def test_every_kind_of_fault_acts_on_layers_that_share_an_array(exact: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    signed = bool(random.integers(2))
    multiplier = "dadda" if exact else random_tables(random, 8, 8, act_signed=signed)
    config = ArrayConfig(13, 6, act_signed=signed, acc_bits=int(random.integers(16, 33)), multiplier=multiplier)
    gemms = [GemmInMemory.of(quantized(layer, config), shape) for layer, shape in LAYERS]
    dtype = np.int8 if signed else np.uint8
    for site in Site:
        for kind in Kind:
            acted = []
            while len(acted) < len(gemms) or (not any(acted) and len(acted) < 200):
                gemm = gemms[len(acted) % len(gemms)]
                row = 0 if site == Site.ACCUMULATOR else int(random.integers(13))
                # High bits of sums that do not wrap are all alike.
                bits = 16 if site in (Site.PSUM, Site.ACCUMULATOR) else site.bits(config)
                fault = Fault(row, int(random.integers(4)), site, int(random.integers(bits)), kind)
                if kind == Kind.FLIP:
                    fold = int(random.integers(-(-gemm.k // 13)))
                    fault = replace(fault, cycle=busy_cycle(gemm, fault, fold, int(random.integers(gemm.m))))
                memory = random.integers(*config.act_range, (2, gemm.image_size), endpoint=True).astype(dtype)
                acted.append(check(EffectCase(gemm, memory, fault, None), cycles=False) is not None)
            assert any(acted), (site, kind)


@pytest.mark.parametrize("k", [3, 8, 15])
def test_products_of_idle_rows_count(k: int, seed: int) -> None:
    """Where 0 times 0 is something, rows without weights add it to sums, above and below a broken adder."""
    random = np.random.default_rng(seed)
    tables = random.integers(-(1 << 7), 1 << 7, (2, 16, 16)).astype(np.int16)
    tables[:, 0, 0] = random.integers(1, 1 << 7)
    multiplier = Multiplier.from_tables("idle", tables[0], [tables[1]])
    config = ArrayConfig(6, 2, weight_bits=4, act_bits=4, acc_bits=9, multiplier=multiplier)
    gemm = GemmInMemory.of(quantized(nn.Linear(k, 3), config), (40, k))
    memory = random.integers(*config.act_range, (1, gemm.image_size), endpoint=True).astype(np.int8)
    for row in range(config.rows):
        for kind in (Kind.STUCK_AT_0, Kind.STUCK_AT_1):
            effect = check(EffectCase(gemm, memory, Fault(row, 0, Site.PSUM, 2, kind), None), cycles=False)
            assert effect is not None
    assert check(EffectCase(gemm, memory, Fault(0, 0, Site.ACCUMULATOR, 2, Kind.STUCK_AT_1), None), cycles=True)


def simple_gemm() -> tuple[GemmInMemory, Memory, Int32Array]:
    """Two groups of three outputs each on an array of 4x5, four rows of X, and two images."""
    config = ArrayConfig(4, 5)
    gemm = GemmInMemory.of(quantized(nn.Conv2d(2, 6, 2, groups=2), config), (2, 3, 3))
    memory = gemm.memory(torch.randn(2, 2, 3, 3))
    return gemm, memory, gemm.accumulate(memory)


def test_columns_without_outputs_and_idle_cycles_have_no_effect() -> None:
    gemm, memory, accumulated = simple_gemm()
    assert gemm_timing(gemm.config, 4, 4, 3).serial == 15
    for site in Site:
        for kind in (Kind.STUCK_AT_0, Kind.STUCK_AT_1):
            assert fault_effect(gemm, Fault(0, 3, site, 1, kind), memory, accumulated) is None
    # The first weight of the column that is loaded is the last row's; X has passed the first PE after four cycles.
    for site, cycle in ((Site.WEIGHT, 3), (Site.ACTIVATION, 8), (Site.PSUM, 8), (Site.WEIGHT_LOAD, 4)):
        flip = Fault(0, 0, site, 1, Kind.FLIP, cycle)
        assert fault_effect(gemm, flip, memory, accumulated) is None


def test_arrays_may_be_read_only_and_lie_anywhere() -> None:
    gemm, memory, accumulated = simple_gemm()
    fault = Fault(0, 2, Site.PSUM, 2, Kind.STUCK_AT_1)
    expected = fault_effect(gemm, fault, memory, accumulated)
    assert expected is not None
    wide = np.zeros((4, gemm.image_size), memory.dtype)
    wide[::2] = memory
    wide.flags.writeable = False
    found = fault_effect(gemm, fault, wide[::2], np.asfortranarray(accumulated))
    assert found is not None
    assert np.array_equal(found.delta, expected.delta)
    assert fault_effect(gemm, fault, memory[:0], accumulated[:0]) is None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(4, 0, Site.WEIGHT, 0, Kind.STUCK_AT_0), "expected a PE of 4x5, and row 0 of an accumulator"),
        (Fault(1, 0, Site.ACCUMULATOR, 0, Kind.STUCK_AT_0), "expected a PE of 4x5, and row 0 of an accumulator"),
        (Fault(0, 0, Site.PRODUCT, 16, Kind.STUCK_AT_0), "bit 16 of PRODUCT: expected 0..15"),
        (Fault(0, 0, Site.PRODUCT, 0, Kind.FLIP), "expected a cycle of a FLIP, and of nothing else"),
        (Fault(0, 0, Site.PRODUCT, 0, Kind.STUCK_AT_0, 3), "expected a cycle of a FLIP, and of nothing else"),
        (Fault(0, 0, Site.PRODUCT, 0, Kind.FLIP, 15), "outside this GEMM of 15 cycles: expected a cycle in 0..14"),
    ],
)
def test_faults_of_other_arrays_are_refused(fault: Fault, message: str) -> None:
    gemm, memory, accumulated = simple_gemm()
    with pytest.raises(ValueError, match=message):
        fault_effect(gemm, fault, memory, accumulated)


def test_arrays_of_other_layers_are_refused() -> None:
    gemm, memory, accumulated = simple_gemm()
    fault = Fault(0, 0, Site.WEIGHT, 0, Kind.STUCK_AT_0)
    with pytest.raises(ValueError, match=r"memory is uint8 \(2, 18\): expected int8 \[images, 18\]"):
        fault_effect(gemm, fault, memory.view(np.uint8), accumulated)
    with pytest.raises(ValueError, match=r"memory is int8 \(2, 17\): expected int8 \[images, 18\]"):
        fault_effect(gemm, fault, memory[:, 1:], accumulated)
    with pytest.raises(ValueError, match=r"accumulated is int32 \(1, 6, 4\): expected int32 \(2, 6, 4\)"):
        fault_effect(gemm, fault, memory, accumulated[:1])
    with pytest.raises(ValueError, match=r"group is 2: expected 0..1, or None for all"):
        fault_effect(gemm, fault, memory, accumulated, 2)

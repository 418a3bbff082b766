"""Fault masks against the definition of each fault, bit by bit and flip by flip."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site
from simulator.engine.masks import BYPASSED, CLEAN, MASKED, TABLED, Flips, pe_masks, stuck_masks
from tests.support.strategies import configs, fault_maps

NETS_OF_PE = {
    "load": Site.WEIGHT_LOAD,
    "weight": Site.WEIGHT,
    "act": Site.ACTIVATION,
    "product": Site.PRODUCT,
    "psum": Site.PSUM,
}
MASKED_SITES = [site for site in Site if site != Site.MULTIPLIER]
"""Gates inside the multiplier are no net with a mask: `simulator.pe_behaviour` has them."""


@st.composite
def maps(draw: st.DrawFn) -> FaultMap:
    return draw(fault_maps(draw(configs()), 100, most=30))


def read_number(pattern: int, site: Site, config: ArrayConfig) -> int:
    """What a bit pattern on a net stands for."""
    bits = site.bits(config)
    unsigned = site == Site.ACTIVATION and not config.act_signed
    return pattern if unsigned or pattern < 1 << (bits - 1) else pattern - (1 << bits)


def stuck(pattern: int, faults: FaultMap, row: int, col: int, site: Site) -> int:
    """A bit pattern after each stuck bit of one net is forced in turn."""
    for fault in faults:
        if (fault.row, fault.col, fault.site) == (row, col, site):
            if fault.kind == Kind.STUCK_AT_0:
                pattern &= ~(1 << fault.bit)
            elif fault.kind == Kind.STUCK_AT_1:
                pattern |= 1 << fault.bit
    return pattern


@given(maps(), st.sampled_from(MASKED_SITES), st.data())
def test_masks_force_the_stuck_bits_and_no_others(faults: FaultMap, site: Site, data: st.DataObject) -> None:
    config = faults.config
    keep, force = stuck_masks(faults, site, np.int32)
    assert keep.shape == force.shape == (config.rows, config.cols)
    ones = (1 << site.bits(config)) - 1
    for pattern in (0, ones, data.draw(st.integers(0, ones))):
        masked = (read_number(pattern, site, config) & keep) | force
        for row, col in np.ndindex(masked.shape):
            assert masked[row, col] == read_number(stuck(pattern, faults, row, col, site), site, config)


@given(maps(), st.integers(0, 2**32 - 1))
def test_every_net_of_a_pe_has_the_masks_of_its_site(faults: FaultMap, seed: int) -> None:
    config = faults.config
    bypass = np.random.default_rng(seed).random((config.rows, config.cols)) < 0.3
    masks = pe_masks(faults, bypass)
    for net, site in NETS_OF_PE.items():
        dtype = np.int32 if site == Site.PSUM else np.int16
        keep, force = stuck_masks(faults, site, dtype)
        for name, expected in ((f"{net}_keep", keep), (f"{net}_force", force)):
            found = getattr(masks, name)
            assert found.dtype == dtype
            assert found.tolist() == expected.tolist()
    assert masks.bypass.tolist() == bypass.tolist()

    stuck_nets = {(fault.row, fault.col, fault.site) for fault in faults if fault.kind != Kind.FLIP}
    datapath = (Site.ACTIVATION, Site.PRODUCT, Site.PSUM)
    for row, col in np.ndindex(bypass.shape):
        assert masks.load_stuck[row, col] == ((row, col, Site.WEIGHT_LOAD) in stuck_nets)
        masked = any((row, col, site) in stuck_nets for site in datapath)
        tabled = (row, col, Site.MULTIPLIER) in stuck_nets or not config.multiplies_exactly
        role = TABLED if tabled else MASKED if masked else CLEAN
        assert masks.role[row, col] == (BYPASSED if bypass[row, col] else role)


def test_a_bypass_mask_that_is_read_only_is_copied() -> None:
    bypass = np.zeros((2, 3), bool)
    bypass.flags.writeable = False
    masks = pe_masks(FaultMap(ArrayConfig(2, 3)), bypass)
    assert masks.bypass.flags.writeable
    assert not np.shares_memory(masks.bypass, bypass)


@st.composite
def flips_in_time(draw: st.DrawFn) -> tuple[FaultMap, int, int]:
    """Faults, rows of X and number of folds of a GEMM that has all their cycles."""
    config = draw(configs())
    m, folds = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    return draw(fault_maps(config, folds * cycles_per_fold(config, m), most=30)), m, folds


def cycles_per_fold(config: ArrayConfig, m: int) -> int:
    return 2 * config.rows + config.cols + m - 2


@given(flips_in_time())
def test_flips_of_pes_are_handed_out_in_their_fold(case: tuple[FaultMap, int, int]) -> None:
    faults, m, folds = case
    config = faults.config
    length = cycles_per_fold(config, m)
    flips = Flips(faults, length, folds * length)
    for fold in range(folds):
        expected = Counter()
        for fault in faults:
            if fault.cycle is None or fault.cycle // length != fold or fault.site == Site.ACCUMULATOR:
                continue
            cycle = fault.cycle - fold * length
            # What a weight register holds while weights load is overwritten by the last load cycle.
            if fault.site == Site.WEIGHT and cycle < config.rows:
                continue
            of_gate = fault.site == Site.MULTIPLIER
            mask = fault.bit if of_gate else read_number(1 << fault.bit, fault.site, config)
            expected[fault.row * config.cols + fault.col, int(fault.site), cycle, mask] += 1
        found = flips.of_fold(fold)
        if len(found.first) == 0:
            assert not expected
            assert len(found.site) == len(found.cycle) == len(found.mask) == 0
            continue
        assert found.first[0] == 0
        assert found.first[-1] == len(found.site)
        owners = np.repeat(np.arange(config.pe_count), np.diff(found.first))
        columns = (owners, found.site, found.cycle, found.mask)
        assert Counter(zip(*(column.tolist() for column in columns), strict=True)) == expected


@given(flips_in_time())
def test_flips_of_accumulators_spoil_the_write_of_their_cycle(case: tuple[FaultMap, int, int]) -> None:
    faults, m, folds = case
    config = faults.config
    length = cycles_per_fold(config, m)
    flips = Flips(faults, length, folds * length)
    # Every write of the GEMM by the clock cycle it happens in, counted as docs/machine.md does.
    written = {
        (fold * length + config.rows + row_of_x + (config.rows - 1) + col, col): (fold, row_of_x)
        for fold in range(folds)
        for row_of_x in range(m)
        for col in range(config.cols)
    }
    upsets = [fault for fault in faults if fault.site == Site.ACCUMULATOR and fault.cycle is not None]
    assert flips.on_accumulators == bool(upsets)
    for fold in range(folds):
        expected = Counter(
            (fault.col, written[fault.cycle, fault.col][1], read_number(1 << fault.bit, fault.site, config))
            for fault in upsets
            if written.get((fault.cycle, fault.col), (None,))[0] == fold
        )
        found = flips.of_accumulators(fold, m)
        assert Counter(zip(*(values.tolist() for values in found), strict=True)) == expected


def test_a_flip_outside_the_gemm_is_refused() -> None:
    faults = FaultMap.from_faults(ArrayConfig(2, 2), [Fault(0, 0, Site.PSUM, 0, Kind.FLIP, cycle=14)])
    Flips(faults, 5, 15)
    with pytest.raises(ValueError, match=r"cycle 14, outside this GEMM of 14 cycles: expected a cycle in 0\.\.13"):
        Flips(faults, 7, 14)


def test_permanent_faults_are_no_flips() -> None:
    faults = FaultMap.from_faults(
        ArrayConfig(2, 2),
        [Fault(0, 0, Site.PSUM, 0, Kind.STUCK_AT_1), Fault(0, 1, Site.ACCUMULATOR, 0, Kind.STUCK_AT_0)],
    )
    flips = Flips(faults, 7, 7)
    assert not flips.on_accumulators
    assert len(flips.of_fold(0).first) == 0
    assert [len(values) for values in flips.of_accumulators(0, 3)] == [0, 0, 0]

"""Random fault maps: as many faults as asked for, of the kinds and in the places asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, FaultMap, FaultModel, Kind, Site, sample_faults
from simulator.sampling import PATTERNS
from tests.support.strategies import configs

CONFIG = ArrayConfig(64, 48)


@settings(max_examples=80)
@given(configs(), st.floats(0, 1), st.sampled_from(PATTERNS), st.integers(0, 2**32 - 1))
def test_the_rate_is_met_exactly(config: ArrayConfig, rate: float, pattern: Any, seed: int) -> None:
    faults = sample_faults(config, FaultModel(rate, pattern=pattern), seed)
    assert faults.faulty_pes().sum() == len(faults) == round(rate * config.pe_count)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_seed_gives_one_map(pattern: Any) -> None:
    model = FaultModel(0.05, pattern=pattern)
    assert sample_faults(CONFIG, model, 7) == sample_faults(CONFIG, model, 7)
    assert sample_faults(CONFIG, model, 7) != sample_faults(CONFIG, model, 8)
    assert sample_faults(CONFIG, model, np.random.SeedSequence(7)) == sample_faults(CONFIG, model, 7)


def test_a_seed_gives_one_map_on_every_processor(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    def other_partition(values: Any, kth: int, axis: None) -> Any:
        order = np.argsort(values, axis=axis)
        return np.concatenate([order[:kth][::-1], order[kth : kth + 1], order[kth + 1 :][::-1]])

    model = FaultModel(0.05, pattern="clustered")
    faults = sample_faults(CONFIG, model, seed)
    monkeypatch.setattr(np, "argpartition", other_partition)
    assert sample_faults(CONFIG, model, seed) == faults


def counts(faults: FaultMap, field: str) -> dict[int, int]:
    values, number = np.unique(faults.table[field], return_counts=True)
    return dict(zip(values.tolist(), number.tolist(), strict=True))


def test_weights_are_honoured(seed: int) -> None:
    config = ArrayConfig(256, 256)
    model = FaultModel(
        0.5,
        sites={Site.PSUM: 3, Site.WEIGHT: 1, Site.PRODUCT: 0},
        kinds={Kind.STUCK_AT_1: 4, Kind.STUCK_AT_0: 1},
        bits={Site.WEIGHT: [0, 1, 1]},
    )
    faults = sample_faults(config, model, seed)
    total = len(faults)
    # Six standard deviations of a binomial count: a fair sampler fails once in 10^8 runs or so.
    tolerance = 6 * np.sqrt(total) / 2
    sites, kinds = counts(faults, "site"), counts(faults, "kind")
    assert set(sites) == {Site.PSUM, Site.WEIGHT}
    assert abs(sites[Site.PSUM] - 0.75 * total) < tolerance
    assert abs(kinds[Kind.STUCK_AT_1] - 0.8 * total) < tolerance
    weight_bits = faults.table["bit"][faults.table["site"] == Site.WEIGHT]
    assert set(weight_bits.tolist()) == {1, 2}
    assert abs((weight_bits == 1).sum() - len(weight_bits) / 2) < 6 * np.sqrt(len(weight_bits)) / 2
    psum_bits = faults.table["bit"][faults.table["site"] == Site.PSUM]
    assert set(psum_bits.tolist()) == set(range(32))


def test_places_are_even_under_the_uniform_pattern(seed: int) -> None:
    hits = sum(sample_faults(CONFIG, FaultModel(0.1), seed + i).faulty_pes().astype(int) for i in range(400))
    # Each PE is hit Binomial(400, 0.1) times: mean 40, standard deviation 6.
    assert abs(hits.mean() - 40) < 0.3
    assert 30 < hits.var() < 42
    assert hits.min() > 4
    assert hits.max() < 90


def tile_variance_to_mean(faults: FaultMap, side: int = 8) -> float:
    config = faults.config
    tiles = faults.faulty_pes().reshape(config.rows // side, side, config.cols // side, side).sum((1, 3))
    return float(tiles.var() / tiles.mean())


def test_clusters_cluster(seed: int) -> None:
    def mean(**model: Any) -> float:
        config = ArrayConfig(128, 128)
        maps = [sample_faults(config, FaultModel(0.05, **model), seed + i) for i in range(40)]
        return float(np.mean([tile_variance_to_mean(faults) for faults in maps]))

    uniform, loose, tight = mean(), mean(pattern="clustered", cluster_alpha=2.0), mean(pattern="clustered")
    # Negative-binomial counts have 1 + mean / alpha. These tiles lie across those of the model, which evens out about
    # half of it.
    assert uniform < 1.1
    assert loose > 1.3
    assert tight > 1.5 * loose


def test_lines_are_lines(seed: int) -> None:
    config = ArrayConfig(32, 20)
    faults = sample_faults(config, FaultModel(0.3, pattern="lines"), seed)
    faulty = faults.faulty_pes()
    rows, cols = np.flatnonzero(faulty.all(1)), np.flatnonzero(faulty.all(0))
    rest = faulty.copy()
    rest[rows] = False
    rest[:, cols] = False
    # What is not on a whole line is on the one line that was cut.
    assert len(np.unique(np.nonzero(rest)[0])) <= 1 or len(np.unique(np.nonzero(rest)[1])) <= 1
    assert len(rows) + len(cols) >= 3
    # All PEs of a line that no other line crosses are broken alike.
    for row in rows:
        own = faults.table[(faults.table["row"] == row) & ~np.isin(faults.table["col"], cols)]
        assert len(np.unique(own[["site", "bit", "kind"]])) == 1


def test_accumulators_are_components_of_their_own(seed: int) -> None:
    sites = {Site.ACCUMULATOR: 1.0, Site.PSUM: 1.0}
    faults = sample_faults(CONFIG, FaultModel(0.24, sites=sites), seed)
    broken = faults.table["site"] == Site.ACCUMULATOR
    assert broken.sum() == round(0.24 * CONFIG.cols) == len(faults.unusable_columns())
    assert (faults.table["row"][broken] == 0).all()
    assert faults.faulty_pes().sum() == round(0.24 * CONFIG.pe_count)
    alone = sample_faults(CONFIG, FaultModel(0.24, sites={Site.ACCUMULATOR: 1.0}), seed)
    assert len(alone) == 12


def test_flips_are_drawn_from_the_cycles(seed: int) -> None:
    faults = sample_faults(CONFIG, FaultModel(1.0, kinds={Kind.FLIP: 1.0}, cycles=30), seed)
    assert set(faults.table["cycle"].tolist()) == set(range(30))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"rate": 1.5}, r"fault rate is 1.5: expected a fraction of PEs, 0\.\.1"),
        ({"rate": -0.1}, "fault rate is -0.1"),
        ({"rate": float("nan")}, "fault rate is nan"),
        ({"rate": 0.1, "pattern": "spiral"}, "pattern is 'spiral': expected one of uniform, clustered, lines"),
        ({"rate": 0.1, "sites": {}}, "weights of sites"),
        ({"rate": 0.1, "sites": {Site.PSUM: -1.0}}, "weights of sites are .*: expected numbers >= 0"),
        ({"rate": 0.1, "kinds": {Kind.STUCK_AT_0: 0.0}}, "weights of kinds"),
        ({"rate": 0.1, "bits": {Site.PSUM: [0.0]}}, "weights of bits of PSUM"),
        ({"rate": 0.1, "cluster_alpha": 0.0}, "cluster_alpha is 0.0: expected a finite number above 0"),
        ({"rate": 0.1, "cluster_side": 0}, "cluster_side is 0: expected at least 1 PE"),
        ({"rate": 0.1, "kinds": {Kind.FLIP: 1.0}}, "cycles is None: FLIP faults need"),
    ],
)
def test_impossible_models_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaultModel(**model)


def test_more_bit_weights_than_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="9 bit weights for WEIGHT: its net has 8 bits"):
        sample_faults(CONFIG, FaultModel(0.1, sites={Site.WEIGHT: 1.0}, bits={Site.WEIGHT: [1.0] * 9}), 0)

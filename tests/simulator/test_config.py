"""Array parameters: what is allowed, and what a wrong one says."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from simulator import ArrayConfig, InputError
from simulator.config import PRESETS
from simulator.multipliers.multiplier import Multiplier, built_in, exact_products


def test_derived_numbers() -> None:
    config = ArrayConfig(4, 6, weight_bits=4, act_bits=3, acc_bits=9)
    assert (config.product_bits, config.pe_count) == (7, 24)
    assert config.weight_range == (-8, 7)
    assert config.act_range == (-4, 3)
    assert ArrayConfig(1, 1, act_signed=False).act_range == (0, 255)


def test_defaults_are_int8_with_32_bit_sums() -> None:
    assert ArrayConfig(2, 3) == ArrayConfig(2, 3, 8, 8, True, 32)


def test_it_is_frozen_and_hashable() -> None:
    config = ArrayConfig(2, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rows = 5  # type: ignore[misc]
    assert len({config, ArrayConfig(2, 3), ArrayConfig(3, 2)}) == 2


def test_equal_multipliers_make_equal_arrays() -> None:
    tables = [Multiplier.from_tables(name, exact_products(8, 8) // 2, []) for name in ("one", "two")]
    arrays = [ArrayConfig(2, 3, multiplier=multiplier) for multiplier in tables]
    assert arrays[0] == arrays[1]
    assert len({*arrays, ArrayConfig(2, 3), ArrayConfig(2, 3, multiplier="dadda")}) == 3
    assert arrays[0].as_dict()["multiplier"] == f"one {tables[0].digest}"


def test_numpy_integers_become_integers() -> None:
    assert type(ArrayConfig(np.int64(2), 3).rows) is int  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, r"rows is 0: expected 1\.\.1024"),
        ({"cols": 1025}, r"cols is 1025: expected 1\.\.1024"),
        ({"weight_bits": 1}, r"weight_bits is 1: expected 2\.\.8"),
        ({"weight_bits": 9}, r"weight_bits is 9: expected 2\.\.8"),
        ({"act_bits": 1}, r"act_bits is 1: expected 2\.\.8"),
        ({"act_bits": 9}, r"act_bits is 9: expected 2\.\.8"),
        ({"acc_bits": 15}, r"acc_bits is 15: expected 16\.\.32 \(weight_bits \+ act_bits is the least\)"),
        ({"acc_bits": 33}, r"acc_bits is 33: expected 16\.\.32"),
        ({"multiplier": "booth"}, "multiplier 'booth' is unknown: expected one of array, wallace, dadda"),
        (
            {"multiplier": built_in("dadda", 4, 8)},
            r"multiplier dadda has .* = \(4, 8, True\): expected \(8, 8, True\), those of the array",
        ),
        ({"multiplier": built_in("dadda", 8, 8, act_signed=False)}, r"= \(8, 8, False\): expected \(8, 8, True\)"),
        ({"rows": 2.0}, "rows is 2.0: expected an integer"),
        ({"cols": "8"}, "cols is '8': expected an integer"),
        ({"act_signed": 1}, "act_signed is 1: expected True or False"),
        ({"multiplier": 3}, "multiplier is 3: expected the name of a design or a Multiplier"),
    ],
)
def test_other_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArrayConfig(**{"rows": 4, "cols": 4, **change})


@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize("act_bits", range(2, 9))
def test_every_legal_width_is_accepted(weight_bits: int, act_bits: int) -> None:
    for acc_bits in range(weight_bits + act_bits, 33):
        assert ArrayConfig(1, 1, weight_bits, act_bits, False, acc_bits).product_bits <= acc_bits


def test_presets_are_arrays_with_a_source() -> None:
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert ArrayConfig(preset.rows, preset.cols).pe_count == preset.rows * preset.cols
        assert "arXiv" in preset.source or "doi" in preset.source


def test_sizes_are_those_of_the_papers() -> None:
    # Jouppi et al. 2017, section 2: a matrix unit of 256x256 multiply-accumulators. Genc et al. 2021: 16x16 by default.
    assert (PRESETS["tpu-v1"].rows, PRESETS["tpu-v1"].cols) == (256, 256)
    assert (PRESETS["gemmini"].rows, PRESETS["gemmini"].cols) == (16, 16)

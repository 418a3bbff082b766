"""Arrays by name are arrays."""

from __future__ import annotations

from simulator import ArrayConfig
from simulator.arrays import PRESETS


def test_presets_are_arrays_with_a_source() -> None:
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert ArrayConfig(preset.rows, preset.cols).pe_count == preset.rows * preset.cols
        assert "arXiv" in preset.source or "doi" in preset.source


def test_sizes_are_those_of_the_papers() -> None:
    # Jouppi et al. 2017, section 2: a matrix unit of 256x256 multiply-accumulators. Genc et al. 2021: 16x16 by default.
    assert (PRESETS["tpu-v1"].rows, PRESETS["tpu-v1"].cols) == (256, 256)
    assert (PRESETS["gemmini"].rows, PRESETS["gemmini"].cols) == (16, 16)

"""Systolic arrays that were built or are used by others, by name and with the source of their size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ArrayPreset:
    """The size of a known array.

    Only its size: widths are options of their own, and all arrays here are simulated as weight stationary and with
    integers, whatever the original is.

    Args:
        name: what users call it.
        rows: number of PE rows.
        cols: number of PE columns.
        what: what it is.
        source: where the size stands.
    """

    name: str
    rows: int
    cols: int
    what: str
    source: str


PRESETS: dict[str, ArrayPreset] = {
    preset.name: preset
    for preset in (
        ArrayPreset(
            "tpu-v1",
            256,
            256,
            "Google TPU v1",
            "Jouppi et al., ISCA 2017, arXiv 1704.04760",
        ),
        ArrayPreset(
            "tpu-v2",
            128,
            128,
            "one array of Google TPU v2",
            "Jouppi et al., CACM 63(7) 2020, doi 10.1145/3360307",
        ),
        ArrayPreset(
            "tpu-v3",
            128,
            128,
            "one array of Google TPU v3",
            "Jouppi et al., CACM 63(7) 2020, doi 10.1145/3360307",
        ),
        ArrayPreset(
            "tpu-v4",
            128,
            128,
            "one array of Google TPU v4",
            "Jouppi et al., ISCA 2023, arXiv 2304.01433",
        ),
        ArrayPreset("gemmini", 16, 16, "Gemmini's default configuration", "Genc et al., DAC 2021, arXiv 1911.09925"),
        ArrayPreset("scale-sim", 32, 32, "SCALE-Sim 3.0.0's scale.cfg", "Samajdar et al. 2018, arXiv 1811.02883"),
    )
}
"""The arrays by name."""

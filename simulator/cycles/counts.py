"""Clock cycles and memory traffic of all layers of a network, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from simulator.config import ArrayConfig
from simulator.cycles.scalesim import GemmLayer
from simulator.cycles.traffic import SramTraffic, Traffic, gemm_traffic
from simulator.engine.timing import Timing, gemm_timing
from simulator.errors import InputError


@dataclass(frozen=True)
class LayerCount:
    """What one layer takes.

    Attributes:
        layer: its GEMM, or GEMMs.
        timing: clock cycles and utilisation; sums over its groups.
        traffic: reads and writes of the SRAMs, in serial timing; sums over its groups.
    """

    layer: GemmLayer
    timing: Timing
    traffic: Traffic

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self.layer), **asdict(self.timing), "traffic": asdict(self.traffic)}


@dataclass(frozen=True)
class NetworkCount:
    """What the layers take one after the other, each waiting for the one before to drain.

    Attributes:
        layers: each layer.
        multiply_accumulates: multiply-accumulates done.
        folds: folds of all layers.
        scalesim: sum of what SCALE-Sim prints for each layer.
        serial: clock cycles with one fold after the other.
        double_buffered: clock cycles with each layer's folds double-buffered.
        serial_utilisation: multiply-accumulates done, over those that all PEs could do in `serial` cycles.
        double_buffered_utilisation: the same for `double_buffered`.
        traffic: sums over the layers; averages over all serial clock cycles, peaks the largest of any layer.
    """

    layers: tuple[LayerCount, ...]
    multiply_accumulates: int
    folds: int
    scalesim: int
    serial: int
    double_buffered: int
    serial_utilisation: float
    double_buffered_utilisation: float
    traffic: Traffic

    def totals(self) -> dict[str, Any]:
        """Everything but the layers, for JSON."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layers"}
        return {**numbers, "traffic": asdict(self.traffic)}


def count_network(config: ArrayConfig, layers: Sequence[GemmLayer]) -> NetworkCount:
    """Count every layer.

    Args:
        config: the array.
        layers: the layers, at least one.

    Raises:
        InputError: there are no layers.
    """
    if not layers:
        raise InputError("no layers: expected at least one")
    counts = tuple(_count_layer(config, layer) for layer in layers)
    work = sum(layer.m * layer.k * layer.n * layer.groups for layer in layers)
    serial = sum(count.timing.serial for count in counts)
    double_buffered = sum(count.timing.double_buffered for count in counts)
    return NetworkCount(
        layers=counts,
        multiply_accumulates=work,
        folds=sum(count.timing.folds for count in counts),
        scalesim=sum(count.timing.scalesim for count in counts),
        serial=serial,
        double_buffered=double_buffered,
        serial_utilisation=work / (config.pe_count * serial),
        double_buffered_utilisation=work / (config.pe_count * double_buffered),
        traffic=_all_traffic([count.traffic for count in counts], serial),
    )


def _count_layer(config: ArrayConfig, layer: GemmLayer) -> LayerCount:
    """Count a layer's groups, of which each waits for the one before to drain."""
    timing = gemm_timing(config, layer.m, layer.k, layer.n)
    traffic = gemm_traffic(config, layer.m, layer.k, layer.n)
    if layer.groups > 1:
        sums = ("folds", "scalesim", "serial", "double_buffered")
        timing = replace(timing, **{name: getattr(timing, name) * layer.groups for name in sums})
        traffic = _all_traffic([traffic] * layer.groups, timing.serial)
    return LayerCount(layer, timing, traffic)


def _all_traffic(parts: Sequence[Traffic], cycles: int) -> Traffic:
    ifmap, weights, ofmap = (
        _all_of_sram(srams, cycles)
        for srams in zip(*((part.ifmap, part.filter, part.ofmap) for part in parts), strict=True)
    )
    return Traffic(
        ifmap=ifmap,
        filter=weights,
        ofmap=ofmap,
        average_bytes_per_cycle=(ifmap.bytes + weights.bytes + ofmap.bytes) / cycles,
        peak_bytes_per_cycle=max(part.peak_bytes_per_cycle for part in parts),
    )


def _all_of_sram(parts: Sequence[SramTraffic], cycles: int) -> SramTraffic:
    return SramTraffic(
        reads=sum(part.reads for part in parts),
        writes=sum(part.writes for part in parts),
        word_bytes=parts[0].word_bytes,
        average_bytes_per_cycle=sum(part.bytes for part in parts) / cycles,
        peak_bytes_per_cycle=max(part.peak_bytes_per_cycle for part in parts),
    )

"""Clock cycles and memory traffic of GEMMs and of all layers of a network, counted without running them.

Traffic is what goes between the array and its three SRAMs, one fold after the other. A weight is read in the load cycle
that feeds it. Activation (m, k) is read in the streaming cycle in which it enters its row r = k mod rows, which is
cycle m + r. Partial sum (m, n) is written in the streaming cycle in which it leaves its column c = n mod cols, which is
cycle m + (rows - 1) + c; if an earlier k-fold has written it before, it is read back in that same cycle. Nothing is
read or written for PEs that hold no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from simulator.config import ArrayConfig
from simulator.cycles.scalesim import GemmLayer
from simulator.engine.timing import Timing, fold_count, gemm_timing
from simulator.errors import InputError


@dataclass(frozen=True)
class SramTraffic:
    """What goes between one SRAM and the array during one GEMM.

    Attributes:
        reads: words read.
        writes: words written.
        word_bytes: bytes of a word: its bits, rounded up to whole bytes.
        average_bytes_per_cycle: bytes read and written, over all serial clock cycles.
        peak_bytes_per_cycle: most bytes read and written in one clock cycle.
    """

    reads: int
    writes: int
    word_bytes: int
    average_bytes_per_cycle: float
    peak_bytes_per_cycle: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return (self.reads + self.writes) * self.word_bytes


@dataclass(frozen=True)
class Traffic:
    """What goes between the SRAMs and the array during one GEMM, in serial timing.

    Attributes:
        ifmap: activations, read once for each n-fold.
        filter: weights, each read once.
        ofmap: partial sums: written once for each k-fold, read back in each k-fold but the first.
        average_bytes_per_cycle: bytes of all three, over all serial clock cycles.
        peak_bytes_per_cycle: most bytes of all three in one clock cycle.
    """

    ifmap: SramTraffic
    filter: SramTraffic
    ofmap: SramTraffic
    average_bytes_per_cycle: float
    peak_bytes_per_cycle: int


def gemm_traffic(config: ArrayConfig, m: int, k: int, n: int) -> Traffic:
    """Reads and writes of `X[m, k] @ W[k, n]`.

    Args:
        config: the array; its widths give the bytes of a word.
        m: rows of X, >= 0.
        k: reduction length, >= 1.
        n: outputs, >= 1.

    Raises:
        InputError: a size is out of its range.

    >>> traffic = gemm_traffic(ArrayConfig(32, 32), 196, 384, 192)
    >>> traffic.ifmap.reads, traffic.filter.reads, traffic.ofmap.writes  # as SCALE-Sim 3.0.0 counts them
    (451584, 73728, 451584)
    """
    cycles = gemm_timing(config, m, k, n).serial
    k_folds, n_folds = fold_count(config, m, k, 1), fold_count(config, m, 1, n)
    act_bytes, weight_bytes, sum_bytes = (
        -(-bits // 8) for bits in (config.act_bits, config.weight_bits, config.acc_bits)
    )
    rows, cols = min(config.rows, k), min(config.cols, n)
    transfers = 2 if k_folds > 1 else 1

    def sram(reads: int, writes: int, word_bytes: int, peak_words: int) -> SramTraffic:
        return SramTraffic(reads, writes, word_bytes, (reads + writes) * word_bytes / cycles, peak_words * word_bytes)

    ifmap = sram(m * k * n_folds, 0, act_bytes, min(rows, m))
    weights = sram(k * n, 0, weight_bytes, cols)
    ofmap = sram(m * n * (k_folds - 1), m * n * k_folds, sum_bytes, transfers * min(cols, m))
    # A fold with more rows or columns moves at least as much in every cycle, so the fullest folds hold the peak: the
    # first one, and the fullest of those that read partial sums back.
    peaks = [weights.peak_bytes_per_cycle, _streaming_peak(config, m, rows, cols, act_bytes, sum_bytes)]
    if k_folds > 1:
        later_rows = min(config.rows, k - config.rows)
        peaks.append(_streaming_peak(config, m, later_rows, cols, act_bytes, transfers * sum_bytes))
    return Traffic(
        ifmap=ifmap,
        filter=weights,
        ofmap=ofmap,
        average_bytes_per_cycle=(ifmap.bytes + weights.bytes + ofmap.bytes) / cycles,
        peak_bytes_per_cycle=max(peaks),
    )


def _streaming_peak(
    config: ArrayConfig, m: int, used_rows: int, used_cols: int, row_bytes: int, column_bytes: int
) -> int:
    """Most bytes in one streaming cycle of a fold, activations and partial sums together.

    The bytes of each kind rise, stay and fall linearly over the cycles. The sum of two such lines is largest where one
    of them begins to stay or begins to fall.
    """
    first_sum = config.rows - 1
    bends = [min(used_rows, m) - 1, max(used_rows, m) - 1]
    bends += [first_sum + min(used_cols, m) - 1, first_sum + max(used_cols, m) - 1]
    return max(
        row_bytes * _lanes_in_use(cycle, m, used_rows) + column_bytes * _lanes_in_use(cycle - first_sum, m, used_cols)
        for cycle in bends
    )


def _lanes_in_use(cycle: int, m: int, lanes: int) -> int:
    """How many of `lanes`, of which number i carries values in cycles i..i + m - 1, carry one in this cycle."""
    return max(0, min(cycle, lanes - 1) - max(0, cycle - m + 1) + 1)


@dataclass(frozen=True)
class LayerCount:
    """What one layer takes; sums over its groups."""

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
    """Count every layer; an `InputError` if there are none."""
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

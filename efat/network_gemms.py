"""Clock cycles of a network's layers; its GEMMs are found by sending the shape of an image through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efat.display import Shown, Table, counted
from efat.setup import name_of
from simulator.config import ArrayConfig
from simulator.cycles.counts import LayerCount, NetworkCount, Traffic, count_network
from simulator.cycles.scalesim import (
    GemmLayer,
    ScaleSimConfig,
    read_conv_topology,
    read_gemm_topology,
    write_compute_report,
)
from simulator.engine.timing import Timing
from simulator.errors import InputError, did_you_mean
from training.data.workloads import WORKLOADS, own_network
from training.layers.convert import FloatLayer, check_convertible, float_layers, other_forwards
from training.layers.user_code import copied, failure

ImageShape = tuple[int, int, int]
"""Channels, height and width."""

MOST_LAYERS_SHOWN = 200
SRAMS = ("ifmap", "filter", "ofmap")


@dataclass(frozen=True, repr=False)
class NetworkCycles(Shown):
    """Clock cycles and memory traffic of a network's layers on an array.

    Attributes:
        name: what the layers are.
        config: the array.
        count: what was counted.
        scalesim: the SCALE-Sim configuration that the array is from, if it is.
        notes: what else is to be known.
    """

    name: str
    config: ArrayConfig
    count: NetworkCount
    scalesim: ScaleSimConfig | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "array": self.config.as_dict(),
            "run_name": self.scalesim.run_name if self.scalesim else "",
            "stalls_not_modelled": self.scalesim.stalls or None if self.scalesim else None,
            "layers": [layer.as_dict() for layer in self.count.layers],
            "total": self.count.totals(),
        }

    def write_report(self, path: str | Path) -> None:
        """Write SCALE-Sim's COMPUTE_REPORT.csv; see `simulator.cycles.scalesim.write_compute_report`."""
        stalls = self.scalesim is not None and self.scalesim.stalls != ""
        write_compute_report(path, self.config, [each.layer for each in self.count.layers], stalls=stalls)

    def parts(self) -> Iterator[Table | str]:
        """Cycles, words and bandwidth of the layers and of all together, and the notes."""
        count, traffic = self.count, self.count.traffic
        groups = ["groups"] if any(each.layer.groups > 1 for each in count.layers) else []
        heads = ["layer", "GEMM\nM x K x N", *groups, "folds", "cycles,\nSCALE-Sim", "serial", "double-\nbuffered"]
        yield self._table(
            f"{self.name} on {self.config.rows}x{self.config.cols}: clock cycles",
            [*heads, "utilisation,\nserial", "double-\nbuffered"],
            lambda each: [
                f"{each.layer.m} x {each.layer.k} x {each.layer.n}",
                *([each.layer.groups] if groups else []),
                *_cycles(each.timing),
            ],
            ["", *([""] if groups else []), *_cycles(count)],
        )
        yield self._table(
            "Words between the SRAMs and the array",
            ["layer", "ifmap\nreads", "filter\nreads", "ofmap\nreads", "ofmap\nwrites"],
            lambda each: _words(each.traffic),
            _words(traffic),
        )
        sizes = f"{traffic.ifmap.word_bytes}, {traffic.filter.word_bytes} and {traffic.ofmap.word_bytes} bytes a word"
        yield self._table(
            f"Bytes per serial clock cycle, with {sizes}",
            ["layer", *(f"{sram}\n{kind}" for sram in (*SRAMS, "all") for kind in ("average", "peak"))],
            lambda each: _bandwidth(each.traffic),
            _bandwidth(traffic),
        )
        if len(count.layers) > MOST_LAYERS_SHOWN:
            yield f"The tables show the first {MOST_LAYERS_SHOWN} of {len(count.layers):,} layers: --json has them all."
        yield from self.notes

    def _table(
        self,
        title: str,
        heads: Sequence[str],
        cells: Callable[[LayerCount], Sequence[object]],
        total: Sequence[object],
    ) -> Table:
        layers = self.count.layers
        rows = [[each.layer.name, *cells(each)] for each in layers[:MOST_LAYERS_SHOWN]]
        if len(layers) > MOST_LAYERS_SHOWN:
            rows.append([f"... {len(layers) - MOST_LAYERS_SHOWN:,} more", *[""] * (len(heads) - 1)])
        return Table(title, heads, [*rows, ["total", *total]], most=len(rows) + 1, sections=(len(rows) - 1,))


def _cycles(found: Timing | NetworkCount) -> list[object]:
    utilisations = (found.serial_utilisation, found.double_buffered_utilisation)
    return [found.folds, found.scalesim, found.serial, found.double_buffered, *(f"{used:.1%}" for used in utilisations)]


def _words(traffic: Traffic) -> list[object]:
    return [traffic.ifmap.reads, traffic.filter.reads, traffic.ofmap.reads, traffic.ofmap.writes]


def _bandwidth(traffic: Traffic) -> list[object]:
    parts = (*(getattr(traffic, sram) for sram in SRAMS), traffic)
    return [value for part in parts for value in (f"{part.average_bytes_per_cycle:,.2f}", part.peak_bytes_per_cycle)]


def count_cycles(
    network: str | Path | nn.Module | Sequence[GemmLayer],
    array: ArrayConfig,
    *,
    batch: int = 1,
    image: ImageShape | None = None,
    gemm: bool = False,
    scalesim: ScaleSimConfig | None = None,
) -> NetworkCycles:
    """Count clock cycles and memory traffic of a network's layers, without running anything on an array.

    Args:
        network: a name in `training.WORKLOADS`, the user's own as a module or `package.module:function`, whose code
            runs, the path of a SCALE-Sim topology, or the layers themselves.
        array: the array.
        batch: images in one GEMM, of a network.
        image: channels, height and width of an image, of a network; None for those of the workload.
        gemm: whether the topology lists GEMMs, not convolutions.
        scalesim: the SCALE-Sim configuration that the array is from: its stalls, which are not modelled, are said.

    Raises:
        FileNotFoundError: there is no such topology.
        InputError: there is no such network, it cannot be converted or does not take such images, there are no layers,
            the topology is none, or an argument has no effect.
    """
    of_network = isinstance(network, str | nn.Module)
    if not of_network and (batch != 1 or image is not None):
        raise InputError("batch and image have no effect beside layers, which have their sizes: leave them out")
    if gemm and not isinstance(network, Path):
        raise InputError("gemm has no effect without a topology, which it says how to read: leave it out")
    notes: tuple[str, ...] = ()
    if isinstance(network, str | nn.Module):
        layers: Sequence[GemmLayer] = network_gemms(network, batch, image)
        name = f"{name_of(network)}, {counted(batch, 'image')}" + ("" if image is None else f" of {_by(image)}")
        notes = ("Counted are Conv2d and Linear layers: nothing else of a network runs on the array.",)
    elif isinstance(network, Path):
        name = str(network)
        layers = read_gemm_topology(network) if gemm else [layer.gemm() for layer in read_conv_topology(network)]
    else:
        name, layers = "layers", network
    if scalesim is not None and scalesim.run_name:
        name += f" ({scalesim.run_name})"
    if scalesim is not None and scalesim.stalls:
        said = (
            f"With {scalesim.stalls} SCALE-Sim has the array wait for its memories. That is not\n"
            "modelled: all cycles are without stalls, and the report leaves total cycles, stall\n"
            "cycles and overall utilisation empty."
        )
        notes = (said, *notes)
    return NetworkCycles(name, array, count_network(array, layers), scalesim, notes)


def network_gemms(network: str | nn.Module, batch: int = 1, image: ImageShape | None = None) -> list[GemmLayer]:
    """The GEMMs of a network's convolutions and linear layers by qualified name, each time that one runs, in order.

    Raises:
        InputError: there is no such network, it cannot be converted or does not take such images, no size of images is
            given for the user's own, or a layer is never reached.
    """
    name = name_of(network)
    if isinstance(network, nn.Module) or ":" in name:
        if image is None:
            raise InputError(
                f"network {name!r} is your own and its images may have any size: give it with --input, such as 3x32x32"
            )
        network = own_network(name) if isinstance(network, str) else copied(network)
        check_convertible(network)
    else:
        workload = WORKLOADS.get(name)
        if workload is None:
            raise InputError(
                f"network {name!r} is unknown: choose one of {', '.join(WORKLOADS)}, "
                f"or name your own as package.module:function{did_you_mean(name, WORKLOADS)}"
            )
        image = image or workload.input_shape
        if image[1] != image[2]:
            raise InputError(f"images are {_by(image)}: network {name!r} wants square ones")
        with torch.device("meta"):
            network = workload.build(image[0], image[1], workload.classes)
    network.eval()
    found = _gemms(network, name, batch, image)
    reached = {gemm.name for gemm in found}
    missing = [layer for layer, _ in float_layers(network) if layer not in reached]
    if missing:
        raise InputError(
            f"network {name!r}: layer {missing[0]!r} is never reached by an image, so that it cannot be quantised: "
            "remove it from the network"
        )
    return found


def _gemms(network: nn.Module, name: str, batch: int, image: ImageShape) -> list[GemmLayer]:
    # On the meta device tensors have shapes and no values. Not every network runs without values.
    try:
        return _run(copied(network).to("meta"), "meta", batch, image)
    except (Exception, SystemExit):
        try:
            return _run(network, "cpu", batch, image)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"network {name!r} does not take {_by(image)} images: {failure(error, network)}; "
                "give the size of its images with --input"
            ) from error


def _run(network: nn.Module, device: str, batch: int, image: ImageShape) -> list[GemmLayer]:
    found: list[GemmLayer] = []
    forwards: dict[FloatLayer, Callable[..., Tensor]] = {
        layer: partial(_noted, found, name, layer) for name, layer in float_layers(network)
    }
    with torch.device(device), torch.inference_mode(), other_forwards(forwards):
        network(torch.zeros(batch, *image))
    return found


def _noted(found: list[GemmLayer], name: str, layer: FloatLayer, *args: Any, **kwargs: Any) -> Tensor:
    # Of the type: the instance has this one.
    plain: Callable[..., Tensor] = type(layer).forward
    output = plain(layer, *args, **kwargs)
    if isinstance(layer, nn.Linear):
        found.append(GemmLayer(name, output.numel() // layer.out_features, layer.in_features, layer.out_features))
        return output
    rows, window = output.numel() // layer.out_channels, layer.weight[0].numel()
    found.append(GemmLayer(name, rows, window, layer.out_channels // layer.groups, layer.groups))
    return output


def _by(image: ImageShape) -> str:
    return "x".join(map(str, image))

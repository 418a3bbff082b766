"""The files of SCALE-Sim 3.0.0 (Samajdar et al. 2018, arXiv 1811.02883): configurations and topologies.

A configuration is an INI file as Python's `configparser` reads it. A topology is a list of layers with commas between
the cells: convolutions, or GEMMs. What SCALE-Sim reads, these functions read, except what describes another machine
than the one simulated here (another dataflow, sparsity); what it would misread or crash on is refused with a reason.
`COMPUTE_REPORT.csv` is written as SCALE-Sim writes it for a weight-stationary array.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import chain, repeat
from pathlib import Path

from simulator.config import LARGEST_SIDE, ArrayConfig
from simulator.engine.timing import gemm_timing
from simulator.errors import InputError
from simulator.files import SCALESIM_CONFIG, other_kind, replaced

_REPORT_HEADER = (
    "LayerID, Total Cycles (incl. prefetch), Total Cycles, Stall Cycles, Overall Util %, Mapping Efficiency %, "
    "Compute Util %,\n"
)

_LARGEST_SIZE = 999_999_999

MOST_LAYERS = 100_000
"""Layers in one topology; a depth-wise convolution counts once for each channel."""

_LARGEST_FILE = 16 << 20
_LONGEST_SHOWN = 60
_ARCHITECTURE = "architecture_presets"
_CONV_CELLS = ("ifmap height", "ifmap width", "filter height", "filter width", "channels", "filters", "stride")
_GEMM_CELLS = ("M", "N", "K")
_HEADINGS = {
    "m": "M",
    "n": "N",
    "k": "K",
    "channel": "channels",
    "numfilter": "filters",
    "numfilters": "filters",
    "strides": "stride",
    **{column.replace(" ", ""): column for column in _CONV_CELLS},
}
"""What headers of topologies call the columns, in small letters without spaces."""

_STALLING = (
    ("run_presets", "InterfaceBandwidth", "user"),
    ("run_presets", "UseRamulatorTrace", "true"),
    ("layout", "IfmapCustomLayout", "true"),
    ("layout", "FilterCustomLayout", "true"),
)
"""Settings with which SCALE-Sim has the array wait for its memories."""


class ScaleSimError(InputError):
    """A file that cannot be used: it is malformed, or describes another machine than the one simulated here."""


class TopologyKindError(ScaleSimError):
    """A topology of convolutions where one of GEMMs is expected, or the other way round."""


@dataclass(frozen=True)
class ScaleSimConfig:
    """What a configuration says about a weight-stationary array.

    Args:
        rows: `ArrayHeight`, 1..1024.
        cols: `ArrayWidth`, 1..1024.
        run_name: of its results, or empty.
        stalls: the settings with which SCALE-Sim would add stall cycles, such as `InterfaceBandwidth: USER`, or empty.
            Stalls are not modelled here.
    """

    rows: int
    cols: int
    run_name: str = ""
    stalls: str = ""

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            if not 1 <= getattr(self, name) <= LARGEST_SIDE:
                raise InputError(f"{name} is {getattr(self, name)}: expected 1..{LARGEST_SIDE}")


@dataclass(frozen=True)
class GemmLayer:
    """A layer as `X[m, k] @ W[k, n]`, or as several such GEMMs of one size, one after the other.

    Args:
        name: what it is called; several layers may have one name.
        m: rows of X, >= 1.
        k: reduction length, >= 1.
        n: outputs, >= 1.
        groups: number of GEMMs, >= 1: one for each group of a convolution.

    Raises:
        InputError: a size is not positive.
    """

    name: str
    m: int
    k: int
    n: int
    groups: int = 1

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclass(frozen=True)
class ConvLayer:
    """A convolution of one image, without padding: padding is part of the ifmap's size.

    Args:
        name: what it is called.
        ifmap_height: rows of the input, padding included.
        ifmap_width: columns of the input, padding included.
        filter_height: rows of a filter, at most those of the input.
        filter_width: columns of a filter, at most those of the input.
        channels: channels of the input.
        filters: number of filters, which is the number of output channels.
        stride: step between neighbouring outputs in both directions.

    Raises:
        InputError: a size is not positive, or a filter is larger than the input.
    """

    name: str
    ifmap_height: int
    ifmap_width: int
    filter_height: int
    filter_width: int
    channels: int
    filters: int
    stride: int

    def __post_init__(self) -> None:
        _check_positive(self)
        for side in ("height", "width"):
            size, limit = getattr(self, f"filter_{side}"), getattr(self, f"ifmap_{side}")
            if size > limit:
                raise InputError(
                    f"filter {side} is {size}: expected at most the ifmap's {limit}, to which padding must be added"
                )

    @property
    def ofmap_height(self) -> int:
        """Rows of the output: `ceil((ifmap - filter + stride) / stride)`, as SCALE-Sim counts them."""
        return -(-(self.ifmap_height - self.filter_height + self.stride) // self.stride)

    @property
    def ofmap_width(self) -> int:
        """Columns of the output, likewise."""
        return -(-(self.ifmap_width - self.filter_width + self.stride) // self.stride)

    def gemm(self) -> GemmLayer:
        """The convolution by im2col: one row for each output pixel."""
        window = self.filter_height * self.filter_width * self.channels
        return GemmLayer(self.name, self.ofmap_height * self.ofmap_width, window, self.filters)


def read_scalesim_config(path: str | Path) -> ScaleSimConfig:
    """What a `.cfg` file says; a `ScaleSimError` if it is none, lacks a size, or describes another machine.

    `ArrayHeight` and `ArrayWidth` must be there. `Dataflow` must be `ws` and `SparsitySupport` false where they are
    there. Of the memories behind the array only the settings that would make it wait are looked at, for `stalls`.
    """
    path = Path(path)
    # Like SCALE-Sim's, but a percent sign is nothing special.
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(_read_text(path, SCALESIM_CONFIG), source=path.name)
    except configparser.Error as error:
        raise ScaleSimError(f"{path} is not a SCALE-Sim configuration: {' '.join(str(error).split())}") from error
    if not parser.has_section(_ARCHITECTURE):
        found = ", ".join(f"[{name}]" for name in parser.sections()) or "none"
        raise ScaleSimError(f"{path} has no section [{_ARCHITECTURE}], which gives the array's size: found {found}")
    rows, cols = (_array_side(path, parser, key) for key in ("ArrayHeight", "ArrayWidth"))
    dataflow = parser.get(_ARCHITECTURE, "Dataflow", fallback="ws").strip()
    if dataflow.lower() != "ws":
        raise ScaleSimError(
            f"{path}: Dataflow is {_shown(dataflow)}: expected ws, as this array is weight stationary; change it"
        )
    sparsity = parser.get("sparsity", "SparsitySupport", fallback="false").strip()
    if sparsity.lower() == "true":
        raise ScaleSimError(
            f"{path}: SparsitySupport is {_shown(sparsity)}: expected false, as the array simulated here is dense"
        )
    bandwidth = parser.get("run_presets", "InterfaceBandwidth", fallback="CALC").strip()
    if bandwidth.upper() not in ("CALC", "USER"):
        raise ScaleSimError(f"{path}: InterfaceBandwidth is {_shown(bandwidth)}: expected CALC or USER")
    return ScaleSimConfig(
        rows,
        cols,
        run_name=parser.get("general", "run_name", fallback="").strip(),
        stalls=", ".join(
            f"{key}: {parser.get(section, key).strip()}"
            for section, key, value in _STALLING
            if parser.get(section, key, fallback="").strip().lower() == value
        ),
    )


def read_conv_topology(path: str | Path) -> list[ConvLayer]:
    """Read a topology of convolutions.

    The first line is a header, which must not contradict the order. Each line after it is `name, ifmap height, ifmap
    width, filter height, filter width, channels, filters, stride,`. A layer with `DP` in its name is depth-wise: it
    becomes one layer for each channel, as SCALE-Sim has it. After the stride may stand a sparsity ratio such as `2:4`,
    which changes nothing on an array that computes every product, and after the last comma a remark.

    Raises:
        FileNotFoundError: there is no such file.
        ScaleSimError: something in it cannot be; the line is named. A `TopologyKindError` if it lists GEMMs.
    """
    layers: list[ConvLayer] = []
    for place, name, numbers in _rows(Path(path), _CONV_CELLS):
        height, width, filter_height, filter_width, channels, filters, stride = numbers
        depth_wise = "DP" in name
        names = [f"{name}Channel_{channel}" for channel in range(min(channels, MOST_LAYERS + 1))]
        for layer_name in names if depth_wise else [name]:
            depth = 1 if depth_wise else channels
            sizes = (height, width, filter_height, filter_width, depth, filters, stride)
            try:
                layers.append(ConvLayer(layer_name, *sizes))
            except ValueError as error:
                raise ScaleSimError(f"{place}: {error}") from error
        if len(layers) > MOST_LAYERS:
            raise ScaleSimError(f"{place}: more than {MOST_LAYERS} layers; leave some out")
    return layers


def read_gemm_topology(path: str | Path) -> list[GemmLayer]:
    """Read a topology of GEMMs: as of convolutions, but each line after the header is `name, M, N, K,`."""
    layers: list[GemmLayer] = []
    for place, name, (m, n, k) in _rows(Path(path), _GEMM_CELLS):
        layers.append(GemmLayer(name, m, k, n))
        if len(layers) > MOST_LAYERS:
            raise ScaleSimError(f"{place}: more than {MOST_LAYERS} layers; leave some out")
    return layers


def _check_positive(layer: GemmLayer | ConvLayer) -> None:
    for field in fields(layer):
        value = getattr(layer, field.name)
        if field.name != "name" and value < 1:
            raise InputError(f"{field.name.replace('_', ' ')} is {value}: expected at least 1")


def _array_side(path: Path, parser: configparser.ConfigParser, key: str) -> int:
    text = parser.get(_ARCHITECTURE, key, fallback=None)
    if text is None:
        raise ScaleSimError(f"{path} has no {key} in [{_ARCHITECTURE}]: expected a line such as {key}: 32")
    side = _number(text)
    if side is None or not 1 <= side <= LARGEST_SIDE:
        raise ScaleSimError(f"{path}: {key} is {_shown(text)}: expected a whole number, 1 to {LARGEST_SIDE}")
    return side


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, str, list[int]]]:
    """Of each layer where it stands (for messages), its name and its numbers."""
    header_seen = layer_seen = False
    for line, text in enumerate(_read_text(path, "a SCALE-Sim topology").split("\n"), start=1):
        cells = [cell.strip() for cell in text.split(",")]
        if not any(cells):
            continue
        place = f"{path}, line {line}"
        if not header_seen:
            header_seen = True
            is_layer = len(cells) > 3 and all(_number(cell) is not None for cell in cells[1:4])
            # SCALE-Sim skips the first line, whatever it is; where that was an empty one, this is a layer.
            if line == 1 and is_layer:
                raise ScaleSimError(
                    f"{place} is a layer, {_shown(text.strip())}: expected a header, as SCALE-Sim skips the first line"
                )
            if not is_layer:
                _check_header(place, cells, columns)
                continue
        layer_seen = True
        yield place, _layer_name(place, cells[0]), _layer_numbers(place, cells, columns)
    if not layer_seen:
        found = "a header but no layers" if header_seen else "nothing in it"
        raise ScaleSimError(f"{path} has {found}: expected lines of {_expected(columns)}")


def _check_header(place: str, cells: list[str], columns: tuple[str, ...]) -> None:
    """Refuse a header that names a column at another place than where it is read.

    A name may be missing or be there twice: several of SCALE-Sim's own topologies have two columns `IFMAP Width`.
    """
    named = [_HEADINGS.get(re.sub(r"[\s_]", "", cell.lower())) for cell in cells]
    for position, column in enumerate(columns, start=1):
        if column in named and named.index(column) != position and named[position : position + 1] != [column]:
            raise ScaleSimError(
                f"{place}: the header has {column} in cell {named.index(column) + 1}, but SCALE-Sim reads cells by "
                f"their order, whatever the header says: put them in the order layer name, {', '.join(columns)}"
            )


def _layer_name(place: str, name: str) -> str:
    if not name.isprintable():
        raise ScaleSimError(f"{place}: layer name is {_shown(name)}: expected characters that can be printed")
    return name


def _layer_numbers(place: str, cells: list[str], columns: tuple[str, ...]) -> list[int]:
    _check_kind(place, cells, columns)
    needed = 1 + len(columns)
    if len(cells) < needed:
        raise ScaleSimError(f"{place}: {len(cells)} cells: expected {_expected(columns)}")
    numbers = []
    for column, cell in zip(columns, cells[1:needed], strict=True):
        number = _number(cell)
        if number is None or not 1 <= number <= _LARGEST_SIZE:
            raise ScaleSimError(f"{place}: {column} is {_shown(cell)}: expected a whole number, 1 to {_LARGEST_SIZE}")
        numbers.append(number)
    for position, cell in enumerate(cells[needed:], start=needed + 1):
        # SCALE-Sim never looks at what follows the last comma; a number there is likely a stride or size misplaced.
        is_remark = position == len(cells) and _number(cell) is None
        if not (cell == "" or is_remark or (position == needed + 1 and _is_ratio(cell))):
            once = "; the stride is one number for both directions" if columns == _CONV_CELLS else ""
            raise ScaleSimError(
                f"{place}: cell {position} is {_shown(cell)}: expected nothing after the {columns[-1]}, "
                f"or a sparsity ratio such as 2:4{once}"
            )
    return numbers


def _check_kind(place: str, cells: list[str], columns: tuple[str, ...]) -> None:
    """Refuse a layer that is clearly one of the other kind of topology."""
    leading = 0
    while leading + 1 < len(cells) and _number(cells[leading + 1]) is not None:
        leading += 1
    numbers = sum(_number(cell) is not None for cell in cells[1:])
    if columns == _CONV_CELLS and leading == numbers == len(_GEMM_CELLS):
        raise TopologyKindError(f"{place} is a GEMM ({_expected(_GEMM_CELLS)}): expected a convolution")
    if columns == _GEMM_CELLS and leading >= len(_CONV_CELLS):
        raise TopologyKindError(f"{place} is a convolution ({_expected(_CONV_CELLS)}): expected a GEMM")


def _expected(columns: tuple[str, ...]) -> str:
    return f"{1 + len(columns)} cells: layer name, {', '.join(columns)}"


def _shown(text: str) -> str:
    """A text from a file as messages quote it: in quotation marks and not too long."""
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "...")


def _number(text: str) -> int | None:
    """A whole number in ASCII digits, of any sign; None for everything else."""
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()) else None


def _is_ratio(text: str) -> bool:
    """Whether it is N:M with N of M weights not zero."""
    match = re.fullmatch(r"([0-9]{1,9})\s*:\s*([0-9]{1,9})", text)
    return match is not None and 1 <= int(match[1]) <= int(match[2])


def _read_text(path: Path, what: str) -> str:
    """A small text file, its lines ended by newlines whatever ended them in it."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected {what}")
    wrong = other_kind(path, what, own=(what,))
    if wrong is not None:
        raise ScaleSimError(wrong)
    if path.is_file() and path.stat().st_size > _LARGEST_FILE:
        raise ScaleSimError(f"{path} has {path.stat().st_size} bytes: expected {what}, at most {_LARGEST_FILE}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ScaleSimError(f"{path} is not {what}: it is no text in UTF-8 ({error})") from error
    if "\0" in text:
        raise ScaleSimError(f"{path} is not {what}: it has bytes of value 0 in it, as no text has")
    return text


def compute_report_row(config: ArrayConfig, layer: GemmLayer) -> tuple[int, float, float, float]:
    """What SCALE-Sim reports of a layer, or of each of its groups: one less than its serial cycles, and percentages.

    The percentages are "Overall Util %": multiply-accumulates over these cycles of all PEs; "Mapping Efficiency %": PEs
    that hold a weight; and "Compute Util %": multiply-accumulates of a fold over the `2 * rows + 2 * cols + m - 3`
    cycles that SCALE-Sim takes for it there (`cols - 1` more than in its "Total Cycles"), the last two in the mean of
    all folds.
    """
    timing = gemm_timing(config, layer.m, layer.k, layer.n)
    # Sums over all folds of the PEs used: each weight sits on one PE in one fold.
    weights, places = layer.k * layer.n, timing.folds * config.pe_count
    fold_cycles = 2 * config.rows + 2 * config.cols + layer.m - 3
    return (
        timing.scalesim,
        100 * layer.m * weights / (config.pe_count * timing.scalesim),
        100 * weights / places,
        100 * layer.m * weights / (places * fold_cycles),
    )


def write_compute_report(
    path: str | Path, config: ArrayConfig, layers: Iterable[GemmLayer], *, stalls: bool = False
) -> None:
    """Write the report of a whole network; the file appears, or replaces an older one, only when it is complete.

    Memory behind the array is not modelled. Without stalls, their cycles are 0, as SCALE-Sim has them with
    `InterfaceBandwidth: CALC`; with stalls (`ScaleSimConfig.stalls`), what depends on them is left empty: total cycles,
    stall cycles and overall utilisation. Cycles including prefetch, which depend on SCALE-Sim's model of DRAM, are
    always left empty. Layers are numbered from 0; each group of one is a line.
    """
    with replaced(Path(path)) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        file.write(_REPORT_HEADER)
        for number, layer in enumerate(chain.from_iterable(repeat(layer, layer.groups) for layer in layers)):
            cycles, overall, mapping, compute = compute_report_row(config, layer)
            timed = ("", "", "") if stalls else (cycles, 0, overall)
            file.write(", ".join(map(str, (number, "", *timed, mapping, compute))) + ",\n")

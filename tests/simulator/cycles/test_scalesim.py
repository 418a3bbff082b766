"""Configurations and topologies of SCALE-Sim: what is read, and what is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import ArrayConfig, gemm_timing
from simulator.cycles.scalesim import (
    ConvLayer,
    GemmLayer,
    ScaleSimConfig,
    ScaleSimError,
    TopologyKindError,
    read_conv_topology,
    read_gemm_topology,
    read_scalesim_config,
)

# The sections, keys and separators of SCALE-Sim 3.0.0's configs/google.cfg.
GOOGLE = """[general]
run_name = GoogleTPU_v1_ws

[architecture_presets]
ArrayHeight:    256
ArrayWidth:     256
IfmapSramSzkB:    6144
FilterSramSzkB:   6144
OfmapSramSzkB:    2048
IfmapOffset:    0
FilterOffset:   10000000
OfmapOffset:    20000000
Dataflow : ws
Bandwidth : 10
ReadRequestBuffer: 512
WriteRequestBuffer: 512

[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10

[sparsity]
SparsitySupport : false
SparseRep : ellpack_block

[run_presets]
InterfaceBandwidth: USER
UseRamulatorTrace: False
"""
SIZE = "[architecture_presets]\nArrayHeight: 3\nArrayWidth: 5\n"
CONV_HEADER = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,"
GEMM_HEADER = "Layer, M, N, K,"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "given.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


Write = Callable[[str | bytes], Path]


def test_a_configuration_of_scalesim_is_read(write: Write) -> None:
    expected = ScaleSimConfig(256, 256, "GoogleTPU_v1_ws", stalls="InterfaceBandwidth: USER")
    assert read_scalesim_config(write(GOOGLE)) == expected


def test_what_makes_scalesim_wait_for_memories_is_kept(write: Write) -> None:
    calculated = GOOGLE.replace("USER", "CALC")
    assert read_scalesim_config(write(calculated)).stalls == ""
    waiting = calculated.replace("Trace: False", "Trace: True").replace("CustomLayout: False", "CustomLayout: True")
    assert read_scalesim_config(write(waiting)).stalls == "UseRamulatorTrace: True, IfmapCustomLayout: True"


@pytest.mark.parametrize(
    "text",
    [
        SIZE,
        SIZE.replace(":", " ="),
        SIZE.replace(":", " :   "),
        SIZE.upper().replace("ARCHITECTURE_PRESETS", "architecture_presets"),
        SIZE.replace("\n", "\r\n"),
        "\ufeff" + SIZE,
        "# a remark\n\n; another\n\n" + SIZE + "\n\n",
        SIZE + "Dataflow: WS\nBandwidth: 100%\n[sparsity]\nSparsitySupport = False\n",
        "[general]\n" + SIZE,
    ],
)
def test_keys_in_any_way_that_scalesim_reads_them(write: Write, text: str) -> None:
    assert read_scalesim_config(write(text)) == ScaleSimConfig(3, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is an empty file: expected a SCALE-Sim configuration"),
        ("# nothing", r"has no section \[architecture_presets\].*found none"),
        ("[general]\nrun_name = x\n", r"has no section \[architecture_presets\].*found \[general\]"),
        ("ArrayHeight: 3\n", "is not a SCALE-Sim configuration: File contains no section headers"),
        (SIZE + "ArrayWidth: 6\n", "is not a SCALE-Sim configuration: .*already exists"),
        (SIZE + "what is this\n", "is not a SCALE-Sim configuration: .*parsing errors"),
        ("[architecture_presets]\nArrayHeight: 3\n", r"has no ArrayWidth in \[architecture_presets\]"),
        ("[architecture_presets]\nArrayWidth: 3\n", r"has no ArrayHeight in \[architecture_presets\]"),
        (SIZE.replace("3", "many"), "ArrayHeight is 'many': expected a whole number, 1 to 1024"),
        (SIZE.replace("3", "3.5"), r"ArrayHeight is '3\.5'"),
        (SIZE.replace("3", "1_6"), "ArrayHeight is '1_6'"),
        (SIZE.replace("5", "0"), "ArrayWidth is '0'"),
        (SIZE.replace("5", "-5"), "ArrayWidth is '-5'"),
        (SIZE.replace("5", "1025"), "ArrayWidth is '1025'"),
        (SIZE.replace("5", "9" * 5000), r"ArrayWidth is '9{60}\.\.\.'"),
        (SIZE.replace("5", ""), "ArrayWidth is ''"),
        (SIZE + "Dataflow: os\n", "Dataflow is 'os': expected ws"),
        (SIZE + "dataflow = is\n", "Dataflow is 'is': expected ws"),
        (SIZE + "[sparsity]\nSparsitySupport: true\n", "SparsitySupport is 'true': expected false"),
        (SIZE + "[run_presets]\nInterfaceBandwidth: 10\n", "InterfaceBandwidth is '10': expected CALC or USER"),
        (b"\xff\xfe" + SIZE.encode("utf-16-le"), "it is no text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is a PNG picture: expected a SCALE-Sim configuration"),
        (SIZE + "\0\0", "bytes of value 0"),
    ],
)
def test_configurations_that_cannot_be_used_are_refused(write: Write, text: str | bytes, message: str) -> None:
    with pytest.raises(ScaleSimError, match=message) as caught:
        read_scalesim_config(write(text))
    assert "\n" not in str(caught.value)
    assert "given.txt" in str(caught.value)


@pytest.mark.parametrize("read", [read_scalesim_config, read_conv_topology, read_gemm_topology])
def test_missing_and_giant_files_are_refused(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; expected a SCALE-Sim"):
        read(tmp_path / "nothing.cfg")
    giant = tmp_path / "giant.cfg"
    with giant.open("wb") as file:
        file.truncate(1 << 25)
    with pytest.raises(ScaleSimError, match="has 33554432 bytes: expected a SCALE-Sim"):
        read(giant)
    with pytest.raises(ScaleSimError, match="is a folder: expected a SCALE-Sim"):
        read(tmp_path)


def test_a_topology_of_convolutions_is_read(write: Write) -> None:
    # With what SCALE-Sim's own topologies have: blank lines, tabs, remarks after the last comma, a sparsity ratio, no
    # comma at the end, and the column of an assignment to devices.
    lines = [
        CONV_HEADER,
        "",
        "Conv1, 224, 224, 7, 7, 3, 64, 2,",
        "\tConv2_dw,112,110,3,2,1,1,1,#dw",
        "Conv3,28,28,1,1,256,256,1",
        "Conv4,5,5,3,3,2,6,1,2:4,",
        " Conv 5 , 9,   9,      3, 3,      1024,   1024,   3 , NPU",
        "Conv3,1,1,1,1,512,1000,1,,,",
        ",,,,,,,,",
        "",
    ]
    expected = [
        ConvLayer("Conv1", 224, 224, 7, 7, 3, 64, 2),
        ConvLayer("Conv2_dw", 112, 110, 3, 2, 1, 1, 1),
        ConvLayer("Conv3", 28, 28, 1, 1, 256, 256, 1),
        ConvLayer("Conv4", 5, 5, 3, 3, 2, 6, 1),
        ConvLayer("Conv 5", 9, 9, 3, 3, 1024, 1024, 3),
        ConvLayer("Conv3", 1, 1, 1, 1, 512, 1000, 1),
    ]
    for text in ("\n".join(lines), "\r\n".join(lines), "\ufeff" + "\n".join(lines)):
        assert read_conv_topology(write(text)) == expected
    assert expected[0].gemm() == GemmLayer("Conv1", 110 * 110, 147, 64)
    assert expected[1].gemm() == GemmLayer("Conv2_dw", 110 * 109, 6, 1)


def test_a_topology_of_gemms_is_read(write: Write) -> None:
    lines = [GEMM_HEADER, "L0,196,192,384,", "L0, 1, 5 ,16, 3:4,", "", "QKT,1024,1024,64", "Linear,7,8,9, remark"]
    assert read_gemm_topology(write("\n".join(lines))) == [
        GemmLayer("L0", m=196, k=384, n=192),
        GemmLayer("L0", m=1, k=16, n=5),
        GemmLayer("QKT", m=1024, k=64, n=1024),
        GemmLayer("Linear", m=7, k=9, n=8),
    ]


def test_the_first_line_may_be_empty_instead_of_a_header(write: Write) -> None:
    # SCALE-Sim skips the first line, whatever it is.
    assert read_gemm_topology(write("\nL0,1,2,3,\n")) == [GemmLayer("L0", 1, 3, 2)]
    assert read_gemm_topology(write(f"\n{GEMM_HEADER}\nL0,1,2,3,\n")) == [GemmLayer("L0", 1, 3, 2)]


def test_a_depth_wise_convolution_is_a_layer_for_each_channel(write: Write) -> None:
    layers = read_conv_topology(write(f"{CONV_HEADER}\nConv_DP,9,9,3,3,3,5,1,\n"))
    assert layers == [ConvLayer(f"Conv_DPChannel_{channel}", 9, 9, 3, 3, 1, 5, 1) for channel in range(3)]


LINE = "c,9,9,3,3,4,5,1,"


# Of SCALE-Sim's own topologies, byte order mark and all.
@pytest.mark.parametrize(
    "header",
    [
        "Layer, IFMAP Width, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,",
        "\ufeffLayer name,Ifmap height,ifmap width,filter height,filter width,channel,num filters,strides,batch size,",
        "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,,,Eh,Ew,e2",
        "Layer name\t IFMAP Height\t IFMAP Width\t Filter Height\t Filter Width\t Channels\t Num Filter\t Strides\t",
    ],
)
def test_headers_that_do_not_contradict_the_order_are_skipped(write: Write, header: str) -> None:
    assert read_conv_topology(write(f"{header}\n{LINE}\n")) == [ConvLayer("c", 9, 9, 3, 3, 4, 5, 1)]


@pytest.mark.parametrize(
    ("header", "column", "cell"),
    [
        (CONV_HEADER.replace("IFMAP Height, IFMAP Width", "IFMAP Width, IFMAP_Height"), "ifmap height", 3),
        (CONV_HEADER.replace("Channels, Num Filter", "Num Filters, Channel"), "channels", 7),
        (CONV_HEADER.replace("Layer name, ", "").replace(",", ", Layer name,", 1), "ifmap height", 1),
        (CONV_HEADER.replace(" Strides,", "").replace("name,", "name, stride,"), "ifmap height", 3),
    ],
)
def test_headers_in_another_order_are_refused(write: Write, header: str, column: str, cell: int) -> None:
    with pytest.raises(ScaleSimError, match=f"line 1: the header has {column} in cell {cell}, but SCALE-Sim reads"):
        read_conv_topology(write(f"{header}\n{LINE}\n"))


def test_gemms_in_another_order_are_refused(write: Write) -> None:
    for header in ("Layer,M,K,N,", " layer , m , k , n", "Layer,K,M,N", "M,N,K"):
        with pytest.raises(ScaleSimError, match="put them in the order layer name, M, N, K"):
            read_gemm_topology(write(f"{header}\nL0,196,384,192,\n"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has a header but no layers"),
        (["", " , ,"], "has a header but no layers"),
        ([LINE, "c,9,9,3,3,4,5"], "line 3: 7 cells: expected 8 cells: layer name, ifmap height"),
        ([LINE, "conv"], "line 3: 1 cells: expected 8 cells"),
        ([LINE, "", "c,9,x,3,3,4,5,1,"], "line 4: ifmap width is 'x': expected a whole number, 1 to 999999999"),
        (["c,9,9,3,3,4,5.0,1,"], r"line 2: filters is '5\.0'"),
        (["c,9,9,3,3,4,5,0,"], "line 2: stride is '0'"),
        (["c,9,9,3,3,-4,5,1,"], "line 2: channels is '-4'"),
        (["c,9,9,3,,4,5,1,"], "line 2: filter width is ''"),
        (["c,9,1000000000,3,3,4,5,1,"], "line 2: ifmap width is '1000000000'"),
        (["c,9,9,3,3,4,5," + "1" * 5000 + ","], r"line 2: stride is '1{60}\.\.\.'"),
        ([LINE, "c,2,9,3,3,4,5,1,"], "line 3: filter height is 3: expected at most the ifmap's 2"),
        (["c,9,2,3,3,4,5,1,"], "line 2: filter width is 3: expected at most the ifmap's 2"),
        (["c,9,9,3,3,4,5,1,1,"], "line 2: cell 9 is '1': expected nothing after the stride, or a sparsity ratio"),
        (["c,9,9,3,3,4,5,1,2"], "line 2: cell 9 is '2'.*the stride is one number for both directions"),
        (["c,9,9,3,3,4,5,1,4:2,"], "line 2: cell 9 is '4:2'"),
        (["c,9,9,3,3,4,5,1,NPU,"], "line 2: cell 9 is 'NPU'"),
        (["c\x1b[31m,9,9,3,3,4,5,1,"], "line 2: layer name is .*expected characters that can be printed"),
        (["DP,9,9,3,3,100001,5,1,"], "line 2: more than 100000 layers"),
    ],
)
def test_mistakes_in_a_topology_of_convolutions_name_their_line(write: Write, lines: list[str], message: str) -> None:
    with pytest.raises(ScaleSimError, match=message) as caught:
        read_conv_topology(write("\n".join([CONV_HEADER, *lines]) + "\n"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has a header but no layers: expected lines of 4 cells: layer name, M, N, K"),
        (["L,1,2"], "line 2: 3 cells: expected 4 cells: layer name, M, N, K"),
        (["L,1,2,"], "line 2: K is ''"),
        (["L,1,2,3,", "L,0,2,3,"], "line 3: M is '0': expected a whole number"),
        (["L,1,two,3,"], "line 2: N is 'two'"),
        (["L,1,2,3,4,"], "line 2: cell 5 is '4': expected nothing after the K, or a sparsity ratio such as 2:4"),
    ],
)
def test_mistakes_in_a_topology_of_gemms_name_their_line(write: Write, lines: list[str], message: str) -> None:
    with pytest.raises(ScaleSimError, match=message):
        read_gemm_topology(write("\n".join([GEMM_HEADER, *lines]) + "\n"))


def test_an_empty_file_and_a_missing_header_are_refused(write: Write) -> None:
    with pytest.raises(ScaleSimError, match="has nothing in it"):
        read_conv_topology(write("\n\n"))
    with pytest.raises(ScaleSimError, match="line 1 is a layer, 'L0,1,2,3,': expected a header"):
        read_gemm_topology(write("L0,1,2,3,\nL1,1,2,3,\n"))
    with pytest.raises(ScaleSimError, match=r"line 1 is a layer, .*expected a header"):
        read_conv_topology(write(f"{LINE}\n{LINE}\n"))


def test_the_other_kind_of_topology_is_refused(write: Write) -> None:
    with pytest.raises(TopologyKindError, match=r"line 2 is a GEMM .*expected a convolution"):
        read_conv_topology(write(f"{GEMM_HEADER}\nL0,196,192,384,\n"))
    with pytest.raises(TopologyKindError, match=r"line 2 is a GEMM .*expected a convolution"):
        read_conv_topology(write(f"{GEMM_HEADER}\nL0,196,192,384,1:4,\n"))
    with pytest.raises(TopologyKindError, match=r"line 2 is a convolution .*expected a GEMM"):
        read_gemm_topology(write(f"{CONV_HEADER}\n{LINE}\n"))


@pytest.mark.parametrize("read", [read_conv_topology, read_gemm_topology])
def test_files_that_are_no_topology_are_refused(write: Write, read: Callable[[Path], Any]) -> None:
    with pytest.raises(ScaleSimError, match="is not a SCALE-Sim topology: it is no text in UTF-8"):
        read(write(b"PK\xff\xfe"))
    with pytest.raises(ScaleSimError, match="bytes of value 0"):
        read(write(b"PK\0\0"))
    with pytest.raises(ScaleSimError, match="is a SCALE-Sim configuration: expected a SCALE-Sim topology"):
        read(write(GOOGLE))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GemmLayer("x", 0, 1, 1),
        lambda: GemmLayer("x", 1, -1, 1),
        lambda: ConvLayer("x", 4, 4, 2, 2, 0, 1, 1),
        lambda: ConvLayer("x", 4, 4, 5, 2, 1, 1, 1),
        lambda: ScaleSimConfig(0, 4),
        lambda: ScaleSimConfig(4, 1025),
    ],
)
def test_impossible_sizes_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9), st.integers(0, 9), st.integers(1, 5))
def test_outputs_are_counted_window_by_window(
    filter_height: int, filter_width: int, more_rows: int, more_columns: int, stride: int
) -> None:
    layer = ConvLayer(
        "x", filter_height + more_rows, filter_width + more_columns, filter_height, filter_width, 2, 3, stride
    )
    # ceil((H - F + s) / s): windows start at 0, s, 2s, ... up to the first that reaches the edge or passes it.
    for size, filter_size, outputs in (
        (layer.ifmap_height, filter_height, layer.ofmap_height),
        (layer.ifmap_width, filter_width, layer.ofmap_width),
    ):
        starts = [0]
        while starts[-1] + filter_size < size:
            starts.append(starts[-1] + stride)
        assert outputs == len(starts)


def test_cycles_are_those_that_scalesim_prints(write: Write) -> None:
    # SCALE-Sim 3.0.0 with a 32x32 weight-stationary array prints 20879 and 21459 for these GEMMs (topologies/GEMM_mnk/
    # vit_s.csv) and 121939 for the first layer of ResNet-18.
    config = ArrayConfig(32, 32)
    gemms = read_gemm_topology(write(f"{GEMM_HEADER}\nL0,196,192,384,\nL1,196,1176,64,\n"))
    assert [gemm_timing(config, layer.m, layer.k, layer.n).scalesim for layer in gemms] == [20879, 21459]
    (first,) = read_conv_topology(write(f"{CONV_HEADER}\nConv1,224,224,7,7,3,64,2,\n"))
    gemm = first.gemm()
    assert gemm_timing(config, gemm.m, gemm.k, gemm.n).scalesim == 121939

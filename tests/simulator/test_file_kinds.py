"""Files of another kind than a reader reads: one line says what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from simulator import ArrayConfig, FaultMap
from simulator.cycles.scalesim import ScaleSimError, read_conv_topology, read_gemm_topology, read_scalesim_config
from simulator.errors import InputError
from simulator.files import file_kind
from simulator.gates.cells import NetlistError
from simulator.gates.designs import build_netlist
from simulator.gates.files import read_netlist
from simulator.lots.chips import Chip, ChipLot, write_lot
from simulator.lots.csv import read_fault_list
from simulator.multipliers.files import read_multiplier
from simulator.multipliers.product_tables import ProductTableError, read_products
from tests.support import netlist_cases

CONFIG = ArrayConfig(4, 4)
YOSYS = {"creator": "Yosys 0.40", "modules": {"mult": {"attributes": {}}}}

KINDS: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "an empty file": lambda path: path.touch(),
    "an HDF5 file": lambda path: write_lot(path, CONFIG, [Chip("a", FaultMap(CONFIG))]),
    "a zip archive": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "a program": lambda path: path.write_bytes(b"\x7fELF\2\1\1" + bytes(100)),
    "a PNG picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "a NumPy array": lambda path: path.write_bytes(b"\x93NUMPY\1\0" + bytes(100)),
    "a netlist in JSON": lambda path: path.write_text(json.dumps(YOSYS, indent=2)),
    "JSON": lambda path: path.write_text('{"a": 1}'),
    "a netlist in Verilog": lambda path: path.write_text(netlist_cases.verilog(build_netlist("array", 2, 2))),
    "a netlist in BLIF": lambda path: path.write_text(netlist_cases.blif(build_netlist("array", 2, 2))),
    "a list of faults (CSV)": lambda path: path.write_text("chip,row,col,site,bit,kind\na,1,1,PSUM,2,STUCK_AT_0\n"),
    "a SCALE-Sim configuration": lambda path: path.write_text(
        "[architecture_presets]\nArrayHeight: 3\nArrayWidth: 5\n"
    ),
}

TABLE = "a product table (.npy, .h, or raw 16-bit words)"
READERS: dict[str, tuple[str, Callable[[Path], object], type[ValueError], tuple[str, ...]]] = {
    "m.v": ("a netlist in Verilog, as its name ends in .v", read_netlist, NetlistError, ("a netlist in Verilog",)),
    "m.blif": ("a netlist in BLIF, as its name ends in .blif", read_netlist, NetlistError, ("a netlist in BLIF",)),
    "m": ("a netlist in Verilog or BLIF", read_netlist, NetlistError, ("a netlist in Verilog", "a netlist in BLIF")),
    "t.bin": (TABLE, lambda path: read_products(path, act_signed=True), ProductTableError, ("a NumPy array",)),
    "t.npy": (TABLE, lambda path: read_products(path, act_signed=True), ProductTableError, ("a NumPy array",)),
    "t.h": (TABLE, lambda path: read_products(path, act_signed=True), ProductTableError, ("a NumPy array",)),
    "t.json": (
        TABLE,
        lambda path: read_multiplier(str(path), weight_bits=8, act_bits=8, act_signed=True),
        ProductTableError,
        ("a NumPy array",),
    ),
    "lot.h5": ("an HDF5 file of chips", ChipLot, InputError, ("an HDF5 file",)),
    "faults.csv": (
        "a list of faults (CSV)",
        lambda path: read_fault_list(path, CONFIG),
        InputError,
        ("a list of faults (CSV)",),
    ),
    "array.cfg": ("a SCALE-Sim configuration", read_scalesim_config, ScaleSimError, ("a SCALE-Sim configuration",)),
    "convs.csv": ("a SCALE-Sim topology", read_conv_topology, ScaleSimError, ()),
    "gemms.csv": ("a SCALE-Sim topology", read_gemm_topology, ScaleSimError, ()),
}


@pytest.mark.parametrize("name", READERS)
def test_readers_say_what_else_they_are_given(name: str, tmp_path: Path) -> None:
    expected, read, error, own = READERS[name]
    for number, (kind, make) in enumerate(KINDS.items()):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        make(path)
        assert file_kind(path) == kind
        if kind in own:
            continue
        with pytest.raises(error, match=re.escape(f"{name} is {kind}: expected {expected}")) as caught:
            read(path)
        message = str(caught.value)
        assert message.count(str(path)) == 1
        assert "\n" not in message
        if kind == "a netlist in JSON":
            assert message.endswith("; have Yosys write it with write_verilog -noattr or write_blif")


def test_what_to_do_with_them_is_said(tmp_path: Path) -> None:
    KINDS["a netlist in Verilog"](tmp_path / "m.txt")
    with pytest.raises(ProductTableError, match=r"its name must end in \.v, \.sv or \.blif to be read"):
        read_products(tmp_path / "m.txt", act_signed=True)
    KINDS["a list of faults (CSV)"](tmp_path / "lot.h5")
    with pytest.raises(InputError, match="make a lot of it with 'efat chips import'"):
        ChipLot(tmp_path / "lot.h5")


def test_what_is_right_is_not_taken_for_something_else(tmp_path: Path) -> None:
    # Raw words may begin like a picture.
    products = np.zeros((256, 256), "<u2")
    products.reshape(-1)[:2] = np.frombuffer(b"\x89PNG", "<u2")
    products.tofile(tmp_path / "t.bin")
    assert read_products(tmp_path / "t.bin", act_signed=True).products[1, 0] == 0x474E
    pin = "sub m0(\n  .model (n1)\n);\n"
    for text in ("", "Layer,M,N,K,\nL,1,2,3,\n", "int16_t lut[2] = {1, 2};\n", "plain words\n", pin):
        (tmp_path / "text").write_text(text)
        assert file_kind(tmp_path / "text") == (None if text else "an empty file")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = 1
    assert file_kind(tmp_path / "x.h5") == "an HDF5 file"
    assert file_kind(Path("/dev/null")) is None

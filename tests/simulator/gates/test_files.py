"""Netlist files: gates come back as they are written, and what is no multiplier of gates is refused in one line."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.gates.cells import Gate, NetlistError
from simulator.gates.designs import DESIGNS, build_netlist
from simulator.gates.files import read_netlist, read_netlist_file
from simulator.gates.netlist import Netlist, netlist_products
from simulator.multipliers.multiplier import exact_products
from tests.support import netlist_cases
from tests.support.netlist_cases import from_text, module, needs, netlists, yosys

DATA = Path(__file__).parents[3] / "tests" / "support" / "data"
SAMPLES = sorted(DATA.glob("mult3x2_unsigned_acts*"))


def without_constants(netlist: Netlist) -> bool:
    return not np.isin(netlist.gates, [Gate.CONST_0, Gate.CONST_1]).any()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_samples_multiply_every_pair(sample: Path) -> None:
    found = read_netlist_file(sample, act_signed=False)
    assert found[1:] == ("mult3x2", "w", "a", "p")
    assert len(found.netlist.gates) == 16
    assert np.array_equal(netlist_products(found.netlist), exact_products(3, 2, act_signed=False))
    assert netlist_cases.products(found.netlist) == exact_products(3, 2, act_signed=False).ravel().tolist()


def test_all_forms_of_a_sample_are_the_same_gates() -> None:
    assert len(SAMPLES) == 4
    assert len({read_netlist(sample, act_signed=False) for sample in SAMPLES}) == 1


@given(netlists(most_bits=5).filter(without_constants), st.booleans())
def test_gates_come_back_as_they_are_written(netlist: Netlist, cells: bool) -> None:
    signs = {"weight_signed": netlist.weight_signed, "act_signed": netlist.act_signed}
    # A BUF that is no cell is a connection.
    if cells or not (netlist.gates == Gate.BUF).any():
        assert from_text(netlist_cases.verilog(netlist, cells=cells), **signs) == netlist
        assert from_text(netlist_cases.blif(netlist, cells=cells), **signs) == netlist


@given(netlists(most_bits=3).filter(without_constants), st.booleans(), st.randoms(use_true_random=False))
def test_gates_may_come_in_any_order(netlist: Netlist, cells: bool, shuffler: random.Random) -> None:
    def shuffled(statements: list[str]) -> list[str]:
        return shuffler.sample(statements, len(statements))

    expected = netlist_cases.product_bits(netlist)
    for text in (
        netlist_cases.verilog(netlist, shuffled, cells=cells),
        netlist_cases.blif(netlist, shuffled, cells=cells),
    ):
        found = from_text(text)
        kept = netlist.gates if cells else netlist.gates[netlist.gates != Gate.BUF]
        assert sorted(found.gates.tolist()) == sorted(kept.tolist())
        assert netlist_cases.product_bits(found) == expected


@pytest.mark.parametrize("design", DESIGNS)
def test_built_in_designs_come_back(design: str) -> None:
    for weight_bits, act_bits in ((2, 2), (5, 3), (8, 8)):
        netlist = build_netlist(design, weight_bits, act_bits)
        for cells in (False, True):
            assert from_text(netlist_cases.verilog(netlist, cells=cells)) == netlist
            assert from_text(netlist_cases.blif(netlist, cells=cells)) == netlist


@needs("yosys")
@pytest.mark.parametrize("design", DESIGNS)
def test_built_in_designs_come_back_from_yosys(design: str, tmp_path: Path) -> None:
    netlist = build_netlist(design, 8, 8)
    (tmp_path / "cells.v").write_text(netlist_cases.verilog(netlist, cells=True))
    script = "read_verilog -icells cells.v; hierarchy -top random; clean; write_verilog -noattr again.v"
    yosys(tmp_path, f"{script}; write_verilog -noattr -noexpr again_cells.v; write_blif again.blif")
    for name in ("again.v", "again_cells.v", "again.blif"):
        found = read_netlist(tmp_path / name)
        assert sorted(found.gates.tolist()) == sorted(netlist.gates.tolist())
        assert np.array_equal(netlist_products(found), exact_products(8, 8))


MULTIPLIERS = {
    "signed": (8, 8, "signed", "signed", "weight * activation"),
    "unsigned-acts": (8, 8, "signed", "", "weight * $signed({1'b0, activation})"),
    "4x5": (4, 5, "signed", "signed", "weight * activation"),
}
MAPPINGS = {
    "gates": "abc -g gates",
    "simple": "abc -g simple",
    "all": "abc -g AND,OR,NAND,NOR,XOR,XNOR,ANDNOT,ORNOT,MUX,NMUX,AOI3,OAI3,AOI4,OAI4",
    "techmap": "techmap; simplemap",
}


@needs("yosys")
@pytest.mark.parametrize("kind", MULTIPLIERS)
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_what_yosys_writes_multiplies_every_pair(kind: str, mapping: str, tmp_path: Path) -> None:
    weight_bits, act_bits, weight_sign, act_sign, expression = MULTIPLIERS[kind]
    (tmp_path / "behavioural.v").write_text(
        f"module mult(input {act_sign} [{act_bits - 1}:0] activation, input {weight_sign} [{weight_bits - 1}:0] weight,"
        f" output signed [{weight_bits + act_bits - 1}:0] p);\n  assign p = {expression};\nendmodule\n"
    )
    yosys(
        tmp_path,
        f"read_verilog behavioural.v; synth -flatten -run :fine; techmap; {MAPPINGS[mapping]}; opt_clean; "
        "write_verilog -noattr expressions.v; write_verilog -noexpr cells.v; write_blif logic.blif; "
        "write_blif -icells -gates cells.blif; write_blif -icells -conn connections.blif; splitnets -ports; "
        "write_verilog -noattr bits.v",
    )
    signed = act_sign == "signed"
    read = {}
    for name in ("expressions.v", "cells.v", "logic.blif", "cells.blif", "connections.blif", "bits.v"):
        found = read_netlist_file(tmp_path / name, act_signed=signed)
        assert found[1:] == ("mult", "weight", "activation", "p")
        assert np.array_equal(netlist_products(found.netlist), exact_products(weight_bits, act_bits, act_signed=signed))
        read[name] = sorted(found.netlist.gates.tolist())
        with pytest.raises(NetlistError, match=r"exactly, not .*: take an array of"):
            read_netlist(tmp_path / name, act_signed=not signed)
    assert len({str(gates) for gates in read.values()}) == 1


@needs("yosys")
def test_luts_and_words_of_yosys_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "m.v").write_text(
        "module m(input signed [3:0] w, input signed [3:0] a, output signed [7:0] p); assign p = w * a; endmodule"
    )
    yosys(tmp_path, "read_verilog m.v; write_verilog words.v; synth -lut 4; write_verilog lut.v; write_blif lut.blif")
    for name in ("words.v", "lut.v", "lut.blif"):
        with pytest.raises(NetlistError, match=rf"{name}: line \d+: .*synth -flatten; abc -g gates; opt_clean"):
            read_netlist(tmp_path / name)


def test_verilog_by_hand() -> None:
    text = r"""
`timescale 1ns/1ps
(* top = 1, keep *)
module by_hand (input wire signed [2:1] b, input [0:1] x, output logic [3:0] out);
  wire \strange [name] , nand_out;      // an escaped name ends at white space
  wire [5:4] \two bits = { b[2], x[1] };
  nand (nand_out, b[1], x[1]), named (\strange [name] , nand_out, nand_out);
  assign out[0] = \strange [name] , out[2:1] = {1'b0, \two bits [5] ^ \two bits [4]};
  assign out[3] = x[0] ? ~(b[1] | 1'h1) : !b[2];
endmodule
"""
    text = text.replace(r"\two bits", r"\two_bits ")
    text = text.replace(r"\strange [name]", r"\strange[name]")
    netlist = from_text(text)
    assert [Gate(code).name for code in netlist.gates] == [
        "CONST_0", "CONST_1", "NAND", "NAND", "XOR", "NOT", "NOR", "MUX",
    ]  # fmt: skip
    for weight in range(4):
        for act in range(4):
            b1, b2 = weight & 1, weight >> 1
            # x is declared the other way round: x[1] is its lowest bit.
            x1, x0 = act & 1, act >> 1
            expected = (b1 & x1) | (b2 ^ x1) << 1 | (0 if x0 else 1 - b2) << 3
            assert netlist_products(netlist)[weight, act] % 16 == expected


def test_nested_expressions_are_gates_one_by_one() -> None:
    netlist = from_text(module("assign p[0] = w & a & ~(w ^ a), p[1] = ~w | a;"))
    assert [Gate(code).name for code in netlist.gates] == ["AND", "XNOR", "AND", "ORNOT"]
    # The second is not a, or w: the pins of ORNOT are a, and then what is inverted.
    assert netlist.inputs[3].tolist() == [1, 0, -1, -1]
    netlist = from_text(module("assign p = {~(~w), w ~^ a};"))
    assert sorted(Gate(code).name for code in netlist.gates) == ["NOT", "NOT", "XNOR"]


def test_precedence_is_that_of_verilog() -> None:
    netlist = from_text(module("assign p[0] = w | a ^ w & a, p[1] = w ? a : a ? w : 1'b0;"))
    for weight in range(2):
        for act in range(2):
            low = weight | (act ^ (weight & act))
            high = act if weight else (weight if act else 0)
            assert netlist_products(netlist)[weight, act] % 4 == low | high << 1


def test_blif_by_hand() -> None:
    # Rows for 0, rows of don't-cares, inputs in another order than the gate's pins, constants, continued lines.
    netlist = from_text(
        ".model m # comment\n.inputs w0 w1 \\\n a0 a1\n.outputs p_0 p_1 p_2 p_3\n"
        ".names w0 a0 p_0\n0- 0\n-0 0\n"
        ".names a1 w1 w0 p_1\n01- 1\n1-1 1\n.names one\n1\n.names zero\n"
        ".names w1 one p_2\n01 1\n.subckt $_OAI3_ C=zero Y=p_3 A=w0 B=a0\n.end\n"
    )
    assert [Gate(code).name for code in netlist.gates] == ["CONST_0", "CONST_1", "AND", "MUX", "ANDNOT", "OAI3"]
    # a1 ? w0 : w1, and one and not w1; nets 0, 1 are w, 2, 3 are a, 4 and 5 the constants.
    assert netlist.inputs[3:5].tolist() == [[1, 0, 3, -1], [5, 1, -1, -1]]


PORTS = [
    ("A", "B", {}, ("B", "A")),
    ("b", "a", {}, ("b", "a")),
    ("x", "y", {}, ("y", "x")),
    ("left", "right", {}, ("left", "right")),
    ("a", "other", {}, ("other", "a")),
    ("left", "right", {"weight_port": "right"}, ("right", "left")),
    ("left", "right", {"act_port": "left"}, ("right", "left")),
    ("w", "a", {"weight_port": "a", "act_port": "w"}, ("a", "w")),
]


@pytest.mark.parametrize(("first", "second", "options", "expected"), PORTS)
def test_ports_are_found_by_name_or_order(
    first: str, second: str, options: dict[str, str], expected: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "m.v"
    text = f"module m({first}, {second}, o); input {first}; input {second}; output [1:0] o;"
    path.write_text(f"{text} assign o = {{1'b0, {first} & ~{second}}}; endmodule")
    found = read_netlist_file(path, **options)
    assert (found.weight_port, found.act_port, found.product_port) == (*expected, "o")
    # The first port is on pin 0, and the weight is net 0.
    assert found.netlist.inputs[1, 0] == (0 if expected[0] == first else 1)

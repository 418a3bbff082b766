"""Netlist files: gates come back as they are written, and what is no multiplier of gates is refused in one line."""

from __future__ import annotations

import random
import time
from pathlib import Path

import netlist_oracle
import netlist_text
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netlist_strategies import netlists
from verilog_tools import needs, yosys

from simulator.gates.blif import parse_blif
from simulator.gates.designs import DESIGNS, build
from simulator.gates.evaluation import netlist_products
from simulator.gates.files import read_netlist, read_netlist_file
from simulator.gates.netlist import Gate, Netlist, NetlistError
from simulator.gates.verilog import parse_verilog
from simulator.gates.wiring import assemble, choose_ports
from simulator.multiplier import exact_products

DATA = Path(__file__).parents[2] / "data"
SAMPLES = sorted(DATA.glob("mult3x2_unsigned_acts*"))


def from_text(text: str, *, act_signed: bool = True, weight_signed: bool = True) -> Netlist:
    wiring = parse_blif(text) if ".model" in text else parse_verilog(text)
    ports = choose_ports(wiring, None, None, None)
    return assemble(wiring, ports, weight_signed=weight_signed, act_signed=act_signed)


def without_constants(netlist: Netlist) -> bool:
    return not np.isin(netlist.gates, [Gate.CONST_0, Gate.CONST_1]).any()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_samples_multiply_every_pair(sample: Path) -> None:
    found = read_netlist_file(sample, act_signed=False)
    assert found[1:] == ("mult3x2", "w", "a", "p")
    assert len(found.netlist.gates) == 16
    assert np.array_equal(netlist_products(found.netlist), exact_products(3, 2, act_signed=False))
    assert netlist_oracle.products(found.netlist) == exact_products(3, 2, act_signed=False).ravel().tolist()


def test_all_forms_of_a_sample_are_the_same_gates() -> None:
    assert len(SAMPLES) == 4
    assert len({read_netlist(sample, act_signed=False) for sample in SAMPLES}) == 1


@given(netlists(most_bits=5).filter(without_constants), st.booleans())
def test_gates_come_back_as_they_are_written(netlist: Netlist, cells: bool) -> None:
    signs = {"weight_signed": netlist.weight_signed, "act_signed": netlist.act_signed}
    # A BUF that is no cell is a connection.
    if cells or not (netlist.gates == Gate.BUF).any():
        assert from_text(netlist_text.verilog(netlist, cells=cells), **signs) == netlist
        assert from_text(netlist_text.blif(netlist, cells=cells), **signs) == netlist


@given(netlists(most_bits=3).filter(without_constants), st.booleans(), st.randoms(use_true_random=False))
def test_gates_may_come_in_any_order(netlist: Netlist, cells: bool, shuffler: random.Random) -> None:
    def shuffled(statements: list[str]) -> list[str]:
        return shuffler.sample(statements, len(statements))

    expected = netlist_oracle.product_bits(netlist)
    for text in (
        netlist_text.verilog(netlist, shuffled, cells=cells),
        netlist_text.blif(netlist, shuffled, cells=cells),
    ):
        found = from_text(text)
        kept = netlist.gates if cells else netlist.gates[netlist.gates != Gate.BUF]
        assert sorted(found.gates.tolist()) == sorted(kept.tolist())
        assert netlist_oracle.product_bits(found) == expected


@pytest.mark.parametrize("design", DESIGNS)
def test_built_in_designs_come_back(design: str) -> None:
    for weight_bits, act_bits in ((2, 2), (5, 3), (8, 8)):
        netlist = build(design, weight_bits, act_bits)
        for cells in (False, True):
            assert from_text(netlist_text.verilog(netlist, cells=cells)) == netlist
            assert from_text(netlist_text.blif(netlist, cells=cells)) == netlist


@needs("yosys")
@pytest.mark.parametrize("design", DESIGNS)
def test_built_in_designs_come_back_from_yosys(design: str, tmp_path: Path) -> None:
    netlist = build(design, 8, 8)
    (tmp_path / "cells.v").write_text(netlist_text.verilog(netlist, cells=True))
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
        with pytest.raises(NetlistError, match=r"exactly, not .*: state the signs that it was made for"):
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


def test_registers_are_refused() -> None:
    with pytest.raises(NetlistError, match=r"line 4: cell \$_DFF_P_ stores a value: expected gates only"):
        from_text("module m(w, a, p);\ninput w, a;\noutput [1:0] p;\n\\$_DFF_P_ x (.D(w), .C(a), .Q(p[0]));\nendmodule")
    with pytest.raises(NetlistError, match=r"line 2: 'always' is not structural Verilog: make simple gates"):
        from_text("module m(w, a, p);\nalways @(posedge w) p <= a;\nendmodule")
    with pytest.raises(NetlistError, match=r"line 3: a \.latch stores a value"):
        from_text(".model m\n.inputs w a\n.latch w p re a 0\n.end")


def verilog(body: str, product: int = 2) -> str:
    return f"module m(w, a, p);\ninput w;\ninput a;\noutput [{product - 1}:0] p;\n{body}\nendmodule\n"


def blif(body: str) -> str:
    return f".model m\n.inputs w a\n.outputs p[0] p[1]\n{body}\n.end\n"


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
    netlist = from_text(verilog("assign p[0] = w & a & ~(w ^ a), p[1] = ~w | a;"))
    assert [Gate(code).name for code in netlist.gates] == ["AND", "XNOR", "AND", "ORNOT"]
    # The second is not a, or w: the pins of ORNOT are a, and then what is inverted.
    assert netlist.inputs[3].tolist() == [1, 0, -1, -1]
    netlist = from_text(verilog("assign p = {~(~w), w ~^ a};"))
    assert sorted(Gate(code).name for code in netlist.gates) == ["NOT", "NOT", "XNOR"]


def test_precedence_is_that_of_verilog() -> None:
    netlist = from_text(verilog("assign p[0] = w | a ^ w & a, p[1] = w ? a : a ? w : 1'b0;"))
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


REFUSED = {
    "no module": ("", "line 1: 'the end of the file': expected 'module'"),
    "no text": ("\x01", r"line 1: '\\x01' is not Verilog"),
    "other text": ("hello world", "line 1: 'hello': expected 'module'"),
    "cut off": (verilog("")[:-12], "the file ends in the middle of a module"),
    "two modules": (verilog("assign p = {w, a};") * 2, "line 7: 'module' after endmodule: expected one module"),
    "undriven product": (verilog("assign p[0] = w & a;"), r"nothing drives net p\[1\]"),
    "undriven": (verilog("wire n; assign p = {n, w};"), r"nothing drives net n \(connected to p\[1\]\)"),
    "undriven pin": (verilog("assign p = {w & n, w};"), "nothing drives net n, which is read"),
    "two drivers": (
        verilog("assign p = {a, w};\nassign p[1] = w & a;"),
        r"net p\[1\] has two drivers: line 5 and the AND gate of line 6",
    ),
    "driven input": (verilog("assign w = a, p = {w, a};"), "net w has two drivers: input w and line 5"),
    "loop": (
        verilog("wire x, y; assign x = y & w; assign y = x | a; assign p = {y, x};"),
        "gates drive each other in a loop: (x, y|y, x)",
    ),
    "loop of nets": (
        verilog("wire x, y; assign x = y, y = x, p = {y, x};"),
        "nets are connected in a loop: (x, y|y, x)",
    ),
    "undefined": (verilog("assign p = {1'hx, w};"), r"p\[1\] is undefined \(x\)"),
    "undefined pin": (verilog("assign p = {w & 1'hz, w};"), "a gate's pin is undefined"),
    "widths": (verilog("assign p = w;"), "line 5: 1 bits are assigned to 2: expected as many"),
    "word operator": (verilog("wire [1:0] v = {w, a}; assign p = v & v;"), r"operator & on 2 bits: expected one; make"),
    "arithmetic": (verilog("assign p = w + a;"), r"line 5: operator \+ is no gate: make simple gates"),
    "range": (verilog("assign p[2] = w;"), r"p\[2:2\] is outside: p is \[1:0\]"),
    "reversed range": (verilog("assign p[0:1] = {w, a};"), r"p\[0:1\] is outside: p is \[1:0\]"),
    "bit of a bit": (verilog("assign p = {w[0], a};"), r"w\[0:0\] is outside: w is a single bit"),
    "constant": (verilog("assign p = 2'h7;"), "constant \"2'h7\" does not fit into 2 bits"),
    "digits": (verilog("assign p = 2'b02;"), "constant \"2'b02\" has digits that its base does not have"),
    "no width": (verilog("assign p = 'h1;"), "expected a width of"),
    "assign to constant": (verilog("assign {1'b0, p[0]} = {w, a};"), "assigned to what is no net"),
    "cell": (verilog("\\$lut  x (.A(w), .Y(p[0]));"), r"line 5: cell \$lut is none of the gates .*: make simple gates"),
    "pins": (verilog("\\$_AND_  x (.A(w), .C(a), .Y(p[0]));"), r"cell \$_AND_ has pins A, C, Y: expected A, B, Y"),
    "pin twice": (verilog("\\$_AND_  x (.A(w), .A(a), .Y(p[0]));"), "pin A is connected twice"),
    "wide pin": (verilog("\\$_NOT_  x (.A({w, a}), .Y(p[0]));"), "expected one net or one constant bit on each pin"),
    "constant output": (verilog("\\$_NOT_  x (.A(w), .Y(1'b0));"), r"output Y of \$_NOT_ drives a constant"),
    "parameters": (verilog("\\$_NOT_  #(.X(1)) x (.A(w), .Y(p[0]));"), r"\$_NOT_ has parameters"),
    "primitive": (verilog("and (p[0], w, a, w);"), "and of 3 inputs: expected an output net and 2 inputs"),
    "port without direction": ("module m(w, a, p); endmodule", "port w is neither an input nor an output"),
    "port not listed": ("module m(w); input w, a; endmodule", "input a is not among the module's ports"),
    "port twice": (verilog("input w;"), "port w is declared twice"),
    "declared again": (verilog("wire [1:0] w;"), "line 5: w is declared again with another range"),
    "comment": (verilog("/* "), r"line 5: /\* without an end"),
    "directive": ("`include \"x\"", "line 1: '`': expected 'module'"),
    "wide port": ("module m(w); input [99999999:0] w; endmodule", "port w has 100000000 bits"),
    "huge index": ("module m(w); input [99999999999:0] w; endmodule", "'99999999999': expected a number"),
    "inputs": ("module m(w, a, c, p); input w, a, c; output p; assign p = w; endmodule", "expected two inputs and one"),
    "outputs": ("module m(w, a, p, q); input w, a; output p, q; endmodule", r"inputs w \(1 bits\), a \(1 bits\)"),
    "wide operand": ("module m(w, a, p); input [8:0] w; input a; output [9:0] p; endmodule", "port w has 9 bits: exp"),
    "narrow product": (verilog("", 3), "port p has 3 bits: expected 2, as many as w and a have together"),
    "blif: start": (".inputs a\n.model m", "line 1: '.inputs' before .model"),
    "blif: second model": (blif("") + ".model n", r"line 6: .model after .end: expected one model"),
    "blif: model inside": (blif(".model n"), "line 4: a second .model"),
    "blif: statement": (blif(".search x"), "line 4: '.search' is not known"),
    "blif: inputs": (blif(".names w a w a w p[0]\n11111 1"), "line 4: .names of 5 inputs is no gate: make simple"),
    "blif: logic": (blif(".names w a p[0]\n1- 1"), r"line 4: the logic of p\[0\] is none of the gates: make simple"),
    "blif: row": (blif(".names w a p[0]\n1 1"), "line 5: '1 1' in .names: expected 2 of the signs"),
    "blif: both": (blif(".names w a p[0]\n11 1\n00 0"), "line 4: .names has rows for 0 and rows for 1"),
    "blif: no net": (blif(".names"), "line 4: .names without a net"),
    "blif: undefined": (blif(".names $undef p[0]\n1 1"), r"p\[0\] is undefined"),
    "blif: undriven": (blif(".names w a p[0]\n11 1"), r"nothing drives net p\[1\], which is read"),
    "blif: pins": (blif(".gate $_AND_ A=w B Y=p[0]"), "line 4: 'B': expected each pin once, as PIN=NET"),
    "blif: cell": (blif(".gate AND2 A=w B=a Y=p[0]"), "line 4: cell AND2 is none of the gates"),
    "blif: no type": (blif(".gate"), "line 4: a cell without a type"),
    "blif: conn": (blif(".conn w"), "line 4: .conn of 1 nets: expected two"),
    "blif: twice": (blif(".inputs w"), "net w has two drivers: input w and input w"),
    "blif: bits": (".model m\n.inputs w[0] w[2] a\n.outputs p\n.end", r"port w has no bit 1, but bits 0 and 2"),
    "blif: bit twice": (".model m\n.inputs w[0] w<0> a\n.outputs p\n.end", "two ports are bit 0 of w"),
    "blif: both ways": (".model m\n.inputs w[0] w a\n.outputs p\n.end", "port w is there as a whole and in bits"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    text, message = REFUSED[case]
    path = tmp_path / ("m.blif" if case.startswith("blif") else "m.v")
    path.write_text(text)
    with pytest.raises(NetlistError, match=message) as caught:
        read_netlist(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_ports_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.v"
    path.write_text(verilog("assign p = {w, a};"))
    for options, message in (
        (
            {"weight_port": "b"},
            r"no input is named 'b': it has inputs w \(1 bits\), a \(1 bits\) and outputs p \(2 bits\)",
        ),
        ({"act_port": "p"}, "no input is named 'p'"),
        ({"product_port": "w"}, "no output is named 'w'"),
        ({"weight_port": "w", "act_port": "w"}, "port w is given for the weight and for the activation"),
    ):
        with pytest.raises(NetlistError, match=message):
            read_netlist(path, **options)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; expected a netlist in Verilog or BLIF"):
        read_netlist(tmp_path / "none.v")
    (tmp_path / "binary.v").write_bytes(b"module \xff\xfe")
    with pytest.raises(NetlistError, match=r"is no text \(byte 7\)"):
        read_netlist(tmp_path / "binary.v")
    (tmp_path / "large.v").write_bytes(b" " * ((8 << 20) + 1))
    with pytest.raises(NetlistError, match="is larger than 8 MiB"):
        read_netlist(tmp_path / "large.v")


def test_the_content_tells_the_format_where_the_name_does_not(tmp_path: Path) -> None:
    for sample in SAMPLES:
        path = tmp_path / f"{sample.stem}.txt"
        path.write_text(sample.read_text())
        assert read_netlist(path, act_signed=False) == read_netlist(sample, act_signed=False)


ENDLESS = {
    "brackets": verilog("assign p = " + "(" * 100_000),
    "braces": verilog("assign p = " + "{" * 100_000),
    "inverters": verilog("assign p[0] = " + "~" * 100_000 + "w;"),
    "conditions": verilog("assign p[0] = " + "w ? " * 100_000),
    "operators": verilog("assign p[0] = w" + " & a" * 100_000 + ";"),
    "attributes": verilog("(* " * 1_000_000),
    "comments": verilog("/ *" * 500_000 + "/*" * 500_000),
    "words": verilog(";" * 3_000_000),
    "one word": verilog("x" * 3_000_000),
    "digits": verilog("assign p = " + "1" * 3_000_000 + "'b0;"),
    "nets in a row": verilog("assign " + ", ".join(f"n{i + 1} = n{i}" for i in range(20_000)) + ", n0 = w;"),
    "nets in a ring": verilog("assign " + ", ".join(f"n{i + 1} = n{i}" for i in range(20_000)) + ", n0 = n20000;"),
    "gates in a ring": verilog(
        "assign " + ", ".join(f"n{i + 1} = ~n{i}" for i in range(20_000)) + ", n0 = ~n20000, p = {n0, n1};"
    ),
    "gates": verilog("assign " + ", ".join(f"n{i} = ~w" for i in range(70_000)) + ";"),
    "blif: lines": blif("\\\n" * 1_000_000),
    "blif: rows": blif(".names w a p[0]\n" + "11 1\n" * 200_000),
    "blif: models": blif(".names " + "x " * 1_000_000),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_files_made_to_be_slow_are_not(case: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(NetlistError):
        from_text(ENDLESS[case])
    assert time.perf_counter() - begun < 60


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A sample with some pieces cut out, doubled, swapped or replaced."""
    text = draw(st.sampled_from(SAMPLES)).read_text()
    for _ in range(draw(st.integers(1, 4))):
        first, last = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        last = min(last, first + draw(st.sampled_from([1, 3, 20, 200])))
        piece = text[first:last]
        other = draw(st.sampled_from([
            "", piece * 2, piece[::-1], "w", "p[0]", "1'b1", "1'hx", "~", "(", ")", ";", "{", "}", "[9:0]", "[0]", " ",
            "\n", ".end", ".names ", "assign ", "= ", "\\", "#", "$", "0", "1", "-",
        ]) | st.text(max_size=3))  # fmt: skip
        text = text[:first] + other + text[last:]
    return text


@given(damaged())
def test_damaged_files_are_refused_or_are_netlists(text: str) -> None:
    try:
        found = from_text(text, act_signed=False)
    except NetlistError:
        return
    assert netlist_products(found).shape == (1 << found.weight_bits, 1 << found.act_bits)

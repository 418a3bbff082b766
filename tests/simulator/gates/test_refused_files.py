"""Netlist files that are none, do not fit, are damaged or made to be slow: refused in one line, and soon."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.gates.cells import NetlistError
from simulator.gates.files import read_netlist
from simulator.gates.netlist import netlist_products
from tests.support.netlist_cases import from_text, model, module

DATA = Path(__file__).parents[3] / "tests" / "support" / "data"
SAMPLES = sorted(DATA.glob("mult3x2_unsigned_acts*"))


def test_registers_are_refused() -> None:
    with pytest.raises(NetlistError, match=r"line 4: cell \$_DFF_P_ stores a value: expected gates only"):
        from_text("module m(w, a, p);\ninput w, a;\noutput [1:0] p;\n\\$_DFF_P_ x (.D(w), .C(a), .Q(p[0]));\nendmodule")
    with pytest.raises(NetlistError, match=r"line 2: 'always' is not structural Verilog: make simple gates"):
        from_text("module m(w, a, p);\nalways @(posedge w) p <= a;\nendmodule")
    with pytest.raises(NetlistError, match=r"line 3: a \.latch stores a value"):
        from_text(".model m\n.inputs w a\n.latch w p re a 0\n.end")


REFUSED = {
    "nothing": ("", r"m\.v is an empty file: expected a netlist in Verilog, as its name ends in \.v"),
    "no module": ("// nothing", "line 1: 'the end of the file': expected 'module'"),
    "no text": ("\x01", r"line 1: '\\x01' is not Verilog"),
    "other text": ("hello world", "line 1: 'hello': expected 'module'"),
    "cut off": (module("")[:-12], "the file ends in the middle of a module"),
    "two modules": (module("assign p = {w, a};") * 2, "line 7: 'module' after endmodule: expected one module"),
    "undriven product": (module("assign p[0] = w & a;"), r"nothing drives net p\[1\]"),
    "undriven": (module("wire n; assign p = {n, w};"), r"nothing drives net n \(connected to p\[1\]\)"),
    "undriven pin": (module("assign p = {w & n, w};"), "nothing drives net n, which is read"),
    "two drivers": (
        module("assign p = {a, w};\nassign p[1] = w & a;"),
        r"net p\[1\] has two drivers: line 5 and the AND gate of line 6",
    ),
    "driven input": (module("assign w = a, p = {w, a};"), "net w has two drivers: input w and line 5"),
    "loop": (
        module("wire x, y; assign x = y & w; assign y = x | a; assign p = {y, x};"),
        "gates drive each other in a loop: (x, y|y, x)",
    ),
    "loop of nets": (
        module("wire x, y; assign x = y, y = x, p = {y, x};"),
        "nets are connected in a loop: (x, y|y, x)",
    ),
    "undefined": (module("assign p = {1'hx, w};"), r"p\[1\] is undefined \(x\)"),
    "undefined pin": (module("assign p = {w & 1'hz, w};"), "a gate's pin is undefined"),
    "widths": (module("assign p = w;"), "line 5: 1 bits are assigned to 2: expected as many"),
    "word operator": (module("wire [1:0] v = {w, a}; assign p = v & v;"), r"operator & on 2 bits: expected one; make"),
    "arithmetic": (module("assign p = w + a;"), r"line 5: operator \+ is no gate: make simple gates"),
    "range": (module("assign p[2] = w;"), r"p\[2:2\] is outside: p is \[1:0\]"),
    "reversed range": (module("assign p[0:1] = {w, a};"), r"p\[0:1\] is outside: p is \[1:0\]"),
    "bit of a bit": (module("assign p = {w[0], a};"), r"w\[0:0\] is outside: w is a single bit"),
    "constant": (module("assign p = 2'h7;"), "constant \"2'h7\" does not fit into 2 bits"),
    "digits": (module("assign p = 2'b02;"), "constant \"2'b02\" has digits that its base does not have"),
    "no width": (module("assign p = 'h1;"), "expected a width of"),
    "assign to constant": (module("assign {1'b0, p[0]} = {w, a};"), "assigned to what is no net"),
    "cell": (module("\\$lut  x (.A(w), .Y(p[0]));"), r"line 5: cell \$lut is none of the gates .*: make simple gates"),
    "pins": (module("\\$_AND_  x (.A(w), .C(a), .Y(p[0]));"), r"cell \$_AND_ has pins A, C, Y: expected A, B, Y"),
    "pin twice": (module("\\$_AND_  x (.A(w), .A(a), .Y(p[0]));"), "pin A is connected twice"),
    "wide pin": (module("\\$_NOT_  x (.A({w, a}), .Y(p[0]));"), "expected one net or one constant bit on each pin"),
    "constant output": (module("\\$_NOT_  x (.A(w), .Y(1'b0));"), r"output Y of \$_NOT_ drives a constant"),
    "parameters": (module("\\$_NOT_  #(.X(1)) x (.A(w), .Y(p[0]));"), r"\$_NOT_ has parameters"),
    "primitive": (module("and (p[0], w, a, w);"), "and of 3 inputs: expected an output net and 2 inputs"),
    "port without direction": ("module m(w, a, p); endmodule", "port w is neither an input nor an output"),
    "port not listed": ("module m(w); input w, a; endmodule", "input a is not among the module's ports"),
    "port twice": (module("input w;"), "port w is declared twice"),
    "declared again": (module("wire [1:0] w;"), "line 5: w is declared again with another range"),
    "comment": (module("/* "), r"line 5: /\* without an end"),
    "directive": ("`include \"x\"", "line 1: '`': expected 'module'"),
    "wide port": ("module m(w); input [99999999:0] w; endmodule", "port w has 100000000 bits"),
    "huge index": ("module m(w); input [99999999999:0] w; endmodule", "'99999999999': expected a number"),
    "inputs": ("module m(w, a, c, p); input w, a, c; output p; assign p = w; endmodule", "expected two inputs and one"),
    "outputs": ("module m(w, a, p, q); input w, a; output p, q; endmodule", r"inputs w \(1 bits\), a \(1 bits\)"),
    "wide operand": ("module m(w, a, p); input [8:0] w; input a; output [9:0] p; endmodule", "port w has 9 bits: exp"),
    "narrow product": (module("", 3), "port p has 3 bits: expected 2, as many as w and a have together"),
    "blif: start": (".inputs a\n.model m", "line 1: '.inputs' before .model"),
    "blif: second model": (model("") + ".model n", r"line 6: .model after .end: expected one model"),
    "blif: model inside": (model(".model n"), "line 4: a second .model"),
    "blif: statement": (model(".search x"), "line 4: '.search' is not known"),
    "blif: inputs": (model(".names w a w a w p[0]\n11111 1"), "line 4: .names of 5 inputs is no gate: make simple"),
    "blif: logic": (model(".names w a p[0]\n1- 1"), r"line 4: the logic of p\[0\] is none of the gates: make simple"),
    "blif: row": (model(".names w a p[0]\n1 1"), "line 5: '1 1' in .names: expected 2 of the signs"),
    "blif: both": (model(".names w a p[0]\n11 1\n00 0"), "line 4: .names has rows for 0 and rows for 1"),
    "blif: no net": (model(".names"), "line 4: .names without a net"),
    "blif: undefined": (model(".names $undef p[0]\n1 1"), r"p\[0\] is undefined"),
    "blif: undriven": (model(".names w a p[0]\n11 1"), r"nothing drives net p\[1\], which is read"),
    "blif: pins": (model(".gate $_AND_ A=w B Y=p[0]"), "line 4: 'B': expected each pin once, as PIN=NET"),
    "blif: cell": (model(".gate AND2 A=w B=a Y=p[0]"), "line 4: cell AND2 is none of the gates"),
    "blif: no type": (model(".gate"), "line 4: a cell without a type"),
    "blif: conn": (model(".conn w"), "line 4: .conn of 1 nets: expected two"),
    "blif: twice": (model(".inputs w"), "net w has two drivers: input w and input w"),
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
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_ports_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.v"
    path.write_text(module("assign p = {w, a};"))
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
    "brackets": module("assign p = " + "(" * 100_000),
    "braces": module("assign p = " + "{" * 100_000),
    "inverters": module("assign p[0] = " + "~" * 100_000 + "w;"),
    "conditions": module("assign p[0] = " + "w ? " * 100_000),
    "operators": module("assign p[0] = w" + " & a" * 100_000 + ";"),
    "attributes": module("(* " * 1_000_000),
    "comments": module("/ *" * 500_000 + "/*" * 500_000),
    "words": module(";" * 3_000_000),
    "one word": module("x" * 3_000_000),
    "digits": module("assign p = " + "1" * 3_000_000 + "'b0;"),
    "nets in a row": module("assign " + ", ".join(f"n{i + 1} = n{i}" for i in range(20_000)) + ", n0 = w;"),
    "nets in a ring": module("assign " + ", ".join(f"n{i + 1} = n{i}" for i in range(20_000)) + ", n0 = n20000;"),
    "gates in a ring": module(
        "assign " + ", ".join(f"n{i + 1} = ~n{i}" for i in range(20_000)) + ", n0 = ~n20000, p = {n0, n1};"
    ),
    "gates": module("assign " + ", ".join(f"n{i} = ~w" for i in range(70_000)) + ";"),
    "blif: lines": model("\\\n" * 1_000_000),
    "blif: rows": model(".names w a p[0]\n" + "11 1\n" * 200_000),
    "blif: models": model(".names " + "x " * 1_000_000),
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

"""Gates as SystemVerilog: Icarus gives what the oracle gives, faults included, and no tool complains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator import Kind
from simulator.gates.cells import MOST_PINS, Gate
from simulator.gates.designs import DESIGNS, build_netlist
from simulator.gates.netlist import Netlist
from simulator.gates.systemverilog import gate_level_multiplier
from tests.support import netlist_cases
from tests.support.netlist_cases import needs, tool, yosys

CASES = 12


def random_netlist(generator: np.random.Generator, weight_bits: int, act_bits: int) -> Netlist:
    """Two gates of each kind and more, on random nets."""
    operands = weight_bits + act_bits
    gates = generator.permutation([*Gate, *Gate, *generator.choice(list(Gate), 20)])
    inputs = np.full((len(gates), MOST_PINS), -1)
    for number, gate in enumerate(gates):
        pins = Gate(gate).pins
        inputs[number, :pins] = generator.integers(0, operands + number, pins)
    outputs = operands + len(gates) - 1 - generator.permutation(2 * operands)[:operands]
    return Netlist(gates, inputs, outputs, weight_bits, act_bits)


def sweeping_bench(netlist: Netlist, faults: list[netlist_cases.Faults], stride: int) -> str:
    """Prints the products of every `stride`-th pair, a line for each case of faults."""
    names = {Kind.FLIP: "invert", Kind.STUCK_AT_0: "clear", Kind.STUCK_AT_1: "set"}
    steps = []
    for case in faults:
        steps += ["invert = 0; clear = 0; set = 0;"]
        steps += [f"{names[kind]}[{place}] = 1'b1;" for place, kinds in case.items() for kind in kinds]
        steps += ["sweep;"]
    return f"""
module testbench;
  logic [{netlist.weight_bits - 1}:0] weight;
  logic [{netlist.act_bits - 1}:0] activation;
  logic [{netlist.locations - 1}:0] invert, clear, set;
  wire [{netlist.product_bits - 1}:0] product;
  multiplier dut (
    .weight(weight), .activation(activation), .invert(invert), .clear(clear), .set(set), .product(product)
  );
  task sweep;
    for (int pair = 0; pair < {1 << netlist.product_bits}; pair = pair + {stride}) begin
      {{weight, activation}} = pair[{netlist.product_bits - 1}:0];
      #1 $write("%0d ", product);
    end
    $write("\\n");
  endtask
  initial begin
    {" ".join(steps)}
    $finish;
  end
endmodule
"""


def icarus_products(
    folder: Path, netlist: Netlist, faults: list[netlist_cases.Faults], stride: int = 1
) -> list[list[int]]:
    """The products of every `stride`-th pair as unsigned numbers, by Icarus."""
    (folder / "multiplier.sv").write_text(gate_level_multiplier(netlist))
    (folder / "testbench.sv").write_text(sweeping_bench(netlist, faults, stride))
    tool(folder, "iverilog", "-g2012", "-s", "testbench", "-o", "bench", "multiplier.sv", "testbench.sv")
    lines = tool(folder, "vvp", "-n", "bench").splitlines()
    return [[int(word) for word in line.split()] for line in lines if line]


def oracle_products(netlist: Netlist, faults: list[netlist_cases.Faults], stride: int = 1) -> list[list[int]]:
    """The same by the oracle."""
    size = 1 << netlist.product_bits
    return [[number % size for number in netlist_cases.products(netlist, case)[::stride]] for case in faults]


def random_faults(generator: np.random.Generator, netlist: Netlist) -> list[netlist_cases.Faults]:
    """None, single ones, and up to six at once, several of them at one location."""
    found: list[netlist_cases.Faults] = [{}]
    for case in range(1, CASES):
        places = generator.choice(netlist.locations, 1 if case < CASES // 2 else 6, replace=False).tolist()
        found.append({place: frozenset(Kind(int(code)) for code in generator.integers(0, 3, 2)) for place in places})
    return found


@pytest.mark.integration
@needs("iverilog")
@pytest.mark.parametrize("design", [*DESIGNS, "random"])
def test_icarus_gives_the_products_of_the_oracle(design: str, tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    weight_bits, act_bits = generator.integers(2, 5, 2).tolist()
    if design == "random":
        netlist = random_netlist(generator, weight_bits, act_bits)
    else:
        netlist = build_netlist(design, weight_bits, act_bits, act_signed=bool(generator.integers(2)))
    faults = random_faults(generator, netlist)
    assert icarus_products(tmp_path, netlist, faults) == oracle_products(netlist, faults)


@pytest.mark.integration
@needs("iverilog")
def test_icarus_gives_the_products_of_a_whole_multiplier_with_faults(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    netlist = build_netlist("array", 8, 8)
    faults = random_faults(generator, netlist)
    assert icarus_products(tmp_path, netlist, faults, stride=255) == oracle_products(netlist, faults, stride=255)


@pytest.mark.integration
@needs("iverilog")
def test_parameters_of_another_netlist_end_the_simulation(tmp_path: Path) -> None:
    (tmp_path / "multiplier.sv").write_text(gate_level_multiplier(build_netlist("array", 3, 2)))
    top = """
module top;
  multiplier #(.ACT_SIGNED(0)) dut (.weight(3'd0), .activation(2'd0), .invert('0), .clear('0), .set('0), .product());
endmodule
"""
    (tmp_path / "top.sv").write_text(top)
    tool(tmp_path, "iverilog", "-g2012", "-s", "top", "-o", "top", "multiplier.sv", "top.sv")
    with pytest.raises(AssertionError, match="these gates are for other parameters"):
        tool(tmp_path, "vvp", "-n", "top")


@needs("verilator")
@pytest.mark.parametrize("design", [*DESIGNS, "random", "idle"])
def test_verilator_has_no_complaint(design: str, tmp_path: Path, seed: int) -> None:
    if design == "random":
        netlist = random_netlist(np.random.default_rng(seed), 3, 5)
    elif design == "idle":
        # No gates, and operand bits that nobody reads.
        netlist = Netlist(np.empty(0), np.empty((0, MOST_PINS)), np.array([0, 0, 5, 1, 1, 5]), 2, 4)
    else:
        netlist = build_netlist(design, 8, 8)
    (tmp_path / "multiplier.sv").write_text(gate_level_multiplier(netlist))
    # The port `set` is a word of C++, which matters only for the top module.
    tool(tmp_path, "verilator", "--lint-only", "-Wall", "-Wno-SYMRSVDWORD", "multiplier.sv")


@needs("yosys")
def test_yosys_synthesises_it(tmp_path: Path) -> None:
    netlist = build_netlist("dadda", 4, 4)
    (tmp_path / "multiplier.sv").write_text(gate_level_multiplier(netlist))
    yosys(tmp_path, "read_verilog -sv multiplier.sv; synth -top multiplier; check -assert; tee -o cells.txt stat")
    assert "$_XOR_" in (tmp_path / "cells.txt").read_text()


def test_every_location_has_its_fault_inputs() -> None:
    netlist = build_netlist("wallace", 5, 3)
    text = gate_level_multiplier(netlist)
    for location in range(netlist.locations):
        for name in ("invert", "clear", "set"):
            assert text.count(f"{name}[{location}]") == 1
    assert f"parameter int LOCATIONS = {netlist.locations}" in text
    assert netlist.digest in text

"""Which SystemVerilog makes up an array, and with which parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simulator.config import ArrayConfig
from simulator.dtypes import Int16Array
from simulator.faults import FaultMap, Site

FOLDER = Path(__file__).parent
SOURCES = ("pe.sv", "column_accumulator.sv", "systolic_array.sv")
"""The array, but for its multiplier."""

MULTIPLIER = "multiplier.sv"
"""The multiplier without gates, which Icarus and Verilator simulate fast."""

TESTBENCH = "testbench.sv"

_TABLES = "products.hex"
_LEAST_DEPTH = 64


def multiplier_files(config: ArrayConfig, faults: FaultMap) -> dict[str, str] | None:
    """The files that make up the multiplier of a chip, by their names, with masks of a bit for each location.

    None for `multiplier.sv`: while no multiplier is faulty and all are exact, there need be no gates or tables.
    """
    from simulator.gates.systemverilog import gate_level_multiplier

    if config.multiplies_exactly and not (faults.table["site"] == Site.MULTIPLIER).any():
        return None
    netlist, tables = config.pe_multiplier.netlist, config.pe_multiplier.tables
    if netlist is not None:
        return {MULTIPLIER: gate_level_multiplier(netlist)}
    assert tables is not None
    return _table_multiplier(config, tables)


def _table_multiplier(config: ArrayConfig, tables: Int16Array) -> dict[str, str]:
    """A multiplier made of product tables: any fault at location i, and the highest one counts, selects table i + 1."""
    weight_bits, act_bits, bits = config.weight_bits, config.act_bits, config.product_bits
    locations = max(1, len(tables) - 1)
    source = f"""// Products of {weight_bits}x{act_bits} bits by weight and activation, from {len(tables)} tables.
module multiplier #(
    parameter int WEIGHT_BITS = {weight_bits},
    parameter int ACT_BITS = {act_bits},
    parameter int ACT_SIGNED = {int(config.act_signed)},
    parameter int LOCATIONS = {locations}
) (
    input logic [{weight_bits - 1}:0] weight,
    input logic [{act_bits - 1}:0] activation,
    input logic [{locations - 1}:0] invert,
    input logic [{locations - 1}:0] clear,
    input logic [{locations - 1}:0] set,
    output logic [{bits - 1}:0] product
);
  logic [{bits - 1}:0] products[0:{tables.size - 1}];
  initial $readmemh("{_TABLES}", products);
  wire [{locations - 1}:0] faulty = invert | clear | set;
  logic [31:0] chosen;
  always_comb begin
    chosen = 0;
    for (int i = 0; i < {len(tables) - 1}; i++) if (faulty[i]) chosen = i + 1;
  end
  assign product = products[{{chosen[{32 - bits - 1}:0], weight, activation}}];
endmodule
"""
    content = "\n".join(f"{value:x}" for value in (tables.astype(np.int64) & ((1 << bits) - 1)).ravel().tolist())
    return {MULTIPLIER: source, _TABLES: content + "\n"}


def parameters(config: ArrayConfig, m: int, *, locations: bool) -> dict[str, int]:
    """Parameters of `systolic_array` for GEMMs of up to `m` rows of X, or of the next power of two.

    `locations` is whether the multiplier has fault locations.
    """
    return {
        "ROWS": config.rows,
        "COLS": config.cols,
        "WEIGHT_BITS": config.weight_bits,
        "ACT_BITS": config.act_bits,
        "ACT_SIGNED": int(config.act_signed),
        "ACC_BITS": config.acc_bits,
        "ACC_DEPTH": 1 << (max(m, _LEAST_DEPTH) - 1).bit_length(),
        "MULTIPLIER_LOCATIONS": max(1, Site.MULTIPLIER.bits(config)) if locations else 1,
    }

"""The PEs of a chip whose products are not those of an exact multiplier, and what these PEs make of activations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.dtypes import Int16Array, Int32Array
from simulator.faults import FaultMap, Kind, Site
from simulator.gates.netlist import circuit_of
from simulator.gates.netlist_kernel import CLEAR, SET, Circuit, product_rows
from simulator.pe_behaviour_kernel import EXACT, PeProducts


def pe_products(faults: FaultMap) -> PeProducts:
    """How the PEs of a chip multiply; FLIPs are left out."""
    config = faults.config
    table = faults.table[faults.table["site"] == Site.MULTIPLIER]
    behaviour = np.full((config.rows, config.cols), EXACT, np.int32)
    sets: dict[tuple[tuple[int, int], ...], int] = {}
    if not config.multiplies_exactly:
        behaviour[:] = sets[()] = 0
    of_pe: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, col, _, location, kind, _ in table[table["kind"] != Kind.FLIP].tolist():
        of_pe.setdefault((row, col), []).append((location, CLEAR if kind == Kind.STUCK_AT_0 else SET))
    for place, listed in of_pe.items():
        behaviour[place] = sets.setdefault(tuple(listed), len(sets))
    pairs = [pair for listed in sets for pair in listed]
    first = np.concatenate([[0], np.cumsum([len(listed) for listed in sets])])
    multiplier = config.pe_multiplier if len(table) or sets else None
    tables = np.zeros((0, 1, 1), np.int16)
    nothing = np.empty(0, np.int32)
    circuit = Circuit(nothing.astype(np.uint8), nothing.reshape(0, 4), np.zeros(1, np.int32), nothing, 0, 0)
    if multiplier is not None and multiplier.netlist is not None:
        circuit = circuit_of(multiplier.netlist)
    elif multiplier is not None and multiplier.tables is not None:
        # A copy: Numba compiles anew for arrays that are read-only.
        tables = multiplier.tables.copy()
    return PeProducts(
        behaviour=behaviour,
        first=first.astype(np.int32),
        location=np.array([location for location, _ in pairs], np.int32),
        code=np.array([code for _, code in pairs], np.uint8),
        circuit=circuit,
        tables=tables,
    )


def rows_of_products(
    products: PeProducts, behaviour: Int32Array, weight: npt.NDArray[np.integer], weight_bits: int, act_bits: int
) -> tuple[Int16Array, Int32Array]:
    """What PEs with fixed weights make of every activation.

    Args:
        products: of the chip.
        behaviour: int32 [PEs], none of them `EXACT`.
        weight: [PEs], what the multiplier gets.
        weight_bits: width of a weight.
        act_bits: width of an activation.

    Returns:
        int16 [rows, 2**act_bits], products by the activation's bit pattern, and int32 [PEs], the row of each PE; PEs
        with equal behaviour and weight share one.
    """
    pattern = weight.astype(np.int64) & ((1 << weight_bits) - 1)
    keys, row_of = np.unique((behaviour.astype(np.int64) << weight_bits) | pattern, return_inverse=True)
    behaviours, patterns = (keys >> weight_bits).astype(np.int32), (keys & ((1 << weight_bits) - 1)).astype(np.int32)
    if len(products.tables):
        chosen = np.zeros(max(1, len(products.first) - 1), np.int32)
        owner = np.repeat(np.arange(len(products.first) - 1), np.diff(products.first))
        np.maximum.at(chosen, owner, products.location + 1)
        rows = products.tables[chosen[behaviours], patterns]
    else:
        rows = np.empty((len(keys), 1 << act_bits), np.int16)
        product_rows(products.circuit, products.first, products.location, products.code, behaviours, patterns, rows)
    return rows, row_of.reshape(-1).astype(np.int32)

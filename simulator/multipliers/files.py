"""Whatever a user may name as a multiplier: a built-in design, a netlist file or a product table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.dtypes import Int16Array
from simulator.errors import InputError, did_you_mean
from simulator.gates.files import is_netlist_name, read_netlist_file
from simulator.multipliers.multiplier import DESIGNS, Multiplier, built_in
from simulator.multipliers.product_tables import Operand, ProductTable, ProductTableError, read_products, sign_magnitude


@dataclass(frozen=True)
class TableSigns:
    """What a file with a product table does not say; the other fields are those of `read_products`."""

    weight_signed: bool | None = None
    act_signed: bool | None = None
    magnitudes: bool = False
    """Multiply magnitudes by it and signs apart; its operands must be unsigned."""
    first: Operand | None = None


def read_table(path: str | Path, *, weight_bits: int, act_bits: int, act_signed: bool, signs: TableSigns) -> Int16Array:
    """Read a product table for an array of these widths with signed weights: int16 [2**weight_bits, 2**act_bits].

    Raises:
        FileNotFoundError: there is no such file.
        ProductTableError: it holds no such table, or one for other operands.
    """
    table = read_products(
        path,
        weight_bits=weight_bits,
        act_bits=act_bits,
        weight_signed=signs.weight_signed,
        act_signed=signs.act_signed,
        first=signs.first,
    )
    return for_array(table, path, act_signed=act_signed, magnitudes=signs.magnitudes).products.astype(np.int16)


def for_array(table: ProductTable, path: str | Path, *, act_signed: bool, magnitudes: bool) -> ProductTable:
    """A table from `path` as an array with signed weights takes it.

    Raises:
        ProductTableError: it is for other operands.
    """
    if magnitudes:
        try:
            return sign_magnitude(table, act_signed=act_signed)
        except ProductTableError as error:
            raise ProductTableError(f"{path}: {error}") from None
    words = "unsigned", "signed"
    if not table.weight_signed or table.act_signed != act_signed:
        advice = (
            "multiply magnitudes by it, and signs apart (--sign-magnitude)"
            if not table.weight_signed and not table.act_signed
            else "take a table, or an array, with the same signs"
        )
        raise ProductTableError(
            f"{path} is for {words[table.weight_signed]} weights and {words[table.act_signed]} activations, the array "
            f"has signed weights and {words[act_signed]} activations: {advice}"
        )
    return table


def read_multiplier(
    name: str, *, weight_bits: int, act_bits: int, act_signed: bool, signs: TableSigns | None = None
) -> Multiplier:
    """The multiplier of an array by the name of a design or of a file.

    A file is structural Verilog or BLIF (`.v`, `.sv`, `.blif`), or else a product table.

    Raises:
        FileNotFoundError: there is neither such a design nor such a file.
        InputError: the file holds no multiplier, or one for other operands.
    """
    if name in DESIGNS:
        return built_in(name, weight_bits, act_bits, act_signed=act_signed)
    path = Path(name)
    if not path.exists():
        hint = did_you_mean(str(name), DESIGNS)
        raise FileNotFoundError(f"{name}: neither a file nor one of the designs {', '.join(DESIGNS)}{hint}")
    if is_netlist_name(path):
        netlist = read_netlist_file(path, act_signed=act_signed).netlist
        if (netlist.weight_bits, netlist.act_bits) != (weight_bits, act_bits):
            raise InputError(
                f"{path} multiplies {netlist.weight_bits}-bit weights by {netlist.act_bits}-bit activations: expected "
                f"{weight_bits} and {act_bits} bits, as the array has"
            )
        return Multiplier(path.name, netlist, act_signed=act_signed)
    table = read_table(
        path, weight_bits=weight_bits, act_bits=act_bits, act_signed=act_signed, signs=signs or TableSigns()
    )
    return Multiplier.from_tables(path.name, table, [], act_signed=act_signed)

"""Reading product tables: what a multiplier gives for every pair of operands, from NumPy, TFApprox and AdaPT.

- NumPy `.npy`: integers, [2**weight_bits, 2**act_bits] or flat.
- TFApprox (github.com/ehw-fit/tf-approximate, `examples/axmul_8x8/*.bin`): 65,536 little-endian 16-bit words, the
  product of a and b at `a << 8 | b`. Its kernels look up a = input and b = filter, so activations come first, and the
  tables that it brings (mul8u_*) are of unsigned operands.
- AdaPT (github.com/dimdano/adapt, `adapt/cpu-kernels/axx_mults/*.h`): C, `const int16_t lut [256][256] = {{...`, of
  signed operands by their bit patterns. Its convolutions look up lut[weight][activation], its linear layers
  lut[activation][weight], which matters only for tables that are not symmetric.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from simulator.dtypes import Int32Array, Int64Array
from simulator.errors import InputError, checked_integer
from simulator.files import BLIF, NUMPY, VERILOG, file_kind, other_kind
from simulator.gates.signs import (
    OtherSignsError,
    SignError,
    Signs,
    check_signs,
    operand_values,
    product_values,
    signed_products,
)
from simulator.multipliers.multiplier import TableErrors, table_errors

Operand = Literal["weight", "activation"]
_HEADER_SUFFIXES = (".h", ".hh", ".hpp", ".c", ".cc", ".cpp", ".inc")
_LARGEST_NUMPY_HEADER = 1 << 14
_MOST_TEXT_BYTES_PER_PRODUCT = 64


class ProductTableError(InputError):
    """A file without a product table, or with one that does not fit; one line says why."""


@dataclass(frozen=True)
class ProductTable:
    """A multiplier's products, and whether its operands are two's complement."""

    products: Int32Array
    """int32 [2**weight_bits, 2**act_bits], by the operands' bit patterns."""
    weight_signed: bool
    act_signed: bool
    form: str
    """What was read: `NumPy`, `raw`, `C header` or `netlist`."""
    first: Operand
    """The operand that the file counts through slowly."""

    @property
    def signs(self) -> Signs:
        """Whether its operands are two's complement."""
        return Signs(self.weight_signed, self.act_signed)

    @property
    def exact(self) -> Int64Array:
        """int64 [2**weight_bits, 2**act_bits]: the exact products."""
        return signed_products(self.products.shape, self.signs)

    @property
    def errors(self) -> TableErrors:
        """How far the products are from the exact ones, all pairs taken alike."""
        return table_errors(self.products, self.exact)

    @property
    def symmetric(self) -> bool:
        """Whether it does not matter which operand comes first."""
        return np.array_equal(self.products, self.products.T)


def read_products(
    path: str | Path,
    *,
    act_signed: bool | None,
    weight_signed: bool | None = None,
    weight_bits: int = 8,
    act_bits: int = 8,
    first: Operand | None = None,
) -> ProductTable:
    """Read a product table.

    Args:
        path: a NumPy file, a C file with one array, or raw 16-bit words.
        act_signed: whether the table's activations are two's complement; None if the file says so (C's `int16_t`).
        weight_signed: whether its weights are; None for signed ones, or for what the file says.
        weight_bits: width of the weight, 2..8.
        act_bits: width of the activation, 2..8.
        first: the operand that the file counts through slowly; None for the weight, but for raw words the activation.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it holds no such table, its signs are not stated, or other signs fit it far better; a width out of
            range, or an unknown operand.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a product table (.npy, .h, or raw 16-bit words)")
    weight_bits = checked_integer("weight_bits", weight_bits, 2, 8)
    act_bits = checked_integer("act_bits", act_bits, 2, 8)
    if first not in (None, *get_args(Operand)):
        raise InputError(f"first is {first!r}: expected {' or '.join(map(repr, get_args(Operand)))}, or None")
    entries = 1 << (weight_bits + act_bits)
    kind, suffix = file_kind(path), path.suffix.lower()
    is_raw = kind != NUMPY and suffix not in (".npy", *_HEADER_SUFFIXES)
    # Raw words of the right number may begin like anything.
    if not (is_raw and path.is_file() and path.stat().st_size == 2 * entries):
        _check_kind(path)
    stated: bool | None = None
    try:
        if kind == NUMPY or suffix == ".npy":
            form, flat = "NumPy", _read_numpy(path, weight_bits, act_bits, first or "weight")
        elif suffix in _HEADER_SUFFIXES:
            form = "C header"
            flat, stated = _read_header(path, entries)
        else:
            form, flat = "raw", _read_raw(path, entries)
        first = first or ("activation" if form == "raw" else "weight")
        if act_signed is None:
            if stated is None:
                raise ProductTableError(
                    "sign convention not stated: say whether its operands are signed (--table-signed, --table-unsigned)"
                )
            act_signed = stated
            weight_signed = stated if weight_signed is None else weight_signed
        weight_signed = True if weight_signed is None else weight_signed
        shape = (1 << weight_bits, 1 << act_bits)
        patterns = flat.reshape(shape) if first == "weight" else flat.reshape(shape[::-1]).T
        signs = Signs(weight_signed, act_signed)
        products = product_values(patterns, signs)
        check_signs(patterns, signs)
    except OtherSignsError as error:
        raise ProductTableError(f"{path}: {error}: state the signs that it was made for") from None
    except (SignError, ProductTableError) as error:
        raise ProductTableError(f"{path}: {error}") from None
    return ProductTable(products.astype(np.int32), weight_signed, act_signed, form, first)


def sign_magnitude(table: ProductTable, *, act_signed: bool) -> ProductTable:
    """Make a table for signed weights of one of unsigned operands: magnitudes are multiplied, and signs apart.

    The product of w and a becomes sign(w) * sign(a) * table[|w|][|a|]; an unsigned activation has no sign.

    Raises:
        ProductTableError: the table's operands are signed, or products do not fit into `weight_bits + act_bits` signed
            bits.
    """
    if table.weight_signed or table.act_signed:
        raise ProductTableError("sign and magnitude: the table's operands are signed already: expected unsigned ones")
    weights, acts = (
        operand_values(size, signed=signed)
        for size, signed in zip(table.products.shape, (True, act_signed), strict=True)
    )
    magnitudes = table.products[np.abs(weights)[:, None], np.abs(acts)].astype(np.int64)
    products = magnitudes * np.sign(weights)[:, None] * np.where(acts < 0, -1, 1)
    half = products.size // 2
    outside = (products < -half) | (products >= half)
    if outside.any():
        raise ProductTableError(
            f"sign and magnitude: {int(outside.sum())} products such as {int(products[outside][0])} do not fit into "
            f"{half.bit_length()} signed bits ({-half}..{half - 1})"
        )
    return ProductTable(products.astype(np.int32), True, act_signed, table.form, table.first)


def _read_numpy(path: Path, weight_bits: int, act_bits: int, first: Operand) -> Int64Array:
    entries = 1 << (weight_bits + act_bits)
    _check_size(path, 8 * entries + _LARGEST_NUMPY_HEADER)
    try:
        # Mapped, so that a header that promises too much takes no memory.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy reads the header as Python, and lets through whatever its parts raise.
        raise ProductTableError(f"it is no NumPy array of numbers ({' '.join(str(error).split())[:80]})") from None
    bits = (weight_bits, act_bits) if first == "weight" else (act_bits, weight_bits)
    expected = tuple(1 << width for width in bits)
    if not np.issubdtype(array.dtype, np.integer) or array.shape not in (expected, (entries,)):
        raise ProductTableError(f"it holds {array.dtype} {array.shape}: expected integers {expected} or ({entries},)")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise ProductTableError(f"it holds {array.max()}: expected products of {weight_bits + act_bits} bits")
    return np.array(array, np.int64).reshape(-1)


def _check_kind(path: Path) -> None:
    named = "its name must end in .v, .sv or .blif to be read as a netlist"
    wrong = other_kind(
        path,
        "a product table (.npy, .h, or raw 16-bit words)",
        own=(NUMPY,),
        hints={VERILOG: named, BLIF: named},
    )
    if wrong is not None:
        raise ProductTableError(wrong)


def _read_raw(path: Path, entries: int) -> Int64Array:
    size = path.stat().st_size
    if size != 2 * entries:
        raise ProductTableError(f"it has {size:,} bytes: expected {2 * entries:,}, {entries:,} words of 16 bits")
    return np.fromfile(path, "<u2").astype(np.int64)


def _check_size(path: Path, most: int) -> None:
    size = path.stat().st_size
    if size > most:
        raise ProductTableError(f"it has {size:,} bytes: expected at most {most:,}")


_COMMENT = re.compile(r"//[^\n]*|^[ \t]*#[^\n]*", re.MULTILINE)
_ARRAY = re.compile(
    r"(?P<type>\b[A-Za-z_]\w*)\s+(?P<name>[A-Za-z_]\w*)\s*(?P<sizes>(?:\[[^\][{}]{0,40}\]\s*){1,3})=\s*(?=\{)"
)
_WORD = re.compile(r"\s*(?:([{},])|([+-]?(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,18}))[uUlL]{0,3}\b)")


def _read_header(path: Path, entries: int) -> tuple[Int64Array, bool | None]:
    """The numbers of a C array, and whether its type says that they are signed."""
    _check_size(path, _MOST_TEXT_BYTES_PER_PRODUCT * entries)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ProductTableError(f"it is no text (byte {error.start}): expected a C array") from None
    text = _COMMENT.sub(" ", "".join(_without_comments(text)))
    arrays = list(_ARRAY.finditer(text))
    chosen = [array for array in arrays if array["name"] == "lut"] or arrays
    if len(chosen) != 1:
        names = ", ".join(array["name"] for array in chosen[:5]) or "none"
        raise ProductTableError(f"it has these arrays with values: {names}: expected one, such as lut[256][256]")
    numbers, sizes = _braces(text, chosen[0].end())
    declared = [size.strip() for size in re.findall(r"\[([^\]]*)\]", chosen[0]["sizes"])]
    wrong = any(size not in ("", str(found)) for size, found in zip(declared, sizes, strict=False))
    if len(numbers) != entries or (len(sizes) == len(declared) and wrong):
        raise ProductTableError(
            f"array {chosen[0]['name']} is {'x'.join(map(str, sizes))}, declared {chosen[0]['sizes'].strip()}: "
            f"expected {entries:,} products"
        )
    return np.array(numbers, np.int64), {"int16_t": True, "uint16_t": False}.get(chosen[0]["type"])


def _without_comments(text: str) -> Iterator[str]:
    """The pieces between `/*` and `*/`."""
    place = 0
    while (start := text.find("/*", place)) >= 0:
        end = text.find("*/", start + 2)
        if end < 0:
            raise ProductTableError("a comment has no end")
        # Lines are counted in messages.
        yield text[place:start] + " " + "\n" * text.count("\n", start, end)
        place = end + 2
    yield text[place:]


def _braces(text: str, place: int) -> tuple[list[int], list[int]]:
    """The numbers in `{...}` or in `{{...}, ...}`, and the array's sizes."""
    numbers: list[int] = []
    rows: list[int] = []
    depth = 0
    while True:
        match = _WORD.match(text, place)
        if match is None:
            place += len(text) - place - len(text[place:].lstrip())
            line = text.count("\n", 0, place) + 1
            raise ProductTableError(f"line {line}: {text[place : place + 20]!r}: expected numbers in braces")
        place = match.end()
        sign, number = match.groups()
        if number is not None:
            numbers.append(int(number, 16 if "x" in number.lower() else 10))
        elif sign == "{":
            depth += 1
            rows.append(len(numbers))
            if depth > 2:
                raise ProductTableError("an array of more than two dimensions: expected two")
        elif sign == "}":
            depth -= 1
            if depth == 0:
                break
    if len(rows) == 1:
        return numbers, [len(numbers)]
    widths = {end - start for start, end in zip(rows[1:], [*rows[2:], len(numbers)], strict=True)}
    if len(widths) != 1:
        raise ProductTableError(f"rows have {min(widths)} to {max(widths)} numbers: expected as many in each")
    return numbers, [len(rows) - 1, widths.pop()]

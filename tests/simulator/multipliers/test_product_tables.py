"""Product tables from NumPy, TFApprox and AdaPT files, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import InputError
from simulator.gates.cells import NetlistError
from simulator.gates.designs import build_netlist
from simulator.multipliers.files import TableSigns, for_array, read_multiplier, read_table
from simulator.multipliers.multiplier import TableErrors, exact_products
from simulator.multipliers.product_tables import ProductTable, ProductTableError, read_products, sign_magnitude

SIGNED = np.arange(256)
SIGNED = np.where(SIGNED < 128, SIGNED, SIGNED - 256)
UNSIGNED = np.arange(256)

# What mul8s_1L2H of EvoApproxLib gives in AdaPT's mul8s_1L2H.h: the lowest bit of each operand counts as 0. Its row 2
# starts with 0, 0, 4, 4, 8, 8 and goes on at 128 with -256, -256, -252.
TRUNCATED = np.multiply.outer(SIGNED & ~1, SIGNED & ~1)


def header(table: np.ndarray, declaration: str = "const int16_t lut [256][256]") -> str:
    """As AdaPT's LUT_convert writes it."""
    rows = ["{" + ", ".join(map(str, row)) + "}" for row in table.tolist()]
    return "#include <stdint.h>\n\n" + declaration + " = {" + ",\n".join(rows) + "};\n"


def raw(table: np.ndarray) -> bytes:
    """As TFApprox has it: one word after the other, the first operand's number in the high byte of the place."""
    return b"".join((int(number) % 65536).to_bytes(2, "little") for number in table.ravel())


@pytest.fixture
def asymmetric() -> np.ndarray:
    """A table of unsigned operands in which it matters which is first: 3 times 5 is 14, 5 times 3 is 15."""
    table = np.multiply.outer(UNSIGNED, UNSIGNED)
    table[3, 5] = 14
    return table


def test_numpy_files_are_read(tmp_path: Path) -> None:
    for dtype in (np.int16, np.int32, np.int64, ">i2"):
        for shape in ((256, 256), (65536,)):
            np.save(tmp_path / "t.npy", TRUNCATED.reshape(shape).astype(dtype))
            table = read_products(tmp_path / "t.npy", act_signed=True)
            assert table.products.dtype == np.int32
            assert np.array_equal(table.products, TRUNCATED)
            assert (table.form, table.first, table.weight_signed, table.act_signed) == ("NumPy", "weight", True, True)
    np.save(tmp_path / "t.npy", np.asfortranarray(TRUNCATED.astype(np.uint16)))
    assert np.array_equal(read_products(tmp_path / "t.npy", act_signed=True).products, TRUNCATED)


def test_other_widths_are_read(tmp_path: Path) -> None:
    exact = exact_products(5, 3, act_signed=False)
    np.save(tmp_path / "t.npy", exact)
    table = read_products(tmp_path / "t.npy", act_signed=False, weight_bits=5, act_bits=3)
    assert np.array_equal(table.products, exact)
    assert table.errors == TableErrors(0.0, 0, 0.0, 0.0)
    np.save(tmp_path / "t.npy", exact.T)
    flipped = read_products(tmp_path / "t.npy", act_signed=False, weight_bits=5, act_bits=3, first="activation")
    assert np.array_equal(flipped.products, exact)
    with pytest.raises(ProductTableError, match=r"holds int16 \(8, 32\): expected integers \(32, 8\) or \(256,\)"):
        read_products(tmp_path / "t.npy", act_signed=False, weight_bits=5, act_bits=3)


def test_raw_words_are_those_of_tfapprox(tmp_path: Path, asymmetric: np.ndarray) -> None:
    path = tmp_path / "mul8u.bin"
    path.write_bytes(raw(asymmetric))
    # The activation is the high byte: activation 3 by weight 5 is 14.
    assert path.read_bytes()[2 * (3 << 8 | 5) :][:2] == b"\x0e\x00"
    table = read_products(path, act_signed=False, weight_signed=False)
    assert (table.form, table.first, table.symmetric) == ("raw", "activation", False)
    assert table.products[5, 3] == 14
    assert table.products[3, 5] == 15
    assert table.products[255, 255] == 65025
    assert table.errors == TableErrors(1 / 65536, 1, 1 / 65536, -1 / 65536)
    assert read_products(path, act_signed=False, weight_signed=False, first="weight").products[3, 5] == 14


def test_raw_words_may_be_signed(tmp_path: Path) -> None:
    path = tmp_path / "mul8s.bin"
    path.write_bytes(raw(TRUNCATED))
    assert np.array_equal(read_products(path, act_signed=True).products, TRUNCATED)


def test_headers_of_adapt_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mul8s_1L2H.h"
    path.write_text(header(TRUNCATED))
    table = read_products(path, act_signed=None)
    assert (table.form, table.first, table.weight_signed, table.act_signed) == ("C header", "weight", True, True)
    assert table.products[2, :6].tolist() == [0, 0, 4, 4, 8, 8]
    assert table.products[2, 128:131].tolist() == [-256, -256, -252]
    assert np.array_equal(table.products, TRUNCATED)
    # An odd operand counts one too small. Both odd: a * b - (a - 1) * (b - 1) = a + b - 1, at most in size for a = b =
    # -127. Wrong where only one is odd and the other is not 0, or both are odd and a + b is not 1, which is even.
    assert table.errors.worst_case == 255
    assert table.errors.probability == (2 * 128 * 127 + 128 * 128) / 65536


def test_headers_may_look_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "t.h"
    exact = exact_products(2, 3)
    rows = ",\n".join("{" + ", ".join(f"0x{number % 32:X}u" for number in row) + ",}" for row in exact.tolist())
    path.write_text(f"/* a {{1}} comment\n */\n#pragma once\nstatic const int mul[4][8] = {{ // all\n{rows},\n}};\n")
    table = read_products(path, act_signed=True, weight_bits=2, act_bits=3)
    assert np.array_equal(table.products, exact)
    path.write_text(f"short t[] = {{{', '.join(map(str, exact.ravel().tolist()))}}}; int other[2] = {{1, 2}}; ")
    with pytest.raises(ProductTableError, match="these arrays with values: t, other: expected one, such as lut"):
        read_products(path, act_signed=True, weight_bits=2, act_bits=3)
    path.write_text(path.read_text().replace("t[]", "lut[]"))
    assert np.array_equal(read_products(path, act_signed=True, weight_bits=2, act_bits=3).products, exact)


def test_unsigned_headers_say_so(tmp_path: Path) -> None:
    path = tmp_path / "t.h"
    exact = np.multiply.outer(UNSIGNED[:4], UNSIGNED[:4])
    path.write_text(header(exact, "uint16_t lut[4][4]"))
    table = read_products(path, act_signed=None, weight_bits=2, act_bits=2)
    assert (table.weight_signed, table.act_signed) == (False, False)
    assert np.array_equal(table.products, exact)


def test_signs_must_be_stated(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", TRUNCATED)
    (tmp_path / "t.bin").write_bytes(raw(TRUNCATED))
    (tmp_path / "t.h").write_text(header(TRUNCATED, "const int lut[256][256]"))
    for name in ("t.npy", "t.bin", "t.h"):
        with pytest.raises(
            ProductTableError, match=rf"{name}: sign convention not stated: say whether its operands are"
        ):
            read_products(tmp_path / name, act_signed=None)


def test_signs_that_do_not_fit_are_doubted(tmp_path: Path) -> None:
    tables = {
        (True, True): TRUNCATED,
        (True, False): np.multiply.outer(SIGNED, UNSIGNED),
        (False, False): np.multiply.outer(UNSIGNED, UNSIGNED) & ~7,
    }
    for signs, table in tables.items():
        (tmp_path / "t.bin").write_bytes(raw(table))
        for weight_signed, act_signed in ((True, True), (True, False), (False, True), (False, False)):
            stated = {"weight_signed": weight_signed, "act_signed": act_signed, "first": "weight"}
            if (weight_signed, act_signed) == signs:
                assert np.array_equal(read_products(tmp_path / "t.bin", **stated).products, table)
                continue
            with pytest.raises(ProductTableError, match=r"(as stated, the mean|exactly, not) .*: state the signs"):
                read_products(tmp_path / "t.bin", **stated)


def test_a_poor_multiplier_is_not_doubted(tmp_path: Path) -> None:
    # All products 0: no signs fit better than others by far.
    np.save(tmp_path / "t.npy", np.zeros((256, 256), np.int16))
    assert not read_products(tmp_path / "t.npy", act_signed=True).products.any()


def test_sign_magnitude_multiplies_magnitudes(asymmetric: np.ndarray) -> None:
    table = ProductTable(asymmetric.astype(np.int32), False, False, "raw", "weight")
    for act_signed, acts in ((True, SIGNED), (False, UNSIGNED)):
        found = sign_magnitude(table, act_signed=act_signed)
        assert (found.weight_signed, found.act_signed) == (True, act_signed)
        for weight in (-128, -127, -3, -1, 0, 1, 3, 5, 127):
            for place in (0, 1, 3, 5, 127, 128, 251, 253, 255):
                act = int(acts[place])
                sign = (weight > 0) - (weight < 0)
                sign *= (act > 0) - (act < 0)
                assert found.products[weight % 256, place] == sign * asymmetric[abs(weight), abs(act)]
    assert sign_magnitude(table, act_signed=True).products[253, 5] == -14


def test_sign_magnitude_takes_unsigned_tables_whose_products_fit() -> None:
    signed = ProductTable(TRUNCATED.astype(np.int32), True, True, "raw", "weight")
    with pytest.raises(ProductTableError, match="operands are signed already"):
        sign_magnitude(signed, act_signed=True)
    large = np.multiply.outer(UNSIGNED, UNSIGNED)
    large[128, 255] = 32769
    table = ProductTable(large.astype(np.int32), False, False, "raw", "weight")
    with pytest.raises(ProductTableError, match=r"1 products such as -32769 do not fit into 16 signed bits"):
        sign_magnitude(table, act_signed=False)
    assert sign_magnitude(table, act_signed=True).errors.worst_case == 0


def test_tables_are_made_for_the_array(tmp_path: Path, asymmetric: np.ndarray) -> None:
    path = tmp_path / "mul8u.bin"
    path.write_bytes(raw(asymmetric))
    array = {"weight_bits": 8, "act_bits": 8, "act_signed": True}
    unsigned = TableSigns(weight_signed=False, act_signed=False)
    with pytest.raises(
        ProductTableError, match=r"unsigned weights and unsigned activations, the array has signed weights "
    ):
        read_table(path, **array, signs=unsigned)
    wrapped = read_table(path, **array, signs=TableSigns(False, False, magnitudes=True))
    assert wrapped.dtype == np.int16
    assert wrapped[256 - 5, 3] == -14
    (tmp_path / "t.h").write_text(header(TRUNCATED))
    assert np.array_equal(read_table(tmp_path / "t.h", **array, signs=TableSigns()), TRUNCATED)
    with pytest.raises(ProductTableError, match="take a table, or an array, with the same signs"):
        read_table(tmp_path / "t.h", **{**array, "act_signed": False}, signs=TableSigns())
    signed = read_products(tmp_path / "t.h", act_signed=None)
    with pytest.raises(ProductTableError, match=r"t\.h: sign and magnitude: the table's operands are signed already"):
        for_array(signed, tmp_path / "t.h", act_signed=True, magnitudes=True)


def test_multipliers_are_designs_netlists_or_tables(tmp_path: Path) -> None:
    array = {"weight_bits": 3, "act_bits": 2, "act_signed": False}
    built_in = read_multiplier("dadda", **array)
    assert built_in.netlist == build_netlist("dadda", 3, 2, act_signed=False)
    sample = Path(__file__).parents[3] / "tests" / "support" / "data" / "mult3x2_unsigned_acts.blif"
    netlist = read_multiplier(str(sample), **array)
    assert netlist.exact
    assert (netlist.name, netlist.locations) == (sample.name, 48)
    np.save(tmp_path / "t.npy", exact_products(3, 2, act_signed=False) & ~1)
    table = read_multiplier(str(tmp_path / "t.npy"), **array, signs=TableSigns(act_signed=False))
    assert np.array_equal(table.products, exact_products(3, 2, act_signed=False) & ~1)
    assert table.locations == 0
    with pytest.raises(ProductTableError, match="sign convention not stated"):
        read_multiplier(str(tmp_path / "t.npy"), **array)
    with pytest.raises(ValueError, match="multiplies 3-bit weights by 2-bit activations: expected 8 and 2 bits"):
        read_multiplier(str(sample), weight_bits=8, act_bits=2, act_signed=False)
    with pytest.raises(NetlistError, match="exactly, not signed weights by signed activations: take an"):
        read_multiplier(str(sample), weight_bits=3, act_bits=2, act_signed=True)
    with pytest.raises(FileNotFoundError, match="booth: neither a file nor one of the designs array, wallace, dadda"):
        read_multiplier("booth", **array)


REFUSED = {
    "t.npy not numbers": (b"not numpy", "it is no NumPy array of numbers"),
    "t.npy cut": (None, "it is no NumPy array of numbers"),
    "t.bin short": (b"\0" * 131070, "it has 131,070 bytes: expected 131,072, 65,536 words of 16 bits"),
    "t.bin long": (b"\0" * 131073, "it has 131,073 bytes: expected 131,072"),
    "t.bin empty": (b"", "is an empty file: expected a product table"),
    "t.h text": (b"\xff\xfe", r"it is no text \(byte 0\): expected a C array"),
    "t.h none": (b"int x;", "these arrays with values: none: expected one"),
    "t.h comment": (b"/* ", "a comment has no end"),
    "t.h word": (b"int16_t lut[2] = {1,\n x}", "line 2: 'x}': expected numbers in braces"),
    "t.h end": (b"int16_t lut[2] = {1,", "line 1: '': expected numbers in braces"),
    "t.h short": (
        b"int16_t lut[256][256] = {{1, 2}, {3, 4}};",
        r"array lut is 2x2, declared \[256\]\[256\]: expected 65,536",
    ),
    "t.h ragged": (b"int16_t lut[2][2] = {{1, 2}, {3}};", "rows have 1 to 2 numbers: expected as many in each"),
    "t.h deep": (b"int16_t lut[1][1][1] = {{{1}}};", "an array of more than two dimensions"),
    "t.h number": (b"int16_t lut[1] = {1.5};", "line 1: '.5};': expected numbers in braces|'1.5};'"),
    "t.h large": (b" " * (64 * 65536 + 1), "expected at most 4,194,304"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    path = tmp_path / case.split()[0]
    if content is None:
        np.save(path, TRUNCATED)
        content = path.read_bytes()[:-10]
    path.write_bytes(content)
    with pytest.raises(ProductTableError, match=message) as caught:
        read_products(path, act_signed=True)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_arrays_of_other_things_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    for array, message in (
        (TRUNCATED.astype(float), r"holds float64 \(256, 256\): expected integers"),
        (TRUNCATED[:, :255], r"holds int64 \(256, 255\)"),
        (TRUNCATED.reshape(256, 16, 16), r"holds int64 \(256, 16, 16\)"),
        (TRUNCATED + 70000, r"products are -?\d+\.\.\d+: expected -32768\.\.32767 for signed operands, or their bit"),
        (np.full((256, 256), 2**63, np.uint64), "it holds 9223372036854775808: expected products of 16 bits"),
        (np.array([None] * 65536, object), "it is no NumPy array of numbers"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(ProductTableError, match=message):
            read_products(path, act_signed=True)
    np.save(path, -np.multiply.outer(UNSIGNED, UNSIGNED))
    with pytest.raises(ProductTableError, match=r"products are -65025\.\.0: expected 0\.\.65535 for unsigned operands"):
        read_products(path, act_signed=False, weight_signed=False)


def test_a_header_that_promises_much_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    np.save(path, TRUNCATED)
    path.write_bytes(path.read_bytes().replace(b"(256, 256), }", b"(99999999999,)}"))
    with pytest.raises(ProductTableError, match="it is no NumPy array of numbers"):
        read_products(path, act_signed=True)


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; expected a product table"):
        read_products(tmp_path / "t.npy", act_signed=True)
    np.save(tmp_path / "t.npy", TRUNCATED)
    with pytest.raises(InputError, match=r"weight_bits is 9: expected 2\.\.8"):
        read_products(tmp_path / "t.npy", act_signed=True, weight_bits=9)
    with pytest.raises(InputError, match="first is 'act': expected 'weight' or 'activation', or None"):
        read_products(tmp_path / "t.npy", act_signed=True, first="act")  # type: ignore[arg-type]


@settings(max_examples=150)
@given(st.sampled_from(["t.npy", "t.h"]), st.randoms(use_true_random=False))
def test_damaged_files_are_refused_or_are_tables(
    tmp_path_factory: pytest.TempPathFactory, name: str, chance: random.Random
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    exact = exact_products(2, 3)
    if name == "t.npy":
        np.save(path, exact)
    else:
        path.write_text(header(exact, "int16_t lut[4][8]"))
    content = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(content))
        match chance.randrange(3):
            case 0:
                content[place] = chance.randrange(256)
            case 1:
                del content[place : place + chance.choice([1, 4, 40])]
                content += b" " * (not content)
            case _:
                content[place:place] = content[place : place + 8]
    path.write_bytes(bytes(content))
    try:
        table = read_products(path, act_signed=True, weight_bits=2, act_bits=3)
    except ProductTableError:
        return
    assert table.products.shape == (4, 8)

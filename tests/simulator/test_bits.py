"""Two's complement against Python's integers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.bits import as_number, wrap

int64 = st.integers(-(2**62), 2**62)


@given(st.lists(int64), st.integers(1, 32))
def test_as_number_reads_the_low_bits(values: list[int], bits: int) -> None:
    array = np.array(values, np.int64)
    unsigned = [value % 2**bits for value in values]
    signed = [value - 2**bits if value >= 2 ** (bits - 1) else value for value in unsigned]
    assert as_number(array, bits, signed=False).tolist() == unsigned
    assert as_number(array, bits, signed=True).tolist() == signed


@given(st.lists(int64), st.integers(1, 32))
def test_wrap_is_reading_as_signed(values: list[int], bits: int) -> None:
    array = np.array(values, np.int64)
    wrapped = wrap(array, bits)
    assert wrapped.dtype == np.int32
    assert wrapped.tolist() == as_number(array, bits, signed=True).tolist()
    assert array.tolist() == values

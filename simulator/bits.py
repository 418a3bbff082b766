"""Two's complement on nets of a given width, for NumPy integer arrays of any shape."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.dtypes import Int32Array, Int64Array


def as_number(pattern: npt.NDArray[np.integer] | int, bits: int, *, signed: bool) -> Int64Array:
    """Read the low `bits` bits of each value as a signed or unsigned number.

    Args:
        pattern: integers of any shape; what stands above the low `bits` bits is ignored.
        bits: width of the net, 1..32.
        signed: read the bits as two's complement rather than as an unsigned number.

    Returns:
        int64, same shape.

    >>> as_number(np.array([255, 256, 127]), 8, signed=True).tolist()
    [-1, 0, 127]
    """
    value: Int64Array = np.asarray(pattern, dtype=np.int64) & ((1 << bits) - 1)
    if signed:
        sign = np.int64(1 << (bits - 1))
        value = (value ^ sign) - sign
    return value


def wrap(values: npt.NDArray[np.integer], bits: int) -> Int32Array:
    """Reduce integers to signed two's complement of `bits` bits: the hardware's wrapping register.

    Args:
        values: integers of any shape.
        bits: width of the register, 1..32.

    Returns:
        int32, same shape.

    >>> wrap(np.array([127, 128, -129]), 8).tolist()
    [127, -128, 127]
    """
    low = np.asarray(values).astype(np.int32)
    low <<= 32 - bits
    low >>= 32 - bits
    return low

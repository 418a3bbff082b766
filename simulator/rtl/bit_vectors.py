"""Bits of packed vectors: strings of 0 and 1, the most significant bit first, as simulators read and write them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint8]


def to_bits(numbers: npt.NDArray[np.integer], width: int) -> Bits:
    """The low `width` bits of numbers of any shape, uint8 0 or 1 [..., width], the least significant bit first."""
    shifted = np.asarray(numbers).astype(np.int64)[..., None] >> np.arange(width)
    bits: Bits = (shifted & 1).astype(np.uint8)
    return bits


def from_bits(bits: Bits) -> npt.NDArray[np.int64]:
    """Numbers of bits [..., width], the least significant bit first, read as unsigned."""
    numbers: npt.NDArray[np.int64] = (bits.astype(np.int64) << np.arange(bits.shape[-1])).sum(axis=-1)
    return numbers


def to_text(bits: Bits) -> str:
    """The string of a vector whose bits, the least significant one first, are those of an array in its order."""
    return (bits.ravel()[::-1] + ord("0")).tobytes().decode("ascii")


def from_text(text: str) -> Bits:
    """The bits of a vector, the least significant one first, uint8; values above 1 are X or Z."""
    bits: Bits = np.frombuffer(text.encode("ascii"), np.uint8)[::-1] - np.uint8(ord("0"))
    return bits

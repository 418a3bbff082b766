"""The bypass masks of many chips in memory: packed as they are, and as words for counting the weights they remove."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from efat.planning.fusion_kernel import Masks, weights_removed
from efat.planning.severity import Int64Array, total_weights
from simulator.errors import InputError
from simulator.faults import BoolArray

UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]

Mask = BoolArray | UInt8Array
"""The PEs of a chip that are to be bypassed: bool [R, C], or packed as in lots, uint8 [bytes] (`np.packbits`)."""

_BLOCK_CHIPS = 64
_WORD_BITS = 64


class ChipMasks:
    """The masks of some chips on one network.

    Args:
        bypasses: a mask of each chip, taken one by one.
        weights: int64 [R, C], what each PE holds.

    Attributes:
        total: weights of the network.
        shape: rows and columns of the array.
        packed: uint8 [chips, bytes], the masks in the order of `np.packbits`.
        masks: the masks in words, without PEs that hold no weights.
        removed: int64 [chips], the weights that each removes.

    Raises:
        InputError: masks of another type or shape, or weights that `total_weights` refuses.
    """

    def __init__(self, bypasses: Iterable[Mask], weights: Int64Array) -> None:
        self.total = total_weights(weights)
        self.shape = (weights.shape[0], weights.shape[1])
        pes, bounds, factors = _words(weights.ravel().astype(np.int64))
        packed: list[UInt8Array] = [np.empty((0, -(-weights.size // 8)), np.uint8)]
        words: list[UInt64Array] = [np.empty((0, len(pes) // _WORD_BITS), np.uint64)]
        masks = iter(bypasses)
        count = 0
        while block := list(islice(masks, _BLOCK_CHIPS)):
            # The last bit, which is never set, fills words up.
            bits = np.zeros((len(block), weights.size + 1), np.bool_)
            for row, mask in zip(bits, block, strict=True):
                row[:-1] = self._flat(mask, count)
                count += 1
            packed.append(np.packbits(bits[:, :-1], axis=1))
            words.append(np.packbits(np.take(bits, pes, axis=1), axis=1).view(np.uint64))
        self.packed = np.concatenate(packed)
        self.masks = Masks(np.concatenate(words), bounds, factors)
        self.removed = np.array([weights_removed(self.masks, chip, chip) for chip in range(count)], np.int64)

    def __len__(self) -> int:
        return len(self.packed)

    def packed_together(self, chips: Sequence[int]) -> UInt8Array:
        """The PEs that any of some chips bypasses, packed: uint8 [bytes]."""
        together: UInt8Array = np.bitwise_or.reduce(self.packed[chips], axis=0)
        return together

    def removed_together(self, chips: Sequence[int]) -> int:
        """The weights that some chips remove together."""
        if len(chips) == 1:
            return int(self.removed[chips[0]])
        together = np.bitwise_or.reduce(self.masks.words[chips], axis=0)
        return weights_removed(self.masks._replace(words=together[None]), 0, 0)

    def _flat(self, mask: Mask, chip: int) -> npt.NDArray[np.generic]:
        rows, cols = self.shape
        packed_shape = (-(-rows * cols // 8),)
        if mask.dtype == np.bool_ and mask.shape == self.shape:
            return mask.ravel()
        if mask.dtype == np.uint8 and mask.shape == packed_shape:
            return np.unpackbits(mask.astype(np.uint8, copy=False), count=rows * cols)
        raise InputError(
            f"bypass of chip {chip} is {mask.dtype} {mask.shape}: expected bool {self.shape}, as the weights have, or "
            f"packed uint8 {packed_shape}"
        )


def _words(weights: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Spread PEs over words whose bits all stand for the same number of weights.

    PEs are sorted by their weights, and those without any left out. Few words have PEs of different weights, as layers
    fill the array in rectangles. What these have above the least of them stands in further words, one for each digit
    of a binary number.

    Args:
        weights: int64 [PEs], what each holds.

    Returns:
        The PE of each bit, int64 [64 * words], one past the last for none; where runs of words begin that stand for
        the same number, and the last one ends, int64 [runs + 1]; the number, int64 [runs].
    """
    order = np.argsort(weights, kind="stable")
    order = order[weights[order] > 0]
    words: dict[int, list[Int64Array]] = {}
    for start in range(0, len(order), _WORD_BITS):
        pes = order[start : start + _WORD_BITS]
        least = int(weights[pes[0]])
        words.setdefault(least, []).append(pes)
        above = weights[pes] - least
        for digit in range(int(above[-1]).bit_length()):
            words.setdefault(1 << digit, []).append(pes[above >> digit & 1 == 1])
    factors = sorted(words)
    filled = np.full((sum(len(words[factor]) for factor in factors), _WORD_BITS), len(weights))
    for row, pes in zip(filled, (pes for factor in factors for pes in words[factor]), strict=True):
        row[: len(pes)] = pes
    bounds = np.cumsum([0, *(len(words[factor]) for factor in factors)])
    return filled.ravel(), bounds.astype(np.int64), np.array(factors, np.int64)

"""Gathering activations into words of two reduction indices, eight rows of X at a time, in vector registers.

Two shapes of memory are worth it: rows of X that lie as they are written, which must be transposed, and rows whose
activations of one reduction index lie side by side, as those of neighbouring pixels of an image do.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from training.emulation.rows_kernel import LANES, array_data

ROWS = 8
"""Rows of X that are gathered at once."""

PAIRS = 8
"""Pairs of reduction indices that `transpose_rows` gathers at once."""

_BYTE = ir.IntType(8)
_HALF = ir.IntType(16)
_WORD = ir.IntType(32)
_INDEX = ir.IntType(64)
_EIGHT_BYTES = ir.VectorType(_BYTE, 8)
_SIXTEEN_BYTES = ir.VectorType(_BYTE, 16)
_EIGHT_HALVES = ir.VectorType(_HALF, 8)
_SIXTEEN_HALVES = ir.VectorType(_HALF, 16)
_EIGHT_WORDS = ir.VectorType(_WORD, 8)


def _transpose_rows(
    typing: Any, memory: Any, pixel: Any, first: Any, place: Any, words: Any, pair: Any, lane: Any
) -> Any:
    """Gather `X[first + i, k + j]`, i = 0..7 and j = 0..15, each row's 16 side by side in memory.

    Args:
        typing: Numba's context.
        memory: int8 or uint8, one dimension.
        pixel: int64; row m begins at `memory[pixel[m]]`.
        first: first row.
        place: from a row's beginning to reduction index k.
        words: int32 [pairs, LANES], where they go.
        pair: pair that k is the first of.
        lane: lane of the first row.
    """
    index = types.int64
    return types.void(memory, pixel, index, index, words, index, index), _generate_transpose


def _load_run(typing: Any, memory: Any, low: Any, high: Any, words: Any, pair: Any, lane: Any) -> Any:
    """Gather a pair of reduction indices of eight rows whose activations lie side by side.

    Args:
        typing: Numba's context.
        memory: int8 or uint8, one dimension.
        low: where the first of the pair begins.
        high: where the second begins.
        words: int32 [pairs, LANES], where they go.
        pair: the pair.
        lane: lane of the first row.
    """
    index = types.int64
    return types.void(memory, index, index, words, index, index), _generate_run


transpose_rows: Any = intrinsic(_transpose_rows)
load_run: Any = intrinsic(_load_run)


def _generate_transpose(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    memory, pixel, words = (array_data(context, builder, signature, arguments, number) for number in (0, 1, 4))
    _, _, first, place, _, pair, lane = arguments
    rows = []
    for number in range(ROWS):
        begin = builder.load(builder.gep(pixel, [builder.add(first, _INDEX(number))]))
        address = builder.gep(memory, [builder.add(begin, place)])
        rows.append(_load(builder, address, _EIGHT_HALVES))
    # Interleaving row i with row i + 4, three times over, transposes eight by eight.
    for _ in range(3):
        rows = [
            builder.shuffle_vector(rows[number // 2], rows[number // 2 + 4], _interleaving(number % 2 * 4))
            for number in range(ROWS)
        ]
    extend = builder.sext if signature.args[0].dtype.signed else builder.zext
    for number, of_pair in enumerate(rows):
        halves = extend(builder.bitcast(of_pair, _SIXTEEN_BYTES), _SIXTEEN_HALVES)
        _store(builder, words, builder.add(pair, _INDEX(number)), lane, builder.bitcast(halves, _EIGHT_WORDS))
    return context.get_dummy_value()


def _generate_run(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    memory, words = (array_data(context, builder, signature, arguments, number) for number in (0, 3))
    _, low, high, _, pair, lane = arguments
    extend = builder.sext if signature.args[0].dtype.signed else builder.zext
    low_half, high_half = (
        extend(_load(builder, builder.gep(memory, [place]), _EIGHT_BYTES), _EIGHT_WORDS) for place in (low, high)
    )
    low_half = builder.and_(low_half, ir.Constant(_EIGHT_WORDS, [0xFFFF] * 8))
    high_half = builder.shl(high_half, ir.Constant(_EIGHT_WORDS, [16] * 8))
    _store(builder, words, pair, lane, builder.or_(low_half, high_half))
    return context.get_dummy_value()


def _interleaving(begin: int) -> ir.Constant:
    """Mask that takes four items of each of two vectors of eight in turns."""
    picked = [begin + number // 2 + number % 2 * 8 for number in range(8)]
    return ir.Constant(ir.VectorType(_WORD, 8), picked)


def _load(builder: ir.IRBuilder, address: Any, kind: ir.VectorType) -> Any:
    value = builder.load(builder.bitcast(address, ir.PointerType(kind)))
    value.align = 1
    return value


def _store(builder: ir.IRBuilder, words: Any, pair: Any, lane: Any, value: Any) -> None:
    place = builder.add(builder.mul(pair, _INDEX(LANES)), lane)
    builder.store(value, builder.bitcast(builder.gep(words, [place]), ir.PointerType(_EIGHT_WORDS))).align = 4

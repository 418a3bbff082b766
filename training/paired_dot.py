"""Dot products of many rows of X at once: the inner loop of the emulation, written for vector registers.

Activations and weights are 16-bit numbers in pairs, two to an int32 word: reduction index 2p in the low half, 2p + 1 in
the high half. One vector instruction of AVX2 (VPMADDWD) multiplies both halves of eight words and adds the two products
in 32 bits, which makes twice the multiplications of a float32 instruction, and exactly: nothing is rounded, and sums
wrap modulo 2^32 as the array's do. Compilers do not find this instruction by themselves, so the loop is built here.
Processors without it run the same loop on shifts and multiplications.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import intrinsic

LANES = 64
"""Rows of X that are summed at once: eight vectors of eight fill half the registers of AVX2, the rest work on them."""

_WIDTH = 8
_VECTORS = LANES // _WIDTH
_INT32 = ir.IntType(32)
_INDEX = ir.IntType(64)
_WORDS = ir.VectorType(_INT32, _WIDTH)
_HALVES = ir.VectorType(ir.IntType(16), 2 * _WIDTH)


def _add_dot(typing: Any, words: Any, weights: Any, begin: Any, end: Any, sums: Any) -> Any:
    """Add to `sums` the products of pairs `begin` to `end`.

    Args:
        typing: Numba's context.
        words: int32 [pairs, LANES], two activations each.
        weights: int32 [pairs], two weights each.
        begin: first pair, int64.
        end: one past the last pair, int64.
        sums: int32 [LANES].

    All arrays are contiguous. Indices are not checked.
    """
    contiguous = all(isinstance(array, types.Array) and array.layout == "C" for array in (words, weights, sums))
    if not contiguous or any(array.dtype != types.int32 for array in (words, weights, sums)):
        raise errors.TypingError("add_dot takes contiguous arrays of int32")
    return types.void(words, weights, types.int64, types.int64, sums), _generate


add_dot: Any = intrinsic(_add_dot)


def _generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    words, weights, sums = (
        context.make_array(signature.args[place])(context, builder, arguments[place]).data for place in (0, 1, 4)
    )
    begin, end = arguments[2], arguments[3]
    words = builder.bitcast(words, ir.PointerType(_WORDS))
    sums = builder.bitcast(sums, ir.PointerType(_WORDS))
    before = [_load(builder, sums, _INDEX(vector)) for vector in range(_VECTORS)]
    entry = builder.block
    loop = builder.append_basic_block("pairs")
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", begin, end), loop, done)

    builder.position_at_end(loop)
    pair = builder.phi(_INDEX)
    running = [builder.phi(_WORDS) for _ in range(_VECTORS)]
    weight = _broadcast(builder, _load(builder, weights, pair))
    first = builder.mul(pair, _INDEX(_VECTORS))
    after = []
    for vector in range(_VECTORS):
        activations = _load(builder, words, builder.add(first, _INDEX(vector)))
        after.append(builder.add(running[vector], _pair_sums(context, builder, activations, weight)))
    following = builder.add(pair, _INDEX(1))
    pair.add_incoming(begin, entry)
    pair.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, done)

    builder.position_at_end(done)
    results = [builder.phi(_WORDS) for _ in range(_VECTORS)]
    for vector in range(_VECTORS):
        running[vector].add_incoming(before[vector], entry)
        running[vector].add_incoming(after[vector], loop)
        results[vector].add_incoming(before[vector], entry)
        results[vector].add_incoming(after[vector], loop)
    for vector in range(_VECTORS):
        builder.store(results[vector], builder.gep(sums, [_INDEX(vector)])).align = 4
    return context.get_dummy_value()


def _load(builder: ir.IRBuilder, pointer: Any, index: Any) -> Any:
    value = builder.load(builder.gep(pointer, [index]))
    value.align = 4
    return value


def _broadcast(builder: ir.IRBuilder, word: Any) -> Any:
    unset = ir.Constant(_WORDS, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(unset, word, _INT32(0)), unset, ir.Constant(_WORDS, [0] * _WIDTH)
    )


def _pair_sums(context: Any, builder: ir.IRBuilder, activations: Any, weight: Any) -> Any:
    """The sum of both products of each word, int32 [8]."""
    if has_pair_instruction(context):
        kind = ir.FunctionType(_WORDS, [_HALVES, _HALVES])
        insert: Any = cgutils.get_or_insert_function
        multiply_add = insert(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
        return builder.call(multiply_add, [builder.bitcast(activations, _HALVES), builder.bitcast(weight, _HALVES)])
    half = ir.Constant(_WORDS, [16] * _WIDTH)
    low = [builder.ashr(builder.shl(word, half), half) for word in (activations, weight)]
    high = [builder.ashr(word, half) for word in (activations, weight)]
    return builder.add(builder.mul(*low), builder.mul(*high))


def has_pair_instruction(context: Any) -> bool:
    """Whether the processor that Numba compiles for has VPMADDWD on 256 bits (AVX2)."""
    _, _, features = context.codegen().magic_tuple()
    return "+avx2" in features.split(",")

"""Vector instructions that the emulation's kernel needs and Numba has not, as intrinsics: its inner loops.

Activations and weights are 16-bit numbers in pairs, two to an int32 word: reduction index 2p in the low half, 2p + 1 in
the high half. One vector instruction of AVX2 (VPMADDWD) multiplies both halves of eight words and adds the two products
in 32 bits, which makes twice the multiplications of a float32 instruction, and exactly: nothing is rounded, and sums
wrap modulo 2^32 as the array's do. Compilers do not find this instruction by themselves, so the loops are built here.
Processors without it run the same loops on shifts and multiplications.

Activations are gathered into words eight rows of X at a time, from two shapes of memory: rows of X that lie as they
are written, which must be transposed, and rows whose activations of one reduction index lie side by side, as those of
neighbouring pixels of an image do.

All arrays are contiguous and of int32, tables of int16. Indices are not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import intrinsic

LANES = 48
"""Rows of X at once: six vectors of sums fit in registers, and 256 reduction indices in the first-level cache."""

WIDTH = 8
"""Rows of X in one vector register."""

ROWS = 8
"""Rows of X that are gathered at once."""

PAIRS = 8
"""Pairs of reduction indices that `transpose_rows` gathers at once."""

_VECTORS = LANES // WIDTH
_INT32 = ir.IntType(32)
_INDEX = ir.IntType(64)
_WORDS = ir.VectorType(_INT32, WIDTH)
_HALVES = ir.VectorType(ir.IntType(16), 2 * WIDTH)
_EIGHT_HALVES = ir.VectorType(ir.IntType(16), WIDTH)
_EIGHT_BYTES = ir.VectorType(ir.IntType(8), 8)
_SIXTEEN_BYTES = ir.VectorType(ir.IntType(8), 16)
_index = types.int64
_word = types.int32


def _intrinsic(function: Callable[..., Any]) -> Any:
    """Numba's decorator; its first argument is Numba's context, and is not among those of a call."""
    return intrinsic(function)


@_intrinsic
def add_dot(typing: Any, words: Any, begin: Any, count: Any, weights: Any, first: Any, sums: Any, row: Any) -> Any:
    """Add to `sums[row]` the products of pairs `begin` to `begin + count` and the weights from `first` on.

    `words` [pairs, LANES] holds two activations each, `weights`, one dimension, two weights; `sums` is [any, LANES].
    """
    _check(words, weights, sums)
    return types.void(words, _index, _index, weights, _index, sums, _index), _generate_dot


@_intrinsic
def add_product(
    typing: Any,
    words: Any,
    pair: Any,
    weight: Any,
    keep: Any,
    force: Any,
    sums: Any,
    row: Any,
    tables: Any,
    table: Any,
    shift: Any,
) -> Any:
    """Add to `sums[row]` the product `(p & keep) | force` of one pair of `words` [pairs, LANES].

    `p` is the sum of the products with both halves of `weight`, one of which may be 0; or, unless `table` is -1, the
    entry of `tables` int16 [tables, a power of two] at the bits of the activation that stands at `shift`, 0 or 16, in
    its word. The choice is made in here, as a branch in a kernel would make Numba count references to arrays.
    """
    _check(words, sums)
    _check(tables, dtype=types.int16)
    signature = (words, _index, _word, _word, _word, sums, _index, tables, _index, _word)
    return types.void(*signature), _generate_product


@_intrinsic
def force_bits(typing: Any, words: Any, row: Any, keep: Any, force: Any) -> Any:
    """Stuck bits of `words[row]`, [any, LANES]: each becomes `(word & keep) | force`."""
    _check(words)
    return types.void(words, _index, _word, _word), _generate_force


@_intrinsic
def store_wrapped(typing: Any, words: Any, row: Any, lane: Any, mask: Any, sign: Any, memory: Any, place: Any) -> Any:
    """Write `WIDTH` sums of `words[row]` from `lane` on to `memory`, from `place` on, wrapped to fewer bits.

    `mask` has the bits that are kept; `sign` the sign bit and all above it.
    """
    _check(words, memory)
    return types.void(words, _index, _index, _word, _word, memory, _index), _generate_store


@_intrinsic
def transpose_rows(typing: Any, memory: Any, pixel: Any, place: Any, words: Any, pair: Any, lane: Any) -> Any:
    """Gather `memory[pixel[lane + i] + place + j]`, i = 0..7 and j = 0..15, int8 or uint8.

    Lane `lane + i` of `words` [pairs, LANES] gets what j = 0 and 1 are in pair `pair`, and so on.
    """
    return types.void(memory, pixel, _index, words, _index, _index), _generate_transpose


@_intrinsic
def load_run(typing: Any, memory: Any, low: Any, high: Any, words: Any, pair: Any, lane: Any) -> Any:
    """Gather a pair of reduction indices of eight rows: `memory[low + i]` and `memory[high + i]`, int8 or uint8.

    They go to lanes `lane + i` of `words[pair]`.
    """
    return types.void(memory, _index, _index, words, _index, _index), _generate_run


def _check(*arrays: Any, dtype: Any = types.int32) -> None:
    for array in arrays:
        if not isinstance(array, types.Array) or array.layout != "C" or array.dtype != dtype:
            raise errors.TypingError(f"{array}: expected a contiguous array of {dtype}")


def _generate_dot(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    _, begin, count, _, first, _, row = arguments
    words = _rows(context, builder, signature, arguments, 0)
    weights = _data(context, builder, signature, arguments, 3)
    sums = _vectors(builder, _rows(context, builder, signature, arguments, 5), row)
    before = [_load(builder, address) for address in sums]
    entry = builder.block
    loop = builder.append_basic_block("pairs")
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed(">", count, _INDEX(0)), loop, done)

    builder.position_at_end(loop)
    pair = builder.phi(_INDEX)
    running = [builder.phi(_WORDS) for _ in range(_VECTORS)]
    weight = _broadcast(builder, _load(builder, builder.gep(weights, [builder.add(first, pair)])))
    after = []
    for address, sum_before in zip(_vectors(builder, words, builder.add(begin, pair)), running, strict=True):
        after.append(builder.add(sum_before, _pair_sums(context, builder, _load(builder, address), weight)))
    following = builder.add(pair, _INDEX(1))
    pair.add_incoming(_INDEX(0), entry)
    pair.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

    builder.position_at_end(done)
    results = [builder.phi(_WORDS) for _ in range(_VECTORS)]
    for into in (running, results):
        for value, at_first, afterwards in zip(into, before, after, strict=True):
            value.add_incoming(at_first, entry)
            value.add_incoming(afterwards, loop)
    for result, address in zip(results, sums, strict=True):
        builder.store(result, address).align = 4
    return context.get_dummy_value()


def _generate_product(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    _, pair, word, *masks, _, row, _, table, _ = arguments
    weight, keep, force = (_broadcast(builder, operand) for operand in (word, *masks))
    words = _vectors(builder, _rows(context, builder, signature, arguments, 0), pair)
    sums = _vectors(builder, _rows(context, builder, signature, arguments, 5), row)
    look_up = _looking_up(context, builder, signature, arguments)
    with builder.if_else(builder.icmp_signed("<", table, _INDEX(0))) as (multiplying, looking_up):
        with multiplying:
            for activations, address in zip(words, sums, strict=True):
                product = _pair_sums(context, builder, _load(builder, activations), weight)
                _add_stuck(builder, product, keep, force, address)
        with looking_up:
            for activations, address in zip(words, sums, strict=True):
                _add_stuck(builder, look_up(_load(builder, activations)), keep, force, address)
    return context.get_dummy_value()


def _add_stuck(builder: ir.IRBuilder, product: Any, keep: Any, force: Any, address: Any) -> None:
    stuck = builder.or_(builder.and_(product, keep), force)
    builder.store(builder.add(_load(builder, address), stuck), address).align = 4


def _looking_up(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Callable[[Any], Any]:
    """How products of eight activations are found in a table."""
    *_, table, shift = arguments
    tables = context.make_array(signature.args[7])(context, builder, arguments[7])
    unpack: Any = cgutils.unpack_tuple
    size = unpack(builder, tables.shape, 2)[1]
    entries = builder.gep(tables.data, [builder.mul(table, size)])
    pattern = _broadcast(builder, builder.trunc(builder.sub(size, _INDEX(1)), _INT32))
    place = _broadcast(builder, shift)

    def look_up(activations: Any) -> Any:
        patterns = builder.and_(builder.ashr(activations, place), pattern)
        products = ir.Constant(_EIGHT_HALVES, ir.Undefined)
        for lane in range(WIDTH):
            found = builder.zext(builder.extract_element(patterns, _INT32(lane)), _INDEX)
            products = builder.insert_element(products, builder.load(builder.gep(entries, [found])), _INT32(lane))
        return builder.sext(products, _WORDS)

    return look_up


def _generate_force(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    keep, force = (_broadcast(builder, word) for word in arguments[2:])
    for address in _vectors(builder, _rows(context, builder, signature, arguments, 0), arguments[1]):
        builder.store(builder.or_(builder.and_(_load(builder, address), keep), force), address).align = 4
    return context.get_dummy_value()


def _generate_store(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    _, row, lane, *operands, _, place = arguments
    mask, sign = (_broadcast(builder, word) for word in operands)
    words, memory = (_data(context, builder, signature, arguments, number) for number in (0, 5))
    first = builder.add(builder.mul(row, _INDEX(LANES)), lane)
    source, target = (
        builder.bitcast(builder.gep(start, [index]), ir.PointerType(_WORDS))
        for start, index in ((words, first), (memory, place))
    )
    kept = builder.and_(_load(builder, source), mask)
    builder.store(builder.sub(builder.xor(kept, sign), sign), target).align = 4
    return context.get_dummy_value()


def _data(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any, number: int) -> Any:
    """Where the numbers of an argument begin."""
    return context.make_array(signature.args[number])(context, builder, arguments[number]).data


def _rows(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any, number: int) -> Any:
    return builder.bitcast(_data(context, builder, signature, arguments, number), ir.PointerType(_WORDS))


def _vectors(builder: ir.IRBuilder, rows: Any, row: Any) -> list[Any]:
    """Addresses of a row's vectors."""
    first = builder.gep(rows, [builder.mul(row, _INDEX(_VECTORS))])
    return [builder.gep(first, [_INDEX(vector)]) for vector in range(_VECTORS)]


def _load(builder: ir.IRBuilder, address: Any) -> Any:
    value = builder.load(address)
    value.align = 4
    return value


def _broadcast(builder: ir.IRBuilder, word: Any) -> Any:
    unset = ir.Constant(_WORDS, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(unset, word, _INT32(0)), unset, ir.Constant(_WORDS, [0] * WIDTH)
    )


def _pair_sums(context: Any, builder: ir.IRBuilder, activations: Any, weight: Any) -> Any:
    """The sum of both products of each word, int32 [8]."""
    if has_pair_instruction(context):
        kind = ir.FunctionType(_WORDS, [_HALVES, _HALVES])
        insert: Any = cgutils.get_or_insert_function
        multiply_add = insert(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
        return builder.call(multiply_add, [builder.bitcast(activations, _HALVES), builder.bitcast(weight, _HALVES)])
    half = ir.Constant(_WORDS, [16] * WIDTH)
    low = [builder.ashr(builder.shl(word, half), half) for word in (activations, weight)]
    high = [builder.ashr(word, half) for word in (activations, weight)]
    return builder.add(builder.mul(*low), builder.mul(*high))


def has_pair_instruction(context: Any) -> bool:
    """Whether the processor that Numba compiles for has VPMADDWD on 256 bits (AVX2)."""
    _, _, features = context.codegen().magic_tuple()
    return "+avx2" in features.split(",")


def _generate_transpose(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    memory, pixel, words = (_data(context, builder, signature, arguments, number) for number in (0, 1, 3))
    _, _, place, _, pair, lane = arguments
    rows = []
    for number in range(ROWS):
        begin = builder.load(builder.gep(pixel, [builder.add(lane, _INDEX(number))]))
        address = builder.gep(memory, [builder.add(begin, place)])
        rows.append(_load_as(builder, address, _EIGHT_HALVES))
    # Interleaving row i with row i + 4, three times over, transposes eight by eight.
    for _ in range(3):
        rows = [
            builder.shuffle_vector(rows[number // 2], rows[number // 2 + 4], _interleaving(number % 2 * 4))
            for number in range(ROWS)
        ]
    extend = builder.sext if signature.args[0].dtype.signed else builder.zext
    for number, of_pair in enumerate(rows):
        halves = extend(builder.bitcast(of_pair, _SIXTEEN_BYTES), _HALVES)
        _store_words(builder, words, builder.add(pair, _INDEX(number)), lane, builder.bitcast(halves, _WORDS))
    return context.get_dummy_value()


def _generate_run(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    memory, words = (_data(context, builder, signature, arguments, number) for number in (0, 3))
    _, low, high, _, pair, lane = arguments
    extend = builder.sext if signature.args[0].dtype.signed else builder.zext
    low_half, high_half = (
        extend(_load_as(builder, builder.gep(memory, [place]), _EIGHT_BYTES), _WORDS) for place in (low, high)
    )
    low_half = builder.and_(low_half, ir.Constant(_WORDS, [0xFFFF] * 8))
    high_half = builder.shl(high_half, ir.Constant(_WORDS, [16] * 8))
    _store_words(builder, words, pair, lane, builder.or_(low_half, high_half))
    return context.get_dummy_value()


def _interleaving(begin: int) -> ir.Constant:
    """Mask that takes four items of each of two vectors of eight in turns."""
    picked = [begin + number // 2 + number % 2 * 8 for number in range(8)]
    return ir.Constant(ir.VectorType(_INT32, 8), picked)


def _load_as(builder: ir.IRBuilder, address: Any, kind: ir.VectorType) -> Any:
    value = builder.load(builder.bitcast(address, ir.PointerType(kind)))
    value.align = 1
    return value


def _store_words(builder: ir.IRBuilder, words: Any, pair: Any, lane: Any, value: Any) -> None:
    place = builder.add(builder.mul(pair, _INDEX(LANES)), lane)
    builder.store(value, builder.bitcast(builder.gep(words, [place]), ir.PointerType(_WORDS))).align = 4

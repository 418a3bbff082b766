"""One output at a time with every fault there is, FLIPs included: slow, and used for the few outputs FLIPs touch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator import Site
from simulator.dtypes import BoolArray, Int32Array, Int64Array
from simulator.gates import netlist, netlist_kernel
from simulator.kernels import kernels
from simulator.multipliers import pe_behaviour_kernel as pe_products_kernel
from simulator.multipliers.pe_behaviour_kernel import PeProducts, single_product
from training.emulation.gemm_kernel import Source, Target

_WEIGHT = int(Site.WEIGHT)
_WEIGHT_LOAD = int(Site.WEIGHT_LOAD)
_ACTIVATION = int(Site.ACTIVATION)
_PRODUCT = int(Site.PRODUCT)
_PSUM = int(Site.PSUM)
_MULTIPLIER = int(Site.MULTIPLIER)
_ACCUMULATOR = int(Site.ACCUMULATOR)


class Dense(NamedTuple):
    """Masks of all PEs: int32 [2, rows, cols], `keep` and `force`."""

    weight: Int32Array
    activation: Int32Array
    product: Int32Array
    psum: Int32Array
    accumulator: Int32Array
    """int32 [2, cols]"""
    bypass: BoolArray


_kernel = kernels(netlist, netlist_kernel, pe_products_kernel)


@_kernel
def recompute(
    source: Source,
    w: npt.NDArray[np.int8],
    dense: Dense,
    products: PeProducts,
    upsets: Int64Array,
    touched: Int64Array,
    unused_bits: int,
    target: Target,
) -> None:
    """Compute outputs one by one.

    Args:
        source: X.
        w: int8 [N, K].
        dense: masks.
        products: which PEs do not multiply exactly.
        upsets: int64 [upsets, 8], fields of `training.emulation.upsets.Upset`, sorted by fold.
        touched: int64 [outputs, 2], their n and m.
        unused_bits: bits of an int32 above the accumulator's.
        target: where outputs go.
    """
    memory, pixel, offset = source
    rows, cols = dense.bypass.shape
    k = w.shape[1]
    depth = -(-k // rows)
    codes = np.zeros(products.circuit.first_pin[-1], np.uint8)
    inverted = np.empty(len(upsets), np.int32)
    for place in range(len(touched)):
        n, m = touched[place]
        column = n % cols
        total = np.int32(0)
        for fold_of_k in range(depth):
            fold = n // cols * depth + fold_of_k
            begin = np.searchsorted(upsets[:, 1], fold)
            end = np.searchsorted(upsets[:, 1], fold + 1)
            running = np.int32(0)
            for row in range(rows):
                index = fold_of_k * rows + row
                activation = np.int32(memory[pixel[m] + offset[index]]) if index < k else np.int32(0)
                weight = np.int32(w[n, index]) if index < k else np.int32(0)
                activation = (activation & dense.activation[0, row, column]) | dense.activation[1, row, column]
                weight = (weight & dense.weight[0, row, column]) | dense.weight[1, row, column]
                activation ^= np.int32(_inverted(upsets, begin, end, _ACTIVATION, row, column, m))
                weight ^= np.int32(_inverted(upsets, begin, end, _WEIGHT_LOAD, row, column, m))
                weight ^= np.int32(_inverted(upsets, begin, end, _WEIGHT, row, column, m))
                if dense.bypass[row, column]:
                    continue
                upset = 0
                for entry in range(begin, end):
                    if upsets[entry, 0] == _MULTIPLIER and _touches(upsets[entry], row, column, m):
                        inverted[upset] = upsets[entry, 7]
                        upset += 1
                behaviour = products.behaviour[row, column]
                if behaviour >= 0 or upset > 0:
                    product = np.int32(single_product(products, behaviour, inverted[:upset], weight, activation, codes))
                else:
                    product = np.int32(activation * weight)
                product ^= np.int32(_inverted(upsets, begin, end, _PRODUCT, row, column, m))
                product = (product & dense.product[0, row, column]) | dense.product[1, row, column]
                running = np.int32(running + product) ^ np.int32(_inverted(upsets, begin, end, _PSUM, row, column, m))
                running = (running & dense.psum[0, row, column]) | dense.psum[1, row, column]
            total = np.int32(total + running) ^ np.int32(_inverted(upsets, begin, end, _ACCUMULATOR, 0, column, m))
            total = (total & dense.accumulator[0, column]) | dense.accumulator[1, column]
        image, in_image = divmod(m, target.size)
        where = target.start + image * target.stride + n * target.size + in_image
        target.memory[where] = np.int32(total << unused_bits) >> unused_bits


@_kernel
def _inverted(upsets: Int64Array, begin: int, end: int, site: int, row: int, column: int, m: int) -> int:
    """Bits that upsets `begin` to `end` invert on one net while it carries what row `m` of X meets."""
    mask = 0
    for place in range(begin, end):
        upset = upsets[place]
        if upset[0] == site and _touches(upset, row, column, m):
            mask ^= upset[7]
    return mask


@_kernel
def _touches(upset: Int64Array, row: int, column: int, m: int) -> bool:
    """Whether an upset concerns one PE while it meets row `m` of X."""
    return bool(upset[2] == row and upset[3] <= column < upset[4] and upset[5] <= m < upset[6])

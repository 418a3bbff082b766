"""What a faulty array computes, on whole tensors and without cycles. docs/emulation.md has the algebra."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simulator import ArrayConfig, FaultMap
from simulator.dtypes import Int8Array, Int32Array, Int64Array, UInt8Array
from simulator.errors import InputError
from training.emulation.program import Program, lower
from training.emulation.tensors import run_on_tensors
from training.numbers import activation_dtype

_WORK_PER_THREAD = 8_000_000
"""Multiplications, a fraction of a millisecond's, below which another thread costs more than it does."""


def faulty_gemm(
    x: Tensor,
    w: Tensor,
    config: ArrayConfig,
    faults: FaultMap | None = None,
    *,
    bypass: npt.ArrayLike | None = None,
) -> Tensor:
    """Multiply `x @ w` on a faulty array: the outputs of `simulator.simulate_gemm`, bit for bit, at a GEMM's speed.

    Args:
        x: integer activations [M, K], within `config.act_range`.
        w: integer weights [K, N], within `config.weight_range`.
        config: the array.
        faults: what is broken in it; None for nothing.
        bypass: bool [rows, cols], PEs that pass their partial sum on unchanged; None for none.

    Returns:
        int32 [M, N] on the device of `x`; its rows need not lie one after the other in memory.

    Raises:
        InputError: shapes that do not fit, values out of range, K = 0 or N = 0, tensors on different devices, faults of
            another array, or a FLIP in a cycle that the GEMM does not have.
    """
    if x.device != w.device:
        raise InputError(f"x is on {x.device} and w is on {w.device}: expected both on the same device")
    if x.ndim == w.ndim == 2 and x.shape[1] != w.shape[0]:
        raise InputError(
            f"x is {tuple(x.shape)} and w is {tuple(w.shape)}: expected x [M, K] and w [K, N] with the same K"
        )
    return run(lower(w.detach().cpu().numpy(), config, faults, bypass=bypass), x)


def run(program: Program, x: Tensor) -> Tensor:
    """Run a program on activations.

    Args:
        program: from `training.lower`.
        x: integer activations [M, K], within the range of the program's array.

    Returns:
        int32 [M, N] on the device of `x`; its rows need not lie one after the other in memory.

    Raises:
        InputError: another K than the program's, values out of range, or a FLIP in a cycle that the GEMM does not have.
    """
    if x.ndim != 2:
        raise InputError(f"x has shape {tuple(x.shape)}: expected two dimensions [M, K]")
    check_values("x", x, program.config.act_range)
    if x.shape[1] != program.k:
        raise InputError(f"x is {tuple(x.shape)}: expected [M, {program.k}], the K this program was lowered for")
    if x.device.type != "cpu" and not program.chip.has_flips:
        return run_on_tensors(program, x)
    m, k = x.shape
    activations = x.detach().to("cpu", activation_dtype(program.config)).contiguous().view(-1).numpy()
    outputs = np.empty((program.n, m), np.int32)
    run_on_memory(program, activations, np.arange(m) * k, np.arange(k), outputs.reshape(-1), (0, 0, max(m, 1)))
    return torch.from_numpy(outputs).t().to(x.device)


def check_values(name: str, values: Tensor, limits: tuple[int, int]) -> None:
    """Refuse values that are not integers within limits.

    Raises:
        InputError: no integers, or out of range.
    """
    if values.is_floating_point() or values.is_complex() or values.dtype is torch.bool:
        raise InputError(f"{name} holds {values.dtype}: expected integers; quantise it first")
    low, high = limits
    limits_of_type = torch.iinfo(values.dtype)
    if values.numel() and (limits_of_type.min < low or limits_of_type.max > high):
        least, greatest = (int(value) for value in torch.aminmax(values))
        if least < low or greatest > high:
            raise InputError(
                f"{name} holds {least if least < low else greatest}: expected {low}..{high} for this array's widths"
            )


def run_on_memory(
    program: Program,
    memory: Int8Array | UInt8Array,
    pixel: Int64Array,
    offset: Int64Array,
    outputs: Int32Array,
    place: tuple[int, int, int],
) -> None:
    """Run a program on activations wherever they lie: `X[m, k]` is `memory[pixel[m] + offset[k]]`.

    Args:
        program: from `training.lower`.
        memory: int8, or uint8 if activations are unsigned, one dimension; values within range.
        pixel: int64 [M], strictly increasing.
        offset: int64 [K], strictly increasing.
        outputs: int32, one dimension; the outputs are written here.
        place: `start, stride, size`: output n of row m goes to `start + (m // size) * stride + n * size + m % size`.

    Raises:
        InputError: a FLIP in a cycle that the GEMM does not have.
    """
    # Numba takes 0.4 s to import.
    from training.emulation.gemm_kernel import Source, Target, emulate
    from training.emulation.intrinsics import LANES

    config, m = program.config, len(pixel)
    source = Source(memory.view(np.int8), config.act_signed, pixel, offset)
    target = Target(outputs, *place)

    def part(first: int, stop: int) -> None:
        sizes = (config.rows, config.cols, config.acc_bits)
        emulate(source, program.layout, program.weights, *sizes, first, stop, target)

    _in_parallel(part, m, LANES, m * program.k * program.n)
    if program.chip.has_flips:
        from training.emulation.upsets import recompute_touched

        recompute_touched(program, source, target)


def _in_parallel(part: Callable[[int, int], None], m: int, block: int, work: int) -> None:
    """Call `part(first, stop)` on ranges of whole blocks of rows, on as many threads as torch uses and it is worth."""
    threads = max(1, min(torch.get_num_threads(), work // _WORK_PER_THREAD))
    if threads == 1:
        part(0, m)
        return
    blocks = -(-m // block)
    bounds = [min(m, (blocks * i // threads) * block) for i in range(threads + 1)]
    pool = _pool(threads - 1)
    others = [pool.submit(part, bounds[i], bounds[i + 1]) for i in range(1, threads)]
    part(bounds[0], bounds[1])
    for other in others:
        other.result()


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="emulation")


# A forked process has the pool but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


class Windows(NamedTuple):
    """Where the rows of X lie in one image: those of a convolution are windows, so both parts of a place are affine.

    `X[m, k]` of group g is at `(m // across) * step_down + (m % across) * step_across + offset[g, k]`.
    """

    offset: Int64Array
    """int64 [groups, K], strictly increasing in each group; of a kernel the columns run fastest."""
    down: int
    across: int
    step_down: int
    step_across: int
    image_size: int


@lru_cache(maxsize=64)
def convolution_windows(
    image: tuple[int, int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Windows:
    """Those of a convolution on a padded image [channels, height, width], at least as large as the kernel."""
    channels, height, width = image
    down, across = output_size((height, width), kernel_size, stride, dilation)
    channel, row, column = np.ogrid[:channels, : kernel_size[0], : kernel_size[1]]
    offset = channel * height * width + row * dilation[0] * width + column * dilation[1]
    return Windows(offset.reshape(groups, -1), down, across, stride[0] * width, stride[1], channels * height * width)


@lru_cache(maxsize=8)
def _row_starts(images: int, down: int, across: int, step_down: int, step_across: int, image_size: int) -> Int64Array:
    image, y, x = np.ogrid[:images, :down, :across]
    starts: Int64Array = (image * image_size + y * step_down + x * step_across).reshape(-1)
    return starts


def run_on_images(programs: Sequence[Program], windows: Windows, memory: Int8Array | UInt8Array) -> Int32Array:
    """Run a program for each group on images [S, image_size] that lie in memory one after another.

    `memory` is int8, or uint8 if activations are unsigned, C-contiguous, with values within range.

    Returns:
        int32 [S, outputs of all groups, M], wrapped to `acc_bits` bits.

    Raises:
        InputError: a FLIP in a cycle that the GEMM does not have.
    """
    n, m = programs[0].n, windows.down * windows.across
    outputs = np.empty((len(memory), len(programs) * n, m), np.int32)
    if outputs.size:
        pixel = _row_starts(len(memory), *windows[1:])
        for group, program in enumerate(programs):
            place = (group * n * m, len(programs) * n * m, m)
            run_on_memory(program, memory.reshape(-1), pixel, windows.offset[group], outputs.reshape(-1), place)
    return outputs


def output_size(
    image: tuple[int, int], kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of outputs that a kernel gives on a padded image; below 1 where it does not fit in.

    >>> output_size((7, 8), (3, 3), (2, 1), (1, 2))
    (3, 4)
    """
    down, across = ((image[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) // stride[axis] + 1 for axis in (0, 1))
    return down, across

"""The chip a layer's integer GEMM runs on, and the engines that compute it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from simulator import ArrayConfig, FaultMap, simulate_gemm
from simulator.dtypes import BoolArray, Int64Array
from simulator.engine.operands import check_chip
from simulator.errors import InputError
from training.emulation.gemm import check_values, faulty_gemm
from training.numbers import wrap

Engine = Literal["emulation", "cycle", "exact"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True, eq=False)
class Accelerator:
    """One chip: an array, what is broken in it, and the engine that computes what it would.

    Args:
        config: the array.
        faults: what is broken in it; None for nothing.
        bypass: bool [rows, cols], PEs that pass their partial sum on unchanged; None for none.
        engine: `emulation` computes it on whole tensors (`training.faulty_gemm`); `cycle` steps every register of
            every PE (`simulator.simulate_gemm`), with the same result; `exact` is the plain integer GEMM of a chip
            without faults and without bypass, wrapped to `acc_bits`.
        threads: threads of the cycle engine; None for one per available core. Results do not depend on it. The
            emulation has as many as torch.

    Raises:
        InputError: an unknown engine, faults of another array, a bypass of another shape, fewer than one thread, or
            faults, bypass or a multiplier that is not exact with the `exact` engine.
    """

    config: ArrayConfig
    faults: FaultMap | None = None
    bypass: BoolArray | None = None
    engine: Engine = "emulation"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InputError(f"engine {self.engine!r} is unknown: choose one of {', '.join(ENGINES)}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads is {self.threads}: expected 1 or more, or None for one per core")
        _, bypass = check_chip(self.config, self.faults, self.bypass)
        if self.bypass is not None:
            bypass = bypass.copy()
            bypass.flags.writeable = False
            object.__setattr__(self, "bypass", bypass)
        if self.engine == "exact" and not self.config.multiplies_exactly:
            raise InputError(
                f"engine 'exact' is for exact multipliers, and this array has {self.config.as_dict()['multiplier']}: "
                "use engine 'emulation' or 'cycle'"
            )
        if self.engine == "exact" and (self.faults or bypass.any()):
            raise InputError(
                "engine 'exact' is without faults and bypass: use engine 'emulation' or 'cycle', or leave them out"
            )

    @classmethod
    def fault_free(cls, config: ArrayConfig) -> Accelerator:
        """An array without faults, by the quickest engine that can be had."""
        return cls(config, engine="exact" if config.multiplies_exactly else "emulation")

    @cached_property
    def hides_faults(self) -> bool:
        """Whether sums of products are exact but for broken column accumulators: bypass hides all that is broken."""
        if not self.config.multiplies_exactly:
            return False
        if not self.faults:
            return True
        required = self.faults.required_bypass()
        hidden = not required.any() or (self.bypass is not None and bool((self.bypass | ~required).all()))
        return hidden and not self.faults.has_flips

    @cached_property
    def unusable_columns(self) -> Int64Array:
        """Columns, int64 [columns], whose accumulator is broken, which no bypass hides."""
        return np.empty(0, np.int64) if self.faults is None else self.faults.unusable_columns()

    def gemm(self, x: Tensor, w: Tensor) -> Tensor:
        """Multiply integers on the chip.

        Args:
            x: integer activations [M, K], within `config.act_range`.
            w: integer weights [K, N], within `config.weight_range`.

        Returns:
            int32 [M, N], read out of the column accumulators, on the device of `x`.

        Raises:
            InputError: no integers, shapes that do not fit, K = 0 or N = 0, or values out of range.
        """
        if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0] or 0 in w.shape:
            raise InputError(
                f"GEMM of {list(x.shape)} by {list(w.shape)}: expected [M, K] by [K, N] with K >= 1 and N >= 1"
            )
        check_values("x", x, self.config.act_range)
        check_values("w", w, self.config.weight_range)
        if self.engine == "emulation":
            return faulty_gemm(x, w, self.config, self.faults, bypass=self.bypass)
        if self.engine == "exact":
            return _exact_gemm(x, w, self.config)
        return _cycle_gemm(self, x, w).to(x.device)


def _cycle_gemm(chip: Accelerator, x: Tensor, w: Tensor) -> Tensor:
    operands = (x.cpu().numpy(), w.cpu().numpy())
    result = simulate_gemm(*operands, chip.config, chip.faults, bypass=chip.bypass, threads=chip.threads)
    return torch.from_numpy(result.outputs)


def _exact_gemm(x: Tensor, w: Tensor, config: ArrayConfig) -> Tensor:
    """Float matrix products are exact while every partial sum fits in the mantissa, in whatever order they add up."""
    k, n = w.shape
    largest_sum = k * max(map(abs, config.act_range)) * max(map(abs, config.weight_range))
    dtype = torch.float32 if largest_sum <= 1 << 24 else torch.float64
    weights = w.to(dtype)
    outputs = torch.empty(len(x), n, dtype=torch.int32, device=x.device)
    rows = max(1, _BLOCK_ELEMENTS // max(k, n))
    for start in range(0, len(x), rows):
        block = x[start : start + rows].to(dtype) @ weights
        outputs[start : start + rows] = wrap(block.to(torch.int64), config.acc_bits)
    return outputs

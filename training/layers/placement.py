"""Which place on the array each reduction index and each output of a layer's GEMMs takes.

By default reduction index k sits on row k mod R of k-fold k // R, and output n on column n mod C of n-fold n // C.
A placement moves them to other positions, counted the same way over all folds: the operands are laid out accordingly
before the GEMM, and the outputs are taken from where they come out. Sums are of the same products, so on a chip without
faults every output is the same, bit for bit. Positions that nothing is placed at hold zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from simulator import ArrayConfig
from simulator.dtypes import BoolArray, Int64Array
from simulator.errors import InputError

LARGEST_POSITION = 1 << 24
"""Positions are below it; what a layer takes on the array is bounded where a deployment is put on it."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Positions of the operands of a layer's GEMMs; those of a grouped convolution have one GEMM for each group.

    Args:
        rows: int64 [groups, K], the position of each reduction index: row `position % R` of k-fold `position // R`.
        columns: int64 [groups, N], the position of each output: column `position % C` of n-fold `position // C`.

    Raises:
        InputError: no integers, shapes that do not fit, a negative or huge position, or two at the same position.
    """

    rows: Int64Array
    columns: Int64Array

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            positions = np.array(getattr(self, name))
            if not np.issubdtype(positions.dtype, np.integer):
                raise InputError(f"{name} of a placement hold {positions.dtype}: expected integers")
            if positions.ndim != 2 or 0 in positions.shape:
                raise InputError(f"{name} of a placement have shape {positions.shape}: expected [groups, positions]")
            if positions.min() < 0 or positions.max() >= LARGEST_POSITION:
                outside = positions.min() if positions.min() < 0 else positions.max()
                raise InputError(f"{name} of a placement hold {outside}: expected 0..{LARGEST_POSITION - 1}")
            ordered = np.sort(positions, axis=1)
            if (ordered[:, 1:] == ordered[:, :-1]).any():
                raise InputError(f"{name} of a placement hold a position twice: expected different ones")
            positions = positions.astype(np.int64)
            positions.flags.writeable = False
            object.__setattr__(self, name, positions)
        if len(self.rows) != len(self.columns):
            raise InputError(f"placement has {len(self.rows)} groups of rows and {len(self.columns)} of columns")

    @classmethod
    @lru_cache(maxsize=64)
    def in_order(cls, groups: int, k: int, n: int) -> Placement:
        """The default: each index at its own position."""
        return cls(np.tile(np.arange(k), (groups, 1)), np.tile(np.arange(n), (groups, 1)))

    @property
    def groups(self) -> int:
        """Number of GEMMs."""
        return len(self.rows)

    @property
    def is_in_order(self) -> bool:
        """Whether it is the default."""
        return all(bool((positions == np.arange(positions.shape[1])).all()) for positions in (self.rows, self.columns))

    def extent(self, group: int = 0) -> tuple[int, int]:
        """K and N of the GEMM as it runs on the array, zeros included."""
        return int(self.rows[group].max()) + 1, int(self.columns[group].max()) + 1

    def place_x(self, x: Tensor, group: int = 0) -> Tensor:
        """Lay out activations [M, K] as the array is fed with them, [M, extent K]."""
        placed = x.new_zeros(len(x), self.extent(group)[0])
        placed[:, torch.tensor(self.rows[group])] = x
        return placed

    def place_w(self, w: Tensor, group: int = 0) -> Tensor:
        """Lay out weights [K, N] as the array holds them, [extent K, extent N]."""
        placed = w.new_zeros(self.extent(group))
        placed[torch.tensor(self.rows[group])[:, None], torch.tensor(self.columns[group])] = w
        return placed

    def take_out(self, outputs: Tensor, group: int = 0) -> Tensor:
        """From the outputs [M, extent N] of the array those of the GEMM, [M, N]."""
        return outputs[:, torch.tensor(self.columns[group])]

    def at_weights(self, per_pe: BoolArray, config: ArrayConfig) -> BoolArray:
        """For each weight, in the order of a layer's, bool [groups * N, K], a mask of PEs, bool [R, C], at its PE.

        Raises:
            InputError: a mask of another shape.
        """
        if per_pe.shape != (config.rows, config.cols):
            raise InputError(f"mask of PEs has shape {per_pe.shape}: expected {(config.rows, config.cols)}")
        rows, columns = self.rows % config.rows, self.columns % config.cols
        parts = [per_pe[rows[group][None, :], columns[group][:, None]] for group in range(self.groups)]
        return np.concatenate(parts)

    def used_columns(self, config: ArrayConfig) -> Int64Array:
        """Columns of the array that outputs sit on, in ascending order."""
        return np.unique(self.columns % config.cols)

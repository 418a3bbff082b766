"""The emulation in plain tensor operations, for devices that run no Numba kernels.

The same program as on the CPU, level by level: level i sums, for all outputs at once, the products between the i-th and
the next PE that is evaluated by itself, as a matrix product in float64, whose sums are far below 2^53 and so exact.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.emulation.program import Program
from training.numbers import wrap

_BLOCK_ELEMENTS = 1 << 24


def run_on_tensors(program: Program, x: Tensor) -> Tensor:
    """Run a program without FLIPs on integer activations [M, K] that were checked: int32 [M, N] on their device."""
    # Laid out as the CPU's outputs are.
    outputs = torch.empty(program.n, len(x), dtype=torch.int32, device=x.device).t()
    folds = [_Fold(program, fold, x.device) for fold in range(program.weights.words.shape[1])]
    columns = torch.arange(program.n, device=x.device) % program.config.cols
    keep, force = (torch.tensor(mask, device=x.device)[columns] for mask in program.chip.accumulator)
    rows = max(1, _BLOCK_ELEMENTS // max(program.layout.fold_rows + len(program.layout.step_pair), program.n))
    for start in range(0, len(x), rows):
        block = x[start : start + rows].to(torch.int32)
        total = torch.zeros(len(block), program.n, dtype=torch.int32, device=x.device)
        for fold in folds:
            total = (wrap(total.to(torch.int64) + fold.outputs(block), 32) & keep) | force
        outputs[start : start + rows] = wrap(total.to(torch.int64), program.config.acc_bits)
    return outputs


class _Fold:
    """One k-fold of a program as tensors.

    Each distinct version of a row of activations that some column sees is a row of its own, a *variant*; weights stand
    at the variant that their column sees.
    """

    def __init__(self, program: Program, fold: int, device: torch.device) -> None:
        config, layout, chip = program.config, program.layout, program.chip
        self.first, self.used = fold * config.rows, min(config.rows, program.k - fold * config.rows)
        rows, n = layout.fold_rows, program.n
        columns = np.arange(n) % config.cols
        rows_there = min(rows, config.rows)

        # Variant of each row that each column sees; the first `rows` are the rows as they are fed.
        new = chip.activation_here.any[:rows_there]
        count = np.cumsum(new, axis=1)
        before = rows + np.concatenate([[0], np.cumsum(count[:, -1])[:-1]])
        seen = np.arange(rows)[:, None].repeat(n, axis=1)
        seen[:rows_there] = np.where(count > 0, before[:, None] + count - 1, seen[:rows_there, :1])[:, columns]
        row, column = np.nonzero(new)
        self.variant_row = torch.tensor(row, device=device)
        self.variant_keep, self.variant_force = (
            torch.tensor(mask[row, column], device=device) for mask in chip.activation
        )
        self.rows = rows

        # PEs evaluated by themselves: the i-th of each output in level i, where there is one.
        entry = np.arange(n) * program.weights.words.shape[1] + fold
        begin, end = layout.first_pe[entry], layout.first_pe[entry + 1]
        levels = int((end - begin).max(initial=0))
        halves = program.weights.words[:, fold].view(np.int16).T.astype(np.float64)
        cut = np.full((levels + 1, n), rows)
        masks = (layout.product_keep, layout.product_force, layout.psum_keep, layout.psum_force)
        self.levels = []
        for level in range(levels):
            there = begin + level < end
            pe = np.where(there, begin + level, 0)
            row = np.where(there, layout.row[pe], 0)
            cut[level] = np.where(there, row, rows)
            stuck = [np.where(there, mask[pe], other) for mask, other in zip(masks, (0, 0, -1, 0), strict=True)]
            parts = (seen[row, np.arange(n)], program.weights.apart[pe], program.weights.table[pe].astype(np.int64))
            self.levels.append([torch.tensor(part, device=device) for part in (*parts, *np.array(stuck, np.int32))])
        self.weights: list[Tensor | None] = []
        position = np.arange(rows)[:, None]
        for level in range(levels + 1):
            after = cut[level - 1] if level else np.full(n, -1)
            between = np.where((position > after) & (position <= cut[level]), halves, 0)
            spread = np.zeros((rows + len(self.variant_row), n))
            np.put_along_axis(spread, seen, between, axis=0)
            self.weights.append(torch.tensor(spread, device=device) if spread.any() else None)
        self.tables = torch.tensor(program.weights.tables.astype(np.int32), device=device)

    def outputs(self, x: Tensor) -> Tensor:
        """From int32 [M, K] the fold's outputs int32 [M, N], modulo 2^32."""
        fed = torch.zeros(len(x), self.rows, dtype=torch.int32, device=x.device)
        fed[:, : self.used] = x[:, self.first : self.first + self.used]
        variants = torch.cat([fed, (fed[:, self.variant_row] & self.variant_keep) | self.variant_force], dim=1)
        floats = variants.to(torch.float64)
        running = torch.zeros(len(x), len(self.levels[0][0]) if self.levels else 1, dtype=torch.int64, device=x.device)
        running = running + self._dot(floats, 0)
        for level, (seen, weight, table, *masks) in enumerate(self.levels):
            product_keep, product_force, psum_keep, psum_force = masks
            activation = variants[:, seen]
            product = activation * weight
            if len(self.tables):
                pattern = (activation & (self.tables.shape[1] - 1)).to(torch.int64)
                product = torch.where(table >= 0, self.tables[table.clamp(min=0), pattern], product)
            running = (wrap(running + ((product & product_keep) | product_force), 32) & psum_keep) | psum_force
            running = running + self._dot(floats, level + 1)
        return wrap(running, 32)

    def _dot(self, floats: Tensor, level: int) -> Tensor | int:
        """Products between two levels' PEs; none where all PEs are evaluated by themselves."""
        weights = self.weights[level]
        return 0 if weights is None else (floats @ weights).to(torch.int64)

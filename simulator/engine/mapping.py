"""Which part of a GEMM sits where on the array, and when: folds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.config import ArrayConfig
from simulator.errors import InputError


@dataclass(frozen=True)
class Fold:
    """One filling of the array with weights: reduction indices `k` on the rows, outputs `n` on the columns.

    Attributes:
        index: position in time, from 0; n-folds are the outer loop, k-folds the inner one.
        k_start: first reduction index; it sits on row 0.
        k_stop: one past the last reduction index.
        n_start: first output; it sits on column 0.
        n_stop: one past the last output.
    """

    index: int
    k_start: int
    k_stop: int
    n_start: int
    n_stop: int

    @property
    def used_rows(self) -> int:
        """Rows that hold weights; the others hold zeros."""
        return self.k_stop - self.k_start

    @property
    def used_cols(self) -> int:
        """Columns whose outputs are collected."""
        return self.n_stop - self.n_start


def fold_count(config: ArrayConfig, m: int, k: int, n: int) -> int:
    """Number of folds of `X[m, k] @ W[k, n]`.

    Raises:
        InputError: `m` is negative, or `k` or `n` is not positive.
    """
    if m < 0 or k < 1 or n < 1:
        raise InputError(f"GEMM is M={m}, K={k}, N={n}: expected M >= 0, K >= 1 and N >= 1")
    return -(-k // config.rows) * -(-n // config.cols)


def folds(config: ArrayConfig, k: int, n: int) -> Iterator[Fold]:
    """The folds of a GEMM with reduction length `k` and `n` outputs, in the order of time.

    >>> [(fold.k_start, fold.n_start) for fold in folds(ArrayConfig(2, 2), 3, 4)]
    [(0, 0), (2, 0), (0, 2), (2, 2)]
    """
    index = 0
    for n_start in range(0, n, config.cols):
        for k_start in range(0, k, config.rows):
            yield Fold(
                index=index,
                k_start=k_start,
                k_stop=min(k_start + config.rows, k),
                n_start=n_start,
                n_stop=min(n_start + config.cols, n),
            )
            index += 1

"""How far an error travels through a network: what each layer computes with it and without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from efat.explanation.fault_subsets import Inference, LayerRun
from simulator.dtypes import BoolArray
from simulator.errors import InputError

Pattern = Literal["none", "single", "all", "column", "row", "block"]
"""Where the changed outputs of a layer's GEMM [M, N] are, groups side by side: nowhere; at one place; everywhere; in
one output channel n; in one row of X; anything else. The first that fits is the pattern."""


@dataclass(frozen=True)
class LayerEffect:
    """What an error changes in one layer on one image.

    Attributes:
        layer: qualified name of the layer.
        outputs: outputs of its GEMMs: M times N, of all groups.
        changed: those whose accumulator differs.
        pattern: where they are.
        largest_error: largest absolute difference of an accumulator, in its steps.
    """

    layer: str
    outputs: int
    changed: int
    pattern: Pattern
    largest_error: int


@dataclass(frozen=True)
class ErrorPropagation:
    """What an error changes in a network on one image.

    Attributes:
        layers: each layer, in the order in which they run.
        scores: scores of the network.
        scores_changed: those that differ.
        before: class predicted without the error.
        after: class predicted with it.
    """

    layers: tuple[LayerEffect, ...]
    scores: int
    scores_changed: int
    before: int
    after: int


def error_propagation(without: Inference, with_error: Inference) -> ErrorPropagation:
    """Compare an inference with one that has an error more.

    Args:
        without: without the error.
        with_error: with it, of the same network on the same image.

    Raises:
        InputError: other layers ran: which of them run depends on the numbers.
    """
    ran = [[(run.name, run.outputs.shape) for run in found.layers] for found in (without, with_error)]
    if ran[0] != ran[1]:
        raise InputError(
            "the network runs other layers when faults change its numbers: layers can be compared only in a network "
            "that always runs the same ones"
        )
    return ErrorPropagation(
        layers=tuple(_effect(*pair) for pair in zip(without.layers, with_error.layers, strict=True)),
        scores=len(without.scores),
        scores_changed=int((with_error.scores != without.scores).sum()),
        before=without.prediction,
        after=with_error.prediction,
    )


def _effect(without: LayerRun, with_error: LayerRun) -> LayerEffect:
    errors = np.abs(with_error.outputs.astype(np.int64) - without.outputs)
    changed = errors != 0
    return LayerEffect(
        layer=without.name,
        outputs=changed.size,
        changed=int(changed.sum()),
        pattern=pattern_of(changed),
        largest_error=int(errors.max(initial=0)),
    )


def pattern_of(changed: BoolArray) -> Pattern:
    """Name the pattern of changed outputs, bool [M, N].

    >>> pattern_of(np.array([[True, False], [True, False]]))
    'column'
    """
    count = int(changed.sum())
    if count < 2:
        return "single" if count else "none"
    if count == changed.size:
        return "all"
    if changed.any(axis=0).sum() == 1:
        return "column"
    if changed.any(axis=1).sum() == 1:
        return "row"
    return "block"

"""Scales of a layer's input from the values it takes on a calibration set."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from simulator.dtypes import Float64Array, Int64Array
from simulator.errors import InputError
from training.numbers import symmetric_scale

Method = Literal["max", "percentile", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_PERCENTILE = 99.99

_DROPPED_BITS = 14
_BINS = 1 << (31 - _DROPPED_BITS)
_STEPS_PER_OCTAVE = 16
_OCTAVES = 10


def check_method(method: str, percentile: float) -> None:
    """Refuse a calibration method or percentile that does not exist, with an `InputError`."""
    if method not in METHODS:
        raise InputError(f"calibration method {method!r} is unknown: choose one of {', '.join(METHODS)}")
    if not 0 < percentile <= 100:
        raise InputError(f"percentile is {percentile}: expected more than 0 and at most 100")


class MagnitudeHistogram:
    """How often each magnitude occurred, in one pass over any amount of data and in fixed memory.

    The bins are the float32 numbers without their 14 lowest bits: 512 bins per octave, so a bin is at most 0.2 % wide
    whatever the range of the data turns out to be.
    """

    def __init__(self) -> None:
        self.total = 0
        self.smallest = 0.0
        """The least value seen, or 0."""
        self.largest = 0.0
        """The largest magnitude seen, or 0."""
        self._counts = np.zeros(_BINS, np.int64)

    def update(self, values: Tensor) -> None:
        """Count the values of a float32 tensor of any shape.

        Raises:
            InputError: there is a NaN or an infinity among them.
        """
        values = values.detach().to(device="cpu", dtype=torch.float32).flatten()
        if not values.numel():
            return
        if not bool(torch.isfinite(values).all()):
            raise InputError("NaN or infinity among the calibration values: check the images and the weights")
        magnitudes = values.abs()
        self.total += values.numel()
        self.smallest = min(self.smallest, float(values.min()))
        self.largest = max(self.largest, float(magnitudes.max()))
        self._counts += torch.bincount(magnitudes.view(torch.int32) >> _DROPPED_BITS, minlength=_BINS).numpy()

    def threshold(self, method: Method, levels: int, percentile: float = DEFAULT_PERCENTILE) -> float:
        """The magnitude from which on values are clipped: at most the largest; 0 if there were only zeros.

        Method `max` clips nothing; `percentile` clips the values above that percentile of the magnitudes (found to
        0.2 %); `mse` minimises the mean squared error of quantisation to `levels` over thresholds 1/16 octave apart.
        """
        if method == "max" or not self.largest:
            return self.largest
        return self._percentile(percentile) if method == "percentile" else self._least_squares(levels)

    def scale(self, method: Method, levels: int, percentile: float = DEFAULT_PERCENTILE) -> Tensor:
        """The scale with which `threshold` becomes `levels`: float32, no dimensions, positive."""
        return symmetric_scale(torch.tensor(self.threshold(method, levels, percentile), dtype=torch.float64), levels)

    def _percentile(self, percentile: float) -> float:
        rank = max(1, int(np.ceil(self.total * percentile / 100)))
        index = int(np.searchsorted(np.cumsum(self._counts), rank))
        if index == 0:  # nearly every value is zero: what is left is all there is to represent
            return self.largest
        return min(float(_bin_values(np.array([index + 1]), 0)[0]), self.largest)

    def _least_squares(self, levels: int) -> float:
        filled = np.flatnonzero(self._counts)
        counts = self._counts[filled]
        magnitudes = np.minimum(_bin_values(filled, 1 << (_DROPPED_BITS - 1)), self.largest)
        thresholds = self.largest * 2.0 ** (-np.arange(_STEPS_PER_OCTAVE * _OCTAVES + 1) / _STEPS_PER_OCTAVE)
        errors = []
        for step in thresholds / levels:
            quantised = np.minimum(np.rint(magnitudes / step), levels) * step
            errors.append(float(np.dot(counts, (quantised - magnitudes) ** 2)))
        return float(thresholds[int(np.argmin(errors))])


def _bin_values(bins: Int64Array, offset: int) -> Float64Array:
    """The float32 numbers that lie `offset` representable steps above the lower edges of bins."""
    return ((bins << _DROPPED_BITS) + offset).astype(np.int32).view(np.float32).astype(np.float64)

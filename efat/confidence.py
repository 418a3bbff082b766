"""How sure counts are: one-sided confidence bounds of Clopper and Pearson."""

from __future__ import annotations

import math

CONFIDENCE = 0.95
"""With which a bound holds, for one chip by itself, on images like those that were counted."""


def at_least(correct: int, images: int, confidence: float = CONFIDENCE) -> float:
    """The one-sided lower bound of an accuracy (Clopper and Pearson 1934).

    Whatever the accuracy is, a bound that is found like this is above it in at most 1 - `confidence` of all samples.

    Args:
        correct: images classified correctly, of those drawn at random, which decided nothing.
        images: images classified, 1 or more.
        confidence: above 0, below 1.

    Returns:
        A fraction, 0..1.

    Raises:
        ValueError: counts that cannot be.

    >>> round(at_least(100, 100), 4)
    0.9705
    """
    if not 0 <= correct <= images or images < 1:
        raise ValueError(f"{correct} of {images} images are correct: expected 0..images, and 1 or more images")
    if correct == 0:
        return 0.0
    from scipy.special import betaincinv

    return float(betaincinv(correct, images - correct + 1, 1 - confidence))


def bound_text(bound: float) -> str:
    """A lower bound in percent, rounded down so that it stays one.

    >>> bound_text(0.98999)
    '98.9%'
    """
    return f"{math.floor(1000 * bound) / 10:.1f}%"

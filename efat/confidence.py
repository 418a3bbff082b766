"""Accuracies, and how sure they are: intervals, one-sided bounds, and what cannot be told from guessing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95
"""With which a bound holds, for one chip by itself, on images like those that were counted."""

GUESSING = 0.05
"""Accuracy that guessing reaches with a higher probability cannot be told from it."""


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


@dataclass(frozen=True)
class Accuracy:
    """How many of the images were classified correctly.

    Args:
        correct: images classified correctly.
        images: images classified, >= 1.
    """

    correct: int
    images: int

    def __str__(self) -> str:
        return f"{self.correct:,} of {self.images:,}, {self.value:.1%}"

    @property
    def value(self) -> float:
        """Fraction of images classified correctly."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval (Wilson 1927) of the accuracy on images like these."""
        # scipy.stats has it, and takes 0.8 s to import; the tests compare the two.
        z_squared = NormalDist().inv_cdf(0.975) ** 2
        centre = (self.correct + z_squared / 2) / (self.images + z_squared)
        wrong = self.images - self.correct
        spread = math.sqrt(z_squared * (self.correct * wrong / self.images + z_squared / 4)) / (self.images + z_squared)
        return max(0.0, centre - spread), min(1.0, centre + spread)

    def like_guessing(self, classes: int) -> bool:
        """Whether guessing among so many classes has a chance of more than 5 % to be as good (binomial test).

        With too few images for any result to tell, it is false.
        """
        n, chance = self.images, 1 / classes
        if classes < 2 or chance**n > GUESSING:
            return False
        log_right, log_wrong = math.log(chance), math.log1p(-chance)
        as_good = math.fsum(
            math.exp(
                math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_right + (n - k) * log_wrong
            )
            for k in range(self.correct, n + 1)
        )
        return as_good > GUESSING

    @property
    def at_least(self) -> float:
        """One-sided 95 % lower bound (Clopper and Pearson 1934) of the accuracy on images like these."""
        return at_least(self.correct, self.images)

    def as_dict(self) -> dict[str, float]:
        """Count, value, interval and one-sided bound, as JSON takes them."""
        low, high = self.interval
        return {
            "correct": self.correct,
            "accuracy": self.value,
            "accuracy_95_low": low,
            "accuracy_95_high": high,
            "accuracy_95_at_least": self.at_least,
        }

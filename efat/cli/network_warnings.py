"""Warnings about networks whose results mean nothing: weights that nobody trained, accuracy that guessing has, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from efat.cli.printing import say

if TYPE_CHECKING:
    from efat.inference.classified import Accuracy


def warn(message: str) -> None:
    """Say on standard error what the user should know about the results."""
    say(f"Warning: {message}", err=True)


def warn_of_own_weights(network: str | None, weights: Path | None) -> None:
    """Warn if a network of the user's own, `package.module:function`, runs without a file of weights."""
    if network is not None and ":" in network and weights is None:
        warn(
            f"no --weights: {network} has the weights that the function returns, which are random if it loads none; "
            "then nothing measured here means anything"
        )


def warn_of_guessing(what: str, accuracy: Accuracy | None, classes: int) -> bool:
    """Warn if a network without faults cannot be told from one that guesses.

    Args:
        what: what was measured, such as "the float network".
        accuracy: its accuracy; None if it was not measured, of which nothing is said.
        classes: number of classes of the data.

    Returns:
        Whether it was warned of.
    """
    if accuracy is None or not accuracy.like_guessing(classes):
        return False
    warn(
        f"{what} gets {accuracy.correct:,} of {accuracy.images:,} images right without faults, no better than guessing "
        f"among {classes} classes: check that weights, images and their normalisation belong together"
    )
    return True

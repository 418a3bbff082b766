"""Mitigations by name, as users combine them: `fap+t`, `fam+t+gradual` and so on."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import InputError, did_you_mean
from training.learning.mitigations.batch_norm import BatchNormStatistics
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.gradual import Gradual
from training.learning.mitigations.mitigation import Mitigation
from training.learning.mitigations.permutation import Permutation

DEPLOYMENTS: dict[str, tuple[Mitigation, ...]] = {
    "none": (),
    "fap": (Bypass(),),
    "fam": (Bypass(), Permutation()),
    "fam-columns": (Bypass(), Permutation(rows=False)),
    "fam-rows": (Bypass(), Permutation(columns=False)),
}
"""What is done before retraining, by name. `none` takes the chip as it is: what then retrains learns to live with what
the faults do, through the exact emulation and straight-through gradients ("training with the faulty behaviour", as in
arXiv 2412.16208)."""

RETRAIN, BATCH_NORM, GRADUAL = "t", "bn", "gradual"

NAMES = tuple(
    f"{name}{after}" for name in DEPLOYMENTS for after in ("", "+t", "+bn", "+bn+t", "+t+gradual", "+bn+t+gradual")
)
"""Names of all combinations, each in one order."""


@dataclass(frozen=True)
class Mitigations:
    """What is done about a chip's broken PEs.

    Args:
        in_turn: in the order in which they take their turns.
        retrains: whether the network is retrained on the chip.
    """

    in_turn: tuple[Mitigation, ...] = ()
    retrains: bool = True

    @property
    def text(self) -> str:
        """What files say of them, in the words of the first files."""
        return f"Strategy(mitigations={self.in_turn!r}, retrains={self.retrains!r})"

    @classmethod
    def named(cls, name: str) -> Mitigations:
        """Mitigations by their name: what is deployed, and after it, in any order, what else is done.

        The first word is `none`, `fap`, `fam`, `fam-columns` or `fam-rows`; then may follow `+t` to retrain, `+bn` to
        measure the statistics of batch normalisation on the chip, and, with `+t`, `+gradual` to inject the faults in
        steps.

        Raises:
            InputError: another name.

        >>> Mitigations.named("fap+t")
        Mitigations(in_turn=(Bypass(),), retrains=True)
        """
        first, *others = name.lower().split("+")
        known = {BATCH_NORM: BatchNormStatistics(), GRADUAL: Gradual()}
        if (
            first not in DEPLOYMENTS
            or not set(others) <= {RETRAIN, *known}
            or len(set(others)) < len(others)
            or (GRADUAL in others and RETRAIN not in others)
        ):
            raise InputError(
                f"mitigation {name!r} is unknown: expected one of {', '.join(DEPLOYMENTS)}, then +{RETRAIN} to "
                f"retrain, +{BATCH_NORM} to measure batch normalisation anew, and with +{RETRAIN} also +{GRADUAL} to "
                f"inject the faults in steps; such as fap+t{did_you_mean(name, NAMES)}"
            )
        return cls((*DEPLOYMENTS[first], *(known[word] for word in known if word in others)), RETRAIN in others)

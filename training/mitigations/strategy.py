"""Mitigations by name, as users combine them: `fap+t`, `fam+t+gradual` and so on."""

from __future__ import annotations

from dataclasses import dataclass

from training.errors import InputError
from training.mitigations.bypass import Bypass
from training.mitigations.gradual import Gradual
from training.mitigations.mitigation import Mitigation
from training.mitigations.permutation import Permutation

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

RETRAIN = "t"
GRADUAL = "gradual"


@dataclass(frozen=True)
class Strategy:
    """What is done about a chip's broken PEs.

    Args:
        mitigations: in the order in which they take their turns.
        retrains: whether the network is retrained on the chip.
    """

    mitigations: tuple[Mitigation, ...] = ()
    retrains: bool = True

    @classmethod
    def named(cls, name: str) -> Strategy:
        """One of the names: `none`, `fap`, `fam`, `fam-columns` or `fam-rows`; then `+t` to retrain; then `+gradual`.

        Raises:
            InputError: another name.

        >>> Strategy.named("fap+t")
        Strategy(mitigations=(Bypass(),), retrains=True)
        """
        first, *others = name.lower().split("+")
        if first not in DEPLOYMENTS or others not in ([], [RETRAIN], [RETRAIN, GRADUAL]):
            raise InputError(
                f"mitigation {name!r} is unknown: expected one of {', '.join(DEPLOYMENTS)}, then +{RETRAIN} to "
                f"retrain, then +{GRADUAL} to inject the faults in steps, such as fap+t"
            )
        gradual = (Gradual(),) if GRADUAL in others else ()
        return cls((*DEPLOYMENTS[first], *gradual), RETRAIN in others)

"""What is done about a chip's broken PEs: small parts with one interface, which combine."""

from training.mitigations.batch_norm import BatchNormStatistics
from training.mitigations.bypass import Bypass
from training.mitigations.gradual import Gradual
from training.mitigations.hardening import Hardening
from training.mitigations.mitigation import Mitigation, Step
from training.mitigations.permutation import Permutation
from training.mitigations.strategy import Strategy

__all__ = [
    "BatchNormStatistics",
    "Bypass",
    "Gradual",
    "Hardening",
    "Mitigation",
    "Permutation",
    "Step",
    "Strategy",
]

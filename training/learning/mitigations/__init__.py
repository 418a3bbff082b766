"""What is done about a chip's broken PEs: small parts with one interface, which combine."""

from training.learning.mitigations.batch_norm import BatchNormStatistics
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.gradual import Gradual
from training.learning.mitigations.hardening import Hardening
from training.learning.mitigations.mitigation import Mitigation, TrainingStep
from training.learning.mitigations.permutation import Permutation

__all__ = [
    "BatchNormStatistics",
    "Bypass",
    "Gradual",
    "Hardening",
    "Mitigation",
    "Mitigations",
    "Permutation",
    "TrainingStep",
]

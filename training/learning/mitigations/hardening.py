"""Hardening: learn to do without any PEs, before it is known which."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from simulator import FaultModel, Site, sample_faults
from simulator.errors import InputError
from training.layers.accelerator import Accelerator
from training.learning.mitigations.mitigation import Mitigation, TrainingStep

OWN_PE_SITES = (Site.WEIGHT, Site.PRODUCT, Site.PSUM)
"""Sites whose faults require the bypass of their own PE alone."""


def _model() -> FaultModel:
    return FaultModel(0.0, sites=dict.fromkeys(OWN_PE_SITES, 1.0))


@dataclass(frozen=True)
class Hardening(Mitigation):
    """Chip-agnostic fault-aware training: each mini-batch runs on another random chip, with its broken PEs bypassed.

    Zahid et al. 2020, arXiv 2011.05873 (FAT), who inject faults into accumulators; here the PEs of a random fault map
    are bypassed. The weights are pruned for no chip: any later chip loses less and needs less retraining.

    Args:
        lowest: least fault rate of the random chips.
        highest: greatest fault rate; each chip's is drawn uniformly from between.
        model: what their faults look like; its rate does not count. By default faults that cost their own PE alone.

    Raises:
        InputError: rates that are no range within 0..1.
    """

    lowest: float = 0.0
    highest: float = 0.2
    model: FaultModel = field(default_factory=_model)

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.highest <= 1:
            raise InputError(
                f"fault rates of hardening are {self.lowest}:{self.highest}: expected fractions of PEs within 0..1, "
                "the lower one first"
            )

    def chip_for(self, step: TrainingStep, accelerator: Accelerator) -> Accelerator:
        """The chip with more PEs bypassed: those of a random fault map that belongs to this mini-batch."""
        rate_seed, fault_seed = np.random.SeedSequence(step.seed, spawn_key=(2, step.iteration)).spawn(2)
        rate = float(np.random.default_rng(rate_seed).uniform(self.lowest, self.highest))
        faults = sample_faults(accelerator.config, replace(self.model, rate=rate), fault_seed)
        bypass = faults.required_bypass()
        if accelerator.bypass is not None:
            bypass |= accelerator.bypass
        return replace(accelerator, bypass=bypass)

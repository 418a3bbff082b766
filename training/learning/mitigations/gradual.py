"""Gradual injection: lose the PEs in steps, not all at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator import FaultMap, Site
from simulator.errors import InputError
from training.layers.accelerator import Accelerator
from training.learning.mitigations.mitigation import Mitigation, TrainingStep


@dataclass(frozen=True)
class Gradual(Mitigation):
    """Inject a chip's faults in steps: the first mini-batches run on a chip that has only some of them.

    TRe-Map (Hanif & Shafique, DSD 2021) observed that injecting many merged faults in the first epoch can make
    retraining diverge. The PEs come in a random order that belongs to the seed; broken accumulators are no PEs and are
    there from the beginning.

    Args:
        stages: number of steps, of equal size; 1 is all at once.
        until: fraction of the iterations after which all are there.

    Raises:
        InputError: no stages, or a fraction outside 0..1.
    """

    stages: int = 4
    until: float = 0.5

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise InputError(f"gradual injection has {self.stages} stages: expected 1 or more")
        if not 0 <= self.until <= 1:
            raise InputError(f"gradual injection ends at {self.until} of the iterations: expected 0..1")

    def stage(self, step: TrainingStep) -> int:
        """The stage that a mini-batch is in, 1..stages."""
        length = self.until * step.iterations / self.stages
        return self.stages if not length else min(self.stages, 1 + int(step.iteration / length))

    def share(self, step: TrainingStep) -> float:
        """The share of the faulty PEs that a mini-batch meets, in (0, 1]."""
        return self.stage(step) / self.stages

    def chip_for(self, step: TrainingStep, accelerator: Accelerator) -> Accelerator:
        """The chip with the first PEs only: of those that are bypassed, and of those whose faults are not hidden."""
        stage = self.stage(step)
        if stage == self.stages:
            return accelerator
        random = np.random.default_rng(np.random.SeedSequence(step.seed, spawn_key=(3,)))
        order = random.permutation(accelerator.config.pe_count).reshape(accelerator.config.rows, -1)
        faults = accelerator.faults
        bypass = accelerator.bypass if accelerator.bypass is not None else np.zeros(order.shape, np.bool_)
        # Where bypass hides the faults, PEs that are not bypassed yet must have none that act.
        acting = np.zeros_like(bypass) if faults is None or accelerator.hides_faults else faults.faulty_pes()
        affected = bypass | acting
        count = -(-stage * int(affected.sum()) // self.stages)
        last = np.sort(order[affected])[:count].max(initial=-1)
        chosen = affected & (order <= last)
        if faults is not None:
            of_pes = faults.table["site"] != Site.ACCUMULATOR
            there = (chosen & acting)[faults.table["row"], faults.table["col"]]
            faults = FaultMap(accelerator.config, faults.table[there | ~of_pes])
        return replace(accelerator, faults=faults, bypass=bypass & chosen)

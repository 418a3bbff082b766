"""Faults put into a small network, and a program that does it: `python propagation_runs.py FOLDER WORKERS`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from efat.campaigns.workers import in_line, processes
from efat.propagation.campaign import run_propagation
from efat.propagation.request import LoadedSubject, PropagationRequest, Subject
from simulator import ArrayConfig
from tests.support.resilience_runs import INPUTS, OUT, small_setup

ARRAY = ArrayConfig(5, 4, 5, 6, acc_bits=16)
"""With narrow operands, so that all products of all faults are soon known."""

SITES = ("WEIGHT", "PSUM")


def small_subject(folder: Path, **changes: Any) -> Subject:
    """The small network of `resilience_runs` on a small array, its weights and its data in files."""
    small_setup(folder)
    inputs = folder / INPUTS
    given: dict[str, Any] = {"weights": inputs / "weights.safetensors", "data": inputs, "images": 6}
    return Subject(**{"network": "tests.support.resilience_runs:small_network", **given, **changes})


class Asked(NamedTuple):
    """What a campaign is of."""

    subject: Subject
    array: ArrayConfig
    request: PropagationRequest

    def load(self) -> LoadedSubject:
        """The network and its images."""
        return self.subject.load(self.array)


def small_request(folder: Path, **changes: Any) -> Asked:
    """Some of the faults of two kinds of nets."""
    subject, array = changes.pop("subject", None), changes.pop("array", ARRAY)
    given: dict[str, Any] = {"sites": SITES, "seed": 3, **changes}
    if not {"samples", "exhaustive", "margin"} & set(given):
        given["samples"] = 150
    return Asked(small_subject(folder) if subject is None else subject, array, PropagationRequest(**given))


if __name__ == "__main__":
    executor = processes(int(sys.argv[2])) if int(sys.argv[2]) else in_line
    run_propagation(Path(sys.argv[1]) / OUT, *small_request(Path(sys.argv[1]), samples=600), executor)

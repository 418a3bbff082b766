"""Faults put into a small network, and a program that does it: `python propagation_runs.py FOLDER WORKERS`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from efat.campaigns.workers import in_line, processes
from efat.propagation.campaign import run_propagation
from efat.propagation.request import Request, Subject
from simulator import ArrayConfig, Site
from tests.support.resilience_runs import INPUTS, OUT, small_setup

ARRAY = ArrayConfig(5, 4, 5, 6, acc_bits=16)
"""With narrow operands, so that all products of all faults are soon known."""

SITES = (Site.WEIGHT, Site.PSUM)


def small_subject(folder: Path, **changes: Any) -> Subject:
    """The small network of `resilience_runs` on a small array, its weights and its data in files."""
    small_setup(folder)
    inputs = folder / INPUTS
    given: dict[str, Any] = {"weights": inputs / "weights.safetensors", "data": inputs, "images": 6, "config": ARRAY}
    return Subject(**{"network": "tests.support.resilience_runs:small_network", **given, **changes})


def small_request(folder: Path, **changes: Any) -> Request:
    """Some of the faults of two kinds of nets."""
    subject = changes.pop("subject", None)
    given: dict[str, Any] = {"sites": SITES, "seed": 3, **changes}
    if not {"samples", "exhaustive", "margin"} & set(given):
        given["samples"] = 150
    return Request(small_subject(folder) if subject is None else subject, **given)


if __name__ == "__main__":
    executor = processes(int(sys.argv[2])) if int(sys.argv[2]) else in_line
    run_propagation(Path(sys.argv[1]) / OUT, small_request(Path(sys.argv[1]), samples=600), executor)

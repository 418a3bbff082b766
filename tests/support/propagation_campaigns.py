"""Propagation campaigns with everything that a report wants, made up."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import click
import numpy as np

from efat.cli import main
from efat.propagation.request import PropagationRequest
from efat.propagation.summary import Propagation
from efat.propagation.tables import PopulationCounts
from simulator import Kind
from simulator.dtypes import BoolArray
from tests.support.propagation_tables import fields_of

REQUEST = PropagationRequest(
    sites=("WEIGHT", "PSUM"),
    kinds=("STUCK_AT_0",),
    bits={"PSUM": (0, 1, 2, 7)},
    margin=0.01,
    confidence=0.9,
    seed=12,
)


def asked(found: Propagation) -> Propagation:
    """The same with everything that a request has."""
    return replace(found, request=REQUEST)


def campaign(seed: int, least: int = 5) -> Propagation:
    """A campaign of stuck values that tried some faults, and one or more of them changed the class of an image."""
    random = np.random.default_rng(seed)
    while True:
        found = _without_flips(fields_of(random))
        changed = found.faults["top1"].astype(int) + found.faults["top5"]
        if len(found.faults) >= least and changed.any():
            return found


def _without_flips(fields: dict[str, Any]) -> Propagation:
    """What remains of the fields without the strata of upsets."""

    def kept(table: str, chosen: BoolArray, column: str) -> None:
        """Rows of a table whose column is a row of another, of which some are kept."""
        rows = fields[table]
        rows = rows[chosen[rows[column]]]
        rows[column] = (np.cumsum(chosen) - 1)[rows[column]]
        fields[table] = rows

    stays = fields["strata"]["kind"] != Kind.FLIP
    if not stays.any():
        return asked(Propagation(**fields_of(np.random.default_rng(0))))
    kept("operations", stays, "stratum")
    of_fault = fields["faults"]["kind"] != Kind.FLIP
    kept("layers", of_fault, "fault")
    fields["faults"], fields["strata"] = fields["faults"][of_fault], fields["strata"][stays]
    size = int(fields["strata"]["population"].sum())
    fields["faults"]["index"] = np.arange(len(fields["faults"]))
    fields["faults"]["same_as"] = -1
    return asked(Propagation(**{**fields, "population": PopulationCounts(size, size, 0, 0, 0)}))


def parsed(line: str) -> dict[str, Any]:
    """What a command of a report would be run with."""
    program, name, *arguments = shlex.split(line.replace("\\\n", " "))
    assert program == "efat"
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command.make_context(name, arguments).params

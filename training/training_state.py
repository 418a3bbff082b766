"""A running training on disk, to go on from: written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulator.files import replaced
from training.errors import InputError, first_line

VERSION = 1


@dataclass(frozen=True)
class TrainingState:
    """Everything that decides how a training goes on.

    Args:
        identity: digests of what the training is made from, by name.
        network: state dict of the network.
        optimizer: state dict of the optimiser.
        schedule: state dict of the schedule; empty without.
        evaluations: iteration, correct and images of each evaluation so far.
        losses: of the mini-batches so far.
        good: state dict of the network at the last evaluation.
    """

    identity: Mapping[str, str]
    network: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    evaluations: Sequence[tuple[int, int, int]]
    losses: Sequence[float]
    good: Mapping[str, Tensor]


def write_state(path: Path, state: TrainingState) -> None:
    """Write a state in place of the one that is there, in one piece."""
    with replaced(path) as beside:
        torch.save({"version": VERSION, **asdict(state)}, beside)


def read_state(path: Path, identity: Mapping[str, str]) -> TrainingState:
    """Read a state. Nothing in the file is run: `torch.load(weights_only=True)`.

    Args:
        path: the file.
        identity: what the training to go on with is made from.

    Raises:
        InputError: it is no state, or one of another training; the message says what differs.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        version = found.pop("version")
        state = TrainingState(**{field.name: found[field.name] for field in fields(TrainingState)})
    except Exception as error:
        # torch.load raises nearly anything on a file that is none of its own, and nothing but the file can be wrong.
        raise InputError(f"{path} is no checkpoint ({first_line(error)}): delete it to start over") from None
    if version != VERSION:
        raise InputError(f"{path} is a checkpoint of version {version}, and this program reads {VERSION}: delete it")
    different = [name for name in {**state.identity, **identity} if state.identity.get(name) != identity.get(name)]
    if different:
        raise InputError(
            f"{path} is a checkpoint of a retraining with another {', '.join(different)}: go on with what it was "
            "started with, or delete it to start over"
        )
    return state

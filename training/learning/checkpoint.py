"""A running training on disk, to go on from: written whole or not at all, and read whole or not at all.

The file is one line with the format's version and the SHA-256 (hex) of the rest, and then what `torch.save` writes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulator.errors import InputError, different_names
from simulator.files import replaced

VERSION = 1

_BEGINNING = b"efat-checkpoint"


class DamagedStateError(InputError):
    """A file was a state, and is not whole any more."""


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
    content = state_bytes(state)
    with replaced(path) as beside:
        beside.write_bytes(content)


def state_bytes(state: TrainingState) -> bytes:
    """What `write_state` writes."""
    buffer = io.BytesIO()
    torch.save({field.name: getattr(state, field.name) for field in fields(state)}, buffer)
    content = buffer.getvalue()
    return b"%s %d %s\n" % (_BEGINNING, VERSION, hashlib.sha256(content).hexdigest().encode()) + content


def read_state(path: Path, identity: Mapping[str, str]) -> TrainingState:
    """Read a state from a file: see `state_from`."""
    return state_from(path.read_bytes(), path, identity)


def state_from(written: bytes, path: Path, identity: Mapping[str, str]) -> TrainingState:
    """Read a state. Nothing in it is run: `torch.load(weights_only=True)`.

    Args:
        written: what `state_bytes` gave.
        path: where it is from, for messages.
        identity: what the training to go on with is made from.

    Raises:
        DamagedStateError: it is damaged.
        InputError: it is no state, or is of another training; the message says what differs.
    """
    content = _checked_content(written, path)
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        state = TrainingState(**{field.name: found[field.name] for field in fields(TrainingState)})
        known = dict(state.identity)
    except Exception:
        # torch.load raises nearly anything on what is none of its own, and nothing but the file can be wrong.
        raise InputError(f"{path} is no checkpoint: delete it to start over") from None
    different = different_names(known, identity)
    if different:
        raise InputError(
            f"{path} is a checkpoint of a retraining with another {', '.join(different)}: go on with what it was "
            "started with, or delete it to start over"
        )
    return state


def _checked_content(written: bytes, path: Path) -> bytes:
    """What follows the first line."""
    beginning, _, content = written.partition(b"\n")
    words = beginning.split(b" ")
    if len(words) != 3 or words[0] != _BEGINNING:
        raise InputError(f"{path} is no checkpoint: delete it to start over")
    if words[1] != b"%d" % VERSION:
        version = words[1][:20].decode(errors="replace")
        raise InputError(f"{path} is a checkpoint of version {version!r}, and this program reads {VERSION}: delete it")
    if words[2] != hashlib.sha256(content).hexdigest().encode():
        raise DamagedStateError(f"{path} is a checkpoint that is damaged: delete it to start over")
    return content

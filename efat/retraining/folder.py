"""The folder that a retraining writes into: what of it is there already, and of which retraining it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efat.campaigns.campaign import Notes, warned
from efat.retraining.metrics import digest_of_identity, read_identity, read_metrics
from simulator.errors import InputError
from simulator.files import digest_of_file
from training.layers.deployment import read_deployed
from training.learning.checkpoint import DamagedStateError, read_state


@dataclass(frozen=True)
class ResultFolder:
    """A folder for the results of one retraining.

    Weights are written first, everything measured last, and the checkpoint goes when all of it is there. So whatever
    the moment a run is killed at, what is in the folder tells how far it got.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def weights(self) -> Path:
        """The retrained weights, and how they sit on their chip."""
        return self.path / "weights.safetensors"

    @property
    def curve(self) -> Path:
        """A picture of the training."""
        return self.path / "curve.png"

    @property
    def metrics(self) -> Path:
        """Everything that was measured."""
        return self.path / "metrics.json"

    @property
    def checkpoint(self) -> Path:
        """The state of a retraining that is not done."""
        return self.path / "checkpoint.pt"

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, in the order in which they are written; the checkpoint goes last."""
        return (self.weights, self.curve, self.metrics, self.checkpoint)

    def check(self, inputs: Sequence[Path] = ()) -> None:
        """Refuse a folder that cannot be written into, before any work is done.

        Args:
            inputs: files that are read; none of them is ever replaced.

        Raises:
            InputError: it cannot.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder: expected one to write results into")
        if not self.path.exists() and not self.path.parent.is_dir():
            raise InputError(f"{self.path.parent}: no such folder to make {self.path.name} in; make it first")
        writable = self.path if self.path.exists() else self.path.parent
        if not os.access(writable, os.W_OK | os.X_OK):
            raise InputError(f"{writable}: no permission to write into it")
        for file in self.files:
            if not file.exists():
                continue
            if not file.is_file():
                raise InputError(f"{file} is not a regular file: choose another folder")
            if any(given.exists() and file.samefile(given) for given in inputs):
                raise InputError(f"{file} is a file to read: choose another folder to write into")

    def finished(self, identity: Mapping[str, str], notes: Notes = warned) -> dict[str, Any] | None:
        """What this very retraining measured, if all of its results are there; see `read_metrics`.

        Args:
            identity: what the retraining is made from.
            notes: told of results that are damaged.
        """
        if not self.metrics.exists() or any(self._strangers(identity)):
            return None
        try:
            found = read_metrics(self.metrics)
        except InputError:
            notes(f"{self.metrics} is damaged: done again")
            return None
        if not self.weights.exists() or digest_of_file(self.weights) != found["weights_sha256"]:
            notes(f"{self.metrics} does not fit {self.weights}: done again")
            return None
        return found

    def begin(self, identity: Mapping[str, str], *, force: bool = False, notes: Notes = warned) -> int:
        """Make the folder ready to run in.

        Args:
            identity: what the retraining is made from.
            force: delete what is of other retrainings, and results of this one.
            notes: told of a checkpoint that is damaged.

        Returns:
            How many iterations of this retraining are done, in the checkpoint.

        Raises:
            InputError: there is something of another retraining, and `force` is not given.
        """
        strangers = dict(self._strangers(identity))
        if strangers and not force:
            raise InputError(f"{next(iter(strangers.values()))} (--force starts over)")
        self.path.mkdir(exist_ok=True)
        if force:
            for file in self.files:
                if file != self.checkpoint or file in strangers:
                    file.unlink(missing_ok=True)
        if not self.checkpoint.exists():
            return 0
        try:
            return len(read_state(self.checkpoint, identity).losses)
        except DamagedStateError:
            notes(f"{self.checkpoint} is damaged: done again from the start")
            self.checkpoint.unlink()
            return 0

    def end(self) -> None:
        """Delete the checkpoint, and what a killed run left half written: all results are there."""
        self.checkpoint.unlink(missing_ok=True)
        for file in self.files:
            for partial in self.path.glob(f".{file.name}.*"):
                partial.unlink(missing_ok=True)

    def _strangers(self, identity: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
        """Files that are there and are not of this retraining, and why."""
        ours = measured = False
        if self.metrics.exists():
            try:
                found = read_identity(self.metrics)
            except InputError as error:
                yield self.metrics, f"{error}: choose another folder"
            else:
                different = [name for name in {**found, **identity} if found.get(name) != identity.get(name)]
                if different:
                    yield (
                        self.metrics,
                        f"{self.metrics} is of a retraining with another {', '.join(different)}: choose another folder",
                    )
                ours = measured = not different
        if self.checkpoint.exists():
            try:
                read_state(self.checkpoint, identity)
                ours = True
            except DamagedStateError:
                # Whatever it was of, nothing of it is left.
                pass
            except InputError as error:
                yield self.checkpoint, str(error)
        if self.weights.exists():
            if _run_of(self.weights) == digest_of_identity(identity):
                ours = True
            elif not measured:
                yield self.weights, f"{self.weights} is not of this retraining: choose another folder"
        # A picture does not say what it is of.
        if self.curve.exists() and not ours:
            yield self.curve, f"{self.curve} is there already: choose another folder"


def _run_of(weights: Path) -> str | None:
    """The retraining that a file of weights says it is of."""
    try:
        deployment = read_deployed(weights)[1]
    except InputError:
        return None
    return None if deployment is None else deployment.about.get("run")

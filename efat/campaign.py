"""Long work in units: a folder with the exact inputs, and a file for each unit that is done.

`campaign.json` says what the campaign is and what it is made from; `units/NAME.json` is what a unit gave, and
`units/NAME.FILE` are the files that belong to it, written before it. All are written beside and renamed into place, so
that whoever is killed when, only units in flight are lost, and starting again does just what is left.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator.files import replaced
from training.errors import InputError, first_line

FORMAT = "efat-campaign"
VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, eq=False)
class Unit:
    """A piece of work.

    Args:
        name: of its files: up to 100 letters, digits, dots, underscores and hyphens.
        arguments: what the work is done with; they travel to other processes.
    """

    name: str
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"unit {self.name!r}: expected up to 100 letters, digits, dots, underscores and hyphens")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a unit gave.

    Args:
        values: what JSON takes; the same for the same unit, whatever it runs on.
        files: contents of the files that belong to it, by name.
    """

    values: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)


Work = Callable[[Mapping[str, Any]], Outcome]
"""Does a unit: a function of a module, since other processes import it."""

Executor = Callable[[Work, Sequence[Unit]], Iterable[tuple[Unit, Outcome]]]
"""Does units, in any order, and gives each as soon as it is done; see `efat.workers`."""

Progress = Callable[[int, int], None]
"""Called with the number of units that are done and that there are."""


class Campaign:
    """A folder of units.

    Args:
        folder: made if it is not there; its parent is.
        kind: what the units are, in a word.
        inputs: everything that decides their results, as JSON takes it, by a name that says what it is.

    Raises:
        InputError: the folder is another campaign's, or has something else in it.
    """

    def __init__(self, folder: Path, kind: str, inputs: Mapping[str, Any]) -> None:
        self.folder = folder
        self.kind = kind
        self.inputs = json.loads(_canonical(inputs))
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is not a folder: expected one for the campaign")
        if (folder / "campaign.json").exists():
            self._check_same()
        elif folder.exists() and any(not path.name.startswith(".campaign.json.") for path in folder.iterdir()):
            raise InputError(f"{folder} has files in it and is no campaign: choose another folder")
        else:
            if not folder.parent.is_dir():
                raise InputError(f"{folder.parent}: no such folder to make {folder.name} in; make it first")
            folder.mkdir(exist_ok=True)
            content = {"format": FORMAT, "version": VERSION, "kind": kind, "inputs": self.inputs}
            with replaced(folder / "campaign.json") as beside:
                beside.write_text(json.dumps({**content, "digest": self.digest}, indent=2, sort_keys=True) + "\n")
        (folder / "units").mkdir(exist_ok=True)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of kind and inputs."""
        return digest_of({"kind": self.kind, "inputs": self.inputs})

    def path(self, unit: str, file: str) -> Path:
        """A file that belongs to a unit."""
        return self.folder / "units" / f"{unit}.{file}"

    def done(self, unit: str) -> dict[str, Any] | None:
        """What a unit gave; None if it is not done.

        Raises:
            InputError: its file is damaged.
        """
        path = self.path(unit, "json")
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({first_line(error)}): delete it to do this unit again") from None
        if not isinstance(found, dict):
            raise InputError(f"{path} is damaged (no object): delete it to do this unit again")
        return found

    def run(self, units: Sequence[Unit], work: Work, executor: Executor, progress: Progress | None = None) -> None:
        """Do the units that are not done.

        Args:
            units: all of them, with different names.
            work: does one.
            executor: does them all, here or elsewhere.
            progress: called at the beginning and after each unit.
        """
        left = [unit for unit in units if self.done(unit.name) is None]
        finished = len(units) - len(left)
        if progress is not None:
            progress(finished, len(units))
        for unit, outcome in executor(work, left):
            for name, content in outcome.files.items():
                with replaced(self.path(unit.name, name)) as beside:
                    beside.write_bytes(content)
            with replaced(self.path(unit.name, "json")) as beside:
                beside.write_text(_canonical(outcome.values) + "\n")
            finished += 1
            if progress is not None:
                progress(finished, len(units))

    def _check_same(self) -> None:
        path = self.folder / "campaign.json"
        try:
            found = json.loads(path.read_text())
            kind, inputs, version = found["kind"], dict(found["inputs"]), found["version"]
            known = found["format"] == FORMAT
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no campaign ({first_line(error)}): choose another folder") from None
        if not known or version != VERSION:
            raise InputError(f"{path} is of another format or version: choose another folder")
        if kind != self.kind:
            raise InputError(f"{self.folder} is a campaign of kind {kind!r}, not {self.kind!r}: choose another folder")
        names = {**inputs, **self.inputs}
        different = [name for name in names if inputs.get(name) != self.inputs.get(name)]
        if different:
            raise InputError(
                f"{self.folder} was begun with another {', '.join(different)}: choose another folder, or give what it "
                "was begun with"
            )


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what JSON takes."""
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _canonical(content: Mapping[str, Any]) -> str:
    """The same text for the same content."""
    return json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))

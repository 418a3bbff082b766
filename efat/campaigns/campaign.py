"""Long work in units: a folder with the exact inputs, and a file for each unit that is done.

`campaign.json` says what the campaign is and what it is made from; `units/NAME.json` is what a unit gave, and
`units/NAME.FILE` are the files that belong to it, written before it. All are written beside and renamed into place, so
that whoever is killed when, only units in flight are lost, and starting again does just what is left.

Nothing that is found there is trusted: a unit says which campaign's it is and what it was made from, and has the
SHA-256 of itself and of its files. One that does not fit is done again, and that is said.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from msgspec import Meta

from efat.command_lines import Command, running
from efat.records import MOST_BYTES, Document, Record, Sha256, canonical_json, check, content_of, digest_of, typed
from simulator.errors import InputError, different_names
from simulator.files import content_of_file, digest_of_file, replaced

_Record = TypeVar("_Record", bound=Record)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, eq=False)
class Unit:
    """A piece of work: the name of its files, and what the work is done with, which travels to other processes.

    `inputs` is what decides the result beside the campaign's inputs and the name, as JSON takes it, by a name that says
    what it is: digests of what other units gave, say.
    """

    name: str
    arguments: Any
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"unit {self.name!r}: expected up to 100 letters, digits, dots, underscores and hyphens")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a unit gave: what JSON takes, the same whatever it runs on, and contents of files by name."""

    values: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitFile:
    """A file of a unit that is done, and the SHA-256 (hex) that its content has to have."""

    path: Path
    sha256: str

    def located(self) -> UnitFile:
        """The same with a path that holds in every folder."""
        return UnitFile(self.path.absolute(), self.sha256)

    def read(self) -> bytes:
        """The content, checked.

        Raises:
            InputError: it is another one, or gone.
        """
        content = self.path.read_bytes() if self.path.is_file() else None
        if content is None or hashlib.sha256(content).hexdigest() != self.sha256:
            raise InputError(f"{self.path} changed while this ran: run the same command again")
        return content


@dataclass(frozen=True, eq=False)
class Done:
    """A unit that is done: its inputs, what it gave, and SHA-256 (hex) of its files by name."""

    inputs: Mapping[str, Any]
    values: Mapping[str, Any]
    files: Mapping[str, str]


Work = Callable[[Any], Outcome]
"""Does a unit, given its arguments: a function of a module, since other processes import it."""

Executor = Callable[[Work, Sequence[Unit]], Iterable[tuple[Unit, Outcome]]]
"""Does units, in any order, and gives each as soon as it is done; see `efat.campaigns.workers`."""

Progress = Callable[[int, int], None]
"""Called with the number of units that are done and that there are."""

Notes = Callable[[str], None]
"""Called with what people should know of, in one line."""


def warned(note: str) -> None:
    """Note something by a Python warning."""
    warnings.warn(note, stacklevel=2)


class Elapsed(Document, frozen=True):
    """How long the units of a campaign took, over all its runs."""

    FORMAT = "efat-elapsed"
    VERSION = 1
    SOURCE = "efat retrain"

    seconds: Annotated[float, Meta(ge=0)]


class Begun(Document, frozen=True):
    """`campaign.json`: what the units are in a word, everything that decides their results, and the digest of both.

    `command` is the command line that worked on it last, None if Python did. It decides nothing. The last one alone
    gives what is in the folder, also where later ones added to it.
    """

    FORMAT = "efat-campaign"
    VERSION = 3
    OLDER: ClassVar[Mapping[int, Mapping[str, Any]]] = {2: {"command": None}}
    SOURCE = "a campaign of efat"

    kind: str
    inputs: Mapping[str, Any]
    digest: Sha256
    command: Command | None = None

    def check(self) -> None:
        """See `Document.check`."""
        digest = digest_of({"kind": self.kind, "inputs": self.inputs})
        check(self.digest == digest, "digest", self.digest, f"{digest}, so it was edited or is damaged")


class OtherInputsError(InputError):
    """A folder was begun with other inputs."""


class Campaign:
    """A folder of units, made if it is not there.

    `kind` says in a word what the units are, `inputs` everything that decides their results, as JSON takes it. `notes`
    is told of units that are there and do not fit. `among_others` allows files of others in the folder. If it is
    `timed`, `seconds` is what its units took, wall clock, in all runs, and kept in `elapsed.json`.

    Raises:
        OtherInputsError: the folder was begun with other inputs.
        InputError: it is another campaign's, or has something else in it.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        inputs: Mapping[str, Any],
        notes: Notes = warned,
        *,
        among_others: bool = False,
        timed: bool = False,
    ) -> None:
        self.folder = folder
        self.kind = kind
        self.inputs = json.loads(canonical_json(inputs))
        self.digest = digest_of({"kind": self.kind, "inputs": self.inputs})
        """SHA-256 (hex) of kind and inputs."""
        self._notes = notes
        self._known: dict[str, Done | None] = {}
        self.seconds = 0.0
        check_folder(folder)
        if (folder / "campaign.json").exists():
            self._check_same()
        elif not folder.exists():
            folder.mkdir()
        elif not among_others and any(not path.name.startswith(".campaign.json.") for path in folder.iterdir()):
            raise InputError(f"{folder} has files in it and is no campaign: choose another folder")
        begun = Begun(kind, self.inputs, self.digest, running.get())
        put(folder / "campaign.json", content_of(begun, str(folder / "campaign.json")))
        (folder / "units").mkdir(exist_ok=True)
        self._elapsed = folder / "elapsed.json" if timed else None
        if timed:
            # A file that is damaged is for people alone, and no reason to stop.
            with suppress(InputError, FileNotFoundError):
                self.seconds = Elapsed.load(folder / "elapsed.json").seconds
        self._begun = time.perf_counter() - self.seconds

    def path(self, unit: str, file: str) -> Path:
        """A file that belongs to a unit."""
        return self.folder / "units" / f"{unit}.{file}"

    def there(self, unit: str) -> Done | None:
        """What is there of a unit, whatever its inputs were; None if it is not done, or does not fit, which is noted.

        The files are read once: what has been there, or was done since, is known from then on.
        """
        if unit not in self._known:
            self._known[unit] = self._read(unit)
        return self._known[unit]

    def values(self, unit: str) -> Mapping[str, Any]:
        """What a unit that is done gave."""
        return self._done(unit).values

    def result(self, kind: type[_Record], unit: str) -> _Record:
        """What a unit that is done gave, as the record that it is.

        Raises:
            InputError: it is another one.
        """
        return typed(kind, dict(self.values(unit)), str(self.path(unit, "json")))

    def file(self, unit: str, file: str) -> UnitFile:
        """A file of a unit that is done."""
        return UnitFile(self.path(unit, file), self._done(unit).files[file])

    def export(self, unit: str, file: str, path: str) -> str:
        """Copy a file of a unit to a path in the folder where people look for it; gives its SHA-256 (hex).

        What is another one there is replaced, which is noted.
        """
        found, there = self.file(unit, file), self.folder / path
        content = found.read()
        if there.exists() and digest_of_file(there) != found.sha256:
            self._notes(f"{there} is damaged, or another one: written again")
        put(there, content)
        return found.sha256

    def run(
        self,
        units: Sequence[Unit],
        work: Work,
        executor: Executor,
        progress: Progress | None = None,
        again: Collection[str] = (),
    ) -> None:
        """Do the units that are not done, and those named in `again` whatever is there, which is not noted.

        `progress` is called at the beginning and after each unit.
        """
        left = [unit for unit in units if unit.name in again or not self._fits(unit)]
        finished = len(units) - len(left)
        if progress is not None:
            progress(finished, len(units))
        for unit, outcome in executor(work, left):
            self._keep(unit, outcome)
            if self._elapsed is not None:
                self.seconds = time.perf_counter() - self._begun
                Elapsed(self.seconds).save(self._elapsed)
            finished += 1
            if progress is not None:
                progress(finished, len(units))

    def _done(self, unit: str) -> Done:
        found = self._known.get(unit)
        if found is None:
            raise ValueError(f"unit {unit} is not done")
        return found

    def _fits(self, unit: Unit) -> bool:
        """Whether a unit is done; notes it if what is there was made from something else."""
        found = self.there(unit.name)
        if found is None:
            return False
        different = different_names(found.inputs, unit.inputs)
        if different:
            self._note_again(unit.name, f"was made from other {', '.join(different)}")
        return not different

    def _keep(self, unit: Unit, outcome: Outcome) -> None:
        """Write the files of a unit, and then what it gave."""
        for name, content in outcome.files.items():
            with replaced(self.path(unit.name, name)) as beside:
                beside.write_bytes(content)
        files = {name: hashlib.sha256(content).hexdigest() for name, content in outcome.files.items()}
        found: dict[str, Any] = {"inputs": unit.inputs, "values": outcome.values, "files": files}
        found |= {"campaign": self.digest, "unit": unit.name}
        text = canonical_json({**found, "sha256": digest_of(found)}) + "\n"
        with replaced(self.path(unit.name, "json")) as beside:
            beside.write_text(text)
        kept = json.loads(text)
        self._known[unit.name] = Done(kept["inputs"], kept["values"], kept["files"])

    def _read(self, unit: str) -> Done | None:
        path = self.path(unit, "json")
        if not path.is_file():
            return None
        try:
            text = content_of_file(path, MOST_BYTES, "what a unit gave")
            found = json.loads(text)
            own = found.pop("sha256")
            whole = (canonical_json({**found, "sha256": own}) + "\n").encode() == text and digest_of(found) == own
            done = Done(dict(found["inputs"]), dict(found["values"]), dict(found["files"]))
            ours = (found["campaign"], found["unit"]) == (self.digest, unit)
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            whole = False
        if not whole:
            self._note_again(unit, "is damaged")
            return None
        if not ours:
            self._note_again(unit, "is of another unit or campaign")
            return None
        files = {self.path(unit, name): sha256 for name, sha256 in done.files.items()}
        if not all(path.is_file() and digest_of_file(path) == sha256 for path, sha256 in files.items()):
            self._note_again(unit, "does not fit its files")
            return None
        return done

    def _note_again(self, unit: str, why: str) -> None:
        self._notes(f"{self.path(unit, 'json')} {why}: done again")

    def _check_same(self) -> None:
        path = self.folder / "campaign.json"
        try:
            begun = Begun.load(path)
        except InputError as error:
            raise InputError(f"{error}: choose another folder, or delete this one to make it again") from None
        if begun.kind != self.kind:
            raise InputError(
                f"{self.folder} is a campaign of kind {begun.kind!r}, not {self.kind!r}: choose another folder"
            )
        different = different_names(begun.inputs, self.inputs)
        if different:
            raise OtherInputsError(
                f"{self.folder} was begun with another {', '.join(different)}: choose another folder, or give what it "
                "was begun with"
            )


def check_folder(folder: Path) -> None:
    """Refuse a folder that no campaign can be in, before any work is done.

    Raises:
        InputError: it is something else, there is none to make it in, or it must not be written into.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected one to write results into")
    if not folder.exists() and not folder.parent.is_dir():
        raise InputError(f"{folder.parent}: no such folder to make {folder.name} in; make it first")
    writable = folder if folder.exists() else folder.parent
    if not os.access(writable, os.W_OK | os.X_OK):
        raise InputError(f"{writable}: no permission to write into it")


def put(path: Path, content: bytes) -> None:
    """Write a file in one piece, unless it is there already."""
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    with replaced(path) as beside:
        beside.write_bytes(content)

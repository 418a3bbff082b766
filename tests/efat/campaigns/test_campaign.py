"""Campaigns: what is done stays done, whoever is killed when, and results do not depend on where units run."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from efat.campaigns import workers
from efat.campaigns.campaign import Campaign, Outcome, Unit
from efat.campaigns.workers import WorkerDiedError, in_line, processes
from efat.command_lines import kept_in, running, shell_text
from efat.records import digest_of
from simulator.errors import InputError
from tests.support import campaigns
from tests.support.campaigns import WAYS, damage
from tests.support.programs import children, contents, started

PROGRAM = Path(campaigns.__file__)
UNITS = [Unit(unit.name, {**unit.arguments, "seconds": 0}) for unit in campaigns.UNITS[:3]]


@pytest.mark.integration
def test_units_are_done_once_and_the_same_in_line_and_in_processes(folder: Path) -> None:
    units = campaigns.UNITS[:6]
    seen: list[tuple[int, int]] = []
    here = Campaign(folder / "here", "digests", {"seed": 1})
    here.run(units[:2], campaigns.digest, in_line)
    here.run(units, campaigns.digest, in_line, lambda done, of: seen.append((done, of)))
    assert seen == [(done, 6) for done in range(2, 7)]
    here.run(units, campaigns.fail, in_line)  # nothing is left to fail
    there = Campaign(folder / "there", "digests", {"seed": 1})
    with pytest.raises(ValueError, match="number 0 is refused"):
        there.run(units, campaigns.fail, processes(1))
    there.run(units, campaigns.digest, processes(2))
    assert contents(here.folder) == contents(there.folder)
    first = here.values("unit-00")
    assert first["threads"] == 1
    assert here.file("unit-00", "bin").read() == first["digest"].encode() * 1000


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find worker processes")
def test_killed_at_random_moments_it_ends_as_if_undisturbed(folder: Path, seed: int) -> None:
    undisturbed = Campaign(folder / "undisturbed", "digests", {"units": len(campaigns.UNITS)})
    undisturbed.run(campaigns.UNITS, campaigns.digest, in_line)
    chance = random.Random(seed)
    disturbed = folder / "disturbed"

    def finished() -> int:
        return len(list(disturbed.glob("units/*.json")))

    # What a killed driver has left over is done by one that loses a worker.
    for kill in ("driver", "worker"):
        driver = started(PROGRAM, disturbed, 2)
        wanted = finished() + chance.randrange(8)
        # While workers start, or after any result.
        while (len(children(driver.pid)) < 2 or finished() < wanted) and driver.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        assert finished() < len(campaigns.UNITS)
        os.kill(driver.pid if kill == "driver" else children(driver.pid)[-1], signal.SIGKILL)
        assert driver.wait(120) == (-signal.SIGKILL if kill == "driver" else 0)
    assert contents(disturbed) == contents(undisturbed.folder)


@pytest.mark.integration
def test_work_that_kills_every_worker_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MOST_DEATHS", 2)
    campaign = Campaign(folder / "campaign", "digests", {})
    with pytest.raises(WorkerDiedError, match="2 workers died while unit-00 was running: is there enough memory for 1"):
        campaign.run(campaigns.UNITS[:2], campaigns.die, processes(1))
    assert campaign.there("unit-00") is None
    with pytest.raises(ValueError, match="unit unit-00 is not done"):
        campaign.values("unit-00")


@pytest.mark.integration
def test_a_worker_that_is_killed_while_it_sends_its_result_holds_up_nobody(folder: Path) -> None:
    units = [Unit(unit.name, {**unit.arguments, "killed": str(folder / "killed")}) for unit in UNITS]
    for name, executor in (("there", processes(2)), ("here", in_line)):
        Campaign(folder / name, "digests", {}).run(units, campaigns.die_sending, executor)
    assert (folder / "killed").exists()
    assert contents(folder / "there") == contents(folder / "here")


class TwoPartsError(Exception):
    """Cannot be made from its message alone, as unpickling does."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one}, {other}")


def test_errors_of_a_worker_are_told_even_if_they_do_not_travel() -> None:
    for error, kind in ((ValueError("one, other"), ValueError), (TwoPartsError("one", "other"), RuntimeError)):
        _, found, trace = pickle.loads(workers._failure(error))
        assert (type(found), str(found)) == (kind, "one, other")
        assert type(error).__name__ in trace


def test_other_campaigns_and_folders_are_refused(folder: Path) -> None:
    Campaign(folder / "one", "digests", {"seed": 1, "rates": [0.1], "note": None})
    Campaign(folder / "one", "digests", {"rates": [0.1], "seed": 1, "note": None})
    with pytest.raises(InputError, match="one was begun with another rates, seed: choose another folder"):
        Campaign(folder / "one", "digests", {"seed": 2, "rates": [0.2], "note": None})
    with pytest.raises(InputError, match="one is a campaign of kind 'digests', not 'sums'"):
        Campaign(folder / "one", "sums", {"seed": 1, "rates": [0.1], "note": None})
    with pytest.raises(InputError, match="no such folder to make two in"):
        Campaign(folder / "none" / "two", "digests", {})
    Path("file").write_text("")
    with pytest.raises(InputError, match="file is not a folder"):
        Campaign(folder / "file", "digests", {})
    Path("full").mkdir()
    Path("full/file").write_text("")
    with pytest.raises(InputError, match="full has files in it and is no campaign"):
        Campaign(folder / "full", "digests", {})
    for content in ("{", "[]", "{}", '{"format": "x", "version": 1, "kind": "digests", "inputs": {}}'):
        Path("one/campaign.json").write_text(content)
        with pytest.raises(InputError, match=r"campaign.json is no (JSON|efat-campaign).*: choose another folder"):
            Campaign(folder / "one", "digests", {})


def test_units_that_were_edited_are_done_again(folder: Path) -> None:
    unit = Unit("unit-00", {})
    genuine = Outcome({"number": 1}, {"a": b"a", "b": b"b"})
    path = folder / "one" / "units" / "unit-00.json"

    def again(damage: Callable[[], object]) -> list[str]:
        damage()
        notes: list[str] = []
        campaign = Campaign(folder / "one", "digests", {}, notes.append)
        campaign.run([unit], campaigns.digest, lambda _work, units: [(each, genuine) for each in units])
        assert campaign.values("unit-00") == {"number": 1}
        return notes

    assert again(lambda: None) == []
    for old, new in ((b'"number":1', b'"number":2'), (b'"unit":"unit-00"', b'"unit":"unit-01"')):
        found = again(lambda old=old, new=new: path.write_bytes(path.read_bytes().replace(old, new)))  # type: ignore[misc]
        assert found == [f"{path} is damaged: done again"]
    for file in ("a", "b"):
        found = again(lambda file=file: path.with_suffix(f".{file}").write_bytes(b"c"))  # type: ignore[misc]
        assert found == [f"{path} does not fit its files: done again"]


def test_campaigns_that_were_edited_or_are_older_are_refused(folder: Path) -> None:
    inputs = {"seed": 1, "rates": [0.1], "flag": True}
    path = folder / "one" / "campaign.json"
    Campaign(folder / "one", "digests", inputs)
    genuine = path.read_text()
    for old, new in (('"seed": 1', '"seed": 2'), ('"seed": 1', '"seed": NaN'), ("true", "1"), ("0.1", "0.10000001")):
        path.write_text(genuine.replace(old, new))
        with pytest.raises(
            InputError, match=r"campaign.json(: digest is .* so it was edited or is damaged| is no JSON)"
        ) as caught:
            Campaign(folder / "one", "digests", inputs)
        assert "\n" not in str(caught.value)
    path.write_text(genuine.replace('"version": 3', '"version": 1'))
    with pytest.raises(InputError, match=r"is of version 1, and this program reads 3: .*: choose another folder, or"):
        Campaign(folder / "one", "digests", inputs)
    path.write_text(genuine)
    with pytest.raises(InputError, match="was begun with another flag: choose another folder"):
        Campaign(folder / "one", "digests", {**inputs, "flag": 1})


def test_the_command_line_is_kept_and_decides_nothing(folder: Path) -> None:
    command = ("efat", "resilience", "--network", "my net", "--rates=-1", "-o", "one/")
    path = folder / "one" / "campaign.json"
    token = running.set(command)
    begun = Campaign(folder / "one", "digests", {"seed": 1})
    assert kept_in(folder / "one") == (command,)
    running.reset(token)
    # Those of older versions have none, and Python has none to give.
    for version, older in ((3, command), (2, None)):
        content = {**json.loads(path.read_text()), "version": version, "command": older}
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
        assert kept_in(folder / "one") == (() if older is None else (older,))
        assert Campaign(folder / "one", "digests", {"seed": 1}).digest == begun.digest
        assert kept_in(folder / "one") == ()
        assert json.loads(path.read_text())["version"] == 3
    for damaged in ("{", "[]", '{"command": "efat"}', '{"command": [1]}', '{"command": ["\\u0007"]}'):
        path.write_text(damaged)
        assert kept_in(folder / "one") == ()
    assert kept_in(folder / "none") == ()


def test_a_command_is_shown_as_a_shell_takes_it() -> None:
    words = ["efat", "plan", "--network", "my net", "--align", "--max-drop=1%", "-o", "x" * 60, "--", "-a", "b"]
    shown = shell_text(words)
    assert shlex.split(shown.replace("\\\n", " ")) == words
    assert shown.splitlines() == ["efat plan --network 'my net' --align --max-drop=1% \\", f"    -o {'x' * 60} -- -a b"]


def finished(folder: Path, seed: int, notes: list[str]) -> Campaign:
    """A campaign with its units done, those of the folder or anew."""
    campaign = Campaign(folder, "digests", {"seed": seed}, notes.append)
    campaign.run([replace(unit, inputs={"seed": seed}) for unit in UNITS], campaigns.digest, in_line)
    return campaign


@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_fit_is_done_again_and_said(folder: Path, seed: int, way: str) -> None:
    notes: list[str] = []
    finished(folder / "one", 1, notes)
    before = contents(folder / "one")
    chance = random.Random(seed)
    for _ in range(10):
        done = damage(folder / "one" / "units", chance, way)
        finished(folder / "one", 1, notes)
        assert contents(folder / "one") == before, done
        assert notes, done
        assert all(re.fullmatch(r"\S+one/units/unit-\d\d.json .* done again", note) for note in notes), notes
        notes.clear()
    finished(folder / "one", 1, notes)
    assert notes == []


def test_why_a_unit_is_done_again_is_said(folder: Path) -> None:
    notes: list[str] = []
    finished(folder / "one", 1, notes)
    finished(folder / "two", 2, notes)
    before = contents(folder / "one")
    units, others = folder / "one" / "units", folder / "two" / "units"
    for change, unit, why in (
        (lambda: (units / "unit-00.bin").unlink(), 0, "does not fit its files"),
        (lambda: (units / "unit-01.bin").write_bytes(b""), 1, "does not fit its files"),
        (lambda: (units / "unit-01.json").write_bytes(b"[1]"), 1, "is damaged"),
        (lambda: (units / "unit-01.json").write_bytes(b"{}"), 1, "is damaged"),
        (lambda: (units / "unit-01.json").write_bytes(b"[" * 100_000), 1, "is damaged"),
        (lambda: (units / "unit-02.json").write_bytes(before["units/unit-02.json"] + b" "), 2, "is damaged"),
        (lambda: [shutil.copy(path, units) for path in others.glob("unit-02.*")], 2, "is of another unit or campaign"),
        (lambda: shutil.copy(units / "unit-00.json", units / "unit-01.json"), 1, "is of another unit or campaign"),
    ):
        change()
        finished(folder / "one", 1, notes)
        assert notes == [f"{units}/unit-{unit:02d}.json {why}: done again"]
        assert contents(folder / "one") == before
        notes.clear()
    # What was made from something that is another by now is done again, too.
    campaign = Campaign(folder / "one", "digests", {"seed": 1}, notes.append)
    changed = [replace(unit, inputs={"seed": 1 + (unit is UNITS[2])}) for unit in UNITS]
    campaign.run(changed, campaigns.digest, in_line)
    assert notes == [f"{units}/unit-02.json was made from other seed: done again"]
    # Whoever takes no notes is warned.
    (units / "unit-00.bin").unlink()
    with pytest.warns(UserWarning, match=r"unit-00.json does not fit its files: done again"):
        Campaign(folder / "one", "digests", {"seed": 1}).run(changed, campaigns.digest, in_line)


def test_files_are_checked_where_they_are_used(folder: Path) -> None:
    campaign = finished(folder / "one", 1, [])
    file = campaign.file("unit-00", "bin").located()
    assert file.read() == campaign.values("unit-00")["digest"].encode() * 1000
    file.path.write_bytes(b"other")
    for _ in range(2):
        with pytest.raises(InputError, match=r"unit-00.bin changed while this ran: run the same command again"):
            file.read()
        file.path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a" * 101, "a b"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected up to 100 letters"):
        Unit(name, {})


def test_results_are_json(folder: Path) -> None:
    campaign = Campaign(folder / "campaign", "digests", {})
    campaign.run([Unit("unit", {})], lambda _: Outcome({"b": 1.5, "a": [True, None]}), in_line)
    found = json.loads(campaign.path("unit", "json").read_text())
    assert found.pop("sha256") == digest_of(found)
    assert found == {
        "campaign": campaign.digest,
        "unit": "unit",
        "inputs": {},
        "values": {"b": 1.5, "a": [True, None]},
        "files": {},
    }
    assert json.loads((folder / "campaign" / "campaign.json").read_text())["digest"] == campaign.digest


def test_no_workers_are_refused() -> None:
    with pytest.raises(InputError, match="workers is 0: expected 1 or more"):
        processes(0)


def test_where_units_run_is_said_in_one_word() -> None:
    assert workers.executor_of(0) is in_line
    assert workers.executor_of(in_line) is in_line
    with pytest.raises(InputError, match="workers is -1: expected 0 for none but this process, or more"):
        workers.executor_of(-1)


@pytest.mark.integration
def test_what_is_given_as_an_object_goes_to_each_worker_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def noted(content: object, keep: Any) -> bytes:
        packed = genuine(content, keep)
        sizes.append(len(packed))
        return packed

    genuine = workers._packed
    units = [Unit(f"unit-{number}", campaigns.Own(bytes(9999))) for number in range(3)]
    monkeypatch.setattr(workers, "_packed", noted)
    campaign = Campaign(folder / "one", "sizes", {})
    campaign.run(units, campaigns.measure, processes(1))
    assert [campaign.values(unit.name) for unit in units] == [{"bytes": 9999}] * 3
    assert [size > 9999 for size in sizes] == [True, False, False]

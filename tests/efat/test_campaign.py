"""Campaigns: what is done stays done, whoever is killed when, and results do not depend on where units run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import campaign_work
import pytest

from efat import workers
from efat.campaign import Campaign, Outcome, Unit
from efat.workers import WorkerDiedError, in_line, processes
from training.errors import InputError

PROGRAM = Path(campaign_work.__file__)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their names, those of unfinished writing left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def started(folder: Path, count: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, str(PROGRAM), str(folder), str(count)], env=environment)


def children(process: int) -> list[int]:
    """Numbers of the processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def test_units_are_done_once_and_the_same_in_line_and_in_processes(folder: Path) -> None:
    units = campaign_work.UNITS[:6]
    seen: list[tuple[int, int]] = []
    here = Campaign(folder / "here", "digests", {"seed": 1})
    here.run(units[:2], campaign_work.digest, in_line)
    here.run(units, campaign_work.digest, in_line, lambda done, of: seen.append((done, of)))
    assert seen == [(done, 6) for done in range(2, 7)]
    here.run(units, campaign_work.fail, in_line)  # nothing is left to fail
    there = Campaign(folder / "there", "digests", {"seed": 1})
    with pytest.raises(ValueError, match="number 0 is refused"):
        there.run(units, campaign_work.fail, processes(1))
    there.run(units, campaign_work.digest, processes(2))
    assert contents(here.folder) == contents(there.folder)
    first = here.done("unit-00")
    assert first is not None
    assert first["threads"] == 1
    assert here.path("unit-00", "bin").read_bytes() == first["digest"].encode() * 1000


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find worker processes")
def test_killed_at_random_moments_it_ends_as_if_undisturbed(folder: Path, seed: int) -> None:
    undisturbed = Campaign(folder / "undisturbed", "digests", {"units": len(campaign_work.UNITS)})
    undisturbed.run(campaign_work.UNITS, campaign_work.digest, in_line)
    chance = random.Random(seed)
    disturbed = folder / "disturbed"

    def finished() -> int:
        return len(list(disturbed.glob("units/*.json")))

    # What a killed driver has left over is done by one that loses a worker.
    for kill in ("driver", "worker"):
        driver = started(disturbed, 2)
        wanted = finished() + chance.randrange(8)
        # While workers start, or after any result.
        while (len(children(driver.pid)) < 2 or finished() < wanted) and driver.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        assert finished() < len(campaign_work.UNITS)
        os.kill(driver.pid if kill == "driver" else children(driver.pid)[-1], signal.SIGKILL)
        assert driver.wait(120) == (-signal.SIGKILL if kill == "driver" else 0)
    assert contents(disturbed) == contents(undisturbed.folder)


def test_work_that_kills_every_worker_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MOST_DEATHS", 2)
    campaign = Campaign(folder / "campaign", "digests", {})
    with pytest.raises(WorkerDiedError, match="2 workers died while unit-00 was running: is there enough memory for 1"):
        campaign.run(campaign_work.UNITS[:2], campaign_work.die, processes(1))
    assert campaign.done("unit-00") is None


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
        with pytest.raises(InputError, match=r"one/campaign.json is (no campaign|of another format)"):
            Campaign(folder / "one", "digests", {})


def test_damaged_results_are_refused(folder: Path) -> None:
    campaign = Campaign(folder / "campaign", "digests", {})
    for content in ("{", "[1]"):
        campaign.path("unit", "json").write_text(content)
        with pytest.raises(InputError, match=r"unit.json is damaged .*: delete it to do this unit again"):
            campaign.done("unit")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a" * 101, "a b"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected up to 100 letters"):
        Unit(name, {})


def test_results_are_json(folder: Path) -> None:
    campaign = Campaign(folder / "campaign", "digests", {})
    campaign.run([Unit("unit", {})], lambda _: Outcome({"b": 1.5, "a": [True, None]}), in_line)
    assert campaign.path("unit", "json").read_text() == '{"a":[true,null],"b":1.5}\n'
    assert json.loads((folder / "campaign" / "campaign.json").read_text())["digest"] == campaign.digest


def test_no_workers_are_refused() -> None:
    with pytest.raises(InputError, match="workers is 0: expected 1 or more"):
        processes(0)

"""Units on a Ray cluster: what is asked of Ray, and how its errors are told. With Ray itself where it is installed."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from efat.campaigns.campaign import Campaign, Outcome, Unit
from efat.campaigns.workers import MOST_DEATHS, WorkerDiedError, in_line, ray_cluster
from simulator.errors import InputError
from tests.support import campaigns

UNITS = campaigns.UNITS[:7]


class RayError(Exception):
    """As of `ray.exceptions`."""


class RayTaskError(RayError):
    """As of `ray.exceptions`: what a unit raised, with its traceback as the message."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::_work()\n  File ...\n")
        self.cause = cause


class FakeRay(ModuleType):
    """Does units when they are waited for, the last one first."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self) -> None:
        super().__init__("ray")
        self.waiting: dict[int, Callable[[], Outcome]] = {}
        self.most_waiting = self.begun = self.puts = 0
        self.settings: dict[str, Any] = {}
        self.is_open = False

    def init(self, address: str, **_: Any) -> None:
        """Begin, if there is such a cluster."""
        if address == "auto":
            raise ConnectionError("Could not find any running Ray instance.\nPlease specify one.")
        self.is_open = True

    def shutdown(self) -> None:
        """End."""
        self.is_open = False

    def remote(self, **settings: Any) -> Callable[[Callable[..., Outcome]], Any]:
        """What makes a function remote."""
        self.settings = settings

        def begin(function: Callable[..., Outcome], *arguments: Any) -> int:
            assert self.is_open
            self.begun += 1
            self.waiting[self.begun] = lambda: function(*arguments)
            self.most_waiting = max(self.most_waiting, len(self.waiting))
            return self.begun

        return lambda function: SimpleNamespace(remote=lambda *arguments: begin(function, *arguments))

    def put(self, found: object) -> object:
        """What is put is there wherever it is asked for."""
        self.puts += 1
        return found

    def wait(self, references: list[int], num_returns: int) -> tuple[list[int], list[int]]:
        """The last one is done."""
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference: int) -> Outcome:
        """What it gave."""
        try:
            return self.waiting.pop(reference)()
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError(error) from None


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Stands for Ray."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def die(_: Mapping[str, Any]) -> Outcome:
    """As if the worker died with it."""
    raise RayError("The worker died unexpectedly.\nSee the logs.")


def test_units_are_done_in_any_order_and_few_at_a_time(folder: Path, ray: FakeRay) -> None:
    here, there = (Campaign(folder / name, "digests", {}) for name in ("here", "there"))
    here.run(UNITS, campaigns.digest, in_line)
    there.run(UNITS, campaigns.digest, ray_cluster("local", in_flight=3))
    for unit in UNITS:
        assert there.values(unit.name) == here.values(unit.name)
    assert (ray.begun, ray.most_waiting) == (len(UNITS), 3)
    assert ray.settings == {"num_cpus": 1, "max_retries": MOST_DEATHS - 1}
    assert not ray.is_open
    units = [Unit(f"unit-{number}", campaigns.Own(bytes(9))) for number in range(3)]
    there.run(units, campaigns.measure, ray_cluster("local"))
    assert [there.values(unit.name) for unit in units] == [{"bytes": 9}] * 3
    assert ray.puts == 1
    there.run(UNITS, campaigns.digest, ray_cluster("auto"))  # nothing is left to reach a cluster for


def test_errors_are_those_of_the_work(ray: FakeRay) -> None:
    with pytest.raises(ValueError, match=r"^number 6 is refused$"):
        list(ray_cluster("local")(campaigns.fail, UNITS))
    with pytest.raises(WorkerDiedError, match=r"3 workers died while unit-06 was running: The worker died"):
        list(ray_cluster("local")(die, UNITS))
    assert not ray.is_open


def test_clusters_that_are_not_there_are_refused(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        # Nobody listens there.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(InputError, match=f"no Ray cluster at '{address}': .*refused"):
                list(ray_cluster(address)(campaigns.digest, UNITS))
    with pytest.raises(InputError, match=r"no Ray cluster at 'auto': Could not find any running Ray instance.$"):
        list(ray_cluster("auto")(campaigns.digest, UNITS))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed: pip install 'efat\[ray\]', or leave out its address"):
        list(ray_cluster("local")(campaigns.digest, UNITS))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_itself_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    here, there = (Campaign(folder / name, "digests", {}) for name in ("here", "there"))
    here.run(UNITS, campaigns.digest, in_line)
    there.run(UNITS, campaigns.digest, ray_cluster("local"))
    assert [there.values(unit.name) for unit in UNITS] == [here.values(unit.name) for unit in UNITS]
    with pytest.raises(ValueError, match="is refused"):
        list(ray_cluster("local")(campaigns.fail, UNITS[:2]))

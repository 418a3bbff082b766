"""Fresh random inputs in every run of the tests; the seed stands in the report and can be given back."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Generator, Iterator
from multiprocessing import util
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

from tests.support.programs import forget_modules

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a worker for each core: threads of torch would only wait for each other, in commands that tests run, too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "fresh",
    # Inputs are other ones in every run.
    max_examples=60,
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("quick", settings.get_profile("fresh"), max_examples=15)
settings.load_profile("fresh")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed of hypothesis before it looks for one, unless one is given; workers of one run share it."""
    if config.option.hypothesis_seed is None:
        worker_input = getattr(config, "workerinput", {})
        config.option.hypothesis_seed = str(worker_input.get("seed", random.SystemRandom().randrange(1 << 32)))


def pytest_configure_node(node: object) -> None:
    """Hand the seed on to a worker of pytest-xdist."""
    node.workerinput["seed"] = int(node.config.option.hypothesis_seed)  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how to repeat the run."""
    terminalreporter.write_line(f"random inputs: repeat with --hypothesis-seed={config.option.hypothesis_seed}")


PROGRAMS = {"sh", "make", "efat", "iverilog", "vvp", "verilator", "yosys", Path(sys.executable).name}
"""What a test that is not marked `integration` may not start; libraries ask the system things by other programs."""

_may_start = True


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse a process that a test starts without saying so by its mark."""
    if not _may_start and event == "subprocess.Popen" and Path(str(arguments[0])).name in PROGRAMS:
        raise AssertionError(f"this test starts a process ({arguments[1]}): mark it with `integration`")


sys.addaudithook(_watch)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Fixtures of modules belong to the test that first needs them."""
    global _may_start
    _may_start = any(item.get_closest_marker(mark) is not None for mark in ("integration", "slow"))
    spawn = _spawned if _may_start else _refused
    with mock.patch.object(util, "spawnv_passfds", spawn):
        result = yield
    _may_start = True
    return result


_spawned = util.spawnv_passfds


def _refused(*_: object) -> int:
    raise AssertionError("this test starts a worker process: mark it with `integration`")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for NumPy's generators, printed when the test fails."""
    chosen = random.SystemRandom().randrange(1 << 32)
    print(f"seed {chosen}")  # noqa: T201
    return chosen


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _modules_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules that a test writes are gone after it."""
    known = set(sys.modules)
    yield
    forget_modules(known, [tmp_path_factory.getbasetemp()])

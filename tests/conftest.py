"""Fresh random inputs in every run of the tests; the seed stands in the report and can be given back."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fresh",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fresh")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed of hypothesis, unless one is given; workers of one run share it."""
    if config.getoption("hypothesis_seed", None) is None:
        worker_input = getattr(config, "workerinput", {})
        seed = worker_input.get("seed", random.SystemRandom().randrange(1 << 32))
        config.option.hypothesis_seed = str(seed)


def pytest_configure_node(node: object) -> None:
    """Hand the seed on to a worker of pytest-xdist."""
    node.workerinput["seed"] = int(node.config.option.hypothesis_seed)  # type: ignore[attr-defined]


def pytest_report_header(config: pytest.Config) -> str:
    """Say how to repeat the run."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return ""
    return f"repeat with --hypothesis-seed={config.option.hypothesis_seed}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for NumPy's generators, printed when the test fails."""
    chosen = random.SystemRandom().randrange(1 << 32)
    print(f"seed {chosen}")  # noqa: T201
    return chosen

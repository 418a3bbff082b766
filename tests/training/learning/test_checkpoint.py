"""Checkpoints of a training: what comes back, and that nothing damaged, hostile or of another training does."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from simulator.errors import InputError
from training.learning.fit import VERSION, TrainingState, read_state, write_state

IDENTITY = {"network": "1f", "chip": "2e", "recipe": "{}"}


def state() -> TrainingState:
    """After a step of Adam with a schedule."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 4])
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    good = {name: value * 2 for name, value in network.state_dict().items()}
    parts = network.state_dict(), optimizer.state_dict(), schedule.state_dict()
    return TrainingState(IDENTITY, *parts, [(0, 3, 9), (7, 5, 9)], [0.1, float(np.nextafter(0.2, 1))], good)


def assert_same(found: object, expected: object) -> None:
    """Tensors bit for bit, and what holds them."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    else:
        assert found == expected


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A checkpoint."""
    path = tmp_path / "checkpoint.pt"
    write_state(path, state())
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for _ in range(2):  # the second takes the first one's place
        expected = state()
        write_state(path, expected)
        assert_same(vars(read_state(path, IDENTITY)), vars(expected))
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    # No schedule, no momentum, no step.
    write_state(path, TrainingState({}, {}, {}, {}, [(0, 3, 9)], [], {}))
    assert read_state(path, {}).losses == []


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        ({**IDENTITY, "chip": "3d"}, "another chip:"),
        ({**IDENTITY, "recipe": "{...}", "network": "0"}, "another network, recipe:"),
        ({"network": "1f", "recipe": "{}"}, "another chip:"),
        ({**IDENTITY, "data": "4c"}, "another data:"),
        ({}, "another network, chip, recipe:"),
    ],
)
def test_the_state_of_another_training_says_what_differs(written: Path, identity: dict[str, str], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        read_state(written, identity)
    assert str(caught.value).startswith(f"{written} is a checkpoint of a retraining with {named}")
    assert "delete it to start over" in str(caught.value)


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    """One bit is another, anywhere."""
    damaged = bytearray(content)
    damaged[random.integers(len(content))] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def flipped_at_the_start(content: bytes, random: np.random.Generator) -> bytes:
    """One of the first line."""
    return flipped(content[:90], random) + content[90:]


def cut_short(content: bytes, random: np.random.Generator) -> bytes:
    """The end is missing."""
    return content[: random.integers(len(content))]


def with_more(content: bytes, random: np.random.Generator) -> bytes:
    """Something is inserted."""
    place = int(random.integers(len(content) + 1))
    return content[:place] + random.bytes(int(random.integers(1, 20))) + content[place:]


@pytest.mark.parametrize("damage", [flipped, flipped_at_the_start, cut_short, with_more])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_any_damage_is_noticed(written: Path, damage: Callable[[bytes, np.random.Generator], bytes], seed: int) -> None:
    path = written.with_name("damaged.pt")
    path.write_bytes(damage(written.read_bytes(), np.random.default_rng(seed)))
    with pytest.raises(InputError, match=r"is no checkpoint|of version|is damaged") as caught:
        read_state(path, IDENTITY)
    assert "\n" not in str(caught.value)
    assert "delete it" in str(caught.value)


def forged(content: object, version: int = VERSION) -> bytes:
    """A file whose digest is right."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    return f"efat-checkpoint {version} {digest}\n".encode() + buffer.getvalue()


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "it-ran", tmp_path / "checkpoint.pt"
    content = {**vars(state()), "network": Runs(f"touch {proof}")}
    path.write_bytes(forged(content))
    with pytest.raises(InputError, match="is no checkpoint") as caught:
        read_state(path, IDENTITY)
    assert "\n" not in str(caught.value)
    assert not proof.exists()
    torch.load(io.BytesIO(path.read_bytes().partition(b"\n")[2]), weights_only=False)
    assert proof.exists(), "the file would have done no harm: this test shows nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no checkpoint: delete it to start over"),
        (b"hello\n", "is no checkpoint: delete it to start over"),
        (b"efat-checkpoint 1\n", "is no checkpoint: delete it to start over"),
        (b"efat-checkpoint 2 ab\n", "is a checkpoint of version '2', and this program reads 1: delete it"),
        (b"efat-checkpoint \xff\xfe ab\n", "is a checkpoint of version"),
        (b"efat-checkpoint 1 ab\n", "is a checkpoint that is damaged: delete it to start over"),
        (forged(vars(state()), version=7), "of version '7'"),
        (forged([1, 2]), "is no checkpoint"),
        (forged({"identity": {}}), "is no checkpoint"),
        (forged({**vars(state()), "identity": [1]}), "is no checkpoint"),
    ],
)
def test_what_is_no_state(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_state(path, IDENTITY)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_a_failed_write_leaves_what_was_there(written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        write_state(written, replace(state(), schedule={"a": lambda: None}))
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]

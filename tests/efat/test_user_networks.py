"""Every command that takes a network, with networks as users write them: it runs, or says in one line why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efat.campaigns import workers
from efat.campaigns.campaign import Outcome
from simulator.errors import InputError
from tests.support import networks
from tests.support.programs import done, refused, run

COMMON = ["--data", "data", "--lot", "lot.h5"]
COMMANDS = {
    "simulate": [*COMMON, "--cycle-images", "2"],
    "validate": [*COMMON, "--images", "2"],
    "explain": [*COMMON, "--chip", "chip-0000", "--images", "2"],
    "propagate": [*COMMON, "--images", "2", "--site", "psum", "--bit", "psum=0-1", "--samples", "8", "--workers", "0"],
    "retrain-chip": [*COMMON, "--chip", "chip-0000", "--mitigation", "fap+t", "--iterations", "2", "--batch", "8"],
    "resilience": [*COMMON, "--rates", "0.1", "--levels", "0,1", "--repeats", "1", "--batch", "8", "--workers", "0"],
}
CYCLES = ["--input", "1x8x8", "--array", "4x4"]
WRITING = ("propagate", "retrain-chip", "resilience")
LEARNING = ("retrain-chip", "resilience")

FITTING = [
    "by_forward",
    "by_keyword",
    "by_size",
    "cached",
    "cached_before",
    "double",
    "half",
    "no_return",
    "of_values",
    "tied",
    "typed",
    "without_bias",
]

IN_FLOAT = "once layers are converted, even if they compute in float"
REFUSED = {
    "pair": r"gives tuple of torch.float32 \[2, 3\], torch.float32 \[2, 8\] for 2 images: .* return the scores alone",
    "named": "gives dict of 'logits' for 2 images",
    "own_dict": "gives UserDict of 'logits' for 2 images",
    "nothing": "gives NoneType for 2 images",
    "flat": r"gives torch.float32 \[6\] for 2 images: .* keep the dimension of the images",
    "maps": r"gives torch.float32 \[2, 4, 3, 3\] for 2 images: .* a mean over pixels, or with Flatten and Linear",
    "squeezed": r"gives torch.float32 \[3\] for 1 image",
    "classes": r"gives torch.int64 \[2\] for 2 images: .* return the scores from before",
    "not_numbers": "gives NaN or infinity among the scores",
    "few": "has 2 classes and .* has 3",
    "by_type": f"the outputs are others {IN_FLOAT} .* after layer 'c'",
    "internals": r"'_reversed_padding_repeated_twice' \(.*networks.py:\d+\)",
    "unused": "layer 'a' was never reached",
    "locked": "cannot be copied: attribute 'lock' of the network: cannot pickle '_thread.lock'",
    "generating": "cannot be copied: attribute 'numbers' of the network",
    "counting": "gives other outputs each time",
    "noisy": "gives other outputs each time",
    "dropping": "gives other outputs each time",
    "in_place": "writes into the images that it is given",
    "no_inputs": r"layer 'd' has weights of shape \[3, 0\]",
    "no_outputs": r"layer 'd' has weights of shape \[0, 8\]",
    "of_many": r"failed on calibration batch 0 .* RuntimeError: too many \(at .*networks.py:\d+\)",
    "exits": r"SystemExit: bye \(at .*networks.py:\d+\)",
    "exits_when_made": r"the call raised SystemExit: 3 \(at .*networks.py:\d+\)",
    "scripted": "the network is a TopLevelTracedModule, compiled: give the Python module",
    "old_norm": "layer 'c' has forward hooks",
}
"""What commands say."""

UNTRACED = {
    "of_values": r"networks.py:\d+\); .* decide by torch.where",
}
"""Networks that run and whose operations cannot be followed."""

FAILS_TO_LEARN = "the network fails to learn from a batch of 8 images"
UNTAUGHT = {
    "detached": FAILS_TO_LEARN,
    "frozen": FAILS_TO_LEARN,
    "in_training": FAILS_TO_LEARN,
    "of_numpy": rf"{FAILS_TO_LEARN}: .* \(at \S*networks.py:\d+\)",
    "parametrised": "layer 'c' computes its weights from other parameters",
    "shared": "parameters 'd.weight' and 'e.weight' are the same",
}
"""Networks that run and do not learn."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a lot of one chip, and images."""
    folder = tmp_path_factory.mktemp("given")
    random = np.random.default_rng(0)
    (folder / "data").mkdir()
    for name, count in (("train", 24), ("test", 12)):
        images, labels = random.random((count, 1, 8, 8), dtype=np.float32), np.arange(count) % 3
        np.savez(folder / "data" / f"{name}.npz", images=images, labels=labels)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        done("chips", "generate", "--array", "4x4", "--count", "1", "--fault-rate", "0.2", "-o", "lot.h5")
    return folder


def arguments(command: str, network: str, folder: Path) -> list[str]:
    """A command as cheap as it can be; what it writes goes into a folder of its own."""
    written = ["-o", str(folder / f"{network}-{command}")] if command in WRITING else []
    return [command, "--network", f"tests.support.networks:{network}", *COMMANDS[command], *written]


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:`torch.nn.utils.weight_norm", "ignore:Initializing zero-el")
@pytest.mark.parametrize("network", REFUSED)
def test_networks_that_cannot_be_taken_are_refused_by_every_command(
    network: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(given)
    for command in COMMANDS:
        said = refused(*arguments(command, network, tmp_path))
        fails_to_learn = command in LEARNING and FAILS_TO_LEARN in said
        assert re.search(REFUSED[network], said) or fails_to_learn, said
        assert not list(tmp_path.iterdir())
    # What comes out does not matter to cycles.
    counted = run("cycles", "--network", f"tests.support.networks:{network}", *CYCLES)
    assert counted.exit_code in (0, 2)
    assert counted.output.count("Error: ") == (counted.exit_code == 2)


@pytest.mark.parametrize("network", FITTING)
def test_networks_that_are_unusual_run(
    network: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(given)
    for command in ("simulate", "validate", "explain"):
        done(*arguments(command, network, tmp_path))
    done("cycles", "--network", f"tests.support.networks:{network}", *CYCLES)


@pytest.mark.slow
@pytest.mark.parametrize("network", FITTING)
def test_faults_in_networks_that_are_unusual_are_followed_and_learned_with(
    network: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(given)
    for command in WRITING:
        if network in UNTRACED and command == "propagate":
            assert re.search(UNTRACED[network], refused(*arguments(command, network, tmp_path)))
        else:
            done(*arguments(command, network, tmp_path))
    weights = str(tmp_path / f"{network}-retrain-chip" / "weights.safetensors")
    done(*arguments("simulate", network, tmp_path), "--weights", weights)


@pytest.mark.parametrize("command", ["simulate", "explain", "resilience"])
def test_networks_that_fail_while_they_run_say_where(
    command: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(given)
    words = arguments(command, "of_some_sizes", tmp_path)
    result = run(*(word for word in words if command != "explain" or word not in ("--images", "2")))
    assert result.exit_code == 2
    (said,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert re.search(r"the network's own Network raised KeyError: 'size' \(at \S*networks.py:\d+\)", said)


def test_what_a_network_raises_in_a_worker_travels_in_words() -> None:
    with pytest.raises(InputError, match=r"own Network raised KeyError: 'size' \(at \S*networks.py:\d+\)"):
        workers._work(_fails, {})
    with pytest.raises(KeyError, match="ours"):
        workers._work(_fails, {"own": True})


def _fails(given: Mapping[str, Any]) -> Outcome:
    if given:
        raise KeyError("ours")
    networks.of_some_sizes()(torch.rand(12, 1, 8, 8))
    return Outcome({})


@pytest.mark.parametrize("network", UNTAUGHT)
def test_networks_that_run_and_do_not_learn(
    network: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(given)
    done(*arguments("simulate", network, tmp_path))
    for command in LEARNING:
        assert re.search(UNTAUGHT[network], refused(*arguments(command, network, tmp_path)))
    assert not list(tmp_path.iterdir())

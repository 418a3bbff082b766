"""Files of weights and how they sit on a chip: what comes back, and that nothing damaged or hostile gets through."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simulator import ArrayConfig, FaultModel, sample_faults
from simulator.errors import InputError
from tests.support.strategies import random_placement
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers
from training.layers.deployment import FORMAT, PREFIX, Deployment, read_deployed, write_deployed
from training.layers.placement import LARGEST_POSITION, Placement

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ArrayConfig(5, 4, weight_bits=7, acc_bits=24)
BYPASS, SCALE = PREFIX + "bypass", PREFIX + "activation_scale.0"
ROWS, COLUMNS = PREFIX + "rows.0", PREFIX + "columns.0"


def network() -> nn.Sequential:
    """A grouped convolution, a layer that is used twice, and buffers beside parameters."""
    shared = nn.Conv2d(4, 4, 1)
    return nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), shared, shared)


def deployment(random: np.random.Generator) -> Deployment:
    """For the network above."""
    placements = {"0": random_placement(random, 2, 9, 2, 1), "2": random_placement(random, 1, 4, 4, 1)}
    scales = {name: float(np.float32(random.random() + 1e-3)) for name in ("0", "2")}
    return Deployment(CONFIG.record, random.random((5, 4)) < 0.3, scales, placements)


@pytest.fixture
def written(tmp_path: Path, seed: int) -> Path:
    """A file as it should be."""
    path = tmp_path / "weights.safetensors"
    torch.manual_seed(seed)
    write_deployed(path, network().state_dict(), deployment(np.random.default_rng(seed)), {"chip": "chip-7"})
    return path


def changed(path: Path, tensors: dict[str, Tensor | None], metadata: dict[str, str | None]) -> None:
    """Replace tensors and metadata of a file; None takes them away."""
    with safe_open(path, "pt") as opened:
        texts = {**opened.metadata(), **metadata}
    values = {**load_file(path), **tensors}
    save_file(
        {name: value for name, value in values.items() if value is not None},
        path,
        {name: text for name, text in texts.items() if text is not None},
    )


def assert_refused(path: Path, message: str) -> None:
    """One line that names the file and says this."""
    with pytest.raises(InputError, match=message) as caught:
        read_deployed(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    assert len(text) < len(str(path)) + 400


@pytest.mark.parametrize("placed", [False, True])
def test_what_was_written_is_read(tmp_path: Path, seed: int, placed: bool) -> None:
    torch.manual_seed(seed)
    weights = network().state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    expected = deployment(np.random.default_rng(seed))
    if not placed:
        expected = expected.with_placements({})
    path = tmp_path / "weights.safetensors"
    write_deployed(path, weights, expected, {"chip": "chip-7", "note": 'a "quoted" ß'})
    read, found = read_deployed(path)
    assert {name: value.dtype for name, value in read.items()} == {name: value.dtype for name, value in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in read.items())
    assert found is not None
    assert found.array == CONFIG.record
    assert found.bypass.dtype == np.bool_
    assert np.array_equal(found.bypass, expected.bypass)
    assert found.activation_scales == expected.activation_scales
    assert {name: (value.rows.tolist(), value.columns.tolist()) for name, value in found.placements.items()} == {
        name: (value.rows.tolist(), value.columns.tolist()) for name, value in expected.placements.items()
    }
    # A plain reader of safetensors finds the weights, and the same content is the same bytes.
    assert set(weights) < set(load_file(path))
    first = path.read_bytes()
    write_deployed(path, read, found, {"note": 'a "quoted" ß', "chip": "chip-7"})
    assert path.read_bytes() == first


@pytest.mark.parametrize("content", ["safetensors", "state dict"])
def test_weights_that_say_nothing_of_a_chip_are_weights(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights"
    weights = {name: value.clone() for name, value in network().state_dict().items()}
    if content == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    read, found = read_deployed(path)
    assert found is None
    assert set(read) == set(weights)
    assert all(torch.equal(value, weights[name]) for name, value in read.items())


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_deployed(tmp_path / "weights.safetensors")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_deployed(tmp_path / "missing" / "weights", {}, deployment(np.random.default_rng(0)), {})
    broken = deployment(np.random.default_rng(0)).with_placements({"0": None})  # type: ignore[dict-item]
    with pytest.raises(AttributeError):
        write_deployed(written, {}, broken, {})
    assert written.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [written.name]


RIGHT_BYPASS = torch.zeros(5, 4, dtype=torch.uint8)
RIGHT_ROWS = torch.arange(9, dtype=torch.int32).repeat(2, 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (BYPASS, None, "efat.bypass is missing"),
        (BYPASS, RIGHT_BYPASS + 2, r"efat.bypass is torch.uint8 \[5, 4\]: expected uint8 \[5, 4\] of zeros and ones"),
        (BYPASS, RIGHT_BYPASS.bool(), r"efat.bypass is torch.bool \[5, 4\]: expected uint8"),
        (BYPASS, RIGHT_BYPASS.float(), r"efat.bypass is torch.float32 \[5, 4\]: expected uint8"),
        (BYPASS, RIGHT_BYPASS.T.contiguous(), r"efat.bypass is torch.uint8 \[4, 5\]: expected uint8 \[5, 4\]"),
        (BYPASS, RIGHT_BYPASS[:, :0], r"efat.bypass is torch.uint8 \[5, 0\]: expected uint8 \[5, 4\]"),
        (BYPASS, RIGHT_BYPASS.flatten(), r"efat.bypass is torch.uint8 \[20\]: expected uint8 \[5, 4\]"),
        (SCALE, torch.tensor(0.0), "efat.activation_scale.0 is 0.0: expected finite and positive"),
        (SCALE, torch.tensor(-0.5), "efat.activation_scale.0 is -0.5: expected finite and positive"),
        (SCALE, torch.tensor(float("nan")), "efat.activation_scale.0 is nan: expected finite and positive"),
        (SCALE, torch.tensor(float("inf")), "efat.activation_scale.0 is inf: expected finite and positive"),
        (SCALE, torch.ones(1), r"efat.activation_scale.0 is torch.float32 \[1\]: expected one float32 without dim"),
        (SCALE, torch.ones(100_000), r"efat.activation_scale.0 is torch.float32 \[100000\]: expected one float32"),
        (SCALE, torch.tensor(1.0).double(), r"efat.activation_scale.0 is torch.float64 \[\]: expected one float32"),
        (SCALE, torch.tensor(1), r"efat.activation_scale.0 is torch.int64 \[\]: expected one float32"),
        (ROWS, None, "efat.rows.0 is missing"),
        (COLUMNS, None, "efat.columns.0 is missing"),
        (ROWS, RIGHT_ROWS.float(), "rows of a placement hold float32: expected integers"),
        (ROWS, RIGHT_ROWS.bfloat16(), "unsupported ScalarType BFloat16"),
        (ROWS, RIGHT_ROWS.bool(), "rows of a placement hold bool: expected integers"),
        (ROWS, RIGHT_ROWS[0], r"rows of a placement have shape \(9,\): expected \[groups, positions\]"),
        (ROWS, RIGHT_ROWS[:1], "placement has 1 groups of rows and 2 of columns"),
        (ROWS, RIGHT_ROWS[:, :0], r"rows of a placement have shape \(2, 0\): expected"),
        (ROWS, RIGHT_ROWS // 2, "rows of a placement hold a position twice"),
        (ROWS, -RIGHT_ROWS, "rows of a placement hold -8: expected 0..16777215"),
        (COLUMNS, torch.tensor([[0, LARGEST_POSITION], [0, 1]]), "columns of a placement hold 16777216: expected"),
    ],
)
def test_tensors_that_cannot_be(written: Path, name: str, value: Tensor | None, message: str) -> None:
    changed(written, {name: value}, {})
    assert_refused(written, message)


def array(**fields: object) -> str:
    """The metadata's array with some fields replaced."""
    return json.dumps({**CONFIG.as_dict(), **fields})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": None}, f"has tensors named {PREFIX}\\* and is no {FORMAT} file: rename them in your network"),
        ({"format": "other"}, f"is no {FORMAT} file"),
        ({"version": None}, "is of version 'None' of its format: this program reads 1"),
        ({"version": "2" * 1000}, "is of version '22222222222222222222' of its format"),
        ({"array": None}, "does not say which array it is for"),
        ({"array": "{"}, "does not say which array it is for"),
        ({"array": "[" * 100_000}, "does not say which array it is for"),
        ({"array": "[8, 8]"}, "does not say which array it is for"),
        ({"array": '"rows"'}, "does not say which array it is for"),
        ({"array": "{}"}, "does not say which array it is for"),
        ({"array": array(rows=0)}, "does not say which array it is for"),
        ({"array": array(rows=-5)}, "does not say which array it is for"),
        ({"array": array(rows="5")}, "does not say which array it is for"),
        ({"array": array(cols=10**30)}, "does not say which array it is for"),
        ({"array": array(weight_bits=9)}, "does not say which array it is for"),
        ({"array": array(act_signed=1)}, "does not say which array it is for"),
        ({"array": array(rows=6)}, r"efat.bypass is torch.uint8 \[5, 4\]: expected uint8 \[6, 4\]"),
    ],
)
def test_metadata_that_cannot_be(written: Path, metadata: dict[str, str | None], message: str) -> None:
    changed(written, {}, metadata)
    assert_refused(written, message)


def test_a_network_of_its_own_may_not_be_taken_for_a_deployment(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    torch.save({"efat.bypass": torch.zeros(5, 4, dtype=torch.uint8)}, path)
    assert_refused(path, "is not a readable safetensors file")
    save_file({"efat.weight": torch.zeros(3)}, path)
    assert_refused(path, "has tensors named")


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    """One to three bytes are others."""
    damaged = bytearray(content)
    for place in random.integers(0, len(content), random.integers(1, 4)):
        damaged[place] ^= int(random.integers(1, 256))
    return bytes(damaged)


def flipped_at_the_start(content: bytes, random: np.random.Generator) -> bytes:
    """So are some of the header."""
    header = 8 + int.from_bytes(content[:8], "little")
    return flipped(content[:header], random) + content[header:]


def with_other_digits(content: bytes, random: np.random.Generator) -> bytes:
    """Shapes, offsets and numbers of the metadata are others, and the header is still well formed."""
    header = 8 + int.from_bytes(content[:8], "little")
    places = [match.start() for match in re.finditer(rb"[0-9]", content[:header]) if match.start() >= 8]
    damaged = bytearray(content)
    for place in random.choice(places, 2):
        damaged[place] = int(random.integers(ord("0"), ord("9") + 1))
    return bytes(damaged)


def cut_short(content: bytes, random: np.random.Generator) -> bytes:
    """The end is missing."""
    return content[: random.integers(0, len(content))]


def with_more(content: bytes, random: np.random.Generator) -> bytes:
    """Something is inserted."""
    place = int(random.integers(0, len(content)))
    return content[:place] + random.bytes(int(random.integers(1, 20))) + content[place:]


DAMAGES = [flipped, flipped_at_the_start, with_other_digits, cut_short, with_more]


@cache
def converted_once() -> nn.Module:
    """The network on a chip."""
    return convert(network().eval(), CONFIG, torch.rand(1, 2, 3, 3))


@pytest.mark.parametrize("damage", DAMAGES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_damage_is_noticed_or_does_no_harm(
    written: Path, damage: Callable[[bytes, np.random.Generator], bytes], seed: int
) -> None:
    whole = written.read_bytes()
    path = written.with_name("damaged.safetensors")
    path.write_bytes(damage(whole, np.random.default_rng(seed)))
    with suppress(InputError):
        weights, found = read_deployed(path)
        assert all(isinstance(value, Tensor) for value in weights.values())
        if found is not None:
            found.check_array(CONFIG)
            found.put(converted_once(), found.accelerator(CONFIG, None))
            converted_once()(torch.rand(1, 2, 3, 3))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ArrayConfig(4, 5, weight_bits=7, acc_bits=24), "array with rows=5, and this one has 4"),
        (ArrayConfig(5, 4, weight_bits=7, act_signed=False, acc_bits=24), "act_signed=True, and this one has False"),
        (ArrayConfig(5, 4, weight_bits=7), "acc_bits=24, and this one has 32: run them on a chip of the array they"),
        (ArrayConfig(5, 4, acc_bits=24), "array with weight_bits=7, and this one has 8"),
    ],
)
def test_another_array_is_refused(other: ArrayConfig, message: str) -> None:
    made = deployment(np.random.default_rng(0))
    made.check_array(CONFIG)
    with pytest.raises(InputError, match=message):
        made.check_array(other)


def test_put_places_every_layer_on_the_chip(seed: int) -> None:
    random = np.random.default_rng(seed)
    made, images = deployment(random), torch.rand(2, 2, 4, 4)
    faults = sample_faults(CONFIG, FaultModel(0.3), seed)
    converted = convert(network().eval(), CONFIG, images)
    without = converted(images)
    layers = quantized_layers(converted)
    layers["2"].placement = made.placements["2"]
    made = made.with_placements({"0": made.placements["0"]}).with_bypass(faults.required_bypass())
    chip = made.accelerator(CONFIG, faults, "cycle")
    assert (chip.engine, chip.faults) == ("cycle", faults)
    made.put(converted, chip)
    assert layers["0"].placement is made.placements["0"]
    assert layers["2"].placement is None
    assert {layer.accelerator for layer in layers.values()} == {chip}
    on_cycle = converted(images)
    made.put(converted, made.accelerator(CONFIG, faults))
    assert torch.equal(converted(images), on_cycle)
    made.put(converted, Accelerator(CONFIG))
    assert torch.equal(converted(images), without)


@pytest.mark.parametrize(
    ("placements", "message"),
    [
        ({"1": Placement.in_order(1, 4, 4)}, "place a layer '1' that the network has not"),
        ({"": Placement.in_order(1, 4, 4)}, "place a layer '' that the network has not"),
        (
            {"0": Placement.in_order(1, 9, 4)},
            r"layer '0' with groups, K and N of \(1, 9, 4\): the network has \(2, 9, 2\)",
        ),
        ({"2": Placement.in_order(1, 5, 4)}, r"layer '2' with groups, K and N of \(1, 5, 4\)"),
        ({"2": Placement(np.array([[0, 1, 2, 5]]), np.array([[0, 1, 2, 3]]))}, r"at rows and columns up to \(6, 4\)"),
        ({"2": Placement(np.array([[0, 1, 2, 4]]), np.array([[0, 1, 2, 16]]))}, r"no use for more than \(5, 16\)"),
        ({"2": Placement(np.array([[0, 1, 2, 3]]), np.array([[0, 1, 2, LARGEST_POSITION - 1]]))}, "no use for more"),
    ],
)
def test_placements_that_do_not_fit_change_nothing(placements: dict[str, Placement], message: str) -> None:
    converted = convert(network().eval(), CONFIG, torch.rand(2, 2, 4, 4))
    made = deployment(np.random.default_rng(0)).with_placements(placements)
    before = {name: (layer.accelerator, layer.placement) for name, layer in quantized_layers(converted).items()}
    with pytest.raises(InputError, match=message):
        made.put(converted, made.accelerator(CONFIG, None))
    after = {name: (layer.accelerator, layer.placement) for name, layer in quantized_layers(converted).items()}
    assert after == before


def test_the_farthest_places_there_are_fit() -> None:
    converted = convert(network().eval(), CONFIG, torch.rand(2, 2, 4, 4))
    made = deployment(np.random.default_rng(0))
    # One column in use: as many folds as outputs.
    made = made.with_placements({"2": Placement(np.array([[4, 3, 2, 1]]), np.array([[15, 11, 7, 3]]))})
    made.put(converted, made.accelerator(CONFIG, None))
    assert quantized_layers(converted)["2"].placement is made.placements["2"]

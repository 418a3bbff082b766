"""Runs with one fault, made from the run without it: the same as whole runs, on both engines."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator import ArrayConfig, Fault, FaultMap, Kind, Site, gemm_timing, simulate_gemm
from simulator.errors import InputError
from tests.support.networks import tiny_images, tiny_network
from training import faulty_gemm
from training.injection.replay import LAYER_COUNTS, OPERATION_COUNTS, OUTCOMES, PATTERNS, Injected, Propagated, Replay
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, quantized_layers
from training.layers.quantized import GemmRun

IMAGES = 5
PERMANENT = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)
CONFIGS = {
    "small": ArrayConfig(5, 4),
    "narrow": ArrayConfig(7, 3, acc_bits=18),
    "unsigned": ArrayConfig(6, 5, weight_bits=6, act_bits=7, act_signed=False, acc_bits=24),
    "large": ArrayConfig(64, 16),
}


class _Branches(nn.Module):
    """A shortcut, a grouped convolution, a layer that is used twice, poolings, and shapes that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=2, padding_mode="reflect")
        self.twice = nn.Conv2d(6, 6, 1)
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(6, 7)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv1(images)))
        x = torch.relu(self.conv2(x) + x)
        x = functional.max_pool2d(x, 2)
        left, right = self.twice(x).chunk(2, dim=1)
        x = self.twice(torch.cat([right, left], 1).clamp(min=0))
        scores: Tensor = self.linear(functional.adaptive_avg_pool2d(x, 1).relu().reshape(x.shape[0], -1))
        return scores


class WholeRun:
    """A network run as a whole, one GEMM after the other, of which all or one are on a faulty chip."""

    def __init__(self, network: nn.Module, config: ArrayConfig, engine: str = "emulation") -> None:
        self.network = network
        self.config = config
        self.engine = engine
        self.runs: list[GemmRun] = []

    def scores(self, images: Tensor, faults: FaultMap | None, only: int | None = None) -> Tensor:
        """Run it, with the faults in all GEMMs or in one."""
        layers = quantized_layers(self.network).values()
        before = [layer.accelerator for layer in layers]
        self.runs = []
        for layer in layers:
            layer.accelerator = _Chip(self, faults, only)  # type: ignore[assignment]
            layer.observer = self.runs.append
        try:
            with torch.no_grad():
                found: Tensor = self.network(images)
        finally:
            for layer, accelerator in zip(layers, before, strict=True):
                layer.accelerator = accelerator
                layer.observer = None
        return found


class _Chip(Accelerator):
    def __init__(self, run: WholeRun, faults: FaultMap | None, only: int | None) -> None:
        super().__init__(run.config)
        for name, value in (("run", run), ("broken", faults), ("only", only)):
            object.__setattr__(self, name, value)

    def gemm(self, x: Tensor, w: Tensor) -> Tensor:
        here = self.only is None or len(self.run.runs) == self.only
        faults = self.broken if here else None
        if self.run.engine == "cycle":
            return torch.from_numpy(simulate_gemm(x.numpy(), w.numpy(), self.config, faults).outputs)
        return faulty_gemm(x, w, self.config, faults)


def quantised(config: ArrayConfig, seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    network = _Branches().eval()
    network.norm.running_mean = torch.randn(6)
    images = tiny_images(IMAGES, seed).images
    images = images if config.act_signed else images.abs()
    return convert(network, config, images, accelerator=Accelerator.fault_free(config)), images


def random_fault(config: ArrayConfig, random: np.random.Generator, kind: Kind, cycles: int = 0) -> Fault:
    site = Site(int(random.integers(len(Site))))
    row = 0 if site is Site.ACCUMULATOR else int(random.integers(config.rows))
    bit = int(random.integers(site.bits(config)))
    cycle = int(random.integers(cycles)) if kind is Kind.FLIP else None
    return Fault(row, int(random.integers(config.cols)), site, bit, kind, cycle)


def by_layer(runs: list[GemmRun], groups: list[int], images: int) -> list[npt.NDArray[np.int64]]:
    """From the GEMMs that ran the accumulators [images, M, outputs] of each layer."""
    left = iter(runs)
    layers = [torch.cat([next(left).outputs for _ in range(count)], dim=1) for count in groups]
    return [layer.reshape(images, -1, layer.shape[1]).numpy().astype(np.int64) for layer in layers]


def pattern(changed: npt.NDArray[np.bool_]) -> str:
    """Of changed accumulators [M, outputs], worked out in another way."""
    m, n = np.nonzero(changed)
    if len(m) == 1:
        return "single"
    if len(m) == changed.size:
        return "all"
    return "column" if len(set(n)) == 1 else "row" if len(set(m)) == 1 else "block"


def check(
    replay: Replay,
    carried: Propagated,
    number: int,
    whole: WholeRun,
    clean: WholeRun,
    scores: Tensor,
    labels: list[int],
) -> None:
    """A trial did what a whole run on its images did."""
    entries = carried.trial == number
    images = carried.image[entries]
    assert images.tolist() == labels
    assert torch.equal(carried.scores[torch.from_numpy(entries)], scores)
    assert np.array_equal(carried.predicted[entries], scores.argmax(1).numpy())
    groups = [gemm.groups for gemm in (kept.gemm for kept in replay.layers)]
    faulty = by_layer(whole.runs, groups, len(images))
    reference = by_layer(clean.runs, groups, len(images))
    acted = np.zeros(len(images), np.bool_)
    for layer, (ours, theirs) in enumerate(zip(faulty, reference, strict=True)):
        counts = dict(zip(LAYER_COUNTS, carried.layers[number, layer].tolist(), strict=True))
        differ = ours != theirs
        of_image = differ.reshape(len(images), -1).any(1)
        acted |= of_image
        assert counts["images_out"] == of_image.sum()
        assert counts["outputs_changed"] == differ.sum()
        assert counts["largest_error"] == np.abs(ours - theirs).max()
        assert counts["error_sum"] == np.abs(ours - theirs).sum()
        found = [pattern(differ[image]) for image in np.nonzero(of_image)[0]]
        assert [counts[name] for name in PATTERNS] == [found.count(name) for name in PATTERNS]
    top = replay.scores[torch.from_numpy(images)]
    best = torch.sort(top, dim=1, descending=True, stable=True).indices[:, :5]
    for image, outcome in enumerate(carried.outcome[entries]):
        new = int(scores[image].argmax())
        expected = "benign" if new == int(top[image].argmax()) else "top1" if new in best[image].tolist() else "top5"
        if torch.equal(scores[image], top[image]):
            expected = "masked" if acted[image] else "inactive"
        assert OUTCOMES[outcome] == expected


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("engine", "count"), [("emulation", 24), ("cycle", 4)])
def test_permanent_faults_are_as_in_whole_runs(name: str, engine: str, count: int, seed: int) -> None:
    config, random = CONFIGS[name], np.random.default_rng(seed)
    network, images = quantised(config, seed)
    replay = Replay(network, images)
    clean = WholeRun(network, config)
    assert torch.equal(replay.scores, clean.scores(images, None))
    faults = [random_fault(config, random, PERMANENT[int(random.integers(2))]) for _ in range(count)]
    chosen = [np.sort(random.permutation(IMAGES)[: random.integers(1, IMAGES + 1)]) for _ in faults]
    carried = replay.propagate([Injected(fault, which) for fault, which in zip(faults, chosen, strict=True)])
    for number, (fault, which) in enumerate(zip(faults, chosen, strict=True)):
        whole, clean = WholeRun(network, config, engine), WholeRun(network, config)
        clean.scores(images[which], None)
        scores = whole.scores(images[which], FaultMap.from_faults(config, [fault]))
        check(replay, carried, number, whole, clean, scores, which.tolist())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("engine", "count"), [("emulation", 40), ("cycle", 6)])
def test_upsets_are_as_in_whole_runs(name: str, engine: str, count: int, seed: int) -> None:
    config, random = CONFIGS[name], np.random.default_rng(seed)
    network, images = quantised(config, seed)
    replay = Replay(network, images)
    trials = []
    for _ in range(count):
        layer = int(random.integers(len(replay.layers)))
        gemm = replay.layers[layer].gemm
        fault = random_fault(config, random, Kind.FLIP, gemm_timing(config, gemm.m, gemm.k, gemm.n).serial)
        trials.append(Injected(fault, random.integers(IMAGES, size=1), layer, int(random.integers(gemm.groups))))
    carried = replay.propagate(trials)
    first = np.cumsum([0, *(gemm.groups for gemm in (kept.gemm for kept in replay.layers))])
    for number, trial in enumerate(trials):
        assert trial.layer is not None
        assert trial.group is not None
        whole, clean = WholeRun(network, config, engine), WholeRun(network, config)
        image = images[trial.images]
        clean.scores(image, None)
        scores = whole.scores(image, FaultMap.from_faults(config, [trial.fault]), int(first[trial.layer]) + trial.group)
        check(replay, carried, number, whole, clean, scores, trial.images.tolist())


def test_what_operations_pass_and_stop(seed: int) -> None:
    """Images that go into an operation come out or are masked; what comes out of one goes into the next."""
    config, random = CONFIGS["small"], np.random.default_rng(seed)
    images = tiny_images(IMAGES, seed).images
    network = convert(tiny_network(), config, images, accelerator=Accelerator.fault_free(config))
    replay = Replay(network, images)
    faults = [random_fault(config, random, PERMANENT[int(random.integers(2))]) for _ in range(30)]
    found = replay.propagate([Injected(fault, np.arange(IMAGES)) for fault in faults]).operations
    count = {name: found[:, :, place] for place, name in enumerate(OPERATION_COUNTS)}
    kinds = np.array([operation.kind for operation in replay.operations])
    acts = kinds == "multiply"
    assert (count["images_in"] - count["images_masked"] <= count["images_out"]).all()
    assert ((count["images_in"] - count["images_masked"] == count["images_out"]) | acts).all()
    rounding = kinds == "quantise"
    assert ((count["elements_in"] - count["elements_out"] == count["rounded"] + count["saturated"]) | ~rounding).all()
    assert not count["rounded"][:, ~rounding].any()
    for one, other in zip(range(len(kinds)), range(1, len(kinds)), strict=False):
        assert np.array_equal(count["images_out"][:, one], count["images_in"][:, other])
        assert np.array_equal(count["elements_out"][:, one], count["elements_in"][:, other])


def test_what_stops_differences_by_hand() -> None:
    """Two weights of 127 and one of 1: what the fault adds is rounded, clamped or cut off by the ReLU, or is not."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False))
    network[0].weight.data.fill_(1)
    network[2].weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    config = ArrayConfig(1, 1)
    scales = {"0": 1.0, "2": 1.0}
    quantized = convert(network, config, (), activation_scales=scales, accelerator=Accelerator.fault_free(config))
    # The weight is 127 steps of 1/127, so that an accumulator is 127 x, and the next layer's input x if it is positive.
    images = torch.tensor([[1.0], [-3.0], [127.0], [2.0]])
    replay = Replay(quantized, images)
    # Bit 3 of the sum is forced to 1: 127 stays, -381 is ...10000011 and becomes -373, 16129 becomes 16137, 254 stays.
    fault = Fault(0, 0, Site.PSUM, 3, Kind.STUCK_AT_1)
    carried = replay.propagate([Injected(fault, np.arange(4), None)])
    assert carried.layers[0, 0].tolist() == [0, 2, 2, 2, 2, 0, 0, 0, 0, 8, 16]
    names = [(operation.name, operation.kind) for operation in replay.operations]
    assert names == [("0", "quantise"), ("0", "multiply"), ("1", "relu"), ("2", "quantise"), ("2", "multiply")]
    rows = [dict(zip(OPERATION_COUNTS, row, strict=True)) for row in carried.operations[0].tolist()]
    of = dict(zip(names, rows, strict=True))
    assert of["1", "relu"]["images_in"] == 2
    assert of["1", "relu"]["images_masked"] == 1
    assert (of["2", "quantise"]["images_in"], of["2", "quantise"]["rounded"]) == (1, 1)
    # Bit 14 takes 16129 to 32513, which is 256 steps of the next input and clamped to 127.
    carried = replay.propagate([Injected(Fault(0, 0, Site.PSUM, 14, Kind.STUCK_AT_1), np.array([2]), None)])
    assert carried.operations[0, 3].tolist() == [1, 1, 0, 1, 0, 0, 1]


class _WritesIntoItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1)[:, :3]).add_(1)


class _Decides(_WritesIntoItsInput):
    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)[:, :3]
        return self.linear(x if x.sum() > 0 else -x)


class _Mixes(_WritesIntoItsInput):
    def forward(self, images: Tensor) -> Tensor:
        x = self.linear(images.flatten(1)[:, :3])
        return x - x.mean(0, keepdim=True).expand_as(x)


class _ReturnsTwo(_WritesIntoItsInput):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.linear(images.flatten(1)[:, :3])
        return x, x


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_WritesIntoItsInput, "writes into its input"),
        (_Decides, "decide by torch.where"),
        (_Mixes, "an entry for each image|depend on nothing else"),
        (_ReturnsTwo, "does not return scores"),
    ],
)
def test_networks_that_cannot_be_followed(build: Callable[[], nn.Module], message: str) -> None:
    config, images = CONFIGS["small"], tiny_images(4, 0).images
    network = convert(build(), config, images) if build is not _Decides else _converted(build(), config, images)
    with pytest.raises(InputError, match=message):
        Replay(network, images)


def _converted(network: nn.Module, config: ArrayConfig, images: Tensor) -> nn.Module:
    with torch.no_grad():
        return convert(network, config, images)


def test_a_network_that_is_one_layer(seed: int) -> None:
    config = CONFIGS["small"]
    images = tiny_images(3, seed).images.flatten(1)
    network = convert(nn.Linear(images.shape[1], 3), config, images, accelerator=Accelerator.fault_free(config))
    replay = Replay(network, images)
    carried = replay.propagate([Injected(Fault(0, 0, Site.PSUM, 31, Kind.STUCK_AT_1), np.arange(3))])
    whole = WholeRun(network, config)
    fault = FaultMap.from_faults(config, [Fault(0, 0, Site.PSUM, 31, Kind.STUCK_AT_1)])
    assert torch.equal(carried.scores, whole.scores(images, fault))


def test_activations_that_occur(seed: int) -> None:
    config = CONFIGS["unsigned"]
    network, images = quantised(config, seed)
    replay = Replay(network, images)
    whole = WholeRun(network, config)
    whole.scores(images, None)
    runs = iter(whole.runs)
    for layer, gemm in enumerate(kept.gemm for kept in replay.layers):
        for marks in replay.seen(layer):
            x = next(runs).x.numpy().astype(np.int64) & 127
            expected = [set(x[:, k]) for k in range(gemm.k)]
            assert [set(np.nonzero(of_k)[0]) for of_k in marks] == expected


def test_nothing_to_follow() -> None:
    config, images = CONFIGS["small"], tiny_images(2, 0).images
    replay = Replay(convert(tiny_network(), config, images), images)
    assert len(replay) == 2
    assert replay.kept_bytes > 0
    carried = replay.propagate([])
    assert [len(part) for part in carried] == [0] * 7
    assert operator.index(carried.layers.shape[1]) == 3

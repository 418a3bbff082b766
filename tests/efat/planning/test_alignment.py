"""Chips that share weights compute the same, whatever is broken where; aligning them never takes more retraining."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from efat.planning import alignment
from efat.planning.alignment import PREDICTORS, AlignedGroup, Aligner, Placements, align
from efat.planning.fusion import AmountMap
from efat.resilience.severity import bypass_of, pruned_severity
from efat.retraining.lot import fused_chip
from simulator import ArrayConfig, Fault, FaultMap, FaultModel, Kind, Site, sample_faults
from simulator.dtypes import BoolArray
from simulator.errors import InputError
from simulator.lots.chips import Chip
from simulator.multipliers.multiplier import Multiplier
from tests.support.networks import (
    ARRAY,
    deploy,
    faulty_chip,
    on_fault_free,
    tiny_images,
    tiny_network,
    with_broken_accumulators,
)
from training.layers.accelerator import Accelerator, Engine
from training.layers.convert import convert, put_on_chip
from training.layers.deployment import Deployment
from training.layers.placement import Placement
from training.layers.trainable import trainable, trainable_layers
from training.learning.mitigations.bypass import Bypass
from training.learning.mitigations.combination import Mitigations
from training.learning.mitigations.permutation import Permutation
from training.learning.retrain import Pruned

ANY_SITE = {site: 1.0 for site in Site if site not in (Site.ACCUMULATOR, Site.MULTIPLIER)}
FAM = Mitigations.named("fam+t")
AMOUNTS = AmountMap(np.arange(1, 10) / 20, np.array([0, 1, 2, 4, 4, 8, 8, 16, np.inf]))
IMAGES = tiny_images(5, 3).images


def network_of(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return tiny_network()


def weights_of(network: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """Of each layer, float32 [outputs, weights of an output]."""
    layers = (layer for layer in network.named_children() if isinstance(layer[1], nn.Conv2d | nn.Linear))
    return {name: layer.weight.detach().flatten(1).numpy() for name, layer in layers}


def random_chips(random: np.random.Generator, config: ArrayConfig, count: int) -> list[Chip]:
    """Faults at all sites, some of which cost rows and columns; broken accumulators, though not all; fuses."""
    chips = []
    for number in range(count):
        faults = sample_faults(
            config, FaultModel(random.choice([0.0, 0.05, 0.2]), sites=ANY_SITE), int(random.integers(1 << 30))
        )
        fuses = random.random((config.rows, config.cols)) < 0.1
        chip = Chip(f"chip {number}", faults, fuses if random.integers(2) else None)
        broken = random.permutation(config.cols)[: random.integers(0, config.cols)]
        chips.append(with_broken_accumulators(chip, *broken[: random.integers(0, 3)].tolist()))
    return chips


def without(network: nn.Module, lost: dict[str, BoolArray]) -> nn.Module:
    """A copy in which some weights are zero."""
    pruned = copy.deepcopy(network)
    for name, mask in lost.items():
        weight = pruned.get_submodule(name).get_parameter("weight")
        weight.data[torch.from_numpy(mask).view(weight.shape)] = 0
    return pruned


def on_chip(network: nn.Module, chip: Chip, deployment: Deployment, engine: Engine) -> Tensor:
    """Logits of few images on a chip, as anyone computes them who has the weights and the deployment."""
    config = chip.faults.config
    converted = convert(network, config, (), activation_scales=deployment.activation_scales)
    deployment.put(converted, deployment.accelerator(config, chip.faults, engine))
    return converted(IMAGES if engine == "emulation" else IMAGES[:2])


def assert_same_on_all(network: nn.Module, chips: Sequence[Chip], deployments: Sequence[Deployment]) -> None:
    config = chips[0].faults.config
    converted = convert(network, config, (), activation_scales=deployments[0].activation_scales)
    expected = put_on_chip(converted, Accelerator.fault_free(config))(IMAGES)
    for chip, deployment in zip(chips, deployments, strict=True):
        assert torch.equal(on_chip(network, chip, deployment, "emulation"), expected)
        assert torch.equal(on_chip(network, chip, deployment, "cycle"), expected[:2])


def deployment_of(model: nn.Module, chip: Chip, placements: Placements) -> Deployment:
    scales = {name: float(layer.activation_scale) for name, layer in trainable_layers(model).items()}
    return Deployment(chip.faults.config.record, bypass_of(chip), scales, placements)


@settings(max_examples=8)
@given(
    st.integers(0, 2**32 - 1),
    st.builds(ArrayConfig, st.integers(2, 7), st.integers(2, 6)),
    st.sampled_from(["fam+t", "fam-rows+t", "fam-columns+t"]),
)
def test_all_members_of_an_aligned_group_compute_the_same(seed: int, config: ArrayConfig, mitigation: str) -> None:
    random = np.random.default_rng(seed)
    network = network_of(seed)
    model = on_fault_free(network, config)
    chips = random_chips(random, config, 3)
    aligner = Aligner(model, config, Mitigations.named(mitigation), "saliency")
    placements, lost = aligner.place_together(chips)
    for chip, places in zip(chips, placements, strict=True):
        for name, mask in aligner.lost(chip, places).items():
            assert not (mask & ~lost[name]).any()
    deployments = [deployment_of(model, chip, places) for chip, places in zip(chips, placements, strict=True)]
    assert_same_on_all(without(network, lost), chips, deployments)


@settings(max_examples=8)
@given(
    st.integers(0, 2**32 - 1),
    st.builds(ArrayConfig, st.integers(2, 7), st.integers(4, 6)),
    st.sampled_from(["fap+t", "fam+t", "fam-columns+t"]),
)
def test_all_members_of_a_fused_group_compute_the_same(seed: int, config: ArrayConfig, mitigation: str) -> None:
    random = np.random.default_rng(seed)
    network = network_of(seed)
    model = on_fault_free(network, config)
    chips = random_chips(random, config, 2)
    fused = fused_chip("both", config, chips)
    if len(fused.faults.unusable_columns()) == config.cols:
        return
    deployment = deploy(model, fused, *Mitigations.named(mitigation).in_turn)
    assert_same_on_all(without(network, lost_by(model, deployment)), chips, [deployment, deployment])


def lost_by(model: nn.Module, deployment: Deployment) -> dict[str, BoolArray]:
    """The weights that sit at bypassed PEs."""
    layers = trainable_layers(model)
    places = {name: Placement.in_order(*layer.gemm_shape) for name, layer in layers.items()} | deployment.placements
    config = ArrayConfig(*deployment.array.shape)
    return {name: places[name].at_weights(deployment.bypass, config) for name in layers}


def test_a_fused_chip_bypasses_what_any_does_and_uses_what_all_can(seed: int) -> None:
    chips = random_chips(np.random.default_rng(seed), ARRAY, 4)
    fused = fused_chip("all", ARRAY, chips)
    assert fused.bypass is not None
    assert (fused.bypass == np.logical_or.reduce([bypass_of(chip) for chip in chips])).all()
    assert not fused.faults.required_bypass().any()
    broken = {int(column) for chip in chips for column in chip.faults.unusable_columns()}
    assert fused.faults.unusable_columns().tolist() == sorted(broken)
    nothing = fused_chip("none", ARRAY, [])
    assert not len(nothing.faults)
    assert not bypass_of(nothing).any()


@settings(max_examples=6)
@given(st.integers(0, 2**32 - 1), st.sampled_from(PREDICTORS))
def test_aligned_chips_take_no_more_than_alone(seed: int, predictor: str) -> None:
    random = np.random.default_rng(seed)
    network = network_of(seed)
    aligner = Aligner(on_fault_free(network), ARRAY, FAM, predictor)
    chips = [faulty_chip(int(random.integers(1 << 30)), float(random.uniform(0, 0.5))) for _ in range(8)]
    alone = [aligner.alone(chips, member, AMOUNTS) for member in range(len(chips))]
    seen: list[tuple[int, int]] = []
    groups = align(aligner, chips, AMOUNTS, lambda *progress: seen.append(progress))
    assert sorted(member for group in groups for member in group.members) == list(range(8))
    assert [min(group.members) for group in groups] == sorted(min(group.members) for group in groups)
    steps = 8 * (1 + len(set(AMOUNTS.amounts.tolist()) - {0, np.inf}))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (steps, steps)
    for group in groups:
        check_group(group, aligner, chips, network, predictor)
        own = [alone[member].amount for member in group.members]
        assert len(own) == 1 or (group.amount <= sum(own) and all(0 < amount < np.inf for amount in own))
    taken = [group.amount for group in groups if np.isfinite(group.amount)]
    assert sum(taken) <= sum(group.amount for group in alone if np.isfinite(group.amount))
    again = align(aligner, chips, AMOUNTS)
    assert [(group.members, group.severity, group.amount) for group in again] == [
        (group.members, group.severity, group.amount) for group in groups
    ]


def check_group(
    group: AlignedGroup, aligner: Aligner, chips: Sequence[Chip], network: nn.Module, predictor: str
) -> None:
    """Severity and amount are those of what the members lose; whoever retrains them places them likewise."""
    placements, lost = aligner.place_together([chips[member] for member in group.members])
    layers = weights_of(network)
    together = {name: np.zeros(weights.shape, np.bool_) for name, weights in layers.items()}
    for member, places, expected in zip(group.members, group.placements, placements, strict=True):
        for name, placement in places.items():
            assert (placement.rows == expected[name].rows).all()
            assert (placement.columns == expected[name].columns).all()
            together[name] |= placement.at_weights(bypass_of(chips[member]), ARRAY)
    assert all((lost[name] == together[name]).all() for name in layers)
    severity = getattr(pruned_severity(list(layers.values()), [together[name] for name in layers]), predictor)
    assert group.severity == severity
    assert group.amount == AMOUNTS.amount(severity)


def test_what_is_lost_already_is_lost_again(seed: int) -> None:
    random = np.random.default_rng(seed)
    aligner = Aligner(on_fault_free(network_of(seed)), ARRAY, Mitigations.named("fam-columns+t"), "pruned")
    row = int(random.integers(5))
    # With rows in order no columns are better than those that are found.
    faults = [Fault(row, column, Site.PRODUCT, 3, Kind.STUCK_AT_1) for column in range(4)]
    chips = [Chip(str(fault.col), FaultMap.from_faults(ARRAY, [fault])) for fault in faults]
    first = aligner.lost(chips[0], aligner.place(chips[0]))
    _, lost = aligner.place_together(chips)
    assert all((lost[name] == mask).all() for name, mask in first.items())
    severity = aligner.severity(first)
    assert severity > 0
    amounts = AmountMap(np.array([severity, 1.0]), np.array([3.0, 4.0]))
    found = align(aligner, chips, amounts)
    assert [(group.members, group.severity, group.amount) for group in found] == [((0, 1, 2, 3), severity, 3)]


def test_what_is_lost_already_does_not_count(seed: int) -> None:
    aligner = Aligner(on_fault_free(network_of(seed)), ARRAY, Mitigations.named("fam-columns+t"), "saliency")
    chips = [faulty_chip(chip, 0.25) for chip in range(seed, seed + 8)]
    weights = {name: np.abs(values).astype(np.float64) for name, values in weights_of(network_of(seed)).items()}
    lost = aligner.lost(chips[0], aligner.place(chips[0]))
    less = 0
    for chip in chips[1:]:
        added = [
            sum(float(weights[name][mask & ~lost[name]].sum()) for name, mask in aligner.lost(chip, places).items())
            for places in (aligner.place(chip, lost), aligner.place(chip))
        ]
        assert added[0] <= added[1] * (1 + 1e-9) + 1e-12
        less += added[0] < added[1]
    assert less


class Sets(Aligner):
    """Chips that lose what their masks say, wherever they are placed."""

    def __init__(self) -> None:
        self._weights = {"all": np.zeros((5, 4), np.float32)}

    def place(self, chip: Chip, lost: Pruned | None = None) -> Placements:
        """Anywhere."""
        return {}

    def lost(self, chip: Chip, placements: Placements) -> dict[str, BoolArray]:
        """Its mask."""
        return {"all": bypass_of(chip)}

    def severity(self, lost: Pruned) -> float:
        """The share of the PEs."""
        return float(lost["all"].mean())


def plainly_aligned(masks: Sequence[BoolArray], amounts: AmountMap, tried: int) -> list[tuple[tuple[int, ...], float]]:
    """The algorithm as it is described, in few words: members and amounts of the groups."""

    def amount(members: Sequence[int]) -> float:
        return float(amounts.amount(float(np.logical_or.reduce([masks[member] for member in members]).mean())))

    alone = [(member,) for member in range(len(masks)) if not 0 < amount([member]) < np.inf]
    others = [(member,) for member in range(len(masks)) if (member,) not in alone]
    others.sort(key=lambda members: (-float(masks[members[0]].mean()), members))
    best = others
    for cap in sorted({value for value in amounts.amounts if 0 < value < np.inf}):
        groups: list[tuple[int, ...]] = []
        for chip in others:
            for latest in reversed(range(max(0, len(groups) - tried), len(groups))):
                group = groups[latest]
                joined = amount(group + chip)
                if amount(group) <= cap and joined <= cap and joined <= amount(group) + amount(chip):
                    groups[latest] = group + chip
                    break
            else:
                groups.append(chip)
        if sum(map(amount, groups)) < sum(map(amount, best)):
            best = groups
    return sorted(((members, amount(members)) for members in [*alone, *best]), key=lambda found: min(found[0]))


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(1, 3))
def test_groups_are_those_of_the_algorithm_as_it_is_described(seed: int, count: int, tried: int) -> None:
    random = np.random.default_rng(seed)
    masks = [random.random((5, 4)) < random.choice([0, 0.1, 0.2, 0.3, 0.5]) for _ in range(count)]
    chips = [Chip(str(number), FaultMap(ARRAY), mask) for number, mask in enumerate(masks)]
    with mock.patch.object(alignment, "MOST_TRIED", tried):
        found = align(Sets(), chips, AMOUNTS)
    assert [(group.members, group.amount) for group in found] == plainly_aligned(masks, AMOUNTS, tried)


def test_a_chip_alone_sits_as_the_mitigation_has_it(seed: int) -> None:
    model = on_fault_free(network_of(seed))
    chip = with_broken_accumulators(replace(faulty_chip(seed), bypass=np.eye(5, 4, dtype=np.bool_)), 1)
    for columns, rows in ((True, True), (True, False), (False, True)):
        permutation = Permutation(columns, rows)
        aligner = Aligner(model, ARRAY, Mitigations((Bypass(), permutation)), "saliency")
        expected = deploy(model, chip, Bypass(), permutation).placements
        found = {name: places for name, places in aligner.place(chip).items() if not places.is_in_order}
        assert sorted(found) == sorted(expected)
        for name, places in found.items():
            assert (places.rows == expected[name].rows).all()
            assert (places.columns == expected[name].columns).all()


def test_chips_that_need_nothing_or_more_than_there_is_stay_alone() -> None:
    aligner = Aligner(on_fault_free(network_of(1)), ARRAY, FAM, "pruned")
    whole = Chip("whole", FaultMap(ARRAY))
    broken = Chip("broken", FaultMap(ARRAY), np.ones((5, 4), np.bool_))
    bad = [faulty_chip(seed, 0.3) for seed in (1, 2)]
    amounts = AmountMap(np.array([0.0, 0.9]), np.array([0.0, 7.0]))
    groups = align(aligner, [whole, broken, bad[0], whole, bad[1]], amounts)
    assert [(group.members, group.amount) for group in groups] == [((0,), 0), ((1,), np.inf), ((2, 4), 7), ((3,), 0)]
    none_enough = AmountMap(np.array([0.0]), np.array([np.inf]))
    assert [group.members for group in align(aligner, [whole, bad[0]], none_enough)] == [(0,), (1,)]
    assert align(aligner, [], amounts) == []


def test_a_network_that_is_one_layer() -> None:
    linear = nn.Linear(12, 5)
    model = trainable(linear, convert(linear, ARRAY, torch.randn(4, 12)))
    placements, lost = Aligner(model, ARRAY, FAM, "saliency").place_together([faulty_chip(1), faulty_chip(2)])
    assert [list(places) for places in placements] == [list(trainable_layers(model))] * 2
    assert [mask.shape for mask in lost.values()] == [(5, 12)]


def test_what_cannot_be_aligned_is_refused(seed: int) -> None:
    model = on_fault_free(network_of(seed))
    with pytest.raises(InputError, match="the mitigation permutes nothing, so chips cannot be aligned"):
        Aligner(model, ARRAY, Mitigations.named("fap+t"), "pruned")
    with pytest.raises(InputError, match=r"predictor 'weights' is of masks, .* expected one of pruned, saliency"):
        Aligner(model, ARRAY, FAM, "weights")
    random = np.random.default_rng(seed)
    table = random.integers(-(1 << 15), 1 << 15, (256, 256)).astype(np.int16)
    inexact = replace(ARRAY, multiplier=Multiplier.from_tables("inexact", table, [table], act_signed=True))
    with pytest.raises(InputError, match="PEs that do not multiply exactly"):
        Aligner(model, inexact, FAM, "pruned")
    dead = with_broken_accumulators(Chip("dead", FaultMap(ARRAY)), 0, 1, 2, 3)
    with pytest.raises(InputError, match="none of the 4 columns of the array can be used"):
        align(Aligner(model, ARRAY, FAM, "pruned"), [dead], AMOUNTS)

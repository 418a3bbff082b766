"""What explains a chip: subsets that are minimal, faults left out as if never there, and cycles that traces confirm."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from efat.explanation.divergence import (
    FirstDivergence,
    StoredSum,
    error_propagation,
    first_divergence,
    pattern_of,
)
from efat.explanation.explanation import Explanation
from efat.explanation.fault_subsets import FaultSubsets, Inference, LayerRun, minimal_subset
from efat.inference.chip_networks import one_network
from efat.inference.simulation import Simulation
from simulator import ArrayConfig, Fault, FaultMap, FaultModel, Kind, Site, sample_faults
from simulator.errors import InputError
from simulator.lots.chips import Chip
from tests.support.first_divergences import TracedGemm
from tests.support.networks import ARRAY, faulty_chip
from tests.support.retraining_runs import HELD_OUT, TRAIN, network
from tests.support.strategies import GemmCase, gemm_cases
from training.data.classification import classify
from training.emulation.gemm import faulty_gemm
from training.layers.accelerator import Accelerator
from training.layers.convert import convert, observing, put_on_chip, quantized_layers
from training.layers.placement import Placement
from training.layers.quantized import GemmRun

PERMANENT = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from(["random", "all of some", "any of some"]))
def test_a_subset_holds_and_nothing_of_it_can_be_left_out(count: int, seed: int, style: str) -> None:
    random = np.random.default_rng(seed)
    some = {int(item) for item in random.choice(count, random.integers(1, count + 1), replace=False)}
    asked: list[tuple[int, ...]] = []

    def holds(subset: tuple[int, ...]) -> bool:
        asked.append(subset)
        if len(subset) == count:
            return True
        if style == "random":
            return bool(np.random.default_rng([seed, *subset]).random() < 0.3)
        return some <= set(subset) if style == "all of some" else bool(some & set(subset))

    kept = minimal_subset(range(count), holds)
    assert len(asked) == len(set(asked))
    assert list(kept) == sorted(kept)
    assert holds(kept)
    assert not kept or not any(holds(fewer) for fewer in combinations(kept, len(kept) - 1))
    if style == "all of some":
        assert set(kept) == some
    assert minimal_subset(range(count), holds) == kept


def test_one_of_hundreds_is_found_in_few_runs() -> None:
    asked: list[int] = []

    def holds(subset: tuple[int, ...]) -> bool:
        asked.append(len(subset))
        return 313 in subset

    assert minimal_subset(range(500), holds) == (313,)
    assert len(asked) <= 2 * 9 + 1


@settings(max_examples=50)
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_patterns(rows: int, columns: int, data: st.DataObject) -> None:
    changed = np.array(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    changed = changed.reshape(rows, columns)
    places = [(int(row), int(column)) for row, column in np.argwhere(changed)]
    expected = "block"
    if len({row for row, _ in places}) == 1:
        expected = "row"
    if len({column for _, column in places}) == 1:
        expected = "column"
    if len(places) == rows * columns:
        expected = "all"
    if len(places) < 2:
        expected = "single" if places else "none"
    assert pattern_of(changed) == expected


@settings(max_examples=20)
@given(gemm_cases(PERMANENT, least_rows_of_x=1))
def test_first_divergences_are_those_of_the_traces(case: GemmCase) -> None:
    checked = 0
    for fault in case.faults:
        traced, found = traced_and_found(case.x, case.w, case.faults, fault, case.bypass)
        if found is not None and checked < 3:
            assert traced.differs
            traced.check(found, fault)
            checked += 1


def traced_and_found(
    x: npt.NDArray[np.int64],
    w: npt.NDArray[np.int64],
    faults: FaultMap,
    fault: Fault,
    bypass: npt.NDArray[np.bool_] | None = None,
    placement: Placement | None = None,
) -> tuple[TracedGemm, FirstDivergence | None]:
    """A GEMM as the array has it, as the only one of a network: all that it does, and where a fault first acts."""
    config = faults.config
    others = FaultMap.from_faults(config, [other for other in faults if other != fault])
    bypassed = np.zeros((config.rows, config.cols), np.bool_) if bypass is None else bypass
    operands = torch.from_numpy(x), torch.from_numpy(w)
    on_array = (placement.place_x(operands[0]), placement.place_w(operands[1])) if placement else operands
    inferences = []
    for some in (others, faults):
        outputs = faulty_gemm(*on_array, config, some, bypass=bypassed)
        run = GemmRun("only", 0, *operands, placement.take_out(outputs) if placement else outputs, placement)
        inferences.append(Inference(run.outputs[0].to(torch.float32), (LayerRun("only", (run,)),)))
    found = first_divergence(fault, *inferences, others, faults, bypassed)
    without, with_fault = (inference.layers[0].outputs for inference in inferences)
    assert (found is None) == bool((without == with_fault).all())
    taken = {n: n for n in range(w.shape[1])} if placement is None else {int(placement.columns[0, 0]): 0}
    return TracedGemm(*(operand.numpy() for operand in on_array), others, faults, bypassed, taken), found


def test_a_weight_is_loaded_wrong_where_it_counts() -> None:
    config = ArrayConfig(3, 1)
    fault = Fault(0, 0, Site.WEIGHT_LOAD, 1, Kind.STUCK_AT_1)
    faults = FaultMap.from_faults(config, [fault])
    # All three weights pass as 2 instead of 0, the last row's first; that PE is bypassed.
    _, found = traced_and_found(
        np.ones((1, 3), int), np.zeros((3, 1), int), faults, fault, np.array([[0], [0], [1]]) > 0
    )
    assert found is not None
    assert (found.cycle, found.was, found.became) == (1, 0, 2)
    assert found.stored == StoredSum(row_of_x=0, output=0, cycle=5, was=0, became=4)


def test_errors_that_cancel_do_not_count() -> None:
    config = ArrayConfig(1, 1)
    fault = Fault(0, 0, Site.WEIGHT, 0, Kind.STUCK_AT_1)
    faults = FaultMap.from_faults(config, [fault])
    # Weights are 3 and 5 instead of 2 and 4: in row 0 of X the second error takes back the first.
    x, w = np.array([[1, -1], [1, 0]]), np.array([[2], [4]])
    traced, found = traced_and_found(x, w, faults, fault)
    assert found is not None
    assert (found.fold, found.cycle, found.was, found.became) == (0, 2, 2, 3)
    assert found.stored == StoredSum(row_of_x=1, output=0, cycle=2, was=2, became=3)
    traced.check(found, fault)


def test_columns_without_an_output_do_not_count() -> None:
    config = ArrayConfig(1, 2)
    fault = Fault(0, 0, Site.ACTIVATION, 1, Kind.STUCK_AT_1)
    # The fault has something to multiply by in column 0, too.
    faults = FaultMap.from_faults(config, [fault, Fault(0, 0, Site.WEIGHT, 0, Kind.STUCK_AT_1)])
    placement = Placement(np.array([[0]]), np.array([[1]]))
    traced, found = traced_and_found(np.array([[4]]), np.array([[5]]), faults, fault, placement=placement)
    assert found is not None
    assert (found.cycle, found.was, found.became) == (1, 4, 6)
    assert found.stored == StoredSum(row_of_x=0, output=0, cycle=2, was=20, became=30)
    traced.check(found, fault)


def placed_anywhere(random: np.random.Generator, layers: nn.Module) -> None:
    """Operands of each layer at random positions, with gaps between them."""
    for layer in quantized_layers(layers).values():
        groups, k, n = layer.gemm_shape
        rows = np.stack([random.permutation(k + 3)[:k] for _ in range(groups)])
        columns = np.stack([random.permutation(n + 2)[:n] for _ in range(groups)])
        layer.placement = Placement(rows, columns)


def explanation(seed: int, rate: float, *, placed: bool = False, bypassing: float = 0.0) -> Explanation:
    """The trained tiny network on a random chip, with some PEs bypassed by fuses."""
    random = np.random.default_rng(seed)
    faults = sample_faults(ARRAY, FaultModel(rate), seed)
    quantised = convert(network(), ARRAY, TRAIN.images[:20])
    if placed:
        placed_anywhere(random, quantised)
    simulation = Simulation(
        network_name="tiny",
        data=HELD_OUT,
        batch=7,
        chips=[Chip("chip", faults, random.random((ARRAY.rows, ARRAY.cols)) < bypassing)],
        networks=one_network(quantised),
    )
    return Explanation(simulation, 10)


@pytest.mark.parametrize("placed", [False, True])
def test_bypass_costs_are_those_of_plain_runs_with_the_pe_in_use(seed: int, placed: bool) -> None:
    explained = explanation(seed, 0.3, placed=placed, bypassing=0.4)
    found = explained.bypass
    seen: list[int] = []
    found.measure(seen.append)
    assert not found.places or 0 < sum(seen) <= found.steps
    bypass = explained.subsets.bypass
    chip, labels = explained.simulation.chips[0], explained.simulation.data.labels[:10]

    def scores(*in_use: tuple[int, int]) -> Tensor:
        """On the cycle engine."""
        fewer = bypass.copy()
        for pe in in_use:
            fewer[pe] = False
        with torch.inference_mode():
            return put_on_chip(explained.subsets.network, Accelerator(ARRAY, chip.faults, fewer, engine="cycle"))(
                explained.simulation.data.images[:10]
            )

    on_chip = scores()
    costs = {(cost.row, cost.col): cost for cost in found.costs}
    assert list(costs) == found.places
    for pe in [(int(row), int(col)) for row, col in np.argwhere(bypass)]:
        in_use = scores(pe)
        if pe not in costs:
            assert torch.equal(in_use, on_chip)
            continue
        cost = costs[pe]
        assert cost.in_use.accuracy.correct == int((in_use.argmax(1) == labels).sum())
        assert len(cost.in_use.changed) == int((in_use.argmax(1) != on_chip.argmax(1)).sum())
        assert cost.reason == ("faults and fuses" if chip.faults.required_bypass()[pe] else "fuses")
        margins = [
            sum(
                float(row[label]) - max(float(score) for c, score in enumerate(row) if c != label)
                for row, label in rows
            )
            for rows in (list(zip(each, labels.tolist(), strict=True)) for each in (in_use, on_chip))
        ]
        assert cost.margin == pytest.approx((margins[0] - margins[1]) / 10)
    ranked = [(cost.gain, (cost.row, cost.col)) for cost in found.ranked]
    assert ranked == sorted(ranked, key=lambda each: each[0], reverse=True)
    worst = [pe for gain, pe in ranked if gain > (0, 0)]
    assert [release.pes for release in found.releases] == [
        count for count in (1, 2, 4, 8, 16) if count < len(worst)
    ] + [len(worst)] * bool(worst)
    for release in found.releases:
        assert release.in_use.accuracy.correct == int((scores(*worst[: release.pes]).argmax(1) == labels).sum())


def predictions(found: Explanation, table: npt.NDArray[np.void], images: Tensor) -> list[int]:
    """What the cycle engine predicts for a chip with these faults, plainly run."""
    chip = Accelerator(ARRAY, FaultMap(ARRAY, table), found.subsets.bypass, engine="cycle")
    return classify(put_on_chip(found.subsets.network, chip), images, 8).tolist()


@pytest.mark.parametrize("bypassing", [0.0, 0.3])
def test_leaving_out_is_a_plain_run_without_the_fault(seed: int, bypassing: float) -> None:
    found = explanation(seed, 0.3, bypassing=bypassing)
    seen: list[int] = []
    found.measure(seen.append)
    assert sum(seen) == found.steps
    chip = found.simulation.chips[0].faults
    images, labels = found.simulation.data.images[:10], found.simulation.data.labels[:10].tolist()
    on_chip, without = predictions(found, chip.table, images), predictions(found, chip.table[:0], images)
    assert found.on_chip is not None
    assert found.without_faults is not None
    assert found.on_chip.accuracy.correct == sum(map(int.__eq__, on_chip, labels))
    assert found.without_faults.accuracy.correct == sum(map(int.__eq__, without, labels))
    assert [cost.index for cost in found.costs] == list(found.subsets.acting)
    costs = {cost.index: cost for cost in found.costs}
    for index in range(len(chip)):
        left_out = predictions(found, np.delete(chip.table, index), images)
        alone = predictions(found, chip.table[[index]], images)
        if index not in costs:
            assert (left_out, alone) == (on_chip, without)
            continue
        for comparison, mine, other in (
            (costs[index].left_out, left_out, on_chip),
            (costs[index].alone, alone, without),
        ):
            assert comparison.accuracy.correct == sum(map(int.__eq__, mine, labels))
            assert [(each.image, each.reference, each.found) for each in comparison.changed] == [
                (image, *pair) for image, pair in enumerate(zip(other, mine, strict=True)) if pair[0] != pair[1]
            ]
            gain = sum(map(int.__eq__, mine, labels)) - sum(map(int.__eq__, other, labels))
            assert comparison.gained - comparison.lost == gain
    gains = [cost.left_out.gained - cost.left_out.lost for cost in found.ranked]
    assert gains == sorted(gains, reverse=True)


def observed(found: Explanation, table: npt.NDArray[np.void], image: Tensor) -> list[GemmRun]:
    """The GEMMs of one image on the cycle engine."""
    chip = Accelerator(ARRAY, FaultMap(ARRAY, table), found.subsets.bypass, engine="cycle")
    runs: list[GemmRun] = []
    put_on_chip(found.subsets.network, chip)
    with observing(found.subsets.network, runs.append), torch.inference_mode():
        found.subsets.network(image)
    return runs


@pytest.mark.parametrize("placed", [False, True])
def test_images_are_explained_by_minimal_sets(seed: int, placed: bool) -> None:
    found = explanation(seed, 0.5, placed=placed, bypassing=0.15)
    table = found.simulation.chips[0].faults.table
    explained = 0
    for image in range(len(found.simulation.data.images)):
        one = found.simulation.data.images[image : image + 1]
        (on_chip,) = predictions(found, table, one)
        counts: list[int] = []
        result = found.explain(image, counts.append)
        assert counts == [1] * result.runs
        assert result.on_chip == on_chip
        if result.cause != "faults":
            assert result.on_chip == (result.fault_free if result.cause == "none" else result.without_faults)
            assert (result.faults, result.actions, result.travel) == ((), (), None)
            continue
        kept = table[list(result.faults)]
        assert predictions(found, kept, one) == [on_chip]
        for place_in_set, action in enumerate(result.actions):
            assert action.index == result.faults[place_in_set]
            fewer = np.delete(kept, place_in_set)
            (without,) = predictions(found, fewer, one)
            assert without != on_chip
            assert (action.travel.before, action.travel.after) == (without, on_chip)
            check_action(found, result.faults, place_in_set, image)
        explained += 1
        if explained == 2:
            break
    assert found.explained[-1].image == image


def check_action(found: Explanation, faults: tuple[int, ...], place_in_set: int, image: int) -> None:
    """What one fault of a set does, against runs of the cycle engine."""
    action = found.explained[-1].actions[place_in_set]
    table = found.simulation.chips[0].faults.table[list(faults)]
    others, kept = FaultMap(ARRAY, np.delete(table, place_in_set)), FaultMap(ARRAY, table)
    one = found.simulation.data.images[image : image + 1]
    before, after = (observed(found, some.table, one) for some in (others, kept))
    errors = [(b.outputs.long() - a.outputs.long()).abs() for a, b in zip(before, after, strict=True)]
    by_layer: dict[str, int] = {}
    for run, error in zip(before, errors, strict=True):
        by_layer[run.layer] = by_layer.get(run.layer, 0) + int(error.count_nonzero())
    assert {layer.layer: layer.changed for layer in action.travel.layers} == by_layer
    assert max(layer.largest_error for layer in action.travel.layers) == max(int(error.max()) for error in errors)
    number = next(number for number, error in enumerate(errors) if error.any())
    run, first = before[number], action.first
    assert first is not None
    assert (first.layer, first.group) == (run.layer, run.group)
    assert list(by_layer)[first.position] == run.layer
    x, w = (operand.numpy().astype(np.int64) for operand in run.on_array())
    positions = np.arange(w.shape[1]) if run.placement is None else run.placement.columns[run.group]
    taken = {position: output for output, position in enumerate(positions.tolist())}
    bypass = found.subsets.bypass
    TracedGemm(x, w, others, kept, bypass, taken).check(first, list(kept)[place_in_set])


def test_what_cannot_act_is_known(seed: int) -> None:
    found = explanation(seed, 0.6, bypassing=0.5)
    subsets, one = found.subsets, found.simulation.data.images[:1]
    everything = subsets.infer(range(len(subsets.faults)), one)
    acting = subsets.infer(subsets.acting, one)
    for some, other in zip(everything.layers, acting.layers, strict=True):
        assert (some.outputs == other.outputs).all()
    for fault, why in zip(subsets.faults, subsets.hidden, strict=True):
        if why == "bypassed":
            assert subsets.bypass[fault.row, fault.col]
        if fault.site is Site.ACCUMULATOR:
            assert why is None


def test_columns_without_outputs_hide_what_is_in_them() -> None:
    linear = nn.Sequential(nn.Linear(3, 2))
    quantised = convert(linear, ARRAY, torch.ones(1, 3))
    faults = [
        Fault(1, 3, Site.PSUM, 4, Kind.STUCK_AT_1),
        Fault(1, 1, Site.ACTIVATION, 4, Kind.STUCK_AT_1),
        Fault(1, 2, Site.ACTIVATION, 4, Kind.STUCK_AT_1),
        Fault(0, 2, Site.ACCUMULATOR, 4, Kind.STUCK_AT_1),
    ]
    subsets = FaultSubsets(quantised, Accelerator(ARRAY, FaultMap.from_faults(ARRAY, faults)))
    hidden = dict(zip(subsets.faults, subsets.hidden, strict=True))
    assert [hidden[fault] for fault in faults] == ["unused column", None, "unused column", "unused column"]
    (layer,) = quantized_layers(quantised).values()
    layer.placement = Placement(np.arange(3)[None], np.array([[2, 0]]))
    placed = FaultSubsets(quantised, Accelerator(ARRAY, FaultMap.from_faults(ARRAY, faults)))
    hidden = dict(zip(placed.faults, placed.hidden, strict=True))
    assert [hidden[fault] for fault in faults] == ["unused column", None, None, None]


class Branching(nn.Module):
    """Runs one layer more where the first one gives much."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        found: Tensor = self.first(x)
        return self.second(found) if bool(found.max() > 1e3) else found


def test_layers_that_do_not_always_run_are_not_compared() -> None:
    model = Branching()
    # Where a sum is negative the bit is 1 already.
    nn.init.ones_(model.first.weight)
    nn.init.zeros_(model.first.bias)
    scales = {"first": 1.0, "second": 1.0}
    quantised = convert(model, ARRAY, (), activation_scales=scales)
    broken = FaultMap.from_faults(ARRAY, [Fault(4, 0, Site.PSUM, 29, Kind.STUCK_AT_1)])
    subsets = FaultSubsets(quantised, Accelerator(ARRAY, broken))
    image = torch.ones(1, 3)
    with pytest.raises(InputError, match="always runs the same"):
        error_propagation(subsets.infer((), image), subsets.infer((0,), image))


def test_the_bypass_may_be_the_cause(seed: int) -> None:
    chip = replace(faulty_chip(seed), bypass=np.ones((ARRAY.rows, ARRAY.cols), np.bool_))
    found = Explanation(replace(explanation(seed, 0.0).simulation, chips=[chip]))
    assert (found.subsets.acting, found.subsets.bypassed_pes) == ((), ARRAY.pe_count)
    results = [found.explain(image) for image in range(30)]
    # Without any PE the biases decide.
    assert len({result.on_chip for result in results}) == 1
    assert {result.cause for result in results} == {"none", "bypass"}
    for result in results:
        assert result.without_faults == result.on_chip
        assert (result.cause == "none") == (result.fault_free == result.on_chip)


def test_requests_that_cannot_be_met_are_refused(seed: int) -> None:
    found = explanation(seed, 0.2)
    for image in (-1, 30):
        with pytest.raises(InputError, match=rf"image {image}: expected 0\.\.29"):
            found.explain(image)
    for images in (0, 31):
        with pytest.raises(InputError, match=rf"images is {images}: expected 1\.\.30"):
            Explanation(found.simulation, images)

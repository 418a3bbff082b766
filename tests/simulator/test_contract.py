"""The contract: every implementation of the array gives what the oracle gives, bit for bit.

An implementation is a function with the signature of `simulate_gemm` that returns the outputs; add one to
`IMPLEMENTATIONS` and everything here runs on it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simulator import (
    ArrayConfig,
    Fault,
    FaultMap,
    FaultModel,
    InputError,
    Kind,
    Site,
    gemm_timing,
    sample_faults,
    simulate_gemm,
)
from simulator.bits import wrap
from simulator.rtl import rtl_gemm, unavailable
from tests.support.oracle import gate_product, oracle_gemm
from tests.support.strategies import Configs, GemmCase, configs, gemm_cases, pooled_configs
from training import faulty_gemm

PERMANENT = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)


@dataclass(frozen=True)
class Implementation:
    """A way to multiply on the array.

    Attributes:
        outputs: takes what `simulate_gemm` takes, returns the outputs.
        slowness: how many times fewer and smaller cases it gets; one that is slow gets few different arrays.
    """

    outputs: Callable[..., npt.NDArray[np.int32]]
    slowness: int = 1

    def __call__(self, *arguments: object, **named: object) -> npt.NDArray[np.int32]:
        """The outputs."""
        return self.outputs(*arguments, **named)

    def smaller(self, size: int) -> int:
        """A size that takes it about as long as the others take for this one."""
        return max(1, size // self.slowness)


def cycle_engine(*arguments: object, **named: object) -> npt.NDArray[np.int32]:
    return simulate_gemm(*arguments, **named).outputs  # type: ignore[arg-type]


def emulation(x: npt.ArrayLike, w: npt.ArrayLike, *arguments: object, **named: object) -> npt.NDArray[np.int32]:
    return faulty_gemm(torch.as_tensor(x), torch.as_tensor(w), *arguments, **named).numpy()  # type: ignore[arg-type]


def rtl(*arguments: object, **named: object) -> npt.NDArray[np.int32]:
    return rtl_gemm(*arguments, **named).outputs  # type: ignore[arg-type]


without_rtl = unavailable()
IMPLEMENTATIONS = [
    pytest.param(Implementation(cycle_engine), id="cycle"),
    pytest.param(Implementation(emulation), id="emulation"),
    pytest.param(
        Implementation(rtl, slowness=10),
        id="rtl",
        marks=[pytest.mark.integration, pytest.mark.skipif(without_rtl is not None, reason=without_rtl or "")],
    ),
]

every_implementation = pytest.mark.parametrize("gemm", IMPLEMENTATIONS)


def on_random_cases(examples: int, **drawn: Callable[[Configs], st.SearchStrategy[object]]) -> Callable[..., object]:
    """Run a test on every implementation, again and again with what is drawn for it.

    Args:
        examples: how often, on an implementation that is not slow.
        drawn: strategies of the test's arguments, made from the strategy of the arrays.
    """

    def decorate(test: Callable[..., None]) -> object:
        def run(gemm: Implementation, pytestconfig: pytest.Config, **others: object) -> None:
            arrays = configs if gemm.slowness == 1 else pooled_configs(int(pytestconfig.option.hypothesis_seed))

            @settings(max_examples=gemm.smaller(examples))
            @given(**{name: strategy(arrays) for name, strategy in drawn.items()})
            def check(**values: object) -> None:
                test(gemm=gemm, **others, **values)

            check()

        wanted = inspect.signature(test).parameters
        given_by_pytest = [parameter for name, parameter in wanted.items() if name not in drawn]
        config = inspect.signature(run).parameters["pytestconfig"]
        run.__signature__ = inspect.Signature([*given_by_pytest, config])  # type: ignore[attr-defined]
        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        return every_implementation(run)

    return decorate


@on_random_cases(360, case=lambda arrays: gemm_cases(arrays=arrays))
def test_outputs_are_those_of_the_oracle(gemm: Implementation, case: GemmCase) -> None:
    outputs = gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass)
    expected = oracle_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass)
    assert outputs.dtype == np.int32
    assert outputs.shape == expected.outputs.shape
    assert outputs.tolist() == expected.outputs.tolist()


@pytest.mark.parametrize("site", Site)
@pytest.mark.parametrize("kind", Kind)
@on_random_cases(
    24,
    case=lambda arrays: gemm_cases(kinds=(), bypassing=False, least_rows_of_x=1, arrays=arrays),
    data=lambda _: st.data(),
)
def test_each_site_and_kind_by_itself(
    gemm: Implementation, site: Site, kind: Kind, case: GemmCase, data: st.DataObject
) -> None:
    config = case.config
    cycles = gemm_timing(config, len(case.x), *case.w.shape).serial
    fault = Fault(
        row=0 if site == Site.ACCUMULATOR else data.draw(st.integers(0, config.rows - 1)),
        col=data.draw(st.integers(0, config.cols - 1)),
        site=site,
        bit=data.draw(st.integers(0, site.bits(config) - 1)),
        kind=kind,
        cycle=data.draw(st.integers(0, cycles - 1)) if kind == Kind.FLIP else None,
    )
    faults = FaultMap.from_faults(config, [fault])
    outputs = gemm(case.x, case.w, config, faults)
    assert outputs.tolist() == oracle_gemm(case.x, case.w, config, faults).outputs.tolist()


@every_implementation
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (64, 64), (130, 70)])
def test_fault_free_arrays_multiply(gemm: Implementation, size: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, cols = (gemm.smaller(side) for side in size)
    for acc_bits in (16, 23, 32):
        config = ArrayConfig(rows, cols, acc_bits=acc_bits)
        # Up to five folds each way: 300 by 300 weights on one PE would be 90,000 folds.
        m, k, n = random.integers(1, (gemm.smaller(300), 4 * config.rows + 2, 4 * config.cols + 2))
        x, w = random.integers(-128, 128, (m, k)), random.integers(-128, 128, (k, n))
        assert np.array_equal(gemm(x, w, config), wrap(x @ w, acc_bits))


@every_implementation
def test_long_streams_cross_the_engine_s_blocks(gemm: Implementation, seed: int) -> None:
    # 2,500 rows of X: fault-free columns stay exact, and rows far apart see the same permanent faults.
    random = np.random.default_rng(seed)
    config = ArrayConfig(5, 7, acc_bits=24) if gemm.slowness == 1 else ArrayConfig(2, 3, acc_bits=24)
    repeats = gemm.smaller(50)
    x, w = random.integers(-128, 128, (50, 9)), random.integers(-128, 128, (9, 12))
    faults = sample_faults(config, FaultModel(0.4, sites=dict.fromkeys(Site, 1.0)), seed)
    expected = oracle_gemm(x, w, config, faults).outputs
    assert np.array_equal(gemm(np.tile(x, (repeats, 1)), w, config, faults), np.tile(expected, (repeats, 1)))


@on_random_cases(8, seed=lambda _: st.integers(0, 2**32 - 1))
def test_flips_late_in_a_long_fold(gemm: Implementation, seed: int) -> None:
    random = np.random.default_rng(seed)
    config = ArrayConfig(2, 2)
    m = gemm.smaller(1100)
    x, w = random.integers(-128, 128, (m, 3)), random.integers(-128, 128, (3, 2))
    cycles = gemm_timing(config, m, 3, 2).serial
    flips = [
        Fault(
            0 if site == Site.ACCUMULATOR else int(random.integers(2)),
            int(random.integers(2)),
            site,
            int(random.integers(8)),
            Kind.FLIP,
            int(random.integers(cycles)),
        )
        for site in Site
    ]
    faults = FaultMap.from_faults(config, flips)
    assert np.array_equal(gemm(x, w, config, faults), oracle_gemm(x, w, config, faults).outputs)


@on_random_cases(90, case=lambda arrays: gemm_cases(kinds=PERMANENT, bypassing=False, tables=False, arrays=arrays))
def test_required_bypass_leaves_exact_sums(gemm: Implementation, case: GemmCase) -> None:
    config = case.config
    table = case.faults.table
    faults = FaultMap(config, table[table["site"] != Site.ACCUMULATOR])
    bypass = faults.required_bypass()
    outputs = gemm(case.x, case.w, config, faults, bypass=bypass)
    k, n = case.w.shape
    used = ~bypass[np.arange(k)[:, None] % config.rows, np.arange(n) % config.cols]
    assert np.array_equal(outputs, wrap(case.x @ np.where(used, case.w, 0), config.acc_bits))


@on_random_cases(
    60,
    case=lambda arrays: gemm_cases(kinds=(), bypassing=False, tables=False, arrays=arrays),
    data=lambda _: st.data(),
)
def test_required_bypass_is_the_smallest(gemm: Implementation, case: GemmCase, data: st.DataObject) -> None:
    """One fault; let one PE of the mask back in, and some operands come out wrong."""
    config = case.config
    site = data.draw(st.sampled_from([site for site in Site if site != Site.ACCUMULATOR]))
    kind = data.draw(st.sampled_from(PERMANENT))
    row, col = data.draw(st.integers(0, config.rows - 1)), data.draw(st.integers(0, config.cols - 1))
    bit = data.draw(st.integers(0, site.bits(config) - 1))
    faults = FaultMap.from_faults(config, [Fault(row, col, site, bit, kind)])
    bypass = faults.required_bypass()
    r, c = data.draw(st.sampled_from(np.argwhere(bypass).tolist()))
    bypass[r, c] = False
    # All pairs of one activation and one weight on the PE let back in show every value its nets can have.
    acts, weights = np.arange(config.act_range[0], config.act_range[1] + 1), [*config.weight_range, 0, 1, -1]
    if site == Site.MULTIPLIER:
        # A gate's fault may show with few weights, or with none.
        weights = list(range(config.weight_range[0], config.weight_range[1] + 1))
        assume(not unnoticed(config, bit, kind))
    x = np.zeros((len(acts), config.rows), np.int64)
    x[:, r] = acts
    for weight in weights:
        w = np.zeros((config.rows, config.cols), np.int64)
        w[r, c] = weight
        exact = wrap(x @ w, config.acc_bits)
        if not np.array_equal(gemm(x, w, config, faults, bypass=bypass), exact):
            return
    pytest.fail(f"PE ({r}, {c}) need not be bypassed for {next(iter(faults))}")


def unnoticed(config: ArrayConfig, location: int, kind: Kind) -> bool:
    """Whether a stuck gate changes no product at all."""
    netlist = config.pe_multiplier.netlist
    assert netlist is not None

    stuck = int(kind == Kind.STUCK_AT_1)
    drive = {location: (stuck, stuck)}
    weights, acts = (range(low, high + 1) for low, high in (config.weight_range, config.act_range))
    return all(gate_product(netlist, w, a, drive) == w * a for w in weights for a in acts)


@on_random_cases(
    180,
    case=lambda arrays: gemm_cases(kinds=PERMANENT, arrays=arrays),
    flip_seed=lambda _: st.integers(0, 2**32 - 1),
)
def test_a_stuck_bit_ignores_flips(gemm: Implementation, case: GemmCase, flip_seed: int) -> None:
    cycles = gemm_timing(case.config, len(case.x), *case.w.shape).serial
    random = np.random.default_rng(flip_seed)
    flips = [
        Fault(fault.row, fault.col, fault.site, fault.bit, Kind.FLIP, int(random.integers(cycles)))
        for fault in case.faults
        if cycles
    ]
    both = FaultMap.from_faults(case.config, [*case.faults, *flips])
    assert np.array_equal(
        gemm(case.x, case.w, case.config, both, bypass=case.bypass),
        gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass),
    )


@every_implementation
def test_a_repeated_flip_is_one_flip(gemm: Implementation) -> None:
    config = ArrayConfig(1, 1)
    flip = Fault(0, 0, Site.PRODUCT, 3, Kind.FLIP, cycle=1)
    once = gemm([[1]], [[1]], config, FaultMap.from_faults(config, [flip]))
    assert once.tolist() == [[1 + 8]]
    assert gemm([[1]], [[1]], config, FaultMap.from_faults(config, [flip, flip])).tolist() == once.tolist()


@every_implementation
def test_empty_input_gives_empty_output(gemm: Implementation) -> None:
    config = ArrayConfig(4, 4)
    assert gemm(np.zeros((0, 3), int), np.ones((3, 5), int), config).shape == (0, 5)


@every_implementation
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": [[0.5]]}, InputError, "x holds .*float.*: expected integers"),
        ({"w": [[True]]}, InputError, "w holds .*bool: expected integers"),
        ({"x": [[300]]}, ValueError, "x holds 300: expected -128..127"),
        ({"w": [[-129]]}, ValueError, "w holds -129: expected -128..127"),
        ({"x": [1]}, ValueError, "expected two dimensions"),
        ({"x": [[1, 2]]}, ValueError, "with the same K"),
        ({"w": np.zeros((1, 0), int)}, ValueError, "N >= 1"),
        ({"x": np.zeros((2, 0), int), "w": np.zeros((0, 2), int)}, ValueError, "K >= 1"),
        ({"faults": FaultMap(ArrayConfig(2, 3))}, ValueError, "faults are of another array"),
        ({"bypass": np.zeros((3, 3), bool)}, ValueError, "expected \\(2, 2\\)"),
        ({"bypass": np.zeros((2, 2), int)}, InputError, "bypass holds int64: expected bool"),
        (
            {"faults": FaultMap.from_faults(ArrayConfig(2, 2), [Fault(0, 0, Site.PSUM, 0, Kind.FLIP, cycle=5)])},
            ValueError,
            "cycle 5, outside this GEMM of 5 cycles",
        ),
    ],
)
def test_bad_input_is_refused(
    gemm: Implementation, change: dict[str, object], kind: type[Exception], message: str
) -> None:
    arguments = {"x": [[1]], "w": [[1]], "config": ArrayConfig(2, 2), "faults": None, "bypass": None, **change}
    with pytest.raises(kind, match=message):
        gemm(**arguments)

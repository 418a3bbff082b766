"""GEMMs of every engine against Python integers and the simulator."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, Fault, FaultMap, InputError, Kind, Site, simulate_gemm
from simulator.multipliers.multiplier import Multiplier, exact_products
from training.layers.accelerator import Accelerator, Engine

CONFIG = ArrayConfig(4, 3)
STUCK = FaultMap.from_faults(CONFIG, [Fault(0, 0, Site.PSUM, 5, Kind.STUCK_AT_1)])


@st.composite
def gemms(draw):
    weight_bits, act_bits = draw(st.integers(2, 8)), draw(st.integers(2, 8))
    config = ArrayConfig(
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
        weight_bits=weight_bits,
        act_bits=act_bits,
        act_signed=draw(st.booleans()),
        acc_bits=draw(st.integers(weight_bits + act_bits, 32)),
    )
    m, k, n = draw(st.integers(0, 8)), draw(st.integers(1, 40)), draw(st.integers(1, 9))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = generator.integers(*config.act_range, (m, k), endpoint=True)
    w = generator.integers(*config.weight_range, (k, n), endpoint=True)
    return config, x, w


def exact_product(config, x, w):
    modulus = 1 << config.acc_bits
    return (x.astype(object) @ w.astype(object) + modulus // 2) % modulus - modulus // 2


@settings(deadline=None)
@given(gemms())
def test_exact_is_the_product_of_integers_wrapped(gemm):
    config, x, w = gemm
    found = Accelerator(config, engine="exact").gemm(torch.from_numpy(x), torch.from_numpy(w))
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), exact_product(config, x, w).astype(np.int64))


@pytest.mark.parametrize("k", [1024, 1025, 2047, 8191, 20_001])
def test_exact_is_exact_at_the_largest_sums(k):
    config = ArrayConfig(4, 4)
    x, w = torch.full((3, k), -128), torch.full((k, 2), -128)
    x[1], w[:, 1] = 127, 127
    found = Accelerator(config, engine="exact").gemm(x.to(torch.int8), w.to(torch.int8))
    assert found.tolist() == [[k << 14, -k * 128 * 127], [-k * 128 * 127, k * 127 * 127], [k << 14, -k * 128 * 127]]


def test_exact_is_the_same_in_many_blocks_of_rows():
    x = torch.randint(-128, 128, (9000, 600), dtype=torch.int8)
    w = torch.randint(-128, 128, (600, 3), dtype=torch.int8)
    found = Accelerator(CONFIG, engine="exact").gemm(x, w)
    assert torch.equal(found, (x.long() @ w.long()).int())


@settings(deadline=None, max_examples=30)
@given(gemms())
def test_cycle_without_faults_is_exact(gemm):
    config, x, w = gemm
    operands = torch.from_numpy(x), torch.from_numpy(w)
    found = Accelerator(config, engine="cycle").gemm(*operands)
    assert found.dtype == torch.int32
    assert torch.equal(found, Accelerator(config, engine="exact").gemm(*operands))


@pytest.mark.parametrize("engine", ["cycle", "emulation"])
def test_engines_get_faults_and_bypass(engine):
    x, w = torch.randint(-128, 128, (5, 7)), torch.randint(-128, 128, (7, 5))
    bypass = np.zeros((4, 3), np.bool_)
    bypass[1, 1] = True
    found = Accelerator(CONFIG, STUCK, bypass, engine).gemm(x, w)
    expected = simulate_gemm(x.numpy(), w.numpy(), CONFIG, STUCK, bypass=bypass).outputs
    assert np.array_equal(found.numpy(), expected)
    assert torch.equal(found, Accelerator(CONFIG, STUCK, bypass, engine, threads=1).gemm(x, w))


@pytest.mark.parametrize("engine", get_args(Engine))
@pytest.mark.parametrize(
    ("x", "w", "error", "message"),
    [
        (
            torch.zeros(2, 3),
            torch.zeros(3, 2, dtype=torch.int8),
            InputError,
            "x holds torch.float32: expected integers",
        ),
        (torch.zeros(2, 3).int(), torch.zeros(3, 2).bool(), InputError, "w holds torch.bool: expected integers"),
        (torch.zeros(2, 3).int(), torch.zeros(4, 2).int(), ValueError, r"\[2, 3\] by \[4, 2\]: expected"),
        (torch.zeros(2, 0).int(), torch.zeros(0, 2).int(), ValueError, "K >= 1"),
        (torch.zeros(2, 3).int(), torch.zeros(3, 0).int(), ValueError, "N >= 1"),
        (torch.zeros(6).int(), torch.zeros(6, 1).int(), ValueError, r"expected \[M, K\]"),
        (torch.full((1, 1), 128), torch.zeros(1, 1).int(), ValueError, "x holds 128: expected"),
        (torch.zeros(1, 1).int(), torch.full((1, 1), -129), ValueError, r"w holds .*: expected -128..127"),
    ],
)
def test_operands_that_no_array_takes(engine, x, w, error, message):
    with pytest.raises(error, match=message):
        Accelerator(CONFIG, engine=engine).gemm(x, w)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"engine": "magic"}, ValueError, "'magic' is unknown: choose one of emulation, cycle, exact"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"faults": FaultMap(ArrayConfig(8, 8))}, ValueError, "of another array"),
        ({"bypass": np.zeros((3, 4), np.bool_)}, ValueError, r"\(3, 4\): expected \(4, 3\)"),
        ({"bypass": np.zeros((4, 3), np.int8)}, InputError, "bypass holds int8: expected bool"),
        ({"engine": "exact", "faults": STUCK}, ValueError, "without faults and bypass"),
        ({"engine": "exact", "bypass": np.ones((4, 3), np.bool_)}, ValueError, "without faults and bypass"),
    ],
)
def test_accelerators_that_make_no_sense(arguments, error, message):
    with pytest.raises(error, match=message):
        Accelerator(CONFIG, **arguments)


def test_multipliers_that_are_not_exact_are_emulated():
    table = exact_products(8, 8) & np.int16(~1)
    config = ArrayConfig(4, 3, multiplier=Multiplier.from_tables("even", table, []))
    random = np.random.default_rng(1)
    x, w = random.integers(-128, 128, (9, 10)), random.integers(-128, 128, (10, 7))
    expected = ((x[:, :, None] * w) // 2 * 2).sum(axis=1)
    for accelerator in (Accelerator.fault_free(config), Accelerator(config, engine="cycle")):
        assert accelerator.gemm(torch.from_numpy(x), torch.from_numpy(w)).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="'exact' is for exact multipliers, and this array has even "):
        Accelerator(config, engine="exact")
    assert Accelerator.fault_free(CONFIG).engine == "exact"


def test_a_bypass_cannot_be_changed_from_outside():
    bypass = np.zeros((4, 3), np.bool_)
    accelerator = Accelerator(CONFIG, bypass=bypass)
    bypass[:] = True
    assert not accelerator.bypass.any()

"""The emulation beyond the contract suite: large sizes, threads, memory layouts, devices, the slow loop."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import training.emulation.intrinsics
from simulator import ArrayConfig, Fault, FaultMap, FaultModel, InputError, Kind, Site, sample_faults, simulate_gemm
from tests.support.strategies import GemmCase, gemm_cases
from training import faulty_gemm, lower, run
from training.emulation.tensors import run_on_tensors

PERMANENT = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)
ALL_SITES = dict.fromkeys(Site, 1.0)


def random_gemm(seed: int, config: ArrayConfig, m: int, k: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    x = random.integers(*config.act_range, (m, k), endpoint=True)
    w = random.integers(*config.weight_range, (k, n), endpoint=True)
    return torch.from_numpy(x), torch.from_numpy(w)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("acc_bits", [16, 27, 32])
@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_large_arrays_are_the_simulator_s(signed: bool, acc_bits: int, rate: float, seed: int) -> None:
    config = ArrayConfig(64, 48, act_signed=signed, acc_bits=acc_bits)
    x, w = random_gemm(seed, config, 333, 150, 131)
    faults = sample_faults(config, FaultModel(rate, sites=ALL_SITES), seed)
    bypass = np.random.default_rng(seed).random((64, 48)) < 0.02
    expected = simulate_gemm(x, w, config, faults, bypass=bypass).outputs
    assert np.array_equal(faulty_gemm(x, w, config, faults, bypass=bypass).numpy(), expected)
    assert np.array_equal(run_on_tensors(lower(w, config, faults, bypass=bypass), x).numpy(), expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_do_not_change_outputs(threads: int, seed: int) -> None:
    config = ArrayConfig(32, 32)
    x, w = random_gemm(seed, config, 5001, 70, 65)
    faults = sample_faults(config, FaultModel(0.05, sites=ALL_SITES), seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = faulty_gemm(x, w, config, faults)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(faulty_gemm(x, w, config, faults), expected)
    finally:
        torch.set_num_threads(before)


def test_many_callers_at_once(seed: int) -> None:
    config = ArrayConfig(16, 16)
    x, w = random_gemm(seed, config, 4000, 64, 64)
    program = lower(w, config, sample_faults(config, FaultModel(0.05), seed))
    expected = run(program, x)
    found: list[torch.Tensor] = []
    callers = [threading.Thread(target=lambda: found.append(run(program, x))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4
    assert all(torch.equal(outputs, expected) for outputs in found)


@pytest.mark.parametrize("k", range(15, 36))
def test_rows_without_weights_get_activation_0(k: int, seed: int) -> None:
    """Activations are gathered sixteen at a time; none beyond K reaches a PE whose stuck bits make it a weight."""
    config = ArrayConfig(40, 3)
    x, w = random_gemm(seed, config, 20, k, 3)
    faults = FaultMap.from_faults(
        config,
        [
            Fault(row, col, site, 6, Kind.STUCK_AT_1)
            for row in range(k, 40)
            for col in range(3)
            for site in (Site.WEIGHT, Site.PSUM if col else Site.PRODUCT)
        ],
    )
    expected = simulate_gemm(x, w, config, faults).outputs
    assert run(lower(w, config, faults), x).tolist() == expected.tolist()


@pytest.mark.parametrize("site", [Site.WEIGHT, Site.WEIGHT_LOAD, Site.ACTIVATION])
@pytest.mark.parametrize("cycle", range(12))
def test_an_upset_ends_at_a_stuck_bit(site: Site, cycle: int, seed: int) -> None:
    config = ArrayConfig(3, 4)
    x, w = random_gemm(seed, config, 5, 3, 4)
    for stuck in (Site.WEIGHT, Site.WEIGHT_LOAD, Site.ACTIVATION):
        faults = FaultMap.from_faults(
            config,
            [Fault(1, 1, site, 3, Kind.FLIP, cycle), Fault(1, 2, stuck, 3, Kind.STUCK_AT_0)]
            + [Fault(row, 1, stuck, 3, Kind.STUCK_AT_1) for row in (1, 2)],
        )
        expected = simulate_gemm(x, w, config, faults).outputs
        assert run(lower(w, config, faults), x).tolist() == expected.tolist()


FORKS = """
import os, sys
import numpy as np, torch
from simulator import ArrayConfig
from training import lower, run

torch.set_num_threads(2)
x = torch.from_numpy(np.ones((6000, 64), np.int8))
program = lower(np.full((64, 64), 3), ArrayConfig(16, 16))
assert (run(program, x).numpy() == 192).all()
child = os.fork()
if child == 0:
    os._exit(0 if (run(program, x).numpy() == 192).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=120)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type_and_memory_layout(dtype: torch.dtype, seed: int) -> None:
    config = ArrayConfig(5, 6)
    x, w = random_gemm(seed, config, 9, 12, 7)
    expected = simulate_gemm(x, w, config).outputs
    wide = torch.zeros(18, 24, dtype=dtype)
    wide[::2, ::2] = x
    for view in (x.to(dtype), x.to(dtype).t().contiguous().t(), wide[::2, ::2]):
        found = faulty_gemm(view, w.to(dtype).t().contiguous().t(), config)
        assert found.dtype == torch.int32
        assert np.array_equal(found.numpy(), expected)


@settings(max_examples=300)
@given(case=gemm_cases(kinds=PERMANENT))
def test_tensor_operations_give_the_same(case: GemmCase) -> None:
    program = lower(case.w, case.config, case.faults, bypass=case.bypass)
    expected = simulate_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass).outputs
    found = run_on_tensors(program, torch.from_numpy(case.x))
    assert found.dtype == torch.int32
    assert found.tolist() == expected.tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@settings(max_examples=200)
@given(case=gemm_cases())
def test_cuda_gives_the_same(case: GemmCase) -> None:
    expected = simulate_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass).outputs
    x, w = torch.from_numpy(case.x).cuda(), torch.from_numpy(case.w).cuda()
    found = faulty_gemm(x, w, case.config, case.faults, bypass=case.bypass)
    assert found.device == x.device
    assert found.cpu().tolist() == expected.tolist()


@given(
    pairs=st.integers(0, 40),
    begin=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
    with_instruction=st.booleans(),
)
@settings(max_examples=60)
def test_pairs_of_products_are_summed_modulo_2_to_the_32(
    kernels: dict[bool, object], pairs: int, begin: int, seed: int, with_instruction: bool
) -> None:
    """Both forms of the loop: with the processor's instruction, if it has one, and with multiplications."""
    random = np.random.default_rng(seed)
    lanes = training.emulation.intrinsics.LANES
    x = random.integers(-(2**15), 2**15, (pairs, lanes, 2)).astype(np.int16)
    w = random.integers(-(2**15), 2**15, (pairs, 2)).astype(np.int16)
    # The one sum of two products that 32 bits do not hold; operands of 8 bits cannot come near.
    x[x == -(2**15)] = 0
    sums = random.integers(-(2**31), 2**31, (2, lanes)).astype(np.int32)
    begin = min(begin, pairs)
    expected = sums.astype(np.int64)
    expected[1] += (x[begin:].astype(np.int64) * w[begin:, None]).sum((0, 2))
    kernels[with_instruction](x.view(np.int32).reshape(pairs, lanes), begin, w.view(np.int32).reshape(pairs), sums)
    assert np.array_equal(sums, expected.astype(np.int32))


@pytest.fixture(scope="module")
def kernels() -> dict[bool, object]:
    """The loop compiled in both forms."""
    from numba import njit

    def compiled(*, instruction: bool) -> object:
        add_dot = training.emulation.intrinsics.add_dot

        @njit
        def kernel(words, begin, weights, sums):
            add_dot(words, begin, len(weights) - begin, weights, begin, sums, 1)

        with pytest.MonkeyPatch.context() as patch:
            if not instruction:
                patch.setattr(training.emulation.intrinsics, "has_pair_instruction", lambda _context: False)
            empty = np.zeros((0, training.emulation.intrinsics.LANES), np.int32)
            kernel(empty, 0, np.zeros(0, np.int32), np.zeros((2, training.emulation.intrinsics.LANES), np.int32))
        return kernel

    return {True: compiled(instruction=True), False: compiled(instruction=False)}


def test_a_program_runs_on_its_own_shape_only() -> None:
    program = lower(np.ones((3, 2), int), ArrayConfig(4, 4))
    with pytest.raises(ValueError, match=r"x is \(2, 4\): expected \[M, 3\]"):
        run(program, torch.ones(2, 4, dtype=torch.int8))
    with pytest.raises(InputError, match=r"x holds torch.float32: expected integers"):
        run(program, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"x holds -129: expected -128..127"):
        run(program, torch.full((2, 3), -129))


def test_operands_are_on_one_device() -> None:
    x = torch.ones(2, 3, dtype=torch.int8)
    with pytest.raises(ValueError, match="x is on cpu and w is on meta: expected both on the same device"):
        faulty_gemm(x, torch.ones(3, 2, dtype=torch.int8, device="meta"), ArrayConfig(4, 4))


def test_one_program_runs_on_any_number_of_rows(seed: int) -> None:
    config = ArrayConfig(6, 5)
    x, w = random_gemm(seed, config, 100, 14, 9)
    program = lower(w, config, sample_faults(config, FaultModel(0.3, sites=ALL_SITES), seed))
    whole = run(program, x)
    for rows in (0, 1, 31, 32, 33, 64, 100):
        assert torch.equal(run(program, x[:rows]), whole[:rows])


def test_no_faults_is_no_fault_map(seed: int) -> None:
    config = ArrayConfig(6, 5)
    x, w = random_gemm(seed, config, 10, 14, 9)
    assert torch.equal(faulty_gemm(x, w, config), faulty_gemm(x, w, config, FaultMap(config)))

"""The operator: as PyTorch wants operators, forward as the simulator, backward as the exact product's surrogate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import ArrayConfig, Fault, FaultMap, FaultModel, InputError, Kind, Site, sample_faults, simulate_gemm
from tests.support.strategies import GemmCase, gemm_cases
from training import FaultyGemm

CONFIG = ArrayConfig(4, 3)
PERMANENT = (Kind.STUCK_AT_0, Kind.STUCK_AT_1)


NUMBERS = (4, 3, 8, 8, True, 32)
"""The array as operators take it, but for its multiplier."""


def operator_arguments(module, x, w):
    return (x, w, module.faults, module.bypass, *NUMBERS, "array")


def random_case(seed, dtype):
    random = np.random.default_rng(seed)
    faults = sample_faults(CONFIG, FaultModel(0.4, sites=dict.fromkeys(Site, 1.0)), seed)
    x = torch.from_numpy(random.integers(-128, 128, (6, 7))).to(dtype)
    w = torch.from_numpy(random.integers(-128, 128, (7, 5))).to(dtype)
    return FaultyGemm(CONFIG, faults, bypass=random.random((4, 3)) < 0.2), x, w


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32, torch.float64])
def test_torch_finds_nothing_to_complain_about(dtype, seed):
    module, x, w = random_case(seed, dtype)
    if dtype.is_floating_point:
        x.requires_grad_()
        w.requires_grad_()
    torch.library.opcheck(torch.ops.efat.faulty_gemm.default, operator_arguments(module, x, w))
    torch.library.opcheck(torch.ops.efat.effective_weights.default, operator_arguments(module, x, w.detach())[1:])


@settings(max_examples=150)
@given(case=gemm_cases(), dtype=st.sampled_from([torch.int8, torch.int32, torch.float32, torch.float64]))
def test_forward_is_the_simulator(case: GemmCase, dtype: torch.dtype) -> None:
    if dtype == torch.int8 and not case.config.act_signed:
        dtype = torch.int16
    outputs = FaultyGemm(case.config, case.faults, bypass=case.bypass)(
        torch.from_numpy(case.x).to(dtype), torch.from_numpy(case.w).to(dtype)
    )
    expected = simulate_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass).outputs
    assert outputs.dtype == (torch.float64 if dtype.is_floating_point else torch.int32)
    assert outputs.tolist() == expected.tolist()


@settings(max_examples=100)
@given(case=gemm_cases(kinds=PERMANENT, least_rows_of_x=1), seed=st.integers(0, 2**32 - 1))
def test_backward_is_that_of_the_exact_product_with_effective_weights(case: GemmCase, seed: int) -> None:
    config = case.config
    x = torch.from_numpy(case.x).double().requires_grad_()
    w = torch.from_numpy(case.w).double().requires_grad_()
    outputs = FaultyGemm(config, case.faults, bypass=case.bypass)(x, w)
    weights_of_outputs = torch.from_numpy(np.random.default_rng(seed).integers(-9, 10, outputs.shape)).double()
    (outputs * weights_of_outputs).sum().backward()

    # Each weight as its multiplier gets it: what an array with the weight faults alone, fed one row at a time, gives.
    k, n = case.w.shape
    table = case.faults.table
    of_weights = FaultMap(config, table[np.isin(table["site"], (Site.WEIGHT, Site.WEIGHT_LOAD))])
    wide = ArrayConfig(config.rows, config.cols, config.weight_bits, config.act_bits, config.act_signed, 32)
    of_weights = FaultMap(wide, of_weights.table)
    effective = simulate_gemm(np.eye(k, dtype=int), case.w, wide, of_weights, bypass=case.bypass).outputs
    surrogate_x, surrogate_w = x.detach().requires_grad_(), w.detach().requires_grad_()
    used = torch.from_numpy(~case.bypass[np.arange(k)[:, None] % config.rows, np.arange(n) % config.cols])
    fixed = torch.from_numpy(effective).double()
    straight_through = fixed + (surrogate_w - surrogate_w.detach()) * used
    ((surrogate_x @ straight_through) * weights_of_outputs).sum().backward()
    assert torch.equal(x.grad, surrogate_x.grad)
    assert torch.equal(w.grad, surrogate_w.grad)


def test_compiled_graphs_have_the_operator_in_them(seed):
    module, x, w = random_case(seed, torch.float64)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(module, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x, w), module(x, w))
    assert any("efat.faulty_gemm" in str(node.target) for node in graphs[0].graph.nodes)


def test_exported_programs_run(seed):
    module, x, w = random_case(seed, torch.int8)
    exported = torch.export.export(module, (x, w))
    assert torch.equal(exported.module()(x, w), module(x, w))


def test_one_graph_serves_other_numbers_of_rows(seed):
    module, x, w = random_case(seed, torch.int8)
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(module, (x, w), dynamic_shapes={"x": {0: rows}, "w": None})
    longer = torch.cat([x, x, x])
    assert torch.equal(exported.module()(longer, w), module(longer, w))


@pytest.mark.parametrize(
    ("x", "w", "error", "message"),
    [
        ([[0.5]], [[1.0]], ValueError, "x holds 0.5: expected whole numbers"),
        ([[1.0]], [[float("nan")]], ValueError, "w holds nan: expected -128..127"),
        ([[300.0]], [[1.0]], ValueError, "x holds 300: expected -128..127"),
        ([[1]], [[-129]], ValueError, "w holds -129: expected -128..127"),
        ([[True]], [[1]], InputError, "x holds torch.bool: expected integers"),
        ([1], [[1]], ValueError, "expected two dimensions"),
        ([[1, 2]], [[1]], ValueError, "with the same K"),
        ([[1j]], [[1]], InputError, "x holds torch.complex64: expected integers"),
    ],
)
def test_bad_input_is_refused(x, w, error, message):
    with pytest.raises(error, match=message):
        FaultyGemm(CONFIG)(torch.tensor(x), torch.tensor(w))


def test_bad_chips_are_refused():
    with pytest.raises(ValueError, match="of another array"):
        FaultyGemm(CONFIG, FaultMap(ArrayConfig(2, 2)))
    with pytest.raises(ValueError, match=r"expected int64 \[faults, 6\]"):
        torch.ops.efat.faulty_gemm(
            torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 2), torch.zeros(4, 3).bool(), *NUMBERS, "array"
        )
    with pytest.raises(ValueError, match="multiplier of-nobody is not known in this process"):
        torch.ops.efat.effective_weights(
            torch.ones(1, 1), torch.zeros(0, 6).long(), torch.zeros(4, 3).bool(), *NUMBERS, "of-nobody"
        )
    flip = FaultMap.from_faults(CONFIG, [Fault(0, 0, Site.PSUM, 0, Kind.FLIP, cycle=99)])
    with pytest.raises(ValueError, match="cycle 99, outside this GEMM"):
        FaultyGemm(CONFIG, flip)(torch.ones(1, 1), torch.ones(1, 1))

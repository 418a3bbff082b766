"""Differential testing itself: what it draws, that it finds planted bugs, and that what it saves comes back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import efat
import simulator.engine.gemm
import training.emulation.program
from efat import Validation
from efat.validation.cases import Case, load_case, random_case, shrink
from simulator import ArrayConfig, FaultMap, Kind, Site
from simulator.errors import InputError
from simulator.pe_behaviour import pe_products
from tests.support.oracle import oracle_gemm

CASES_IN_A_SLOW_PART = 25_000


def assert_no_mismatch(validation: Validation) -> None:
    assert validation.mismatch is None, str(validation.mismatch)


def case_of(seed: int, number: int) -> Case:
    return efat.validate(seed=seed, run=False).case(number)


def test_engines_agree_on_2000_cases(seed: int) -> None:
    validation = efat.validate(2000, seed=seed)
    assert_no_mismatch(validation)
    assert validation.cases == 2000
    assert all(validation.counts[site].cases > 500 for site in Site)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_engines_agree_on_200000_cases(part: int, seed: int) -> None:
    assert_no_mismatch(efat.validate(CASES_IN_A_SLOW_PART, seed=seed + part))


@pytest.fixture
def forgetful() -> object:
    """Chips' masks are worked out anew before and after."""
    remembered = (training.emulation.program._chip_faults, simulator.engine.gemm._chip)
    for masks in remembered:
        masks.cache_clear()
    yield
    for masks in remembered:
        masks.cache_clear()


def test_gates_that_the_emulation_forgets_are_found_and_made_small(
    forgetful: object, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    none_faulty = property(lambda chip: pe_products(FaultMap(chip.config)))
    monkeypatch.setattr(training.emulation.program.ChipFaults, "multipliers", none_faulty)
    found = efat.validate(3000, seed=seed).mismatch
    assert found is not None
    assert [fault.site for fault in found.case.faults] == [Site.MULTIPLIER]
    assert len(found.case.x) == 1 or found.case.faults.has_flips
    assert not found.case.bypass.any()


@pytest.mark.parametrize("site", [site for site in Site if site != Site.MULTIPLIER])
def test_a_mask_that_the_emulation_forgets_is_found_and_made_small(
    site: Site, forgetful: object, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    real = training.emulation.program._stuck

    def broken(faults, of_site):
        masks = real(faults, of_site)
        return masks._replace(force=np.zeros_like(masks.force)) if of_site is site else masks

    monkeypatch.setattr(training.emulation.program, "_stuck", broken)
    found = efat.validate(3000, seed=seed).mismatch
    assert found is not None
    faults = list(found.case.faults)
    assert [(fault.site, fault.kind) for fault in faults] == [(site, Kind.STUCK_AT_1)]
    assert len(found.case.x) == 1
    assert not found.case.bypass.any()


@pytest.mark.parametrize("mask", ["product_keep", "psum_keep", "act_keep", "weight_keep", "load_keep"])
def test_a_mask_that_the_cycle_engine_forgets_is_found_and_made_small(
    mask: str, forgetful: object, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    real = simulator.engine.gemm.pe_masks

    def broken(faults, bypass):
        masks = real(faults, bypass)
        return masks._replace(**{mask: np.full_like(getattr(masks, mask), -1)})

    monkeypatch.setattr(simulator.engine.gemm, "pe_masks", broken)
    found = efat.validate(3000, seed=seed).mismatch
    assert found is not None
    assert [fault.kind for fault in found.case.faults] == [Kind.STUCK_AT_0]
    assert len(found.case.x) == 1


def test_an_engine_that_fails_is_a_mismatch(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    def failing(*_arguments: object, **_named: object) -> None:
        raise IndexError

    monkeypatch.setattr("efat.validation.validation.faulty_gemm", failing)
    found = efat.validate(10, seed=seed).mismatch
    assert found is not None
    assert found.answers["emulation"] == "IndexError"
    assert not len(found.case.faults)


def test_cases_are_those_of_the_seed_whatever_ran_before(seed: int) -> None:
    assert str(case_of(seed, 7)) == str(case_of(seed, 7)) != str(case_of(seed, 8))


def test_cases_are_legal_and_varied(seed: int) -> None:
    drawn = efat.validate(seed=seed, run=False)
    cases = [drawn.case(number) for number in range(400)]
    for case in cases:
        assert case.x.shape[1] == case.w.shape[0]
        for values, (low, high) in ((case.x, case.config.act_range), (case.w, case.config.weight_range)):
            assert not values.size or low <= values.min() <= values.max() <= high
    kinds = {int(kind) for case in cases for kind in case.faults.table["kind"]}
    assert kinds == {0, 1, 2}
    assert any(not len(case.x) for case in cases)
    assert any(case.config.acc_bits == 32 for case in cases)
    assert any(case.bypass.any() for case in cases)
    assert any(len(case.faults) > case.config.pe_count / 2 > 4 for case in cases)


def test_arrays_and_sites_can_be_chosen(seed: int) -> None:
    random = np.random.default_rng(seed)
    cases = [random_case(random, (5, 9), [Site.PSUM, Site.ACCUMULATOR]) for _ in range(50)]
    assert {(case.config.rows, case.config.cols) for case in cases} == {(5, 9)}
    assert {int(site) for case in cases for site in case.faults.table["site"]} == {Site.PSUM, Site.ACCUMULATOR}


def test_cases_agree_with_the_oracle(seed: int) -> None:
    for number in range(40):
        case = case_of(seed, number)
        if case.config.pe_count > 36:
            continue
        expected = oracle_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass).outputs
        outputs = simulator.simulate_gemm(case.x, case.w, case.config, case.faults, bypass=case.bypass).outputs
        assert outputs.tolist() == expected.tolist()


def test_what_is_shrunk_still_fails_and_no_step_makes_it_smaller(seed: int) -> None:
    def fails(case: Case) -> bool:
        return bool((case.x == 3).any()) and len(case.faults) >= 2

    random = np.random.default_rng(seed)
    case = next(case for case in (random_case(random) for _ in range(100_000)) if fails(case))
    small = shrink(case, fails)
    assert fails(small)
    assert len(small.faults) == 2
    assert np.array_equal(small.x, [[3]])
    assert np.array_equal(small.w, [[0]])


def test_saved_cases_come_back(folder: Path, seed: int) -> None:
    for number in range(50):
        case = case_of(seed, number)
        case.save(Path("case.json"))
        again = load_case(Path("case.json"))
        assert str(again) == str(case)
        assert again.faults == case.faults
        assert again.x.shape == case.x.shape
        assert np.array_equal(again.bypass, case.bypass)
    assert not efat.replay_case("case.json").differs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"efat_validate_case": 9}, "no case of version 1"),
        ({"array": {"rows": 0, "cols": 2}}, "rows is 0"),
        ({"array": {"rows": 2, "cols": 2, "depth": 2}}, "unexpected keyword argument 'depth'"),
        ({"x": [[0.5]]}, "float64 where integers were expected"),
        ({"shape": [7, 1, 1]}, "cannot reshape"),
        ({"faults": [[9, 0, 0, 0, 0, -1]]}, "expected row 0..1"),
        ({"bypass": [[2, 0]]}, "outside the array of 2x2"),
        ({"bypass": [[-1, 0]]}, "outside the array of 2x2"),
    ],
)
def test_damaged_files_are_refused(folder: Path, change: dict[str, object], message: str) -> None:
    path = Path("case.json")
    config = ArrayConfig(2, 2)
    one = np.ones((1, 1), np.int64)
    Case(config, one, one, FaultMap(config), np.zeros((2, 2), np.bool_)).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        load_case(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"efat_validate_case": 1}'])
def test_other_files_are_refused(folder: Path, content: bytes) -> None:
    Path("case.json").write_bytes(content)
    with pytest.raises(InputError, match=r"case\.json"):
        load_case(Path("case.json"))

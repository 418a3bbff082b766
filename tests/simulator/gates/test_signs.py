"""Signs of a multiplier's operands are found out from its products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.gates.cells import NetlistError
from simulator.gates.designs import build_netlist
from simulator.gates.files import read_netlist_file
from simulator.gates.signs import (
    ALL_SIGNS,
    SignError,
    Signs,
    check_signs,
    error_note,
    operand_values,
    sign_errors,
    signed_products,
)
from tests.support import netlist_cases

UNSIGNED = Signs(False, False)


def test_exact_products_have_one_kind_of_signs() -> None:
    for signs in ALL_SIGNS:
        exact = signed_products((256, 256), signs)
        for given in (exact, exact & 0xFFFF):
            errors = sign_errors(given)
            assert [found for found, error in errors.items() if error == 0] == [signs]
            check_signs(given, signs)
            assert error_note(given, signs) == "exact"
    for stated in ALL_SIGNS[:-1]:
        with pytest.raises(SignError, match="it multiplies unsigned weights by unsigned activations exactly") as raised:
            check_signs(signed_products((256, 256), UNSIGNED), stated)
        assert raised.value.nearest == UNSIGNED


def test_errors_are_means_over_all_pairs() -> None:
    # Two bits by one: 0, 1, 2, 3 by 0, 1; or 0, 1, -2, -1 by 0, -1, whose products are 0, -1, 2, 1.
    unsigned = signed_products((4, 2), UNSIGNED)
    assert unsigned.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert operand_values(4, signed=True).tolist() == [0, 1, -2, -1]
    assert sign_errors(unsigned)[Signs(True, True)] == (2 + 0 + 2) / 8


def test_products_that_tell_nothing_are_said_to() -> None:
    zeros = np.zeros((16, 16), np.int64)
    for signs in ALL_SIGNS:
        check_signs(zeros, signs)
    note = error_note(zeros, Signs(True, True))
    assert note == (
        "mean absolute error 16; for signed weights by unsigned activations it would be 30, so that the products do "
        "not show the signs; products that are always 0 would be no worse"
    )
    assert error_note(-signed_products((16, 16), Signs(True, True)), Signs(True, True)).endswith("would be no worse")
    assert error_note(signed_products((16, 16), UNSIGNED) & ~3, UNSIGNED) == "mean absolute error 1"


@pytest.mark.parametrize("signs", ALL_SIGNS, ids=str)
def test_netlists_of_other_signs_are_refused_though_they_are_not_exact(signs: Signs, tmp_path: Path) -> None:
    path = tmp_path / "m.v"
    path.write_text(
        netlist_cases.truncated(build_netlist("dadda", 4, 3, weight_signed=signs[0], act_signed=signs[1]), 2)
    )
    for stated in ALL_SIGNS:
        options = {"weight_signed": stated.weight, "act_signed": stated.act}
        if stated == signs:
            assert f"{stated}: mean absolute error " in str(read_netlist_file(path, **options))
            continue
        with pytest.raises(NetlistError, match=rf"for {stated}, as stated, the mean .*, but for {signs} "):
            read_netlist_file(path, **options)

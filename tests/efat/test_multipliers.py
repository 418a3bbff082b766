"""Multipliers from Python; what the command shows of them is in `cli/commands/test_multiplier.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import efat
from simulator import ArrayConfig, Multiplier, TableSigns, build_netlist
from simulator.multipliers.fault_classes import compare, fault_classes

SAMPLE = Path(__file__).parents[1] / "support" / "data" / "mult3x2_unsigned_acts.v"


def test_designs_are_listed_and_their_faults_counted() -> None:
    seen: list[tuple[int, int]] = []
    found = efat.multiplier_designs(3, 2, faults=True, progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (sum(2 * netlist.locations for netlist in found.netlists.values()),) * 2
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert found.faults["dadda"] == compare(fault_classes(build_netlist("dadda", 3, 2)))
    assert "3-bit signed weights by 2-bit signed activations" in str(found)
    assert found._repr_html_().count("<table>") == 2
    assert efat.multiplier_designs(3, 2)._repr_html_().count("<table>") == 1


def test_faults_of_gates_are_those_of_a_design_a_netlist_and_a_file(tmp_path: Path) -> None:
    design, netlist = efat.gate_faults("wallace", 3, 2), efat.gate_faults(build_netlist("wallace", 3, 2), most=1)
    assert design.as_dict() == {**netlist.as_dict(), "multiplier": "wallace"}
    assert str(netlist).count(" s-a-") == 2
    assert [one.disturbed for one in design.classes] == sorted((one.disturbed for one in design.classes), reverse=True)
    of_file = efat.gate_faults(SAMPLE, act_signed=False)
    assert str(of_file).startswith("mult3x2: 16 gates; weight is port w (3 bits)")
    of_file.draw(tmp_path / "faults.png")
    assert (tmp_path / "faults.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError, match=r"walace: neither a file nor .*did you mean wallace"):
        efat.gate_faults("walace")


def test_arrays_take_what_a_file_holds_and_say_how_near_it_is(tmp_path: Path) -> None:
    assert efat.array_multiplier("dadda") == "dadda"
    notes: list[str] = []
    found = efat.array_multiplier(SAMPLE, 3, 2, act_signed=False, notes=notes.append)
    assert isinstance(found, Multiplier)
    assert ArrayConfig(4, 4, 3, 2, act_signed=False, multiplier=found).multiplies_exactly
    np.save(tmp_path / "zeros.npy", np.zeros((8, 4), np.int16))
    with pytest.warns(UserWarning, match=r"zeros\.npy: product table of faulty PEs, mean absolute error"):
        both = efat.array_multiplier(
            "array", 3, 2, faulty=[tmp_path / "zeros.npy"], signs=TableSigns(weight_signed=True, act_signed=True)
        )
    assert isinstance(both, Multiplier)
    assert (both.exact, both.locations) == (True, 1)
    assert notes == [str(notes[0])]
    assert notes[0].startswith("mult3x2: 16 gates")

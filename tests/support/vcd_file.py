"""Reading a waveform back: what each signal shows in each clock cycle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vcd.reader import TokenKind, tokenize


@dataclass(frozen=True)
class VcdFile:
    """A value change dump, cycle by cycle.

    Attributes:
        widths: bits of each signal by its name with scopes, such as `array.pe_0_1.psum`.
        cycles: for each clock cycle the bits that each signal shows, as a number.
        begin: time of the first rising edge, femtoseconds.
        period: time from one rising edge to the next, femtoseconds.
        comment: text in the head of the file.
    """

    widths: dict[str, int]
    cycles: list[dict[str, int]]
    begin: int
    period: int
    comment: str


def read_vcd(path: Path | str) -> VcdFile:
    """Read a waveform, and check what holds for all of them.

    The clock rises at the beginning of each cycle and falls half-way; nothing else changes when it falls; nothing is
    written that does not change; and every signal has a value from the beginning on.
    """
    names: dict[str, str] = {}
    widths: dict[str, int] = {}
    scopes: list[str] = []
    comment = ""
    state: dict[str, int] = {}
    events: list[tuple[int, dict[str, int]]] = []
    in_head = True
    dumping = False
    with Path(path).open("rb") as file:
        for token in tokenize(file):
            if token.kind is TokenKind.COMMENT:
                comment = token.comment
            elif token.kind is TokenKind.TIMESCALE:
                assert (token.timescale.magnitude, token.timescale.unit.value) == (1, "fs")
            elif token.kind is TokenKind.SCOPE:
                scopes.append(token.scope.ident)
            elif token.kind is TokenKind.UPSCOPE:
                scopes.pop()
            elif token.kind is TokenKind.VAR:
                assert in_head
                name = ".".join([*scopes, token.var.reference])
                assert name not in widths
                assert token.var.id_code not in names
                names[token.var.id_code] = name
                widths[name] = token.var.size
            elif token.kind is TokenKind.ENDDEFINITIONS:
                assert not scopes
                in_head = False
            elif token.kind is TokenKind.CHANGE_TIME:
                assert not in_head
                assert not events or token.time_change > events[-1][0]
                events.append((token.time_change, {}))
            elif token.kind is TokenKind.DUMPVARS:
                dumping = True
            elif token.kind is TokenKind.END:
                assert dumping
                dumping = False
                assert state.keys() == widths.keys()
            else:
                change = token.data
                name = names[change.id_code]
                value = int(change.value)
                assert isinstance(change.value, int) or change.value in ("0", "1")
                assert 0 <= value < 1 << widths[name]
                assert name not in events[-1][1]
                assert state.get(name) != value, f"{name} is written again without a change"
                assert dumping or len(state) == len(widths)
                state[name] = value
                events[-1][1][name] = value
    return VcdFile(widths, *_cycles(events), comment)


def _cycles(events: list[tuple[int, dict[str, int]]]) -> tuple[list[dict[str, int]], int, int]:
    """What stands in each cycle, the time of the first one, and the period."""
    begin = events[0][0]
    half = events[1][0] - begin
    state: dict[str, int] = {}
    cycles = []
    assert len(events) % 2 == 1
    for number, (time, changes) in enumerate(events):
        assert time == begin + number * half
        if number == len(events) - 1:
            assert not changes
        elif number % 2:
            assert changes == {"array.clock": 0}
        else:
            state = {**state, **changes}
            assert changes["array.clock"] == 1
            cycles.append(state)
    return cycles, begin, 2 * half

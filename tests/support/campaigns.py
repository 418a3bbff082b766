"""Campaigns of tests, and files of units that are damaged."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from efat.campaigns.campaign import Campaign, Outcome, Unit
from efat.campaigns.workers import in_line, processes
from efat.records import Named

WAYS = ("flip a bit", "zero a part", "cut the end off", "swap with another")


def damage(units: Path, chance: random.Random, way: str) -> str:
    """Change one file, or two that are swapped.

    Args:
        units: their folder.
        chance: decides which file, and where.
        way: one of `WAYS`.

    Returns:
        What was done, for messages.
    """
    files = sorted(path for path in units.iterdir() if not path.name.startswith("."))
    while True:
        path, other = chance.choice(files), chance.choice(files)
        before = path.read_bytes()
        content = bytearray(before)
        place = chance.randrange(len(content)) if content else 0
        if way == "flip a bit" and content:
            content[place] ^= 1 << chance.randrange(8)
        elif way == "zero a part":
            stop = chance.randrange(place, len(content) + 1)
            content[place:stop] = bytes(stop - place)
        elif way == "cut the end off":
            del content[place:]
        elif way == "swap with another":
            content = bytearray(other.read_bytes())
        if content == before:
            continue
        if way == "swap with another":
            other.write_bytes(before)
        path.write_bytes(content)
        return f"{path.name}: {way} ({place} of {len(before)} bytes, {other.name})"


UNITS = [Unit(f"unit-{number:02d}", {"number": number, "seconds": 0.05}) for number in range(24)]


def digest(arguments: Mapping[str, Any]) -> Outcome:
    """Something that depends on the arguments alone."""
    time.sleep(arguments["seconds"])
    text = hashlib.sha256(str(arguments["number"]).encode()).hexdigest()
    values = {"number": arguments["number"], "digest": text, "threads": torch.get_num_threads()}
    return Outcome(values, {"bin": text.encode() * 1000})


class Own(Named):
    """Stands for a network or data that are objects."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and other.content == self.content

    def __hash__(self) -> int:
        return hash(self.content)


def measure(own: Own) -> Outcome:
    """How large it is."""
    return Outcome({"bytes": len(own.content)})


def die(arguments: Mapping[str, Any]) -> Outcome:
    """Kill the process that does it, always."""
    os.kill(os.getpid(), 9)
    return digest(arguments)


def die_sending(arguments: Mapping[str, Any]) -> Outcome:
    """Kill the process in the middle of sending the result, unless `killed` is there."""
    killed = Path(arguments["killed"])

    def send_half(self: Connection, content: bytes) -> None:
        os.write(self.fileno(), content[: len(content) // 2])
        os.kill(os.getpid(), 9)

    if not killed.exists():
        killed.touch()
        Connection._send = send_half  # type: ignore[attr-defined]
    return digest(arguments)


def fail(arguments: Mapping[str, Any]) -> Outcome:
    """Raise."""
    raise ValueError(f"number {arguments['number']} is refused")


if __name__ == "__main__":
    executor = processes(int(sys.argv[2])) if int(sys.argv[2]) else in_line
    Campaign(Path(sys.argv[1]), "digests", {"units": len(UNITS)}).run(UNITS, digest, executor)

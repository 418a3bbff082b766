"""Files of a campaign's units, damaged in ways that a disk, a copy or a person might."""

from __future__ import annotations

import random
from pathlib import Path

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

"""The values that options take: how they are written, what they may be, and what the shell offers for them.

`click.ParamType` can be subscripted only from click 8.5 on; hence the unsubscripted base classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import click

NETWORK_NAMES = ("digits-cnn", "lenet5", "vgg11", "resnet20", "resnet18")
"""Names of `training.data.workloads.WORKLOADS`, without importing torch for them; a test keeps the two equal."""

MITIGATION_NAMES = tuple(
    f"{name}{after}"
    for name in ("none", "fap", "fam", "fam-columns", "fam-rows")
    for after in ("", "+t", "+bn", "+bn+t", "+t+gradual", "+bn+t+gradual")
)
"""Those of `training.learning.mitigations.combination.NAMES`, likewise."""

ARRAY_PRESETS = ("tpu-v1", "tpu-v2", "tpu-v3", "tpu-v4", "gemmini", "scale-sim")
"""Names of `simulator.arrays.PRESETS`, without importing NumPy for them; a test keeps the two equal."""

SITES = ("WEIGHT", "WEIGHT_LOAD", "ACTIVATION", "PRODUCT", "PSUM", "MULTIPLIER", "ACCUMULATOR")
"""Names of `simulator.Site`, without importing NumPy for them; a test keeps the two equal."""

KINDS = ("STUCK_AT_0", "STUCK_AT_1", "FLIP")
"""Names of `simulator.Kind`, likewise."""

PERMANENT_KINDS = tuple(name for name in KINDS if name != "FLIP")

DESIGNS = ("array", "wallace", "dadda")
"""Names of `simulator.multipliers.multiplier.DESIGNS`, without importing NumPy for them; a test keeps the two equal."""

INPUT_FILE = click.Path(path_type=Path, readable=False)
"""A file to read; the command that reads it says what is wrong with it."""

OF_NETWORK = "network"
"""What `--augment` without a value stands for: as the network's images are augmented."""

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_LARGEST_BIT = 65_535


class ArraySize(click.ParamType):  # type: ignore[type-arg]
    """Rows and columns of an array: such as 64x64, the name of a preset, or a SCALE-Sim configuration."""

    name = "ROWSxCOLS|PRESET|CFG"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", value.strip())
        if match is not None:
            return int(match[1]), int(match[2])
        from simulator.arrays import PRESETS
        from simulator.cycles.scalesim import ScaleSimError, read_config
        from simulator.suggestions import did_you_mean

        preset = PRESETS.get(value.strip().lower())
        if preset is not None:
            return preset.rows, preset.cols
        if not value.lower().endswith(".cfg") and not Path(value).is_file():
            known = ", ".join(ARRAY_PRESETS)
            expected = f"rows x columns, such as 64x64, one of {known}, or a SCALE-Sim .cfg file"
            hint = did_you_mean(value, ARRAY_PRESETS)
            self.fail(f"{value!r} is not a size and not the name of an array: expected {expected}{hint}", param, ctx)
        try:
            config = read_config(value)
        except (OSError, ScaleSimError) as error:
            self.fail(str(error), param, ctx)
        return config.rows, config.cols

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Complete the presets and files."""
        import click.shell_completion as completion

        names = [name for name in ARRAY_PRESETS if name.startswith(incomplete.lower())]
        return [*map(completion.CompletionItem, names), completion.CompletionItem(incomplete, type="file")]


def number_of(text: str) -> float:
    """A number from text, which may be in percent: both `0.01` and `1%` are 0.01.

    Raises:
        ValueError: it is no number.
    """
    number = text.strip()
    if not number.endswith("%"):
        return float(number)
    try:
        return float(Decimal(number[:-1]) / 100)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no number") from None


class Fraction(click.ParamType):  # type: ignore[type-arg]
    """A fraction within 0 to 1, or a percentage with its sign.

    Args:
        meaning: what a large fraction would mean, with `{}` for the percentage; None if large ones are usual.
        doubted_from: fractions of this and more are taken only in percent, as they are likely meant to be that.

    >>> Fraction().convert("97%", None, None)
    0.97
    """

    name = "X|P%"

    def __init__(self, meaning: str | None = None, doubted_from: float = 0.5) -> None:
        self._meaning = meaning
        self._doubted_from = doubted_from

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse it."""
        if isinstance(value, float):
            return value
        try:
            number = number_of(value)
        except ValueError:
            number = math.nan
        instead = f"for {number:g} percent give {number / 100:g} or {number:g}%"
        if not 0 <= number <= 1:
            hint = f"; {instead}" if 1 < number <= 100 and "%" not in value else ""
            self.fail(f"{value!r}: expected a fraction, 0 to 1, or a percentage such as 1%{hint}", param, ctx)
        if self._meaning is not None and number >= self._doubted_from and "%" not in value:
            percent = f"{100 * number:g}%"
            self.fail(f"{value!r} means that {self._meaning.format(percent)}: {instead}, or {percent}", param, ctx)
        return number


class RateRange(click.ParamType):  # type: ignore[type-arg]
    """A fraction, or a range of fractions LOW:HIGH; each may be in percent."""

    name = "RATE|LOW:HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = [number_of(part) for part in value.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2) or not all(math.isfinite(number) for number in numbers):
            self.fail(
                f"{value!r} is not a rate: expected a fraction such as 0.01 or 1%, or a range 0.001:0.05", param, ctx
            )
        low, high = numbers[0], numbers[-1]
        if not 0 <= low <= high <= 1:
            self.fail(
                f"{value!r}: expected fractions of all PEs within 0 to 1, such as 0.01 or 1%, the lower one first",
                param,
                ctx,
            )
        if low == 1 and "%" not in value:
            self.fail(f"{value!r} means that all PEs are faulty: for 1 percent give 0.01 or 1%, or 100%", param, ctx)
        return low, high


class NumberList(click.ParamType):  # type: ignore[type-arg]
    """Numbers with commas between them, in ascending order and each once whatever order they are given in.

    Args:
        kind: `float` for fractions, which may be in percent, or `int` for whole numbers.
        example: for messages.
    """

    name = "A,B,..."

    def __init__(self, kind: type[float], example: str) -> None:
        self._kind = kind
        self._example = example

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...] | tuple[int, ...]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = {int(part) if self._kind is int else number_of(part) for part in value.split(",")}
        except ValueError:
            numbers = {math.nan}
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            kind = "whole numbers" if self._kind is int else "numbers"
            self.fail(f"{value!r}: expected {kind} of 0 or more with commas, such as {self._example}", param, ctx)
        if self._kind is float and 1 in numbers and "%" not in value:
            self.fail(f"{value!r}: 1 means all of them: for 1 percent give 0.01 or 1%, or 100%", param, ctx)
        return tuple(sorted(numbers))


def unknown_name(given: str, what: str, names: Sequence[str]) -> str:
    """A message about a name that there is not.

    Args:
        given: the name, as the user wrote it.
        what: what it should be.
        names: the names there are, in capitals.
    """
    from simulator.suggestions import did_you_mean

    known = [name.lower() for name in names]
    hint = did_you_mean(given.replace("-", "_"), known)
    return f"{given!r} is no {what}: expected one of {', '.join(known)}{hint}"


class Named(click.ParamType):  # type: ignore[type-arg]
    """One of some names, in capitals or not, with hyphens or underscores.

    Args:
        what: what is named, for messages.
        names: the names there are.
    """

    name = "NAME"

    def __init__(self, what: str, names: tuple[str, ...]) -> None:
        self._what = what
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse it."""
        found: str = value.strip().upper().replace("-", "_")
        if found not in self._names:
            self.fail(unknown_name(value, self._what, self._names), param, ctx)
        return found

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Complete the names."""
        import click.shell_completion as completion

        names = (name.lower() for name in self._names)
        return [completion.CompletionItem(name) for name in names if name.startswith(incomplete.lower())]


class Weighted(click.ParamType):  # type: ignore[type-arg]
    """A name, or a name and its relative weight NAME=WEIGHT.

    Args:
        what: what is named, for messages.
        names: the names there are.
    """

    name = "NAME[=WEIGHT]"

    def __init__(self, what: str, names: tuple[str, ...]) -> None:
        self._what = what
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        given, equals, weight_text = value.partition("=")
        name = given.strip().upper().replace("-", "_")
        if name not in self._names:
            self.fail(unknown_name(given, self._what, self._names), param, ctx)
        try:
            weight = float(weight_text) if equals else 1.0
        except ValueError:
            weight = -1.0
        if not (math.isfinite(weight) and weight >= 0):
            self.fail(f"{value!r}: expected a weight of 0 or more, such as {given}=2", param, ctx)
        return name, weight

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Complete the names."""
        import click.shell_completion as completion

        names = (name.lower() for name in self._names)
        return [completion.CompletionItem(name) for name in names if name.startswith(incomplete.lower())]


class SiteBits(click.ParamType):  # type: ignore[type-arg]
    """Bits of a net: SITE=BITS, such as psum=0-7,31."""

    name = "SITE=BITS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        given, _, text = value.partition("=")
        site = Named("site", SITES).convert(given, param, ctx)
        bits: set[int] = set()
        for part in text.split(","):
            found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
            low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
            if not low <= high <= _LARGEST_BIT:
                self.fail(f"{value!r}: expected bits or ranges with commas, such as {site.lower()}=0-3,7", param, ctx)
            bits.update(range(low, high + 1))
        return site, tuple(sorted(bits))


class NamedValue(click.ParamType):  # type: ignore[type-arg]
    """An option of something by its name, a number or true or false: such as momentum=0.9."""

    name = "NAME=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, bool | int | float]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        name, equals, text = (part.strip() for part in value.partition("="))
        if not equals or not name.isidentifier():
            self.fail(f"{value!r}: expected a name and a value, such as momentum=0.9", param, ctx)
        if text.lower() in ("true", "false"):
            return name, text.lower() == "true"
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r}: expected a number, true or false, such as {name}=0.9", param, ctx)
        return name, int(text) if re.fullmatch(r"[+-]?\d+", text) else number


class AugmentationText(click.ParamType):  # type: ignore[type-arg]
    """What is done to training images: flip, crop=PIXELS or both with a comma; or `OF_NETWORK`."""

    name = "FLIP,CROP"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool | tuple[bool, int]:
        """Parse it: whether images are flipped, and the pixels of padding before a crop; True for `OF_NETWORK`."""
        if not isinstance(value, str) or value == OF_NETWORK:
            return value if isinstance(value, tuple) else True
        words = [word.strip().lower() for word in value.split(",")]
        crops = [found for word in words if (found := re.fullmatch(r"crop=([1-9]\d{0,3})", word))]
        if sorted(words) != sorted([*["flip"] * ("flip" in words), *(found[0] for found in crops[:1])]):
            self.fail(f"{value!r}: expected flip, crop=PIXELS or both, such as flip,crop=4", param, ctx)
        return "flip" in words, int(crops[0][1]) if crops else 0


class PlaceRange(click.ParamType):  # type: ignore[type-arg]
    """Places of images FIRST:END, from 0, the last one excluded."""

    name = "A:B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", value.strip())
        if match is None or not int(match[1]) < int(match[2]):
            self.fail(
                f"{value!r}: expected places of test images A:B, from A up to and without B, such as 5000:10000",
                param,
                ctx,
            )
        return int(match[1]), int(match[2])


class PePosition(click.ParamType):  # type: ignore[type-arg]
    """Row and column of a PE, such as 3,17."""

    name = "R,C"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", value)
        if match is None:
            self.fail(f"{value!r} is not a PE: expected its row and column, such as 3,17", param, ctx)
        return int(match[1]), int(match[2])


class CycleWindow(click.ParamType):  # type: ignore[type-arg]
    """Clock cycles A:B, without B; either may be left out."""

    name = "A:B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, int | None]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{0,15}):(\d{0,15})", value.strip())
        if match is None:
            self.fail(f"{value!r} is no window of cycles: expected first:stop, such as 32:200", param, ctx)
        first, stop = (int(text) if text else None for text in match.groups())
        return first, stop


class ByteSize(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes, such as 800kB, 256MB or 2GB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse it."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmg]?)b?", value.strip().lower())
        size = round(float(match[1]) * _BYTES[match[2]]) if match is not None else 0
        if size < 1:
            self.fail(f"{value!r} is not a size: expected bytes, such as 800kB, 256MB or 2GB", param, ctx)
        return size


def complete_networks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Networks by name."""
    return [name for name in NETWORK_NAMES if name.startswith(incomplete.lower())]


def complete_mitigations(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Mitigations by name."""
    return [name for name in MITIGATION_NAMES if name.startswith(incomplete.lower())]


def complete_deployments(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Those of them that do not retrain."""
    return [name for name in complete_mitigations(context, parameter, incomplete) if "t" not in name.split("+")]


def complete_chips(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the chips of the lot that is given before; none if there is no such lot."""
    from simulator.lots.chips import ChipLot, LotError

    # As long as the option has no value, Click leaves arguments before it aside.
    lot = context.params.get("lot") or next(iter(context.args), None)
    if lot is None:
        return []
    try:
        with ChipLot(Path(lot)) as opened:
            return [chip_id for chip_id in opened.chip_ids if chip_id.startswith(incomplete)]
    except (OSError, LotError):
        return []

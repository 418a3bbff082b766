"""The values that options take: how they are written, what they may be, and what the shell offers for them."""

from __future__ import annotations

import math
import re
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
"""Names of `simulator.config.PRESETS`, without importing NumPy for them; a test keeps the two equal."""

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


class _Written(click.ParamType):  # type: ignore[type-arg]  # subscripted only from click 8.5 on
    """A value that is written as text; what is none, such as a default, is the value itself."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it; what `_parse` raises is said of the option."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except (ValueError, OSError) as error:
            self.fail(str(error), param, ctx)

    def _parse(self, value: str) -> Any:
        """The value; a ValueError says why there is none."""
        raise NotImplementedError


class OneOf(_Written):
    """One of some names, in capitals or not, with hyphens or underscores.

    Args:
        what: what is named, for messages.
        names: the names there are, in capitals.

    >>> OneOf("site", SITES).convert("weight-load", None, None)
    'WEIGHT_LOAD'
    """

    name = "NAME"

    def __init__(self, what: str, names: tuple[str, ...]) -> None:
        self._what = what
        self._names = names

    def _parse(self, value: str) -> Any:
        found = value.strip().upper().replace("-", "_")
        if found not in self._names:
            from simulator.errors import did_you_mean

            known = [name.lower() for name in self._names]
            hint = did_you_mean(value.replace("-", "_"), known)
            raise ValueError(f"{value!r} is no {self._what}: expected one of {', '.join(known)}{hint}")
        return found

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Complete the names."""
        import click.shell_completion as completion

        names = (name.lower() for name in self._names)
        return [completion.CompletionItem(name) for name in names if name.startswith(incomplete.lower())]


class SomeOf(OneOf):
    """Some of the names, with commas between them."""

    name = "NAME,..."

    def _parse(self, value: str) -> tuple[str, ...]:
        return tuple(OneOf._parse(self, name.strip()) for name in value.split(","))


class Weighted(OneOf):
    """A name, or a name and its relative weight NAME=WEIGHT."""

    name = "NAME[=WEIGHT]"

    def _parse(self, value: str) -> tuple[str, float]:
        given, equals, weight_text = value.partition("=")
        name = super()._parse(given)
        try:
            weight = float(weight_text) if equals else 1.0
        except ValueError:
            weight = -1.0
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{value!r}: expected a weight of 0 or more, such as {given}=2")
        return name, weight


class ArraySize(_Written):
    """Rows and columns of an array: such as 64x64, the name of a preset, or a SCALE-Sim configuration."""

    name = "ROWSxCOLS|PRESET|CFG"

    def _parse(self, value: str) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", value.strip())
        if match is not None:
            return int(match[1]), int(match[2])
        from simulator import PRESETS, read_scalesim_config
        from simulator.errors import did_you_mean

        preset = PRESETS.get(value.strip().lower())
        if preset is not None:
            return preset.rows, preset.cols
        if not value.lower().endswith(".cfg") and not Path(value).is_file():
            known = ", ".join(ARRAY_PRESETS)
            expected = f"rows x columns, such as 64x64, one of {known}, or a SCALE-Sim .cfg file"
            hint = did_you_mean(value, ARRAY_PRESETS)
            raise ValueError(f"{value!r} is not a size and not the name of an array: expected {expected}{hint}")
        config = read_scalesim_config(value)
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


class FractionText(_Written):
    """A fraction within 0 to 1, or a percentage with its sign.

    Args:
        meaning: what a large fraction would mean, with `{}` for the percentage; None if large ones are usual.
        doubted_from: fractions of this and more are taken only in percent, as they are likely meant to be that.

    >>> FractionText().convert("97%", None, None)
    0.97
    """

    name = "X|P%"

    def __init__(self, meaning: str | None = None, doubted_from: float = 0.5) -> None:
        self._meaning = meaning
        self._doubted_from = doubted_from

    def _parse(self, value: str) -> float:
        try:
            number = number_of(value)
        except ValueError:
            number = math.nan
        instead = f"for {number:g} percent give {number / 100:g} or {number:g}%"
        if not 0 <= number <= 1:
            hint = f"; {instead}" if 1 < number <= 100 and "%" not in value else ""
            raise ValueError(f"{value!r}: expected a fraction, 0 to 1, or a percentage such as 1%{hint}")
        if self._meaning is not None and number >= self._doubted_from and "%" not in value:
            percent = f"{100 * number:g}%"
            raise ValueError(f"{value!r} means that {self._meaning.format(percent)}: {instead}, or {percent}")
        return number


class RateRange(_Written):
    """A fraction, or a range of fractions LOW:HIGH; each may be in percent."""

    name = "RATE|LOW:HIGH"

    def _parse(self, value: str) -> tuple[float, float]:
        try:
            numbers = [number_of(part) for part in value.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2) or not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{value!r} is not a rate: expected a fraction such as 0.01 or 1%, or a range 0.001:0.05")
        low, high = numbers[0], numbers[-1]
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"{value!r}: expected fractions of all PEs within 0 to 1, such as 0.01 or 1%, the lower one first"
            )
        if low == 1 and "%" not in value:
            raise ValueError(f"{value!r} means that all PEs are faulty: for 1 percent give 0.01 or 1%, or 100%")
        return low, high


class NumberList(_Written):
    """Numbers with commas between them, in ascending order and each once whatever order they are given in.

    Args:
        kind: `float` for fractions, which may be in percent, or `int` for whole numbers.
        example: for messages.
    """

    name = "A,B,..."

    def __init__(self, kind: type[float], example: str) -> None:
        self._kind = kind
        self._example = example

    def _parse(self, value: str) -> tuple[float, ...] | tuple[int, ...]:
        try:
            numbers = {int(part) if self._kind is int else number_of(part) for part in value.split(",")}
        except ValueError:
            numbers = {math.nan}
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            kind = "whole numbers" if self._kind is int else "numbers"
            raise ValueError(f"{value!r}: expected {kind} of 0 or more with commas, such as {self._example}")
        if self._kind is float and 1 in numbers and "%" not in value:
            raise ValueError(f"{value!r}: 1 means all of them: for 1 percent give 0.01 or 1%, or 100%")
        return tuple(sorted(numbers))


class SiteBits(_Written):
    """Bits of a net: SITE=BITS, such as psum=0-7,31."""

    name = "SITE=BITS"

    def _parse(self, value: str) -> tuple[str, tuple[int, ...]]:
        given, _, text = value.partition("=")
        site = OneOf("site", SITES).convert(given, None, None)
        bits: set[int] = set()
        for part in text.split(","):
            found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
            low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
            if not low <= high <= _LARGEST_BIT:
                raise ValueError(f"{value!r}: expected bits or ranges with commas, such as {site.lower()}=0-3,7")
            bits.update(range(low, high + 1))
        return site, tuple(sorted(bits))


class NamedValue(_Written):
    """An option of something by its name, a number or true or false: such as momentum=0.9."""

    name = "NAME=VALUE"

    def _parse(self, value: str) -> tuple[str, bool | int | float]:
        name, equals, text = (part.strip() for part in value.partition("="))
        if not equals or not name.isidentifier():
            raise ValueError(f"{value!r}: expected a name and a value, such as momentum=0.9")
        if text.lower() in ("true", "false"):
            return name, text.lower() == "true"
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{value!r}: expected a number, true or false, such as {name}=0.9")
        return name, int(text) if re.fullmatch(r"[+-]?\d+", text) else number


class AugmentationText(_Written):
    """What is done to training images: flip, crop=PIXELS or both with a comma; or `OF_NETWORK`."""

    name = "FLIP,CROP"

    def _parse(self, value: str) -> bool | tuple[bool, int]:
        if value == OF_NETWORK:
            return True
        words = [word.strip().lower() for word in value.split(",")]
        crops = [found for word in words if (found := re.fullmatch(r"crop=([1-9]\d{0,3})", word))]
        if sorted(words) != sorted([*["flip"] * ("flip" in words), *(found[0] for found in crops[:1])]):
            raise ValueError(f"{value!r}: expected flip, crop=PIXELS or both, such as flip,crop=4")
        return "flip" in words, int(crops[0][1]) if crops else 0


class PlaceRange(_Written):
    """Places of images FIRST:END, from 0, the last one excluded."""

    name = "A:B"

    def _parse(self, value: str) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", value.strip())
        if match is None or not int(match[1]) < int(match[2]):
            raise ValueError(
                f"{value!r}: expected places of test images A:B, from A up to and without B, such as 5000:10000"
            )
        return int(match[1]), int(match[2])


class PePosition(_Written):
    """Row and column of a PE, such as 3,17."""

    name = "R,C"

    def _parse(self, value: str) -> tuple[int, int]:
        match = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", value)
        if match is None:
            raise ValueError(f"{value!r} is not a PE: expected its row and column, such as 3,17")
        return int(match[1]), int(match[2])


class CycleWindow(_Written):
    """Clock cycles A:B, without B; either may be left out."""

    name = "A:B"

    def _parse(self, value: str) -> tuple[int | None, int | None]:
        match = re.fullmatch(r"(\d{0,15}):(\d{0,15})", value.strip())
        if match is None:
            raise ValueError(f"{value!r} is no window of cycles: expected first:stop, such as 32:200")
        first, stop = (int(text) if text else None for text in match.groups())
        return first, stop


class ByteSize(_Written):
    """A number of bytes, such as 800kB, 256MB or 2GB."""

    name = "SIZE"

    def _parse(self, value: str) -> int:
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmg]?)b?", value.strip().lower())
        size = round(float(match[1]) * _BYTES[match[2]]) if match is not None else 0
        if size < 1:
            raise ValueError(f"{value!r} is not a size: expected bytes, such as 800kB, 256MB or 2GB")
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
    from simulator import ChipLot, InputError

    # As long as the option has no value, Click leaves arguments before it aside.
    lot = context.params.get("lot") or next(iter(context.args), None)
    if lot is None:
        return []
    try:
        with ChipLot(Path(lot)) as opened:
            return [chip_id for chip_id in opened.chip_ids if chip_id.startswith(incomplete)]
    except (OSError, InputError):
        return []

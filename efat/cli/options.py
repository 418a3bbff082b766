"""Option types and small helpers that the commands share.

`click.ParamType` can be subscripted only from click 8.5 on; hence the unsubscripted base classes.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from efat.cli.group import InputProblem
from efat.cli.printing import json_alone, print_json

if TYPE_CHECKING:
    from training.data.datasets import Normalization

_Command = TypeVar("_Command", bound=Callable[..., Any])

NETWORKS = "digits-cnn, lenet5, vgg11, resnet20, resnet18, or package.module:function for your own"
"""Networks by name, for help texts."""

INPUT_FILE = click.Path(path_type=Path, readable=False)
"""A file to read; the command that reads it says what is wrong with it."""


ARRAY_PRESETS = ("tpu-v1", "tpu-v2", "tpu-v3", "tpu-v4", "gemmini", "scale-sim")
"""Names of `simulator.arrays.PRESETS`, without importing NumPy for them; a test keeps the two equal."""


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


SITES = ("WEIGHT", "WEIGHT_LOAD", "ACTIVATION", "PRODUCT", "PSUM", "MULTIPLIER", "ACCUMULATOR")
"""Names of `simulator.Site`, without importing NumPy for them; a test keeps the two equal."""

KINDS = ("STUCK_AT_0", "STUCK_AT_1", "FLIP")
"""Names of `simulator.Kind`, likewise."""

ARRAY_HELP = "The array: rows x columns, such as 64x64, a preset (see efat cycles --list-presets), or a SCALE-Sim .cfg."
"""Help of the option `--array`."""

normalize_option = click.option(
    "--normalize",
    metavar="MEAN:STD",
    help="Normalise pixels of 0 to 1 for your own network: a mean and a deviation for each channel, such as "
    "0.485,0.456,0.406:0.229,0.224,0.225, or 0.5:0.5 for all.",
)
"""The option `--normalize`, whose text `normalization_of` reads."""


def normalization_of(text: str | None) -> Normalization | None:
    """What `--normalize` says.

    Raises:
        InputError: it says nothing that can be.
    """
    from training.data.datasets import Normalization

    return None if text is None else Normalization.parse(text)


force_option = click.option("--force", is_flag=True, help="Replace a file that is there already.")


def output_option(help_text: str) -> Callable[[_Command], _Command]:
    """The option `-o FILE`."""
    return click.option("-o", "--output", required=True, type=INPUT_FILE, metavar="FILE", help=help_text)


def check_output(path: Path, *, force: bool = True, inputs: Sequence[Path] = ()) -> None:
    """Refuse an output file before any work is done, rather than after it.

    Args:
        path: the file to write.
        force: whether it may be there already.
        inputs: files that the command reads; they are never replaced, not even with `force`.

    Raises:
        click.ClickException: it is there already and must not be, or its folder cannot be written to.
    """
    import os

    if path.is_dir():
        fail(f"{path} is a folder: expected the name of a file")
    if path.exists() and not path.is_file():
        fail(f"{path} is not a regular file: expected the name of a file to write")
    if path.exists() and not force:
        fail(f"{path} is there already: choose another name, or replace it with --force")
    if any(path.exists() and given.exists() and path.samefile(given) for given in inputs):
        fail(f"{path} is the file to read: choose another name to write")
    if not path.parent.is_dir():
        fail(f"{path.parent}: no such folder to write {path.name} into; make it first")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        fail(f"{path}: no permission to write it")


def json_option(help_text: str) -> Callable[[_Command], _Command]:
    """The option `--json FILE`; with `-` nothing but JSON is on standard output.

    Args:
        help_text: what is written, such as "everything found".
    """
    option = click.option(
        "--json",
        "json_path",
        type=INPUT_FILE,
        metavar="FILE",
        help=f"Write {help_text} to this file, too; - prints it on standard output, and nothing else there.",
    )

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def with_json(*arguments: Any, json_path: Path | None, **others: Any) -> Any:
            with json_alone() if _is_stdout(json_path) else nullcontext():
                return command(*arguments, json_path=json_path, **others)

        decorated: _Command = option(with_json)  # type: ignore[assignment]
        return decorated

    return decorate


def check_json(path: Path | None, inputs: Sequence[Path] = ()) -> None:
    """Refuse what `--json` names, before any work is done, if it cannot be written.

    Args:
        path: the file; None for none, `-` for standard output.
        inputs: files that the command reads.

    Raises:
        click.ClickException: so it is.
    """
    if path is not None and not _is_stdout(path):
        check_output(path, inputs=inputs)


def _is_stdout(path: Path | None) -> bool:
    return str(path) == "-"


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one piece; `-` is standard output."""
    from simulator.files import replaced

    text = json.dumps(content, indent=2, allow_nan=False)
    if _is_stdout(path):
        print_json(text)
        return
    with replaced(path) as beside:
        beside.write_text(text + "\n")


@contextmanager
def input_errors() -> Iterator[None]:
    """Where values from the command line are checked by the libraries: their complaint is about the user's input."""
    try:
        yield
    except (TypeError, ValueError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End with one line and exit code 2."""
    raise InputProblem(message)

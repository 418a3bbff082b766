"""The options that say which test images decide and which only judge."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from efat.cli.options import INPUT_FILE

if TYPE_CHECKING:
    from efat.image_split import SplitRequest

_Command = TypeVar("_Command", bound=Callable[..., Any])


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


@dataclass(frozen=True)
class SplitOptions:
    """What a user says of it; see `efat.image_split.SplitRequest`.

    Attributes:
        tune_images: how many decide; None for the default.
        verify_images: places of the test images that judge; None for all that do not decide.
        verify_data: other images that judge; None for test images.
    """

    tune_images: int | None
    verify_images: tuple[int, int] | None
    verify_data: Path | None

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        values = {
            "--tune-images": self.tune_images,
            "--verify-images": self.verify_images,
            "--verify-data": self.verify_data,
        }
        return [name for name, value in values.items() if value is not None]

    def request(self) -> SplitRequest:
        """The same for the library.

        Raises:
            InputError: both `verify_images` and `verify_data`.
        """
        from efat.image_split import SplitRequest

        return SplitRequest(self.tune_images, self.verify_images, self.verify_data)


def split_options(command: _Command) -> _Command:
    """Options for which images decide and which judge; the command gets them as `split`, a `SplitOptions`."""
    options = (
        click.option(
            "--tune-images",
            type=click.IntRange(min=1),
            metavar="N",
            help="Test images that decide, chosen by their content; the others only judge.  [default: half of them]",
        ),
        click.option(
            "--verify-images",
            type=PlaceRange(),
            help="Places of the test images that judge, from 0, without B; all others decide.  [default: the rest]",
        ),
        click.option(
            "--verify-data", type=INPUT_FILE, metavar="PATH", help="Other images that judge; all test images decide."
        ),
    )

    @functools.wraps(command)
    def gathered(
        *, tune_images: int | None, verify_images: tuple[int, int] | None, verify_data: Path | None, **others: Any
    ) -> Any:
        return command(split=SplitOptions(tune_images, verify_images, verify_data), **others)

    found: Any = gathered
    for option in reversed(options):
        found = option(found)
    return found  # type: ignore[no-any-return]

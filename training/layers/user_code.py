"""A user's network: copies of it, and what went wrong in it and where, the layer and the line of the user's code."""

from __future__ import annotations

import copy
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from simulator.errors import InputError, first_line

_OURS = tuple(Path(__file__).parents[2] / package for package in ("simulator", "training", "efat"))


_Network = TypeVar("_Network", bound=nn.Module)


def copied(network: _Network) -> _Network:
    """A copy of a network. Tensors that its modules keep beside parameters, such as results, have no history there.

    Raises:
        InputError: a module keeps something that cannot be copied.
    """
    # Torch copies no tensor that was computed with gradients.
    memo: dict[int, Any] = {}
    for module in network.modules():
        for kept in tensors_in(list(vars(module).values())):
            if not kept.is_leaf:
                memo[id(kept)] = kept.detach().clone()
    try:
        return copy.deepcopy(network, memo)
    except Exception as error:
        # Whatever is kept: locks, files, generators, handles of other libraries.
        raise InputError(
            f"{type(network).__name__} cannot be copied: {_uncopied(network)}{first_line(error)}; make it when it is "
            "needed instead of keeping it"
        ) from error


def tensors_in(kept: Any) -> Iterator[Tensor]:
    """Tensors in tuples, lists and dictionaries, however nested."""
    if isinstance(kept, Tensor):
        yield kept
    elif isinstance(kept, Mapping | list | tuple):
        for value in kept.values() if isinstance(kept, Mapping) else kept:
            yield from tensors_in(value)


def _uncopied(network: nn.Module) -> str:
    """Which attribute of which module cannot be copied, as the beginning of a message."""
    for name, module in network.named_modules():
        for attribute, kept in vars(module).items():
            if attribute == "_modules":
                continue
            try:
                copy.deepcopy(kept)
            except Exception:
                return f"attribute {attribute!r} of {f'layer {name!r}' if name else 'the network'}: "
    return ""


def user_failure(error: BaseException) -> str | None:
    """What an exception says that a user's module raised, in one line; None if none was running."""
    for frame, _ in _frames(error):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and _rank(Path(frame.f_code.co_filename)) is not None:
            return f"the network's own {type(module).__name__} raised {failure(error, module)}"
    return None


def failure(error: BaseException, network: nn.Module) -> str:
    """What an exception that was raised while a network ran says of its own code, in one line.

    Its type, unless it is one of ours, its first line, and where it is from: the innermost module that ran, and the
    line of code that is neither of torch nor of this project; as much of it as is known.
    """
    said = first_line(error)
    if not isinstance(error, InputError) and said != type(error).__name__:
        said = f"{type(error).__name__}: {said}"
    names = {module: name for name, module in network.named_modules() if name}
    places: list[str] = []
    for frame, _ in _frames(error):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in names and not isinstance(error, InputError):
            places[:1] = [f"in layer {names[module]!r}"]
    line = line_of(error)
    if line is not None:
        places.append(f"at {line}")
    return f"{said} ({' '.join(places)})" if places else said


def line_of(error: BaseException) -> str | None:
    """File and line of the user's code that an exception comes from; None if it comes from none."""
    found: dict[int, str] = {}
    for frame, number in _frames(error):
        path = Path(frame.f_code.co_filename)
        rank = _rank(path)
        if rank is not None:
            found[rank] = place_of(path, number)
    return found[max(found)] if found else None


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Frames from the outermost to the innermost, with the lines they are at."""
    return traceback.walk_tb(error.__traceback__)


def _rank(path: Path) -> int | None:
    """1 for the user's own code, 0 for other code that is installed, None for torch and for this project."""
    if not path.is_absolute():  # of the interpreter itself, or typed in
        return None
    if any(path.is_relative_to(folder) for folder in (*_OURS, Path(torch.__file__).parent)):
        return None
    return 0 if any(path.is_relative_to(folder) for folder in _installed()) else 1


@cache
def _installed() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


def is_users(path: Path) -> bool:
    """Whether a file of code is the user's own."""
    return _rank(path) == 1


def place_of(path: Path, line: int) -> str:
    """A line of a file as people name it."""
    here = Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"

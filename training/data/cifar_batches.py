"""CIFAR-10 python batches, which are pickles, read as inert data: nothing in them is imported, built or called.

The opcodes are interpreted here on a stack of plain values. A name that the file refers to is only ever looked at, and
all but the few that a pickled NumPy array needs are refused.
"""

from __future__ import annotations

import io
import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.dtypes import Int64Array, UInt8Array
from simulator.errors import InputError, first_line

IMAGE_SHAPE = (3, 32, 32)
CLASSES = 10
LARGEST_FILE_BYTES = 256 << 20

_RECONSTRUCT = frozenset({"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"})
_FROM_BUFFER = frozenset({"numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer"})
_ENCODE = "_codecs encode"
_DTYPE = "numpy dtype"
_KNOWN_NAMES = _RECONSTRUCT | _FROM_BUFFER | {"numpy ndarray", _DTYPE, _ENCODE}

_BYTE_TYPES = ("u1", "|u1", b"u1", b"|u1")
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """A module and a name in it that the pickle refers to."""

    text: str


@dataclass
class _Call:
    """What the pickle wants called, with which arguments and which state set afterwards. Never done."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_cifar_batch(path: Path) -> tuple[UInt8Array, Int64Array]:
    """Read one CIFAR-10 python batch (Krizhevsky 2009) without unpickling it.

    Args:
        path: `data_batch_1` .. `data_batch_5` or `test_batch`.

    Returns:
        Images uint8 [n, 3, 32, 32] and labels int64 [n] in 0..9.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is no such batch, is cut short, or refers to anything that a batch does not need.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    if size > LARGEST_FILE_BYTES:
        raise InputError(f"{path} has {size} bytes: a CIFAR-10 batch has at most {LARGEST_FILE_BYTES}")
    try:
        batch = interpret(path.read_bytes())
        if not isinstance(batch, dict):
            raise InputError(f"holds a {type(batch).__name__}: expected a dictionary")
        fields = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
        for needed in ("data", "labels"):
            if needed not in fields:
                raise InputError(f"has no {needed!r}: expected a CIFAR-10 batch with 'data' and 'labels'")
        images = _images(fields["data"])
        return images, _labels(fields["labels"], len(images))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def interpret(data: bytes) -> Any:
    """The value a pickle describes, made of None, bool, int, float, str, bytes, list, tuple, dict and inert calls.

    Raises:
        InputError: not a pickle, cut short, or more in it than plain data and NumPy arrays.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # of text with escapes that Python does not write
            for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
                machine.step(opcode.name, argument)
        return machine.pop()
    except InputError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, DeprecationWarning) as error:
        # What pickletools and the stack raise when the opcodes make no sense.
        raise InputError(f"not a readable pickle ({first_line(error)}): is the file complete?") from None


class _Machine:
    """The pickle machine on inert values: a stack and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Interpret one opcode with its argument as `pickletools.genops` gives them."""
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _TEXT_AS_BYTES:
            self.stack.append(argument.encode("latin-1"))
        elif opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _FRESH:
            self.stack.append(_FRESH[opcode]())
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode in _SMALL_TUPLES:
            items = [self.pop() for _ in range(_SMALL_TUPLES[opcode])]
            self.stack.append(tuple(reversed(items)))
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise InputError(f"uses the pickle opcode {opcode}, which is not needed for data: not read")

    def pop(self) -> Any:
        """Take the top of the stack."""
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def push_pairs(self, target: Any, items: list[Any]) -> None:
        """Put keys and values, one after the other, into a dictionary."""
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items without a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes):
                raise InputError(f"a dictionary key is a {type(key).__name__}: expected text")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top of the stack."""
        if not isinstance(self.stack[-1], list):
            raise ValueError("items without a list")
        self.stack[-1].extend(items)

    def push_name(self, text: str) -> None:
        """Note a name, if it is one of those that arrays need."""
        if text not in _KNOWN_NAMES:
            raise InputError(f"refers to {text.replace(' ', '.')!r}, which does not belong in a data set: not read")
        self.stack.append(_Name(text))

    def push_stack_name(self) -> None:
        """Note the name whose module and name are on the stack."""
        name, module = self.pop(), self.pop()
        self.push_name(f"{module} {name}")

    def push_call(self) -> None:
        """Note a call whose name and arguments are on the stack."""
        arguments, name = self.pop(), self.pop()
        if not isinstance(arguments, tuple) or not isinstance(name, _Name):
            raise ValueError("a call of something that is not a name")
        if name.text == _ENCODE:  # how protocol 2 writes bytes: their text in latin-1
            self.stack.append(arguments[0].encode("latin-1"))
        else:
            self.stack.append(_Call(name.text, arguments))

    def set_state(self) -> None:
        """Note the state of the call below it on the stack."""
        state = self.pop()
        if not isinstance(self.stack[-1], _Call):
            raise ValueError("a state without an object")
        self.stack[-1].state = state


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK, "EMPTY_TUPLE": ()}
_FRESH: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_SMALL_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_TEXT_AS_BYTES = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})
_VALUES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "DICT": lambda machine, _: _push_dict(machine),
    "SETITEM": lambda machine, _: _set_items(machine, [machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_to_mark()),
    "GLOBAL": lambda machine, argument: machine.push_name(argument),
    "STACK_GLOBAL": lambda machine, _: machine.push_stack_name(),
    "REDUCE": lambda machine, _: machine.push_call(),
    "BUILD": lambda machine, _: machine.set_state(),
}


def _push_dict(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.stack.append({})
    _set_items(machine, items)


def _set_items(machine: _Machine, items: list[Any]) -> None:
    machine.push_pairs(machine.stack[-1], items)


def _images(value: Any) -> UInt8Array:
    """uint8 [n, 3, 32, 32] of a described NumPy array of uint8 [n, 3072] or [n, 3, 32, 32]."""
    shape, kind, content = _array_parts(value)
    if not isinstance(kind, _Call) or kind.name != _DTYPE or not kind.arguments or kind.arguments[0] not in _BYTE_TYPES:
        raise InputError("'data' does not hold bytes: expected a NumPy array of uint8")
    pixels = math.prod(IMAGE_SHAPE)
    sizes = shape if isinstance(shape, tuple) else ()
    if not sizes or any(type(size) is not int or size < 0 for size in sizes) or math.prod(sizes[1:]) != pixels:
        raise InputError(f"'data' has shape {shape!r}: expected (n, {pixels})")
    if not isinstance(content, bytes | bytearray) or len(content) != math.prod(sizes):
        raise InputError(f"'data' does not fill its shape {shape}: is the file complete?")
    return np.frombuffer(bytes(content), np.uint8).reshape(-1, *IMAGE_SHAPE)


def _array_parts(value: Any) -> tuple[Any, Any, Any]:
    """Shape, dtype and bytes of an array in C order, as NumPy describes it to pickle up to and from protocol 5."""
    if isinstance(value, _Call):
        state = value.state
        if value.name in _RECONSTRUCT and isinstance(state, tuple) and len(state) == 5 and not state[3]:
            return state[1], state[2], state[4]
        if value.name in _FROM_BUFFER and len(value.arguments) == 4 and value.arguments[3] in ("C", b"C"):
            return value.arguments[2], value.arguments[1], value.arguments[0]
    raise InputError("'data' is not a NumPy array in C order: expected uint8 [n, 3072]")


def _labels(value: Any, images: int) -> Int64Array:
    if not isinstance(value, list) or any(type(label) is not int or not 0 <= label < CLASSES for label in value):
        raise InputError(f"'labels' is not a list of classes: expected integers 0..{CLASSES - 1}")
    if len(value) != images:
        raise InputError(f"has {images} images and {len(value)} labels: expected as many")
    return np.array(value, np.int64)

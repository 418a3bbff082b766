"""Small pictures in one colour as PNG, without a library for pictures."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

import numpy as np

from simulator.faults import BoolArray

Color = tuple[int, int, int]
"""Red, green and blue, 0..255 each."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_INDEXED = 3


def png(marked: BoolArray, color: Color) -> bytes:
    """Encode a picture of marked pixels on nothing (PNG, ISO/IEC 15948); the same picture gives the same bytes.

    Args:
        marked: bool [height, width], not empty.
        color: of what is marked.

    Raises:
        ValueError: there are no pixels.
    """
    if marked.ndim != 2 or not marked.size:
        raise ValueError(f"picture has shape {marked.shape}: expected [height, width], at least one pixel")
    height, width = marked.shape
    # Each row begins with the number of its filter: 0 for none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), np.packbits(marked, axis=1)], axis=1)
    return b"".join(
        [
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, _INDEXED, 0, 0, 0)),
            _chunk(b"PLTE", bytes((0, 0, 0, *color))),
            _chunk(b"tRNS", bytes((0, 255))),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        ]
    )


def data_uri(content: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{b64encode(content).decode()}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

"""JSON messages over a socket, each after its length."""

from __future__ import annotations

import json
import socket
from typing import Any

_LENGTH_BYTES = 8


def send(connection: socket.socket, message: Any) -> None:
    """Send one message: anything that JSON takes."""
    content = json.dumps(message).encode()
    connection.sendall(len(content).to_bytes(_LENGTH_BYTES, "big") + content)


def receive(connection: socket.socket) -> Any:
    """Wait for one message; None when the other side has closed the socket.

    Raises:
        TimeoutError: the socket has a timeout, and nothing came for that long.
    """
    length = _receive_bytes(connection, _LENGTH_BYTES)
    content = None if length is None else _receive_bytes(connection, int.from_bytes(length, "big"))
    return None if content is None else json.loads(content)


def _receive_bytes(connection: socket.socket, count: int) -> bytes | None:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)

"""Messages by which a client of a stream in shared memory asks its server for memory, slots and constants.

Each question has a number, which the answer to it has too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from headrace.streams.codec import Frame, Limits, decoded, encoded
from headrace.streams.connections import Connection

__all__ = ["address_of", "close_all", "receive", "send"]

#: An array without rows says what rows are like, so rows of any size have to be accepted. The connection limits bytes.
_LIMITS = Limits(header_bytes=2**17)


def address_of(name: str, number: int) -> str:
    """Returns the name under which server `number` of a stream listens; streams may have names of any length."""
    readable = "".join(letter for letter in name if letter.isascii() and letter.isalnum())[:32]
    return f"inference/{readable}-{hashlib.sha256(name.encode()).hexdigest()[:16]}-{number}"


def send(
    connection: Connection, tree: object, fds: Sequence[int] = (), *, number: int = 0, producer: bytes = b""
) -> None:
    """Sends a message.

    Raises:
        Ended: if the other end is gone.
        OSError: if it does not read.
    """
    connection.send(encoded(Frame(tree, producer=producer, sequence=number)), fds)


def receive(connection: Connection) -> tuple[Frame, list[int]]:
    """Returns a message and its descriptors, which the caller closes.

    Raises:
        Ended: if the other end is gone.
        FrameRejected: if it is no message of headrace, or larger than the connection accepts.
    """
    parts, fds = connection.receive()
    try:
        return decoded(parts, _LIMITS), fds
    except BaseException:
        close_all(fds)
        raise


def close_all(fds: Sequence[int]) -> None:
    """Closes descriptors."""
    for fd in fds:
        os.close(fd)

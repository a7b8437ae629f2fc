"""The parts of a message as one piece of bytes: their number, their sizes, and then the parts."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from headrace.errors import FrameRejected
from headrace.streams.codec import Part

__all__ = ["joined", "separated"]

_SIZE = struct.Struct("<Q")


def joined(parts: Sequence[Part]) -> bytes:
    """Returns the parts of a message as one piece."""
    return b"".join([struct.pack(f"<{len(parts) + 1}Q", len(parts), *map(len, parts)), *parts])


def separated(data: bytes | memoryview) -> list[memoryview]:
    """Returns the parts of what `joined` returned; raises FrameRejected if it is anything else."""
    view = memoryview(data)
    n = _SIZE.unpack_from(view)[0] if len(view) >= _SIZE.size else len(view)
    begin = (n + 1) * _SIZE.size
    if begin > len(view):
        raise FrameRejected("a message in one piece is incomplete")
    sizes = struct.unpack_from(f"<{n}Q", view, _SIZE.size)
    if begin + sum(sizes) != len(view):
        raise FrameRejected("a message in one piece has another length than it says")
    parts = []
    for size in sizes:
        parts.append(view[begin : begin + size])
        begin += size
    return parts

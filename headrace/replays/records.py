"""Rows of a ring as bytes and back: raw arrays, a checksum, and sizes that are known before anything is allocated.

A record is a head of fixed size, the SHA-256 of head and payload (32 bytes), and the payload: every array's part, one
after the other. How large the payload is follows from the head's two counts and the replay's spec.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from headrace.buffers.tree import tree_leaves, tree_paths
from headrace.memory import fence
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.rows import TERMINATED, TRUNCATED
from headrace.types import Tree

__all__ = ["Damaged", "Head", "Records"]

_MAGIC = b"rows"
_HEAD = struct.Struct("<4sQQII")
_DIGEST = hashlib.sha256().digest_size
_LARGEST = 2**26  # bytes of a record, unless one row has more
_MOST_ROWS = 2**62


class Damaged(Exception):
    """Here is no whole record."""


@dataclass(frozen=True)
class Head:
    """Rows first to first + n_rows − 1, with n_finals final entries; `oldest` of the ring when they were written."""

    first: int
    oldest: int
    n_rows: int
    n_finals: int

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.first + self.n_rows


class Records:
    """Reads and writes rows of rings of one spec."""

    def __init__(self, spec: ReplaySpec) -> None:
        self.spec = spec
        self._lock = threading.Lock()
        B = spec.batch.B
        per_row = sum(leaf.nbytes for leaf in tree_leaves((spec.stored, spec.action)))
        self._row_bytes = B * (per_row + 4 + 1 + 4) + 16
        self._final_bytes = sum(leaf.nbytes for leaf in tree_leaves(spec.stored)) + 8
        self.most_rows = max(1, _LARGEST // self._row_bytes)

    @property
    def layout(self) -> str:
        """What two replays must have in common to read each other's records."""

        def leaves(tree: Tree) -> str:
            return ", ".join(f"{path} {leaf.dtype.str} {list(leaf.shape)}".strip() for path, leaf in tree_paths(tree))

        spec = self.spec
        return (
            f"batch_B {spec.batch.B}; n_rows {spec.n_rows}; n_finals {spec.n_finals}; frames {spec.frames}; "
            f"observation {leaves(spec.observation)}; action {leaves(spec.action)}"
        )

    def of(self, ring: ReplayRing, first: int, stop: int) -> tuple[Head, list[bytes]] | None:
        """A record of rows first to stop − 1, in parts; None if they were overwritten meanwhile."""
        rows = np.arange(first, stop) % self.spec.n_rows
        parts = [leaf[rows] for leaf in _by_row(ring)]
        slots = _slots(parts)
        parts += [leaf[slots] for leaf in _by_final(ring)]
        fence(self._lock)
        oldest: int = ring.oldest[0]
        if first < oldest:
            return None
        head = Head(first, oldest, stop - first, len(slots))
        packed = _HEAD.pack(_MAGIC, head.first, head.oldest, head.n_rows, head.n_finals)
        content = [part.tobytes() for part in parts]
        return head, [packed, _digest(packed, content), *content]

    def read(self, file: BinaryIO, left: int) -> tuple[Head, bytes] | None:
        """The next record of a file of which `left` bytes are left; None at its end. Raises Damaged."""
        if not left:
            return None
        if left < _HEAD.size + _DIGEST:
            raise Damaged
        packed = file.read(_HEAD.size)
        magic, *numbers = _HEAD.unpack(packed)
        head = Head(*numbers)
        size = head.n_rows * self._row_bytes + head.n_finals * self._final_bytes
        # Before anything of that size is read.
        if (
            magic != _MAGIC
            or not 0 < head.n_rows <= min(self.most_rows, self.spec.n_rows)
            or head.n_finals > self.spec.n_finals
            or not head.oldest <= head.first < _MOST_ROWS
            or head.stop - head.oldest > self.spec.n_rows
            or left < _HEAD.size + _DIGEST + size
        ):
            raise Damaged
        digest, payload = file.read(_DIGEST), file.read(size)
        if _digest(packed, [payload]) != digest:
            raise Damaged
        return head, payload

    def put(self, ring: ReplayRing, head: Head, payload: bytes, stop: int) -> None:
        """Puts the rows of a record before `stop` into a ring."""
        n_rows = min(head.stop, stop) - head.first
        rows = np.arange(head.first, head.first + n_rows) % self.spec.n_rows
        parts, offset = [], 0
        for leaf in _by_row(ring):
            values, offset = _values(payload, offset, leaf, head.n_rows)
            parts.append(values[:n_rows])
            leaf[rows] = values[:n_rows]
        slots = _slots(parts)
        for leaf in _by_final(ring):
            values, offset = _values(payload, offset, leaf, head.n_finals)
            leaf[slots] = values[: len(slots)]


def _slots(parts: list[np.ndarray]) -> np.ndarray:
    """Where the final entries of rows are, in their order; parts: as `_by_row` has them."""
    *_, flags, final, _ = parts
    return np.asarray(final[(flags & (TERMINATED | TRUNCATED)) == TRUNCATED])


def _by_row(ring: ReplayRing) -> list[np.ndarray]:
    """The arrays of rows, `[n_rows, ...]`."""
    return [*tree_leaves(ring.observation), *tree_leaves(ring.action), ring.reward, ring.flags, ring.final, ring.totals]


def _by_final(ring: ReplayRing) -> list[np.ndarray]:
    return [*tree_leaves(ring.final_observation), ring.final_row]


def _values(payload: bytes, offset: int, like: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """`count` rows of an array, and where the next begins."""
    shape = (count, *like.shape[1:])
    size = int(np.prod(shape, dtype=np.int64))
    values = np.frombuffer(payload, like.dtype, size, offset).reshape(shape)
    return values, offset + size * like.itemsize


def _digest(head: bytes, payload: list[bytes]) -> bytes:
    digest = hashlib.sha256(head)
    for part in payload:
        digest.update(part)
    return digest.digest()

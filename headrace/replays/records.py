"""Rows of a ring as bytes and back: raw arrays, a checksum, and sizes that are known before anything is allocated.

A record is a head of fixed size, the SHA-256 of head and payload (32 bytes), and the payload: every array's part, one
after the other. How large the payload is follows from the head's two counts and the replay's spec.
"""

from __future__ import annotations

import hashlib
import math
import struct
import threading
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from headrace.buffers.tree import tree_leaves, tree_paths
from headrace.memory import fence
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.rows import TERMINATED, TRUNCATED, VALID
from headrace.types import Tree

__all__ = ["Damaged", "Head", "Misplaced", "Records"]

_MAGIC = b"rows"
_HEAD = struct.Struct("<4sQQII")
_DIGEST = hashlib.sha256().digest_size
_LARGEST = 2**26  # bytes of a record, unless one row has more
_MOST_ROWS = 2**62


class Damaged(Exception):
    """Here is no whole record."""


class Misplaced(Exception):
    """A whole record, which does not follow what is before it."""


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
        stored = [(leaf.dtype, leaf.shape) for leaf in tree_leaves(spec.stored)]
        action = [(leaf.dtype, leaf.shape) for leaf in tree_leaves(spec.action)]
        own = [(np.dtype(name), ()) for name in ("f4", "u1", "i4")]
        #: The arrays of a row, and of a final entry, as `_by_row` and `_by_final` have them.
        self._row = [*((dtype, (B, *shape)) for dtype, shape in [*stored, *action, *own]), (np.dtype("i8"), (2,))]
        self._final: list[_Like] = [*stored, (np.dtype("i8"), ())]

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
        if _digest(packed, [payload]) != digest or not self._agree(head, payload):
            raise Damaged
        return head, payload

    def continues(self, ring: ReplayRing, head: Head, payload: bytes) -> bool:
        """Whether a record counts on from the row before it in the ring: those of another run hardly do."""
        before = ring.totals[(head.first - 1) % self.spec.n_rows] if head.first else np.zeros(2, np.int64)
        *_, flags, _, totals = self._parts(head, payload)[0]
        new = [np.count_nonzero(flags[0] & VALID), np.count_nonzero(_ends(flags[0]))]
        return np.array_equal(totals[0], before + new)

    def put(self, ring: ReplayRing, head: Head, payload: bytes, stop: int) -> None:
        """Puts the rows of a record before `stop` into a ring."""
        n_rows = min(head.stop, stop) - head.first
        rows = np.arange(head.first, head.first + n_rows) % self.spec.n_rows
        by_row, by_final = self._parts(head, payload)
        by_row = [values[:n_rows] for values in by_row]
        for leaf, values in zip(_by_row(ring), by_row, strict=True):
            leaf[rows] = values
        slots = _slots(by_row)
        for leaf, values in zip(_by_final(ring), by_final, strict=True):
            leaf[slots] = values[: len(slots)]

    def _parts(self, head: Head, payload: bytes) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The arrays of the rows of a record, and of its final entries."""
        offset, found = 0, []
        for (dtype, shape), count in [
            *((one, head.n_rows) for one in self._row),
            *((one, head.n_finals) for one in self._final),
        ]:
            size = count * math.prod(shape)
            found.append(np.frombuffer(payload, dtype, size, offset).reshape(count, *shape))
            offset += size * dtype.itemsize
        return found[: len(self._row)], found[len(self._row) :]

    def _agree(self, head: Head, payload: bytes) -> bool:
        """Whether what leads from one array of a record to another does so: anybody can compute a checksum."""
        by_row, by_final = self._parts(head, payload)
        *_, flags, _, totals = by_row
        time, _ = _ends(flags).nonzero()
        slots = _slots(by_row)
        steps = np.count_nonzero(flags & VALID, axis=1)
        finals = np.bincount(time, minlength=head.n_rows)
        return bool(
            len(slots) == head.n_finals
            and ((slots >= 0) & (slots < self.spec.n_finals)).all()
            and np.array_equal(by_final[-1], head.first + time)
            and (totals >= 0).all()
            and np.array_equal(np.diff(totals, axis=0), np.stack([steps, finals], axis=1)[1:])
        )


#: The dtype and the shape of a row of an array.
_Like = tuple[np.dtype[Any], tuple[int, ...]]


def _ends(flags: np.ndarray) -> np.ndarray:
    """Where episodes were truncated, of flags `[n, B]`: those have final entries."""
    return np.asarray((flags & (TERMINATED | TRUNCATED)) == TRUNCATED)


def _slots(parts: list[np.ndarray]) -> np.ndarray:
    """Where the final entries of rows are, in their order; parts: as `_by_row` has them."""
    *_, flags, final, _ = parts
    return np.asarray(final[_ends(flags)])


def _by_row(ring: ReplayRing) -> list[np.ndarray]:
    """The arrays of rows, `[n_rows, ...]`."""
    return [*tree_leaves(ring.observation), *tree_leaves(ring.action), ring.reward, ring.flags, ring.final, ring.totals]


def _by_final(ring: ReplayRing) -> list[np.ndarray]:
    return [*tree_leaves(ring.final_observation), ring.final_row]


def _digest(head: bytes, payload: list[bytes]) -> bytes:
    digest = hashlib.sha256(head)
    for part in payload:
        digest.update(part)
    return digest.digest()

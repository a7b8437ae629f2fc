"""Converts rows of a ring to bytes and back: raw arrays with a checksum, whose size is known before allocation.

A record is a head of fixed size, the SHA-256 of head and payload (32 bytes), and the payload: the parts of all arrays,
one after another. The size of the payload follows from the two counts in the head and the replay's spec.
"""

from __future__ import annotations

import math
import struct
import threading
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from headrace.buffers.tree import tree_leaves, tree_paths
from headrace.memory import fence
from headrace.replays.ring import VALID, ReplayRing, ReplaySpec, with_final
from headrace.storage import DIGEST_BYTES, Part, digest, framed
from headrace.types import Tree

__all__ = ["Damaged", "Head", "Misplaced", "Records"]

_MAGIC = b"rows"
_HEAD = struct.Struct("<4sQQII")
_LARGEST = 2**26  # maximum bytes of a record, unless a single row has more
_MOST_ROWS = 2**62


class Damaged(Exception):
    """There is no complete, undamaged record at this position."""


class Misplaced(Exception):
    """The record is intact but does not follow what is before it."""


@dataclass(frozen=True)
class Head:
    """Head of a record with rows first to first + n_rows − 1.

    Args:
        first: number of the first row.
        oldest: `oldest` of the ring when the record was written.
        n_rows: number of rows.
        n_finals: number of final observations.
    """

    first: int
    oldest: int
    n_rows: int
    n_finals: int

    @property
    def stop(self) -> int:
        """Number of the row after the last one."""
        return self.first + self.n_rows


class Records:
    """Reads and writes rows of rings that have the given spec."""

    def __init__(self, spec: ReplaySpec) -> None:
        self.spec = spec
        self._lock = threading.Lock()
        B = spec.batch.B
        per_row = sum(leaf.nbytes for leaf in tree_leaves((spec.stored, spec.action)))
        self._row_bytes = B * (per_row + 4 + 1 + 4 + 4 * (spec.errors is not None)) + 16
        self._state_bytes = B * sum(leaf.nbytes for leaf in tree_leaves(spec.state))
        self._final_bytes = sum(leaf.nbytes for leaf in tree_leaves(spec.stored)) + 8
        #: Maximum number of rows of a record, and what the number of the row after a record is a multiple of.
        self.every = 1 if spec.state is None else spec.every
        self.most_rows = max(1, _LARGEST // (self._row_bytes * self.every + self._state_bytes)) * self.every
        stored = [(leaf.dtype, leaf.shape) for leaf in tree_leaves(spec.stored)]
        action = [(leaf.dtype, leaf.shape) for leaf in tree_leaves(spec.action)]
        error = [(np.dtype("f4"), ())] * (spec.errors is not None)
        own = [*error, *((np.dtype(name), ()) for name in ("f4", "u1", "i4"))]
        #: dtype and shape of the arrays of a row and of a final observation, in the order of `_by_row` and `_by_final`.
        self._row = [*((dtype, (B, *shape)) for dtype, shape in [*stored, *action, *own]), (np.dtype("i8"), (2,))]
        self._final: list[_Like] = [*stored, (np.dtype("i8"), ())]
        self._state: list[_Like] = [(leaf.dtype, (B, *leaf.shape)) for leaf in tree_leaves(spec.state)]

    @property
    def layout(self) -> str:
        """Description of the layout; replays can read each other's records only if it is equal."""

        def leaves(tree: Tree) -> str:
            return ", ".join(f"{path} {leaf.dtype.str} {list(leaf.shape)}".strip() for path, leaf in tree_paths(tree))

        spec = self.spec
        states = "" if spec.state is None else f"; state {leaves(spec.state)} every {spec.every} rows"
        return (
            f"batch_B {spec.batch.B}; n_rows {spec.n_rows}; n_finals {spec.n_finals}"
            f"{' of all episodes' if spec.all_finals else ''}; frames {spec.frames}; "
            f"observation {leaves(spec.observation)}; action {leaves(spec.action)}"
            f"{states}{'' if spec.errors is None else '; errors'}"
        )

    def stop_after(self, first: int, cursor: int) -> int:
        """Returns the number of the row after a record that begins at `first`; no record ends between two states."""
        stop: int = min((first // self.every) * self.every + self.most_rows, cursor)
        return stop

    def of(self, ring: ReplayRing, first: int, stop: int) -> tuple[Head, list[Part]] | None:
        """Returns a record of rows first to stop − 1, in parts; None if they were overwritten meanwhile."""
        rows = np.arange(first, stop) % self.spec.n_rows
        parts = [leaf[rows] for leaf in _by_row(ring)]
        slots = self._slots(parts)
        parts += [leaf[slots] for leaf in _by_final(ring)]
        parts += [leaf[self._places(first, stop)] for leaf in tree_leaves(ring.state)]
        fence(self._lock)
        oldest: int = ring.oldest[0]
        if first < oldest:
            return None
        head = Head(first, oldest, stop - first, len(slots))
        packed = _HEAD.pack(_MAGIC, head.first, head.oldest, head.n_rows, head.n_finals)
        return head, framed(packed, [part.tobytes() for part in parts])

    def read(self, file: BinaryIO, left: int) -> tuple[Head, bytes] | None:
        """Returns the next record of a file with `left` bytes left; None at its end; raises Damaged."""
        if not left:
            return None
        if left < _HEAD.size + DIGEST_BYTES:
            raise Damaged
        packed = file.read(_HEAD.size)
        magic, *numbers = _HEAD.unpack(packed)
        head = Head(*numbers)
        size = head.n_rows * self._row_bytes + head.n_finals * self._final_bytes
        size += len(self._places(head.first, head.stop)) * self._state_bytes
        # Check the head before anything of that size is read.
        if (
            magic != _MAGIC
            or not 0 < head.n_rows <= min(self.most_rows, self.spec.n_rows)
            or head.n_finals > self.spec.n_finals
            or not head.oldest <= head.first < _MOST_ROWS
            or head.stop - head.oldest > self.spec.n_rows
            or head.stop % self.every
            or left < _HEAD.size + DIGEST_BYTES + size
        ):
            raise Damaged
        found, payload = file.read(DIGEST_BYTES), file.read(size)
        if digest(packed, payload) != found or not self._agree(head, payload):
            raise Damaged
        return head, payload

    def continues(self, ring: ReplayRing, head: Head, payload: bytes) -> bool:
        """Returns whether the totals of a record continue those of the row before it; another run's are unlikely to."""
        before = ring.totals[(head.first - 1) % self.spec.n_rows] if head.first else np.zeros(2, np.int64)
        *_, flags, _, totals = self._parts(head, payload)[0]
        new = [np.count_nonzero(flags[0] & VALID), np.count_nonzero(with_final(self.spec, flags[0]))]
        return np.array_equal(totals[0], before + new)

    def put(self, ring: ReplayRing, head: Head, payload: bytes, stop: int) -> None:
        """Copies the rows of a record before `stop` into a ring."""
        n_rows = min(head.stop, stop) - head.first
        rows = np.arange(head.first, head.first + n_rows) % self.spec.n_rows
        by_row, by_final, states = self._parts(head, payload)
        by_row = [values[:n_rows] for values in by_row]
        for leaf, values in zip(_by_row(ring), by_row, strict=True):
            leaf[rows] = values
        slots = self._slots(by_row)
        for leaf, values in zip(_by_final(ring), by_final, strict=True):
            leaf[slots] = values[: len(slots)]
        places = self._places(head.first, head.first + n_rows)
        for leaf, values in zip(tree_leaves(ring.state), states, strict=True):
            leaf[places] = values[: len(places)]

    def _slots(self, parts: list[np.ndarray]) -> np.ndarray:
        """Returns the positions of the final observations of rows, in their order; parts: as returned by `_by_row`."""
        *_, flags, final, _ = parts
        return np.asarray(final[with_final(self.spec, flags)])

    def _places(self, first: int, stop: int) -> np.ndarray:
        """Returns the positions of the recurrent states that are stored for rows first to stop − 1."""
        if self.spec.state is None:
            return np.empty(0, np.int64)
        return np.arange(-(-first // self.every), -(-stop // self.every)) % (self.spec.n_rows // self.every)

    def _parts(self, head: Head, payload: bytes) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Returns the arrays of the rows of a record, of its final observations, and of its recurrent states."""
        offset, found = 0, []
        for (dtype, shape), count in [
            *((one, head.n_rows) for one in self._row),
            *((one, head.n_finals) for one in self._final),
            *((one, len(self._places(head.first, head.stop))) for one in self._state),
        ]:
            size = count * math.prod(shape)
            found.append(np.frombuffer(payload, dtype, size, offset).reshape(count, *shape))
            offset += size * dtype.itemsize
        n_by_row, n_by_final = len(self._row), len(self._final)
        return found[:n_by_row], found[n_by_row : n_by_row + n_by_final], found[n_by_row + n_by_final :]

    def _agree(self, head: Head, payload: bytes) -> bool:
        """Returns whether the arrays of a record are consistent; a valid checksum alone does not show this."""
        by_row, by_final, _ = self._parts(head, payload)
        *_, flags, _, totals = by_row
        time, _ = with_final(self.spec, flags).nonzero()
        slots = self._slots(by_row)
        errors = by_row[-5][~np.isnan(by_row[-5])] if self.spec.errors is not None else np.zeros(0, np.float32)
        steps = np.count_nonzero(flags & VALID, axis=1)
        finals = np.bincount(time, minlength=head.n_rows)
        return bool(
            len(slots) == head.n_finals
            and ((errors >= 0) & np.isfinite(errors)).all()
            and ((slots >= 0) & (slots < self.spec.n_finals)).all()
            and np.array_equal(by_final[-1], head.first + time)
            and (totals >= 0).all()
            and np.array_equal(np.diff(totals, axis=0), np.stack([steps, finals], axis=1)[1:])
        )


#: dtype and shape of one row of an array.
_Like = tuple[np.dtype[Any], tuple[int, ...]]


def _by_row(ring: ReplayRing) -> list[np.ndarray]:
    """Returns the arrays that are indexed by row, `[n_rows, ...]`."""
    own = [ring.reward, ring.flags, ring.final, ring.totals]
    return [*tree_leaves((ring.observation, ring.action, ring.error)), *own]


def _by_final(ring: ReplayRing) -> list[np.ndarray]:
    return [*tree_leaves(ring.final_observation), ring.final_row]

"""Keeps track of where transitions can start, in the reader's own memory, from the writer's `oldest` and `cursor`."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from headrace.memory import fence
from headrace.replays.ring import (
    FIRST,
    FOLLOWS,
    PADDED,
    TERMINATED,
    TRUNCATED,
    VALID,
    ZEROS,
    ReplayRing,
    ReplaySpec,
    row_slices,
)

__all__ = ["Window", "can_start"]


def can_start(flags: np.ndarray, n_step: int, n_frames: int) -> np.ndarray:
    """Returns where these rows contain everything that a transition needs: bool `[R, B]`.

    A transition needs the next n_step steps and the row after them, or an earlier end of the episode. It also needs the
    previous step, unless it starts at the first step of an episode, and all frames of its first stack.

    Args:
        flags: uint8 `[R, B]` of successive rows, see `ReplayRing`.
        n_step: maximum number of steps of a transition.
        n_frames: number of stacked frames, 0 if frames are not stored once.

    Returns:
        True where a transition can start.
    """
    ends, follows = (flags & (TERMINATED | TRUNCATED)) != 0, (flags & FOLLOWS) != 0
    valid = (flags & VALID) != 0
    ahead = valid.copy()
    for _ in range(n_step):
        followed = np.zeros_like(ahead)
        followed[:-1] = follows[1:] & ahead[1:]
        ahead = valid & (ends | followed)
    behind = np.ones_like(ahead)
    beginning = (flags & (PADDED | ZEROS)) != 0
    for _ in range(n_frames - 1):
        behind = beginning | _continued(follows, behind)
    startable: np.ndarray = ahead & behind & (((flags & FIRST) != 0) | _continued(follows, valid))
    return startable


def _continued(follows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns which entries follow an entry that is known."""
    continued = np.zeros_like(known)
    continued[1:] = follows[1:] & known[:-1]
    return continued


class Window:
    """Rows `oldest` to `cursor` − 1 as of the last `update`, and where transitions can start in them.

    `ready`, bool `[n_rows · B]`, marks by ring position where a transition can start; `count` is the number of them.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        n_step: maximum number of steps of a transition.
        changed: `changed(start, stop)` is called after positions start to stop − 1 of `ready` were written.
    """

    def __init__(self, spec: ReplaySpec, ring: ReplayRing, n_step: int, changed: Callable[[int, int], None]) -> None:
        self.spec = spec
        self.ring = ring
        self.n_step = n_step
        self.ready = np.zeros(spec.size, np.bool_)
        self.count = 0
        self.oldest = 0
        self.cursor = 0
        self._changed = changed
        self._lock = threading.Lock()

    def update(self) -> None:
        """Accounts for all rows that were appended or overwritten since the last call."""
        oldest, cursor = self._whole()
        if (oldest, cursor) == (self.oldest, self.cursor):
            return
        gone = min(oldest, self.cursor)
        self._write(self.oldest, np.zeros((gone - self.oldest, self.spec.batch.B), np.bool_))
        behind = max(1, self.spec.frames - 1)
        # Assess the new rows and those whose next steps were missing, then those whose previous rows are now gone.
        begin = max(oldest, self.cursor - self.n_step)
        self._assess(begin, cursor, oldest, cursor)
        if oldest != self.oldest:
            self._assess(oldest, min(oldest + behind, begin), oldest, cursor)
        self.oldest, self.cursor = oldest, cursor

    def holds(self, index: np.ndarray) -> np.ndarray:
        """Returns which of these transitions (int64 `[N]`, row · B + column) can be sampled: bool `[N]`."""
        held: np.ndarray = (index >= self.oldest * self.spec.batch.B) & self.ready.take(index % self.spec.size)
        return held

    def n_appended(self) -> int | None:
        """Returns the number of steps ever appended; None if the number was overwritten while it was read."""
        cursor: int = self.ring.cursor[0]
        if not cursor:
            return 0
        n_steps = int(self.ring.totals[(cursor - 1) % self.spec.n_rows, 0])
        fence(self._lock)
        # Do not compare with `oldest`: rows may be dropped without being overwritten, see `ReplaySpec`.
        overwritten: int = self.ring.cursor[0] + self.spec.batch.T - self.spec.n_rows
        return n_steps if overwritten < cursor else None

    def still_whole(self) -> int:
        """Returns the oldest row that was intact in everything read before this call."""
        fence(self._lock)
        oldest: int = self.ring.oldest[0]
        return oldest

    def _whole(self) -> tuple[int, int]:
        """Returns `oldest` and `cursor` as of one moment: the writer may overwrite the whole ring between two reads."""
        cursor: int = self.ring.cursor[0]
        while True:
            oldest, before = self.still_whole(), cursor
            fence(self._lock)
            cursor = self.ring.cursor[0]
            if cursor == before:
                return oldest, cursor

    def _assess(self, begin: int, end: int, oldest: int, cursor: int) -> None:
        """Updates `ready` for rows begin to end − 1."""
        if begin >= end:
            return
        first = max(oldest, begin - max(1, self.spec.frames - 1))
        rows = np.arange(first, min(end + self.n_step, cursor)) % self.spec.n_rows
        ready = can_start(self.ring.flags[rows], self.n_step, self.spec.frames)
        self._write(begin, ready[begin - first : end - first])

    def _write(self, first: int, ready: np.ndarray) -> None:
        """Writes `ready`, bool `[R, B]`, for rows first to first + R − 1."""
        B = self.spec.batch.B
        for here, there in row_slices(first, len(ready), self.spec.n_rows):
            start, stop = there.start * B, there.stop * B
            values = ready[here].reshape(-1)
            self.count += int(np.count_nonzero(values)) - int(np.count_nonzero(self.ready[start:stop]))
            self.ready[start:stop] = values
            self._changed(start, stop)

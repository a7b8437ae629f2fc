"""Keeps track of what can be sampled, in the reader's own memory, from the writer's `oldest` and `cursor`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

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

__all__ = ["Starts", "TransitionStarts", "Window", "can_start", "continued", "stacked"]


class Starts(Protocol):
    """Says where something that can be sampled, a transition or a sequence, starts in rows of a ring.

    Args:
        every: it starts only in rows whose number is a multiple of this.
        ahead: number of rows after the first one that it needs, at most.
        behind: number of rows before the first one that it needs, at most.
        what: what it is, in the plural, for messages.
    """

    every: int
    ahead: int
    behind: int
    what: str

    def __call__(self, flags: np.ndarray) -> np.ndarray:
        """Returns where successive rows contain everything that it needs.

        Args:
            flags: uint8 `[R, B]` of the rows, see `ReplayRing`.

        Returns:
            Bool `[R, B]`. Of the first `behind` rows it may miss some.
        """


class TransitionStarts:
    """See `Starts`: for transitions of up to n steps.

    Args:
        spec: layout of the ring.
        n_step: maximum number of steps of a transition.
    """

    def __init__(self, spec: ReplaySpec, n_step: int) -> None:
        self.every = 1
        self.ahead = n_step
        self.behind = max(1, spec.frames - 1)
        self.what = f"transitions of up to {n_step} steps and the observation after them"
        self._frames = spec.frames

    def __call__(self, flags: np.ndarray) -> np.ndarray:
        """See `Starts`."""
        return can_start(flags, self.ahead, self._frames)


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
    startable: np.ndarray = ahead & stacked(flags, n_frames) & (((flags & FIRST) != 0) | continued(follows, valid))
    return startable


def stacked(flags: np.ndarray, n_frames: int) -> np.ndarray:
    """Returns where all frames of the stack are in these rows: bool `[R, B]`; for the arguments, see `can_start`."""
    follows, beginning = (flags & FOLLOWS) != 0, (flags & (PADDED | ZEROS)) != 0
    behind = np.ones(flags.shape, np.bool_)
    for _ in range(n_frames - 1):
        behind = beginning | continued(follows, behind)
    return behind


def continued(follows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns which entries follow an entry that is known."""
    continued = np.zeros_like(known)
    continued[1:] = follows[1:] & known[:-1]
    return continued


class Window:
    """Rows `oldest` to `cursor` − 1 as of the last `update`, and what can be sampled from them.

    Places are numbered like the rows at which something may start, every `starts.every`th: place i is row
    i · every. `ready`, bool `[n_places · B]`, marks by ring position where something can start; `count` is the number
    of them.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
        starts: where what is sampled starts.
        changed: `changed(start, stop)` is called after positions start to stop − 1 of `ready` were written.
    """

    def __init__(self, spec: ReplaySpec, ring: ReplayRing, starts: Starts, changed: Callable[[int, int], None]) -> None:
        self.spec = spec
        self.ring = ring
        self.n_places = spec.n_rows // starts.every
        self.size = self.n_places * spec.batch.B
        self.ready = np.zeros(self.size, np.bool_)
        self.count = 0
        self._starts = starts
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
        # Assess the new rows and those whose next steps were missing, then those whose previous rows are now gone.
        begin = max(oldest, self.cursor - self._starts.ahead)
        self._assess(begin, cursor, oldest, cursor)
        if oldest != self.oldest:
            self._assess(oldest, min(oldest + self._starts.behind, begin), oldest, cursor)
        self.oldest, self.cursor = oldest, cursor

    @property
    def first(self) -> int:
        """Number of the first place in these rows."""
        return -(-self.oldest // self._starts.every)

    @property
    def stop(self) -> int:
        """Number of the place after the last one in these rows."""
        return -(-self.cursor // self._starts.every)

    def holds(self, index: np.ndarray) -> np.ndarray:
        """Returns what can be sampled of `index` (int64 `[N]`, place · B + column): bool `[N]`."""
        held: np.ndarray = (index >= self.first * self.spec.batch.B) & self.ready.take(index % self.size)
        return held

    def index_of(self, position: np.ndarray) -> np.ndarray:
        """Returns the index, place · B + column, of what starts at these positions of the ring."""
        lowest = (self.stop - self.n_places) * self.spec.batch.B
        return lowest + (position - lowest) % self.size

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
        first = max(oldest, begin - self._starts.behind)
        rows = np.arange(first, min(end + self._starts.ahead, cursor)) % self.spec.n_rows
        ready = self._starts(self.ring.flags[rows])
        self._write(begin, ready[begin - first : end - first])

    def _write(self, first: int, ready: np.ndarray) -> None:
        """Writes `ready`, bool `[R, B]`, for rows first to first + R − 1."""
        B, every = self.spec.batch.B, self._starts.every
        ready = ready[-first % every :: every]
        for here, there in row_slices(-(-first // every), len(ready), self.n_places):
            start, stop = there.start * B, there.stop * B
            values = ready[here].reshape(-1)
            self.count += int(np.count_nonzero(values)) - int(np.count_nonzero(self.ready[start:stop]))
            self.ready[start:stop] = values
            self._changed(start, stop)

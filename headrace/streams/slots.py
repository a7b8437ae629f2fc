"""The shared memory of a sample stream: slots for messages, a table of their states, and who takes part.

All changes of the table are made by whoever holds the lock, which is a file lock on a byte of the memory: the kernel
releases it when its holder dies, and a killed process leaves no lock behind. It is held for microseconds; messages are
copied in and out without it. A message that is being written or read belongs to a process, which is named by its pid
and the time of its start; what belongs to a dead one is taken back.

(Rings of slots, one for each producer, would need no lock among producers. But several consumers need one to share what
there is, and a producer that is behind would have the free slots of the others.)
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from headrace.buffers.shared import Allocate, shared
from headrace.errors import StreamError
from headrace.streams.file_lock import FileLock
from headrace.streams.sample import remaining

__all__ = ["Claim", "Layout", "Order", "Segment"]

#: Which samples come first: those that were sent first, or last, or that were delivered least often.
Order = Literal["fifo", "fresh", "least_reused"]
#: How many processes can take part.
_PEOPLE = 128
_TICK_SECONDS = 0.05  # a sleeper looks this often in any case, and for processes that have died
_FREE, _WRITING, _READY = range(3)
#: Columns of the table of slots.
_STATE, _OWNER, _STAMP, _N, _TAKEN, _NBYTES = range(6)
#: Columns of the table of processes.
_PID, _BIRTH, _ROLE, _PARKED = range(4)
_STAMPS, _LOST = range(2)  # in the head
_PRODUCER, _CONSUMER = 1, 2


class Layout(NamedTuple):
    """What all processes of a stream must know alike.

    Args:
        n_slots: number of slots.
        slot_bytes: size of a slot.
        reuses: how often each sample is delivered.
        order: index in `Order`.
    """

    n_slots: int
    slot_bytes: int
    reuses: int
    order: int


class Claim(NamedTuple):
    """Samples of one message that a consumer has claimed.

    Args:
        slot: where the message is.
        first: number of the first sample in the message.
        stop: number after the last.
        reused: whether they were delivered before.
    """

    slot: int
    first: int
    stop: int
    reused: bool


class _Arrays(NamedTuple):
    head: np.ndarray
    people: np.ndarray
    table: np.ndarray
    reading: np.ndarray
    data: np.ndarray


def _birth(pid: int) -> int:
    """Returns when a process started, in ticks since boot; 0 if there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in b"ZX" else int(fields[19])


class Segment:
    """One process's part in the shared memory of a stream.

    Args:
        layout: see `Layout`.
        role: "producer" or "consumer".
        fds: descriptors of the memory and of the two bells, of another process; None: new memory.

    Raises:
        StreamError: if no more processes can take part.
        NotEnoughMemory: if the memory is not available.
    """

    def __init__(self, layout: Layout, role: Literal["producer", "consumer"], fds: Sequence[int] | None = None) -> None:
        self.layout = layout
        self._reuses = layout.reuses
        self._order: str = get_args(Order)[layout.order]

        def build(allocate: Allocate) -> _Arrays:
            whole = np.dtype(np.int64)
            n = layout.n_slots
            return _Arrays(
                allocate((16,), whole),
                allocate((_PEOPLE, 8), whole),
                allocate((n, 8), whole),
                allocate((n, _PEOPLE), whole),
                allocate((n, layout.slot_bytes), np.dtype(np.uint8)),
            )

        arena, arrays = shared(build, None if fds is None else fds[0])
        assert arena.fd is not None
        bells = [*_bell(), *_bell()] if fds is None else fds[1:]
        self.fds: tuple[int, ...] = (arena.fd, *bells)
        samples, space = bells[:2], bells[2:]
        self._own_bell, self._other_bell = (space[0], samples[1]) if role == "producer" else (samples[0], space[1])
        self._poll = select.poll()
        self._poll.register(self._own_bell, select.POLLIN)
        self._head, self._people, self._table, self._reading, data = arrays
        self.slots = [row.data for row in data]
        self._lock = FileLock(arena.fd)
        self._next_recovery = 0.0
        self._role = _PRODUCER if role == "producer" else _CONSUMER
        self._me = self._joined()

    # ---- producers ----

    def claim_free(self, n: int, deadline: float) -> int | None:
        """Returns a slot to write a message of `n` samples into; None if none becomes free until the deadline."""
        while True:
            with self._lock.held():
                slot = self._first_free()
                if slot is not None:
                    self._table[slot, _OWNER] = self._me
                    self._table[slot, _N] = n
                    self._table[slot, _STATE] = _WRITING
                    return slot
                self._people[self._me, _PARKED] = 1
            if not self._slept(deadline):
                return None

    def publish(self, slot: int, nbytes: int) -> None:
        """Gives a slot that was written to the consumers."""
        with self._lock.held():
            row = self._table[slot]
            row[_STAMP] = self._head[_STAMPS] = self._head[_STAMPS] + 1
            row[_TAKEN] = 0
            row[_NBYTES] = nbytes
            row[_STATE] = _READY
            sleepers = self._sleepers(_CONSUMER)
        self._ring(sleepers)

    def discard(self, slot: int) -> None:
        """Gives a slot back that was not written."""
        with self._lock.held():
            self._table[slot, _STATE] = _FREE

    def unread(self) -> int:
        """Returns how many samples of this producer nobody has claimed."""
        with self._lock.held():
            mine = (self._table[:, _STATE] == _READY) & (self._table[:, _OWNER] == self._me)
            left = self._table[mine, _N] - self._table[mine, _TAKEN]
            return int(left.clip(0).sum())

    # ---- consumers ----

    def claim(self, least: int, most: int, deadline: float) -> list[Claim]:
        """Returns between `least` and `most` samples, each once; none if there are fewer until the deadline."""
        while True:
            with self._lock.held():
                claims = self._claims(least, most)
                if claims:
                    for claim in claims:
                        count = claim.stop - claim.first
                        self._reading[claim.slot, self._me] += count
                        self._table[claim.slot, _TAKEN] += count
                    return claims
                self._people[self._me, _PARKED] = 1
            if not self._slept(deadline):
                return []

    def release(self, claims: Sequence[Claim]) -> None:
        """Ends the reading of claimed samples."""
        with self._lock.held():
            freed = False
            for claim in claims:
                self._reading[claim.slot, self._me] = 0
                freed = self._free_if_done(claim.slot) or freed
            sleepers = self._sleepers(_PRODUCER) if freed else 0
        self._ring(sleepers)

    def message(self, slot: int) -> memoryview:
        """Returns the message in a slot, as its producer wrote it."""
        message: memoryview = self.slots[slot][: int(self._table[slot, _NBYTES])]
        return message

    @property
    def lost(self) -> int:
        """How many samples were lost with processes that died while they wrote or read them."""
        return int(self._head[_LOST])

    # ---- both ----

    def has_consumers(self) -> bool:
        """Returns whether a consumer lives."""
        with self._lock.held():
            self._recover()
            return bool((self._people[:, _ROLE] == _CONSUMER).any())

    def leave(self) -> None:
        """Ends this process's part; what it was writing or reading is taken back."""
        if os.getpid() == self._lock.pid:
            with self._lock.held():
                self._remove(self._me)
                sleepers = self._sleepers(_PRODUCER)
            self._ring(sleepers)
        self._lock.close()
        for fd in self.fds:
            os.close(fd)
        self.slots = []

    def _claims(self, least: int, most: int) -> list[Claim]:
        table = self._table
        ready = np.flatnonzero(table[:, _STATE] == _READY)
        n, taken = table[ready, _N], table[ready, _TAKEN]
        left = np.where(taken < n * self._reuses, n - taken % np.maximum(n, 1), 0)  # of this round
        if int(left.sum()) < least or not len(ready):
            return []
        stamps = table[ready, _STAMP]
        if self._order == "fifo":
            order = stamps.argsort()
        elif self._order == "fresh":
            order = (-stamps).argsort()
        else:
            order = np.lexsort((stamps, taken // np.maximum(n, 1)))
        claims = []
        for index in order.tolist():
            count = min(int(left[index]), most)
            if count:
                size = int(n[index])
                rounds, first = divmod(int(taken[index]), size)
                claims.append(Claim(int(ready[index]), first, first + count, rounds > 0))
                most -= count
            if not most:
                break
        return claims

    def _free_if_done(self, slot: int) -> bool:
        row = self._table[slot]
        done = row[_STATE] == _READY and row[_TAKEN] >= row[_N] * self._reuses and not self._reading[slot].any()
        if done:
            row[_STATE] = _FREE
        return bool(done)

    def _first_free(self) -> int | None:
        free = np.flatnonzero(self._table[:, _STATE] == _FREE)
        return int(free[0]) if len(free) else None

    def _joined(self) -> int:
        with self._lock.held():
            self._recover()
            free = np.flatnonzero(self._people[:, _PID] == 0)
            if not len(free):
                raise StreamError(f"{_PEOPLE} producers and consumers use this stream, which is the most")
            me = int(free[0])
            self._people[me, _BIRTH] = _birth(self._lock.pid)
            self._people[me, _ROLE] = self._role
            self._people[me, _PARKED] = 0
            self._people[me, _PID] = self._lock.pid
        return me

    def _recover(self) -> None:
        """Takes back what dead processes had; called with the lock."""
        for index in np.flatnonzero(self._people[:, _PID]).tolist():
            pid, birth = self._people[index, :2].tolist()
            if pid != self._lock.pid and _birth(pid) != birth:
                self._remove(index)

    def _remove(self, index: int) -> None:
        writing = np.flatnonzero((self._table[:, _STATE] == _WRITING) & (self._table[:, _OWNER] == index))
        self._head[_LOST] += int(self._table[writing, _N].sum()) + int(self._reading[:, index].sum())
        self._table[writing, _STATE] = _FREE
        reading = np.flatnonzero(self._reading[:, index])
        self._reading[:, index] = 0
        for slot in reading.tolist():
            self._free_if_done(slot)
        self._table[self._table[:, _OWNER] == index, _OWNER] = -1
        self._people[index] = 0

    def _sleepers(self, role: int) -> int:
        return int(self._people[self._people[:, _ROLE] == role, _PARKED].sum())

    def _ring(self, n: int) -> None:
        if n:
            with suppress(BlockingIOError):
                os.write(self._other_bell, b"!" * n)

    def _slept(self, deadline: float) -> bool:
        """Sleeps until the bell rings, or for a tick; returns False if the deadline has passed."""
        left = remaining(deadline)
        if self._poll.poll(min(left, _TICK_SECONDS) * 1e3):
            with suppress(BlockingIOError):  # another sleeper took it
                os.read(self._own_bell, 1)
        self._people[self._me, _PARKED] = 0
        now = time.monotonic()
        if now >= self._next_recovery:
            self._next_recovery = now + _TICK_SECONDS
            with self._lock.held():
                self._recover()
        return left > 0


def _bell() -> tuple[int, int]:
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

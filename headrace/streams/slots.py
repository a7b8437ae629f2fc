"""The shared memory of a sample stream: slots for messages, a table of their states, and who takes part.

All changes of the table are made by whoever holds the lock, which is a file lock on the memory: the kernel releases it
when its holder dies, and a killed process leaves no lock behind. It is held for microseconds; messages are
copied in and out without it. A message that is being written or read belongs to a process, which is named by its pid
and the time of its start; what belongs to a dead one is taken back.

(Rings of slots, one for each producer, would need no lock among producers. But several consumers need one to share what
there is, and a producer that is behind would have the free slots of the others.)
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
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
#: How many producers and consumers can take part.
_PEOPLE = 128
_TICK_SECONDS = 0.05  # a sleeper looks this often in any case, and for processes that have died
_FREE, _WRITING, _READY = range(3)
_PID, _BIRTH, _ROLE, _PARKED = range(4)  # columns of the table of processes
_STAMPS, _LOST, _AVAILABLE, _SLEEPERS = range(4)  # in the head; behind the last, one for each role
_PRODUCER, _CONSUMER = 1, 2
_NONE = 2**63 - 1  # in the queue: nothing to claim
_ROUND = 2**44  # more than there are messages


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
    """The memory; for each slot, what is in it.

    Args:
        head: numbers of the whole stream.
        people: the processes that take part.
        state: free, being written, or ready.
        owner: who wrote it, by the index in `people`.
        stamp: when it was sent, as a count.
        n: samples in the message.
        taken: how many samples were claimed, each time; the next one is `taken % n`.
        nbytes: size of the message.
        readers: how many read it.
        queue: its rank among those that have samples to claim, the smallest first.
        reading: how many samples each of the processes is reading.
        data: the messages.
    """

    head: np.ndarray
    people: np.ndarray
    state: np.ndarray
    owner: np.ndarray
    stamp: np.ndarray
    n: np.ndarray
    taken: np.ndarray
    nbytes: np.ndarray
    readers: np.ndarray
    queue: np.ndarray
    reading: np.ndarray
    data: np.ndarray


_RANKS: dict[str, Callable[[int, int], int]] = {
    "fifo": lambda stamp, rounds: stamp,
    "fresh": lambda stamp, rounds: -stamp,
    "least_reused": lambda stamp, rounds: rounds * _ROUND + stamp,
}


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
        self._rank = _RANKS[get_args(Order)[layout.order]]

        def build(allocate: Allocate) -> _Arrays:
            whole, n = np.dtype(np.int64), layout.n_slots
            shapes: list[tuple[int, ...]] = [(16,), (_PEOPLE, 8), *[(n,)] * 8, (n, _PEOPLE)]
            data = allocate((n, layout.slot_bytes), np.dtype(np.uint8))
            return _Arrays._make([*[allocate(shape, whole) for shape in shapes], data])

        arena, arrays = shared(build, None if fds is None else fds[0])
        assert arena.fd is not None
        bells = [*_bell(), *_bell()] if fds is None else fds[1:]
        self.fds: tuple[int, ...] = (arena.fd, *bells)
        samples, space = bells[:2], bells[2:]
        self._own_bell, self._other_bell = (space[0], samples[1]) if role == "producer" else (samples[0], space[1])
        self._poll = select.poll()
        self._poll.register(self._own_bell, select.POLLIN)
        self._arrays = arrays
        self.slots = [row.data for row in arrays.data]
        # Single numbers are read and written through memoryviews, which takes half as long.
        self._head, self._people, self._reading = arrays.head.data, arrays.people.data, arrays.reading.data
        self._state, self._owner, self._stamp = arrays.state.data, arrays.owner.data, arrays.stamp.data
        self._n, self._taken, self._nbytes = arrays.n.data, arrays.taken.data, arrays.nbytes.data
        self._readers, self._queue = arrays.readers.data, arrays.queue.data
        self._lock = FileLock(arena.fd)
        self._next_recovery = 0.0
        self._parked = False
        self._role = _PRODUCER if role == "producer" else _CONSUMER
        try:
            with self._lock:
                if fds is None:
                    arrays.queue[:] = _NONE
                self._me = self._joined()
        except BaseException:
            self._close()
            raise

    # ---- producers ----

    def claim_free(self, n: int, deadline: float) -> int | None:
        """Returns a slot to write a message of `n` samples into; None if none becomes free until the deadline."""
        while True:
            with self._lock:
                if self._parked:
                    self._unpark()
                slot = int(self._arrays.state.argmin())
                if self._state[slot] == _FREE:
                    self._owner[slot] = self._me
                    self._n[slot] = n
                    self._state[slot] = _WRITING
                    return slot
                if not self._parked_until(deadline):
                    return None
            self._sleep(deadline)

    def publish(self, slot: int, nbytes: int) -> None:
        """Gives a slot that was written to the consumers."""
        with self._lock:
            head = self._head
            head[_STAMPS] = stamp = head[_STAMPS] + 1
            self._stamp[slot] = stamp
            self._taken[slot] = self._readers[slot] = 0
            self._nbytes[slot] = nbytes
            self._state[slot] = _READY
            self._queue[slot] = self._rank(stamp, 0)
            head[_AVAILABLE] += self._n[slot]
            sleepers = head[_SLEEPERS + _CONSUMER]
        if sleepers > 0:
            self._ring(sleepers)

    def discard(self, slot: int) -> None:
        """Gives a slot back that was not written."""
        with self._lock:
            self._state[slot] = _FREE

    def unread(self) -> int:
        """Returns how many samples of this producer nobody has claimed."""
        with self._lock:
            arrays = self._arrays
            mine = (arrays.state == _READY) & (arrays.owner == self._me)
            return int((arrays.n - arrays.taken)[mine].clip(0).sum())

    # ---- consumers ----

    def claim(self, least: int, most: int, deadline: float) -> list[Claim]:
        """Returns between `least` and `most` samples, each once; none if there are fewer until the deadline.

        No message is begun after `least`: its slot would be occupied while the ones before it are copied.
        """
        while True:
            with self._lock:
                if self._parked:
                    self._unpark()
                if self._head[_AVAILABLE] >= least:
                    return self._claimed(least, most)
                if not self._parked_until(deadline):
                    return []
            self._sleep(deadline)

    def release(self, claims: Sequence[Claim]) -> None:
        """Ends the reading of claimed samples."""
        with self._lock:
            freed = False
            for claim in claims:
                self._reading[claim.slot, self._me] = 0
                self._readers[claim.slot] -= 1
                freed = self._free_if_done(claim.slot) or freed
            sleepers = self._head[_SLEEPERS + _PRODUCER] if freed else 0
        if sleepers > 0:
            self._ring(sleepers)

    def message(self, slot: int) -> memoryview:
        """Returns the message in a slot, as its producer wrote it."""
        message: memoryview = self.slots[slot][: self._nbytes[slot]]
        return message

    @property
    def lost(self) -> int:
        """How many samples were lost with processes that died while they wrote or read them."""
        return self._head[_LOST]

    # ---- both ----

    def has_consumers(self) -> bool:
        """Returns whether a consumer lives."""
        with self._lock:
            self._recover()
            return bool((self._arrays.people[:, _ROLE] == _CONSUMER).any())

    def leave(self) -> None:
        """Ends this process's part; what it was writing or reading is taken back."""
        if not self._lock.forked:
            with self._lock:
                self._remove(self._me)
                sleepers = self._head[_SLEEPERS + _PRODUCER]
            if sleepers > 0:
                self._ring(sleepers)
        self._close()

    def _close(self) -> None:
        self._lock.close()
        for fd in self.fds:
            os.close(fd)
        self.slots = []

    def _claimed(self, least: int, most: int) -> list[Claim]:
        """Claims samples that there are, of each message those of one round at most, so that no sample comes twice."""
        claims = []
        again = []  # messages that can be claimed from once more, next time
        queue, reuses, available = self._queue, self.layout.reuses, self._head[_AVAILABLE]
        while least > 0 and queue[slot := int(self._arrays.queue.argmin())] != _NONE:
            n, taken = self._n[slot], self._taken[slot]
            rounds, first = divmod(taken, n)
            stop = min(first + most, n)
            count = stop - first
            claims.append(Claim(slot, first, stop, rounds > 0))
            least -= count
            most -= count
            available -= count
            self._reading[slot, self._me] = count
            self._readers[slot] += 1
            self._taken[slot] = taken = taken + count
            queue[slot] = _NONE
            if taken < n * reuses:
                again.append(slot)
        for slot in again:
            rounds, first = divmod(self._taken[slot], self._n[slot])
            queue[slot] = self._rank(self._stamp[slot], rounds)
            available += 0 if first else self._n[slot]
        self._head[_AVAILABLE] = available
        return claims

    def _free_if_done(self, slot: int) -> bool:
        done = (
            self._state[slot] == _READY
            and self._taken[slot] >= self._n[slot] * self.layout.reuses
            and not self._readers[slot]
        )
        if done:
            self._state[slot] = _FREE
        return done

    def _joined(self) -> int:
        self._recover()
        free = np.flatnonzero(self._arrays.people[:, _PID] == 0)
        if not len(free):
            raise StreamError(f"{_PEOPLE} producers and consumers use this stream, which is the most")
        me = int(free[0])
        self._arrays.people[me, _BIRTH:] = 0
        self._people[me, _BIRTH] = _birth(self._lock.pid)
        self._people[me, _ROLE] = self._role
        self._people[me, _PID] = self._lock.pid
        return me

    def _recover(self) -> None:
        """Takes back what dead processes had; called with the lock."""
        for index in np.flatnonzero(self._arrays.people[:, _PID]).tolist():
            pid, birth = self._people[index, _PID], self._people[index, _BIRTH]
            if pid != self._lock.pid and _birth(pid) != birth:
                self._remove(index)

    def _remove(self, index: int) -> None:
        """Takes back what a process had, and computes anew what it may have left half changed."""
        arrays, head = self._arrays, self._head
        writing = (arrays.state == _WRITING) & (arrays.owner == index)
        head[_LOST] += int(arrays.n[writing].sum() + arrays.reading[:, index].sum())
        arrays.state[writing] = _FREE
        arrays.reading[:, index] = 0
        arrays.owner[arrays.owner == index] = -1
        arrays.people[index] = 0
        arrays.readers[:] = (arrays.reading > 0).sum(axis=1)
        available = 0
        for slot in range(self.layout.n_slots):
            self._free_if_done(slot)
            self._queue[slot] = _NONE
            if self._state[slot] == _READY and self._taken[slot] < self._n[slot] * self.layout.reuses:
                rounds, first = divmod(self._taken[slot], self._n[slot])
                self._queue[slot] = self._rank(self._stamp[slot], rounds)
                available += self._n[slot] - first
        head[_AVAILABLE] = available
        for role in (_PRODUCER, _CONSUMER):
            head[_SLEEPERS + role] = int(arrays.people[arrays.people[:, _ROLE] == role, _PARKED].sum())

    def _parked_until(self, deadline: float) -> bool:
        """Notes that this process is going to sleep; returns False, and does not, if the deadline has passed."""
        now = time.monotonic()
        if now >= self._next_recovery:
            self._next_recovery = now + _TICK_SECONDS
            self._recover()
        self._parked = now < deadline
        if self._parked:
            self._people[self._me, _PARKED] = 1
            self._head[_SLEEPERS + self._role] += 1
        return self._parked

    def _unpark(self) -> None:
        self._parked = False
        self._people[self._me, _PARKED] = 0
        self._head[_SLEEPERS + self._role] -= 1

    def _ring(self, n: int) -> None:
        with suppress(BlockingIOError):
            os.write(self._other_bell, b"!" * n)

    def _sleep(self, deadline: float) -> None:
        """Sleeps until the bell rings, or for a tick."""
        if self._poll.poll(min(remaining(deadline), _TICK_SECONDS) * 1e3):
            with suppress(BlockingIOError):  # another sleeper took it
                os.read(self._own_bell, 1)


def _bell() -> tuple[int, int]:
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

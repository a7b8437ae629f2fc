"""Passes turns between processes: counters in shared memory, and a bell for a process that sleeps.

Each side increments a counter of its own and waits for the counters of the other side. A counter is written by one
process only and has cache lines of its own, so there is no lock and no token that could be lost or counted twice.
Waiting has two phases: poll the counter for as long as `headrace.processes.patience` allows, yielding the core with
`sched_yield` after every look (half a microsecond if no other process wants it), then sleep on the bell.

The bell is a pipe. A futex or a semaphore would wake a process as fast (measured round trip on two idle cores: pipe 67
µs, semaphore 83; on one core 11 and 8). But a process can sleep on a pipe together with the pipes and sentinels of the
workers, so the death of a peer wakes it at once; a pipe works the same under every start method and system; and it has
no name that a crash could leave behind.

The bell is not rung for a process that is awake: the sleeper first raises a flag, then looks at the counter once more,
and the other side first increments its counter, then looks at the flag. With a full fence between the two on either
side, at least one of them sees the other's write.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter_ns
from typing import Any

import numpy as np

from headrace import compiled
from headrace.memory import WEAKLY_ORDERED, fence

__all__ = ["Bell", "Cell", "Handoff", "make_cell"]

_TICK_MS = 50  # a sleeper checks the counters this often in any case

#: A number in shared memory: index 0 of a view of int64.
Cell = memoryview


def make_cell(allocate: Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]) -> Cell:
    """Allocates a number on two cache lines of its own (the processor fetches them in pairs)."""
    return allocate((16,), np.dtype(np.int64)).data


class Bell:
    """Wakes one process: `parked` says that it sleeps, and the pipe is what it sleeps on.

    Neither descriptor is closed here.

    Args:
        parked: cell, 1 while the owner sleeps.
        read_fd: the owner's end, -1 in other processes.
        write_fd: the end of the processes that ring, -1 in the owner.
        other_fd: another descriptor that ends the owner's sleep when it is readable, -1: none.
    """

    def __init__(self, parked: Cell, *, read_fd: int = -1, write_fd: int = -1, other_fd: int = -1) -> None:
        self.parked = parked
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._poll = select.poll()
        for fd in (read_fd, other_fd):
            if fd >= 0:
                self._poll.register(fd, select.POLLIN)

    @staticmethod
    def pipe() -> tuple[int, int]:
        """Returns the descriptors of a bell, (read, write), neither of which ever blocks."""
        return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ring(self) -> None:
        """Wakes the owner; a full pipe has rung already, and a pipe without a reader is ignored."""
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._write_fd, b"!")

    def sleep(self) -> bool:
        """Sleeps until the bell rings, for a tick of 50 ms at most; returns whether it rang."""
        return any(fd == self._read_fd for fd, _ in self._poll.poll(_TICK_MS))

    def silence(self) -> None:
        """Discards the rings so far."""
        with suppress(BlockingIOError):
            os.read(self._read_fd, 4096)


class Handoff:
    """One side of the handoff: `post` signals that it has moved on, `wait_for` waits until all peers have.

    `late` counts the sleeps that ended by the tick although the counter had moved and the bell did not ring: it is 0
    unless the protocol is broken.

    Args:
        own: the counter of this side.
        peers: the counters it waits for.
        bell: where it sleeps.
        peer_bells: the bells of the processes that wait for this side.
        companions: other counters that those processes wait for together with `own`, so that only the last one rings.
        spin_ns: cell with the nanoseconds to poll before sleeping, see `headrace.processes.patience`.
    """

    def __init__(
        self,
        own: Cell,
        peers: Sequence[Cell],
        bell: Bell,
        peer_bells: Sequence[Bell],
        *,
        companions: Sequence[Cell] = (),
        spin_ns: Cell,
    ) -> None:
        self._own = own
        self._peers = list(peers)
        self._bell = bell
        self._peer_bells = list(peer_bells)
        self._companions = list(companions)
        self._spin_ns = spin_ns
        self._lock = threading.Lock()  # not shared: a lock held in another thread at a fork would stay locked
        self.late = 0

    @property
    def count(self) -> int:
        """How often this side has posted."""
        return self._own[0]

    def post(self) -> int:
        """Increments the counter and returns it; takes 0.3 µs, and 3 more to ring.

        Everything written before is visible to a process that sees the new count.
        """
        if WEAKLY_ORDERED:
            fence(self._lock)
        self._own[0] = number = self._own[0] + 1
        fence(self._lock)
        for bell in self._peer_bells:
            if bell.parked[0] and all(other[0] >= number for other in self._companions):
                bell.ring()
        return number

    def lagging(self, number: int) -> list[int]:
        """Returns the peers that have posted less than `number` times, by their index in `peers`."""
        return [index for index, peer in enumerate(self._peers) if peer[0] < number]

    def wait_for(self, number: int, sleep: Callable[[Sequence[int]], bool] | None = None) -> None:
        """Waits until every peer has posted `number` times.

        Args:
            number: the count to wait for.
            sleep: called as often as needed with the peers still awaited, to sleep for a tick at most; returns whether
                the bell rang, and raises if there is nothing left to wait for. None: sleeps on the bell alone, without
                a deadline, as workers do, which end with their parent.
        """
        for peer in self._peers:
            while peer[0] < number:
                if not self._spin(peer, number):
                    self._sleep_until(number, sleep)
        if WEAKLY_ORDERED:
            fence(self._lock)

    def _spin(self, peer: Cell, number: int) -> bool:
        """Polls one peer for as long as `spin_ns` says; returns whether it has posted `number` times."""
        spin_ns = self._spin_ns[0]
        if not spin_ns:
            return False
        if compiled.waiting is not None:
            reached: bool = compiled.waiting.spin(peer, number, spin_ns)
            return reached
        end = perf_counter_ns() + spin_ns
        while perf_counter_ns() < end:
            if peer[0] >= number:
                return True
            os.sched_yield()  # also lets this process's other threads run
        return False

    def _sleep_until(self, number: int, sleep: Callable[[Sequence[int]], bool] | None) -> None:
        bell = self._bell
        try:
            while True:
                bell.parked[0] = 1
                fence(self._lock)
                awaited = self.lagging(number)
                if not awaited:
                    return
                rang = bell.sleep() if sleep is None else sleep(awaited)
                if rang:
                    bell.silence()
                elif not self.lagging(number) and not bell.sleep():
                    # The second sleep excludes a ring that coincided with the tick: the bell was not rung.
                    self.late += 1
        finally:
            bell.parked[0] = 0

"""Handing rows back and forth between processes: counters in shared memory, and a bell for who sleeps.

Each side counts up a number of its own and waits for the other's. A number is written by one process only and has cache
lines of its own, so there is no lock and no token that could be lost or counted twice. Waiting is two things in turn:
look at the number for as long as `headrace.processes.patience` allows, giving the core away with `sched_yield` after
every look (half a microsecond where nobody wants it), then sleep on the bell.

The bell is a pipe. A futex or a semaphore would do the waking as fast (measured on two idle cores, there and back: pipe
67 µs, semaphore 83; on one core 11 and 8), but a pipe can be slept on together with the pipes and sentinels of the
workers, so a peer that dies wakes the sleeper at once, it works the same under every start method and system, and has
no name that a crash could leave behind.

Nobody rings for who is awake: the sleeper raises a flag first, then looks once more, and the other side moves its
number first, then looks at the flag. With a full fence between the two on either side, one of them sees the other.
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

from headrace.memory import WEAKLY_ORDERED, fence

__all__ = ["Bell", "Cell", "Handoff", "make_cell"]

_TICK_MS = 50  # a sleeper looks around this often, whatever happens

#: A number in shared memory: index 0 of a view of int64.
Cell = memoryview


def make_cell(allocate: Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]) -> Cell:
    """A number on two cache lines of its own (the processor fetches them in pairs)."""
    return allocate((16,), np.dtype(np.int64)).data


class Bell:
    """Wakes one process: `parked` says that it sleeps, the pipe is what it sleeps on.

    read_fd: the owner's end, -1 elsewhere; write_fd: the ringers' end. Neither is closed here.
    """

    def __init__(self, parked: Cell, *, read_fd: int = -1, write_fd: int = -1) -> None:
        self.parked = parked
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._poll = select.poll()
        if read_fd >= 0:
            self._poll.register(read_fd, select.POLLIN)

    @staticmethod
    def pipe() -> tuple[int, int]:
        """Descriptors for a bell: (read, write), neither of which ever blocks."""
        return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ring(self) -> None:
        """Wakes the owner; a pipe that is full has rung already, one nobody reads any more wakes nobody."""
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._write_fd, b"!")

    def sleep(self) -> bool:
        """Sleeps until it rings, a tick of 50 ms at most; returns whether it rang."""
        return bool(self._poll.poll(_TICK_MS))

    def silence(self) -> None:
        """Forgets the rings so far."""
        with suppress(BlockingIOError):
            os.read(self._read_fd, 4096)


class Handoff:
    """One side's hands: `post` says that it has moved on, `wait_for` waits until all peers have.

    own: the number this side counts up; peers: those it waits for; bell: where it sleeps; peer_bells: where those sleep
    that wait for it; companions: other numbers that these wait for together with `own`, so that only the last rings;
    spin_ns: a cell with the nanoseconds to look before sleeping, see `headrace.processes.patience`. `late` counts the
    sleeps that ended by the tick although the number had moved and nobody rang: 0, or the protocol is broken.
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
        self._lock = threading.Lock()  # its own: one that a thread held while this process was forked would stay held
        self.late = 0

    @property
    def count(self) -> int:
        """How often this side has posted."""
        return self._own[0]

    def post(self) -> int:
        """Counts up; everything written before is seen by who sees the number. Returns it. 0.3 µs, ringing 3 more."""
        if WEAKLY_ORDERED:
            fence(self._lock)
        self._own[0] = number = self._own[0] + 1
        fence(self._lock)
        for bell in self._peer_bells:
            if bell.parked[0] and all(other[0] >= number for other in self._companions):
                bell.ring()
        return number

    def lagging(self, number: int) -> list[int]:
        """The peers that have not come as far as `number`, by their place in `peers`."""
        return [index for index, peer in enumerate(self._peers) if peer[0] < number]

    def wait_for(self, number: int, sleep: Callable[[Sequence[int]], bool] | None = None) -> None:
        """Waits until every peer has posted `number` times.

        sleep: called as often as needed with the peers still awaited, to sleep for a tick at most; returns whether the
        bell rang, raises when there is nothing to wait for any more. None: sleeps on the bell alone, for ever, which
        is for workers: they end with their parent.
        """
        for peer in self._peers:
            while peer[0] < number:
                if not self._saw(peer, number):
                    self._sleep_until(number, sleep)
        if WEAKLY_ORDERED:
            fence(self._lock)

    def _saw(self, peer: Cell, number: int) -> bool:
        """Looks for as long as patience lasts."""
        spin_ns = self._spin_ns[0]
        if not spin_ns:
            return False
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
                    # Not the ring of just now, which a tick may coincide with: nobody rings.
                    self.late += 1
        finally:
            bell.parked[0] = 0

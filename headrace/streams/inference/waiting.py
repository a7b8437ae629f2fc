"""Waiting for messages: polls for a moment, then sleeps; see `headrace.processes.patience` for how long a moment is."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter_ns

import numpy as np

from headrace.processes.affinity import cpu_quota, usable_cores
from headrace.processes.patience import Patience

__all__ = ["Waiting", "polled"]

_LONGEST_NS = 500_000
_MOST_IN_VAIN = 4
_ANOTHER_TRY = 32


def polled(ready: Callable[[], bool], nanoseconds: int) -> bool:
    """Calls `ready` until it returns True or the time is over; returns which. Yields the core after each call."""
    end = perf_counter_ns() + nanoseconds
    while perf_counter_ns() < end:
        if ready():
            return True
        os.sched_yield()  # to who sends what is waited for, if it has no other core
    return False


class Waiting:
    """Waits for messages in a process that knows nothing of the processes that send them.

    Where messages usually take longer than the moment, or other programs keep the core that was yielded to them, it
    sleeps at once, and polls in one of 32 waits to find out whether that has changed.

    Args:
        ready: returns whether a message is there, without waiting.
        sleep: waits until a message is there, for a number of seconds at most.
    """

    def __init__(self, ready: Callable[[], bool], sleep: Callable[[float], object]) -> None:
        self._ready = ready
        self._sleep = sleep
        self._in_vain = 0  # waits since one in which polling was enough
        self._spin_ns = np.zeros(1, np.int64).data
        self._patience = Patience(self._spin_ns, [os.getpid()], usable_cores(), cpu_quota(), _LONGEST_NS)

    def wait(self, seconds: float) -> None:
        """Waits until a message is there, for `seconds` at most."""
        self._patience.decide()
        nanoseconds = min(self._spin_ns[0], int(max(seconds, 0.0) * 1e9))
        if self._in_vain >= _MOST_IN_VAIN and self._in_vain % _ANOTHER_TRY:
            nanoseconds = 0
        if nanoseconds and polled(self._ready, nanoseconds):
            self._in_vain = 0
        else:
            self._in_vain += 1
            self._sleep(max(0.0, seconds - nanoseconds / 1e9))

"""Decides how long a process polls a counter before it sleeps on a bell; see `headrace.processes.handoff`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter

import psutil

from headrace.processes.handoff import Cell

__all__ = ["Patience"]

_SPIN_NS = 500_000
_SPIN_ALONE_NS = 5_000_000  # if every process has a core of its own
_PERIOD = 0.5  # seconds between two measurements of other programs' CPU use
_TOLERATED_LOAD = 0.5  # cores that other programs may use beyond the spare ones


class Patience:
    """Sets how long processes that take turns poll before sleeping, in a cell that all of them read.

    Polling pays off even if more processes take turns than there are cores: a polling process yields its core after
    each look, and being woken costs 20 to 90 µs (`docs/performance.md`). It does not pay off beside other programs,
    which keep a core that was yielded to them for a whole time slice, nor if polling uses up a container's quota.

    Args:
        cell: the cell for the nanoseconds to poll.
        pids: the processes that take turns.
        cores: cores that they share.
        quota: cores' worth of CPU time they may use; None: no limit.
        longest_ns: nanoseconds to poll at most.
    """

    def __init__(
        self, cell: Cell, pids: Sequence[int], cores: int, quota: int | None, longest_ns: int = _SPIN_ALONE_NS
    ) -> None:
        self._cell = cell
        self._processes = []
        for pid in pids:
            with suppress(psutil.Error):  # it ended; the process that waits for it will report that
                self._processes.append(psutil.Process(pid))
        self._spare = max(0, cores - len(pids))
        self._share = cores / (os.cpu_count() or cores)
        self._spin_ns = min(_SPIN_NS if cores < len(pids) else _SPIN_ALONE_NS, longest_ns)
        if quota is not None and len(pids) > quota:
            self._spin_ns = 0
        self._measured_at = perf_counter()
        self._foreign = self._foreign_seconds()
        cell[0] = self._spin_ns

    def decide(self) -> None:
        """Measures the CPU time that other programs used since the last call; 30 µs a process, twice a second at most.

        It does not use the kernel's count of running processes: between two batches that includes workers which are
        about to sleep.
        """
        now = perf_counter()
        seconds = now - self._measured_at
        if seconds < _PERIOD:
            return
        foreign = self._foreign_seconds()
        used = (foreign - self._foreign) / seconds * self._share
        self._measured_at, self._foreign = now, foreign
        self._cell[0] = 0 if used > self._spare + _TOLERATED_LOAD else self._spin_ns

    def _foreign_seconds(self) -> float:
        """Returns the core-seconds used since the machine started, except those of our processes."""
        own = 0.0
        for process in self._processes:
            with suppress(psutil.Error):
                times = process.cpu_times()
                own += times.user + times.system
        machine = psutil.cpu_times()
        return float(machine.user + machine.nice + machine.system - own)

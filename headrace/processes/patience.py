"""For how long it pays to look at a number before sleeping on a bell; see `headrace.processes.handoff`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter

import psutil

from headrace.processes.handoff import Cell

__all__ = ["Patience"]

_SPIN_NS = 500_000
_SPIN_ALONE_NS = 5_000_000  # where every process has a core of its own
_PERIOD = 0.5  # seconds between two measurements of what else runs
_CROWD = 0.5  # cores that other programs use, above those that are to spare


class Patience:
    """Decides how long the processes that take turns look before sleeping, in a cell that all of them read.

    Looking pays even where more processes take turns than there are cores: who looks hands its core on after each look,
    and to be woken costs 20 to 90 µs (`docs/performance.md`). It does not pay beside other programs, which keep a core
    that was handed to them for a whole time slice, nor where looking uses up a container's quota.

    pids: the processes that take turns; cores: that they share; quota: cores' worth of time they may use, None: no
    limit.
    """

    def __init__(self, cell: Cell, pids: Sequence[int], cores: int, quota: int | None) -> None:
        self._cell = cell
        self._processes = []
        for pid in pids:
            with suppress(psutil.Error):  # it ended: who waits for it will say so
                self._processes.append(psutil.Process(pid))
        self._spare = max(0, cores - len(pids))
        self._share = cores / (os.cpu_count() or cores)
        self._spin_ns = _SPIN_NS if cores < len(pids) else _SPIN_ALONE_NS
        if quota is not None and len(pids) > quota:
            self._spin_ns = 0
        self._measured_at = perf_counter()
        self._foreign = self._foreign_seconds()
        cell[0] = self._spin_ns

    def decide(self) -> None:
        """Measures what other programs have used since the last time; 30 µs a process, twice a second at most.

        Not the kernel's count of running processes: between two batches that counts workers which are about to sleep.
        """
        now = perf_counter()
        seconds = now - self._measured_at
        if seconds < _PERIOD:
            return
        foreign = self._foreign_seconds()
        used = (foreign - self._foreign) / seconds * self._share
        self._measured_at, self._foreign = now, foreign
        self._cell[0] = 0 if used > self._spare + _CROWD else self._spin_ns

    def _foreign_seconds(self) -> float:
        """Core-seconds used since the machine started, but for those of our processes."""
        own = 0.0
        for process in self._processes:
            with suppress(psutil.Error):
                times = process.cpu_times()
                own += times.user + times.system
        machine = psutil.cpu_times()
        return float(machine.user + machine.nice + machine.system - own)

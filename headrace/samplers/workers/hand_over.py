"""How an asynchronous sampler and its sampler processes hand over batches: commands and reports in shared memory.

A message through a pipe is pickled, copied by the kernel twice and unpickled, which takes 0.5 ms per batch for a command
and a report beside an optimizer that has just used the caches. Numbers in shared memory take a tenth of that. What does
not fit, such as the last infos of episodes, is sent as a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields

import numpy as np

from headrace.buffers.samples import SlotSpec
from headrace.buffers.shared import Allocate
from headrace.processes.handoff import Bell, Cell, Handoff, make_cell
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.timing import ServerTiming
from headrace.samplers.traj_info import Episodes
from headrace.types import Timing

__all__ = ["BatchReport", "HandOver", "ReportRegion"]

_INT64 = np.dtype(np.int64)

#: What a sampler process says about a batch: the reports of its slices, and the timings of its action server.
BatchReport = tuple[list[SliceReport], Sequence[ServerTiming]]


class ReportRegion:
    """Memory for the report of one process on one batch.

    Args:
        capacities: of each slice, how many ended episodes fit.
        allocate: allocates the arrays.
    """

    def __init__(self, capacities: Sequence[int], allocate: Allocate) -> None:
        self._head = allocate((2,), _INT64)  # whether the report is here, and the number of action servers
        self._server = allocate((len(fields(ServerTiming)),), _INT64)
        self._counts = allocate((len(capacities), 2 + len(fields(Timing))), _INT64)
        self._episodes = [allocate((7, capacity), _INT64) for capacity in capacities]

    def write(self, report: BatchReport) -> bool:
        """Writes a report; returns False, and notes that, if it has more than fits here."""
        reports, servers = report
        fits = len(servers) <= 1 and all(map(_fits, reports, self._episodes))
        self._head[:] = fits, len(servers)
        if fits:
            for server in servers:
                self._server[:] = astuple(server)
            for one, counts, numbers in zip(reports, self._counts, self._episodes, strict=True):
                n = len(one.episodes.time)
                counts[:] = one.n_final, n, *vars(one.timing).values()
                one.episodes.write(numbers[:, :n])
        return fits

    def read(self) -> BatchReport | None:
        """Returns what was written, as copies; None if it did not fit."""
        fits, n_servers = self._head.tolist()
        if not fits:
            return None
        reports = []
        for (n_final, n, *timing), numbers in zip(self._counts.tolist(), self._episodes, strict=True):
            reports.append(SliceReport(n_final, None, Episodes.of(numbers[:, :n].copy()), [], Timing(*timing)))
        return reports, [ServerTiming(*self._server.tolist()) for _ in range(n_servers)]


def _fits(report: SliceReport, numbers: np.ndarray) -> bool:
    episodes = report.episodes
    if report.overflow is not None or report.notes or len(episodes.time) > numbers.shape[1]:
        return False
    return episodes.is_plain


class HandOver:
    """The memory that a learner and its sampler processes share for this; the same in every process.

    Args:
        spec: the contents of a slot.
        n_slots: number of slots; never more batches are commanded and not taken.
        n_slices: of each sampler process, its number of slices.
        allocate: allocates the arrays.
    """

    def __init__(self, spec: SlotSpec, n_slots: int, n_slices: Sequence[int], allocate: Allocate) -> None:
        self._commands = allocate((n_slots, 3), _INT64)
        self._commanded = make_cell(allocate)
        self._finished = [make_cell(allocate) for _ in n_slices]
        #: Which processes sleep: one cell per sampler process, then the learner's.
        self.parked = [make_cell(allocate) for _ in range(len(n_slices) + 1)]
        self._spin_ns: Cell = make_cell(allocate)  # stays 0: batches take longer than it pays to poll
        self._reports: list[list[ReportRegion]] = []
        first = 0
        for n in n_slices:
            capacities = [spec.final_capacity(index) for index in range(first, first + n)]
            self._reports.append([ReportRegion(capacities, allocate) for _ in range(n_slots)])
            first += n

    def learner(self, bell: Bell, process_bells: Sequence[Bell]) -> Handoff:
        """Returns the learner's side: it posts commands, and waits until every process has finished a batch."""
        return Handoff(self._commanded, self._finished, bell, process_bells, spin_ns=self._spin_ns)

    def process(self, rank: int, bell: Bell, learner_bell: Bell) -> Handoff:
        """Returns the side of a sampler process: it waits for commands, and posts batches that it has finished."""
        companions = [cell for other, cell in enumerate(self._finished) if other != rank]
        own = self._finished[rank]
        return Handoff(own, [self._commanded], bell, [learner_bell], companions=companions, spin_ns=self._spin_ns)

    def command(self, number: int, itr: int, version: int, batch_index: int) -> None:
        """Writes a command, before it is posted.

        Args:
            number: how many commands were posted before.
            itr: number of the batch, for the agent's schedules.
            version: version of the parameters.
            batch_index: counts batches from 0.
        """
        self._commands[number % len(self._commands)] = itr, version, batch_index

    def commanded(self, number: int) -> tuple[int, int, int]:
        """Returns itr, version and batch_index of a command that was posted."""
        itr, version, batch_index = self._commands[number % len(self._commands)].tolist()
        return itr, version, batch_index

    def report(self, rank: int, number: int) -> ReportRegion:
        """Returns the memory for the report of a process on a command."""
        own = self._reports[rank]
        return own[number % len(own)]

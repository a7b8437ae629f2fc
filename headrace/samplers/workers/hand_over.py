"""How samplers and their workers hand over batches: commands and reports in shared memory.

A message through a pipe is pickled, copied by the kernel twice and unpickled: half a millisecond per batch for command
and report, in which a fast environment takes a hundred steps. Numbers in shared memory take a tenth of that. A report
with more than numbers, such as the last infos of episodes, is sent as a message.

A worker follows commands in shared memory from the message `follow` until the next message, whatever it is. Before that
message it finishes the batches that were commanded, so messages and commands are executed in the order in which they
were given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from headrace.buffers.samples import SlotSpec
from headrace.buffers.shared import Allocate
from headrace.processes.causes import enough_descriptors
from headrace.processes.child import Channel
from headrace.processes.group import WorkerGroup
from headrace.processes.handoff import Bell, Cell, Handoff, make_cell
from headrace.processes.watch import WorkerBells, WorkerWatch
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.timing import ServerTiming
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.main import reply
from headrace.types import Timing

__all__ = ["BatchReport", "Command", "Dispatcher", "Follower", "HandOver", "HandOverSpec", "ReportRegion"]

_INT64 = np.dtype(np.int64)

#: What a worker says about a batch: the reports of its slices, and the timings of its action server, if it has one.
BatchReport = tuple[list[SliceReport], Sequence[ServerTiming]]
#: The arguments of `Engine.collect`: itr, version and batch_index.
Command = tuple[int, int, int]


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


@dataclass(frozen=True)
class HandOverSpec:
    """What the memory of a hand-over depends on.

    Args:
        slot: the contents of a slot.
        n_slots: number of slots; never more batches are commanded and not taken.
        n_slices: of each worker, its number of slices.
        first_slice: index of the first worker's first slice among the slices of the slot.
    """

    slot: SlotSpec
    n_slots: int
    n_slices: tuple[int, ...]
    first_slice: int = 0


class HandOver:
    """The memory that a sampler and its workers share to hand over batches; the same in every process.

    Args:
        spec: what it depends on.
        allocate: allocates the arrays.
    """

    def __init__(self, spec: HandOverSpec, allocate: Allocate) -> None:
        self._commands = allocate((spec.n_slots, 3), _INT64)
        self._commanded = make_cell(allocate)
        self._finished = [make_cell(allocate) for _ in spec.n_slices]
        self._parked = [make_cell(allocate) for _ in spec.n_slices]
        self._sampler_parked = make_cell(allocate)
        #: Nanoseconds to poll before sleeping, on both sides; 0 in a new arena.
        self.spin_ns: Cell = make_cell(allocate)
        self._reports: list[list[ReportRegion]] = []
        first = spec.first_slice
        for n in spec.n_slices:
            capacities = [spec.slot.final_capacity(index) for index in range(first, first + n)]
            self._reports.append([ReportRegion(capacities, allocate) for _ in range(spec.n_slots)])
            first += n

    def sampler(self, bells: WorkerBells) -> Handoff:
        """Returns the sampler's side: it posts commands, and waits until every worker has finished a batch."""
        own, workers = bells.own(self._sampler_parked), bells.of_workers(self._parked)
        return Handoff(self._commanded, self._finished, own, workers, spin_ns=self.spin_ns)

    def worker(self, rank: int, bell: Bell, sampler_bell: Bell) -> Handoff:
        """Returns the side of a worker: it waits for commands, and posts batches that it has finished."""
        companions = [cell for other, cell in enumerate(self._finished) if other != rank]
        own = self._finished[rank]
        return Handoff(own, [self._commanded], bell, [sampler_bell], companions=companions, spin_ns=self.spin_ns)

    def bells(self, rank: int, channel: Channel) -> tuple[Bell, Bell]:
        """Receives the descriptors of a worker's bell, which its pipe rings too, and of the sampler's bell."""
        own = Bell(self._parked[rank], read_fd=channel.receive_fd(), other_fd=channel.fd)
        return own, Bell(self._sampler_parked, write_fd=channel.receive_fd())

    def command(self, number: int, command: Command) -> None:
        """Writes command `number`, counted from 0, before it is posted."""
        self._commands[number % len(self._commands)] = command

    def commanded(self, number: int) -> Command:
        """Returns a command that was posted."""
        itr, version, batch_index = self._commands[number % len(self._commands)].tolist()
        return itr, version, batch_index

    def report(self, rank: int, number: int) -> ReportRegion:
        """Returns the memory for the report of a worker on a command."""
        own = self._reports[rank]
        return own[number % len(own)]


class Dispatcher:
    """The sampler's side: commands batches, and reads the reports of all workers.

    Args:
        group: the processes; the descriptors of the bells are sent to those that collect.
        ranks: those that collect.
        memory: shared with them.
        follow: the method of the workers that calls `Follower.run`.
    """

    def __init__(
        self, group: WorkerGroup, ranks: Sequence[int], memory: HandOver, follow: Callable[[Any], None]
    ) -> None:
        self._group, self._ranks, self._memory, self._follow = group, ranks, memory, follow
        with enough_descriptors(len(ranks)):
            self._bells = WorkerBells(group, ranks)
        self._handoff = memory.sampler(self._bells)
        self._watch = WorkerWatch(group, self._bells.read_fd)
        self._following = False
        self._n_taken = 0

    @property
    def n_outstanding(self) -> int:
        """Number of batches that were commanded and whose reports were not taken."""
        return self._handoff.count - self._n_taken

    def command(self, command: Command) -> None:
        """Makes every worker collect a batch, after those that were commanded before.

        Raises:
            SamplerError: if a worker has failed or ended.
        """
        self._group.look()
        if not self._following:
            self._group.send((self._follow,), self._ranks)
            self._following = True
        self._memory.command(self._handoff.count, command)
        self._handoff.post()

    def take(self) -> list[BatchReport]:
        """Waits until every worker has finished the next batch; returns their reports.

        Raises:
            SamplerError: if a worker fails, dies or hangs.
        """
        number = self._n_taken
        self._handoff.wait_for(number + 1, self._sleep)
        self._watch.awake()
        self._n_taken += 1
        return [self._report(rank, number) for rank in self._ranks]

    def end(self) -> None:
        """Makes the workers wait for messages again, after the reports of all batches were taken."""
        if self._following:
            self._group.send((_stop_following,), self._ranks)
            self._group.replies(ranks=self._ranks)  # to `follow`
            self._group.replies(ranks=self._ranks)
            self._following = False

    def close(self) -> None:
        """Closes the descriptors of the bells."""
        self._bells.close()

    def _report(self, rank: int, number: int) -> BatchReport:
        report = self._memory.report(rank, number).read()
        if report is None:
            sent: list[BatchReport] = self._group.replies(ranks=[rank])
            return sent[0]
        return report

    def _sleep(self, awaited: Sequence[int]) -> bool:
        # A method and no lambda, whose frame would keep the batch alive with an error that passed through it.
        return self._watch.sleep([self._ranks[index] for index in awaited])


class Follower:
    """The side of a worker: collects the batches that are commanded.

    Args:
        memory: shared with the sampler.
        rank: number of this worker among those that collect.
        channel: connection to the sampler, from which it receives the descriptors of the bells.
    """

    def __init__(self, memory: HandOver, rank: int, channel: Channel) -> None:
        self._memory, self._rank, self._channel = memory, rank, channel
        self._bell, sampler_bell = memory.bells(rank, channel)
        self._handoff = memory.worker(rank, self._bell, sampler_bell)

    def run(self, collect: Callable[[int, int, int], BatchReport], prepare: Callable[[], None]) -> None:
        """Collects batches until a message arrives.

        Args:
            collect: collects a batch; see `Engine.collect` for its arguments.
            prepare: does work ahead of the next command; called after every report.
        """
        handoff = self._handoff
        while True:
            number = handoff.count
            try:
                handoff.wait_for(number + 1, self._sleep)
            except _MessageArrived:
                return
            report = collect(*self._memory.commanded(number))
            if not self._memory.report(self._rank, number).write(report):
                reply(self._channel, report)
            handoff.post()
            prepare()

    def _sleep(self, awaited: Sequence[int]) -> bool:
        """Sleeps until the bell rings, for a tick at most; raises _MessageArrived if there is a message instead."""
        rang = self._bell.sleep()
        # The sampler may have posted, then sent the message, both after the bell was found silent: look once more.
        if not rang and self._channel.has_command() and self._handoff.lagging(self._handoff.count + 1):
            raise _MessageArrived
        return rang


def _stop_following(worker: Any) -> None:
    """Does nothing: workers stop following when a message arrives, whatever it is."""


class _MessageArrived(Exception):
    """A message arrived while a worker waited for a command."""

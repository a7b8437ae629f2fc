"""How a process sleeps until its workers wake it: `WorkerBells` makes the bells, `WorkerWatch` watches the workers."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from headrace.processes.group import WorkerGroup
from headrace.processes.handoff import Bell, Cell
from headrace.processes.status import TICK, ProgressWatch

__all__ = ["WorkerBells", "WorkerWatch"]


class WorkerBells:
    """The pipes with which this process wakes its workers, and they wake it.

    Each worker is sent two descriptors: the read end of its own bell, and the write end of this process's.

    Args:
        group: the workers.
        ranks: those that get bells.
    """

    def __init__(self, group: WorkerGroup, ranks: Sequence[int]) -> None:
        self.read_fd, write = Bell.pipe()
        self._ends = [self.read_fd, write]
        try:
            for rank in ranks:
                worker_read, worker_write = Bell.pipe()
                self._ends.append(worker_write)
                try:
                    group.send_fd_to(rank, worker_read)
                    group.send_fd_to(rank, write)
                finally:
                    os.close(worker_read)
        except BaseException:
            self.close()
            raise

    def own(self, parked: Cell) -> Bell:
        """Returns the bell on which this process sleeps."""
        return Bell(parked, read_fd=self.read_fd)

    def of_workers(self, parked: Sequence[Cell]) -> list[Bell]:
        """Returns the bells of the workers, in the order of `ranks`."""
        return [Bell(cell, write_fd=write) for cell, write in zip(parked, self._ends[2:], strict=True)]

    def close(self) -> None:
        """Closes this process's descriptors."""
        ends, self._ends = self._ends, []
        for end in ends:
            os.close(end)


class WorkerWatch:
    """Lets a process sleep until its workers ring a bell.

    `sleep` ends when they ring, and raises if one of them failed, died or hangs. It makes one `poll` on everything,
    registered once, because it runs between two time steps.

    Args:
        group: the workers.
        fd: read end of the bell.
    """

    def __init__(self, group: WorkerGroup, fd: int) -> None:
        self._group = group
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._pipes: dict[int, int] = {}  # ranks by descriptor
        self._sentinels: dict[int, int] = {}
        for rank, (pipe, sentinel) in enumerate(group.sources):
            self._pipes[pipe] = self._sentinels[sentinel] = rank
        for source in (*self._pipes, *self._sentinels):
            self._poll.register(source, select.POLLIN)
        self._full: list[int] = []  # pipes that are not watched until the current wait ends
        self._watch: ProgressWatch | None = None

    def awake(self) -> None:
        """Ends the current wait: the next sleep starts a new count of the time without progress."""
        self._watch = None
        while self._full:
            self._poll.register(self._full.pop(), select.POLLIN)

    def sleep(self, awaited: Sequence[int]) -> bool:
        """Sleeps until the bell rings, for at most a tick of 50 ms; returns whether it rang.

        Args:
            awaited: ranks of the workers that are to ring it; one that makes no progress for the group's timeout hangs.
        """
        group = self._group
        ready = [fd for fd, _ in self._poll.poll(TICK * 1e3)]
        group.note_progress()
        readable = [self._pipes[fd] for fd in ready if fd in self._pipes and not self._is_full(fd)]
        ended = [self._sentinels[fd] for fd in ready if fd in self._sentinels]
        group.take(readable, ())
        for rank in ended if ready else group.ended(awaited):
            group.raise_for(rank)
        if not ready:
            if self._watch is None:
                self._watch = group.watch()
            group.require_progress(self._watch, awaited)
        return self._fd in ready

    def _is_full(self, pipe: int) -> bool:
        """Returns whether a worker has sent more than was asked for, and then stops watching its pipe for this wait."""
        if not self._group.replied(self._pipes[pipe]):
            return False
        self._poll.unregister(pipe)
        self._full.append(pipe)
        return True

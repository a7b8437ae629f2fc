"""`WorkerWatch`: how an action server sleeps until its workers need it."""

from __future__ import annotations

import select
from collections.abc import Sequence

from headrace.processes.group import WorkerGroup
from headrace.processes.status import TICK, ProgressWatch

__all__ = ["WorkerWatch"]


class WorkerWatch:
    """Lets a server sleep until its workers ring a bell.

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
        self._watch: ProgressWatch | None = None

    def awake(self) -> None:
        """Ends the current wait: the next sleep starts a new count of the time without progress."""
        self._watch = None

    def sleep(self, awaited: Sequence[int]) -> bool:
        """Sleeps until the bell rings, for at most a tick of 50 ms; returns whether it rang.

        Args:
            awaited: ranks of the workers that are to ring it; one that makes no progress for the group's timeout hangs.
        """
        group = self._group
        ready = [fd for fd, _ in self._poll.poll(TICK * 1e3)]
        group.note_progress()
        readable = [self._pipes[fd] for fd in ready if fd in self._pipes]
        ended = [self._sentinels[fd] for fd in ready if fd in self._sentinels]
        group.take(readable, ())
        for rank in ended if ready else group.ended(awaited):
            group.raise_for(rank)
        if not ready:
            if self._watch is None:
                self._watch = group.watch()
            group.require_progress(self._watch, awaited)
        return self._fd in ready

"""The current activity of a process in one shared cache line, readable at any time, even after the process died.

One process writes it with plain stores (35 ns each), and another reads it for messages and the hang check. A torn or
late value costs a wrong number in a message, so there is no lock.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from enum import IntEnum

from headrace.errors import Where

__all__ = ["LINE_BYTES", "TICK", "Phase", "ProgressWatch", "Status", "StatusBoard"]

LINE_BYTES = 64
TICK = 0.05  # seconds between two looks at the progress of the processes that are waited for


class Phase(IntEnum):
    """Activities of a process that owns environments or learns."""

    STARTING = 0
    CONSTRUCTING = 1
    RESETTING = 2
    DECORRELATING = 3
    WAITING = 4
    STEPPING = 5
    ACTING = 6
    EVALUATING = 7
    CALLING = 8
    CLOSING = 9
    SAVING = 10
    COLLECTING = 11
    STORING = 12
    LEARNING = 13
    EXCHANGING = 14

    @property
    def words(self) -> str:
        """The phase in words, for messages."""
        return _WORDS[self]


_WORDS = {
    Phase.STARTING: "starting",
    Phase.CONSTRUCTING: "constructing the environment",
    Phase.RESETTING: "resetting",
    Phase.DECORRELATING: "decorrelating",
    Phase.WAITING: "waiting for a command",
    Phase.STEPPING: "stepping",
    Phase.ACTING: "choosing actions",
    Phase.EVALUATING: "evaluating",
    Phase.CALLING: "in call_envs",
    Phase.CLOSING: "closing",
    Phase.SAVING: "saving the environment's state",
    Phase.COLLECTING: "collecting a batch",
    Phase.STORING: "passing a batch to the sink",
    Phase.LEARNING: "learning",
    Phase.EXCHANGING: "exchanging gradients or statistics with the other ranks",
}


_WITHOUT_STEP = {
    Phase.STARTING,
    Phase.CONSTRUCTING,
    Phase.WAITING,
    Phase.CLOSING,
    Phase.COLLECTING,
    Phase.STORING,
    Phase.LEARNING,
    Phase.EXCHANGING,
}


class Status:
    """A line of eight integers; writers use `line[Status.X] = …` directly, because they do so at every step.

    PROGRESS grows whenever the process makes progress; PHASE is a `Phase`; ENV is the env id of the environment being
    called, or -1; STEP is the time step in the batch.

    Args:
        memory: `LINE_BYTES` bytes of shared memory; None: memory of its own.
    """

    PROGRESS, PHASE, ENV, STEP = range(4)

    def __init__(self, memory: memoryview | None = None) -> None:
        self.line = (memoryview(bytearray(LINE_BYTES)) if memory is None else memory).cast("B").cast("q")
        if memory is None:
            self.line[Status.ENV] = -1

    def enter(self, phase: Phase, env_id: int = -1, step: int = 0) -> None:
        """Marks the start of a phase, which also counts as progress.

        Args:
            phase: the phase.
            env_id: env id of the environment being called, or -1.
            step: time step in the batch.
        """
        line = self.line
        line[Status.PHASE], line[Status.ENV], line[Status.STEP] = phase, env_id, step
        line[Status.PROGRESS] += 1

    @property
    def progress(self) -> int:
        """A counter that stays the same exactly while the process makes no progress."""
        return self.line[Status.PROGRESS]

    def where(self, worker: int | None = None, pid: int | None = None) -> Where:
        """Returns the place that the line describes, in the form that errors carry."""
        phase, env_id = Phase(self.line[Status.PHASE]), self.line[Status.ENV]
        no_step = phase in _WITHOUT_STEP
        return Where(
            worker=worker,
            pid=pid,
            env_id=None if env_id < 0 else env_id,
            phase=phase.words,
            step=None if no_step else self.line[Status.STEP],
        )


class StatusBoard:
    """The status lines of a group of processes in one piece of shared memory.

    Args:
        fd: shared memory of `count * LINE_BYTES` bytes.
        count: number of processes.
    """

    def __init__(self, fd: int, count: int) -> None:
        self._map = mmap.mmap(fd, LINE_BYTES * count)
        memory = memoryview(self._map)
        self.lines = [Status(memory[rank * LINE_BYTES : (rank + 1) * LINE_BYTES]) for rank in range(count)]
        memory.release()

    def close(self) -> None:
        """Releases the shared memory, whose map holds a descriptor; the lines keep their last values."""
        for status in self.lines:
            last = bytearray(status.line)
            status.line.release()
            status.line = memoryview(last).cast("q")
        self._map.close()


class ProgressWatch:
    """Tracks which workers make no progress, and since when.

    Args:
        lines: status lines of the workers.
        timeout: seconds.
    """

    def __init__(self, lines: Sequence[Status], timeout: float) -> None:
        self.timeout = timeout
        self._lines = lines
        self._seen = [(line.progress, time.monotonic()) for line in lines]

    def is_stuck(self, rank: int) -> bool:
        """Returns whether a worker has made no progress for longer than the timeout."""
        progress, since = self._lines[rank].progress, self._seen[rank][1]
        if progress != self._seen[rank][0]:
            self._seen[rank] = (progress, time.monotonic())
            return False
        return time.monotonic() - since > self.timeout

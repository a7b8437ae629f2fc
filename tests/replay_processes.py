"""Processes that append to a ring as fast as they can. Importing this module loads no torch."""

import os
import signal
import sys
import time
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

from headrace.buffers.samples import AgentSamples, EnvSamples, Final, Samples
from headrace.buffers.shared import shared
from headrace.replays.ring import ReplayRing, ReplaySpec, build_ring
from headrace.replays.writer import ReplayWriter
from headrace.types import BatchSpec

SPEC = ReplaySpec(BatchSpec(8, 4), 60, np.zeros(1500, np.int64), np.zeros((), np.int64), 40)
LENGTH = 6  # of episodes; those of even number are truncated


def attached(fd: int | None = None) -> tuple[Any, ReplayRing]:
    return shared(lambda allocate: build_ring(SPEC, allocate), fd)


def batch_from(first: int) -> Samples:
    """Returns a batch of rows first, first + 1, …: every number is row · B + column, negative in final observations."""
    T, B = SPEC.batch.T, SPEC.batch.B
    row = np.arange(first, first + T)[:, None]
    index = row * B + np.arange(B)
    last = np.broadcast_to(row % LENGTH == LENGTH - 1, (T, B))
    truncated, terminated = last & (row // LENGTH % 2 == 0), last & (row // LENGTH % 2 == 1)
    time, column = last.nonzero()
    width = SPEC.observation.shape
    observation = np.repeat(index[..., None], width[0], axis=2)
    is_first = np.broadcast_to(row % LENGTH == 0, (T, B))
    reward = (index % 1000).astype(np.float32)
    env: Any = (observation, is_first, reward, reward, terminated, truncated, np.ones((T, B), np.bool_), None, None)
    agent: Any = (index, index, None, None, None, None, None)
    end = index[time, column]
    final: Any = (time, column, np.repeat(-end[:, None], width[0], axis=1), end, reward[time, column], None)
    return Samples(AgentSamples(*agent), EnvSamples(*env), Final(*final))


class Descriptor:
    """A descriptor that is passed on to a spawned process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> Any:
        return _detached, (DupFd(self._fd),)


def _detached(given: Any) -> int:
    return int(given.detach())


def append_for_ever(fd: int, without_torch: bool, pause: float = 0.0) -> None:
    """Appends without end. pause: seconds between batches; without it, the writer may overwrite the whole ring faster
    than a reader without a core can copy.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(200)
    _, ring = attached(fd)
    writer = ReplayWriter(SPEC, ring)
    if without_torch and "torch" in sys.modules:
        os._exit(3)
    while True:
        writer.append(batch_from(ring.cursor[0]))
        time.sleep(pause)


def append_and_die(fd: int, after: int) -> None:
    """Is killed in the middle of the append that follows `after` complete ones."""
    _, ring = attached(fd)
    writer = ReplayWriter(SPEC, ring)
    for _ in range(after):
        writer.append(batch_from(ring.cursor[0]))

    class Fatal:
        def __setitem__(self, index: Any, values: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    ring.reward = Fatal()  # type: ignore[assignment]
    writer.append(batch_from(ring.cursor[0]))


def append_until_line(fd: int, line: int) -> None:
    """Is killed when an append has executed so many lines of Python; ends if the append has fewer."""
    _, ring = attached(fd)
    writer = ReplayWriter(SPEC, ring)
    batch = batch_from(ring.cursor[0])
    left = line

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    writer.append(batch)
    sys.settrace(None)

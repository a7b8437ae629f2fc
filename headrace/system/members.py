"""A worker as its controller sees it: its process, its commands, its last report, and how often it was started."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from headrace.processes.affinity import set_torch_threads
from headrace.processes.group import WorkerGroup
from headrace.processes.status import ProgressWatch
from headrace.system.process import WorkerStart, worker_process
from headrace.system.worker import Command, WorkerReport, WorkerState

__all__ = ["Group", "Member", "MemberSpec", "local_group"]


class Group(Protocol):
    """The process of one worker: `WorkerGroup` on this machine, `RayGroup` on a cluster."""

    def send_to(self, rank: int, message: Any) -> None:
        """Sends a command."""

    def look(self) -> None:
        """Reads what has arrived, without waiting; raises if the worker failed or ended."""

    def replied(self, rank: int) -> bool:
        """Returns whether a reply was read."""

    def replies(self, timeout: float | None = None, ranks: Sequence[int] | None = None) -> list[Any]:
        """Returns one reply of each worker."""

    def watch(self, timeout: float | None = None) -> ProgressWatch:
        """Returns a watch for workers without progress."""

    def require_progress(self, watch: ProgressWatch, ranks: Sequence[int]) -> None:
        """Raises WorkerHung if a worker has made no progress for too long."""

    def stop(self) -> None:
        """Asks the worker to close, and waits for it."""

    def kill(self) -> None:
        """Kills the worker."""

    @property
    def pids(self) -> list[int]:
        """PIDs of the workers."""

    @property
    def sources(self) -> list[tuple[int, int]]:
        """For each worker, the descriptors to poll."""


@dataclass(frozen=True)
class MemberSpec:
    """Which worker it is, and what is done when it dies.

    Args:
        start: its class and configuration.
        restart: whether it is started anew; otherwise the run ends.
        threads: threads of torch in its process.
        node: number of its machine.
    """

    start: WorkerStart
    restart: bool
    threads: int = 1
    node: int = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.start.information.name


def local_group(spec: MemberSpec, start_method: str, timeout: float) -> WorkerGroup:
    """Starts the process of a worker on this machine.

    Args:
        spec: the worker.
        start_method: see `choose_start_method`.
        timeout: seconds without progress after which it counts as hung.
    """
    return WorkerGroup(
        worker_process,
        [spec.start],
        start_method=start_method,
        prologue=partial(_prologue, spec.threads),
        name=spec.name.replace(" ", "-"),
        timeout=timeout,
        names=[spec.name],
    )


def _prologue(threads: int, rank: int) -> None:
    """Sets the threads of torch in a worker."""
    set_torch_threads(threads)


@dataclass
class Member:
    """One worker of a run.

    Args:
        spec: which one.
        make_group: starts its process.
    """

    spec: MemberSpec
    make_group: Callable[[MemberSpec], Group]
    state: WorkerState = WorkerState.READY
    configured: bool = False
    report: WorkerReport = field(default_factory=lambda: WorkerReport(WorkerState.READY))
    restarts: int = 0
    early_deaths: int = 0  # how often in a row it died soon after its start
    #: Samples and batches of the processes that it had before the present one.
    samples_before: int = 0
    batches_before: int = 0
    _group: Group | None = None
    _asked: list[str] = field(default_factory=list)  # verbs whose answers are outstanding, oldest first
    _watch: ProgressWatch | None = None
    _since: float = 0.0

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.spec.name

    @property
    def lived(self) -> float:
        """Seconds since its process was started."""
        return time.monotonic() - self._since

    @property
    def pid(self) -> int | None:
        """PID of its process."""
        pids = [] if self._group is None else self._group.pids
        return pids[0] if pids else None

    @property
    def samples(self) -> int:
        """Environment steps of all its processes."""
        return self.samples_before + self.report.samples

    @property
    def batches(self) -> int:
        """Batches of all its processes."""
        return self.batches_before + self.report.batches

    def begin(self) -> None:
        """Starts the process."""
        self._since = time.monotonic()
        self.configured = False
        self._asked = []
        self.samples_before, self.batches_before = self.samples, self.batches
        self.report = WorkerReport(WorkerState.READY)
        self.state = WorkerState.READY
        self._group = self.make_group(self.spec)

    def ask(self, verb: str, argument: Any = None, timeout: float | None = None) -> None:
        """Sends a command.

        Args:
            verb: see `Command`.
            argument: belongs to the verb.
            timeout: seconds without progress after which the worker counts as hung; None: the default.
        """
        self._open.send_to(0, Command(verb, argument))
        self._asked.append(verb)
        self._watch = self._open.watch(timeout)

    def look(self) -> list[tuple[str, WorkerReport]]:
        """Returns the answers that have arrived, with the verbs of their commands.

        Raises:
            SamplerError: if the worker failed, died, or hangs.
        """
        group, answers = self._open, []
        group.look()
        while self._asked and group.replied(0):
            (report,) = group.replies(ranks=[0])
            self.report = report
            self.state = report.state
            answers.append((self._asked.pop(0), report))
            group.look()
        if self._asked and self._watch is not None:
            group.require_progress(self._watch, [0])
        return answers

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._group is not None

    @property
    def waits(self) -> bool:
        """Whether an answer is outstanding."""
        return bool(self._asked)

    @property
    def sources(self) -> list[int]:
        """Descriptors that become readable when an answer arrives, or the process ends."""
        return [] if self._group is None else [fd for pair in self._group.sources for fd in pair]

    def stop(self) -> None:
        """Ends the worker in good order; no answer may be outstanding. Raises what it raises meanwhile."""
        group, self._group = self._open, None
        try:
            group.stop()
        finally:
            group.kill()

    def kill(self) -> None:
        """Kills the process, if there is one."""
        self._asked = []
        if self._group is not None:
            group, self._group = self._group, None
            group.kill()

    @property
    def _open(self) -> Group:
        assert self._group is not None, f"{self.name} is not running"
        return self._group

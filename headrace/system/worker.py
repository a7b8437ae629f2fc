"""The base class of workers: processes that a controller configures, starts, pauses and ends.

A worker has an endless supply of work: steps of environments, requests of actors, batches of samples. `run` does one
piece of it after another, and between two pieces it looks for commands. Pieces are short, or wait for their input at
most `TICK` seconds, so a command is never kept waiting for long.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from headrace.errors import SamplerError, WorkerFailed, headline, traceback_of
from headrace.processes.status import Phase, Status

__all__ = [
    "TICK",
    "Command",
    "Commands",
    "Episode",
    "PollResult",
    "Worker",
    "WorkerInformation",
    "WorkerReport",
    "WorkerState",
]

#: Seconds that a piece of work waits for its input at most.
TICK = 0.05


class WorkerState(StrEnum):
    """What a worker is doing. Only the controller sees `ERROR` and `LOST`."""

    READY = "ready"  #: made or configured, not started
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"  #: it has done all its work
    ERROR = "error"  #: it raised
    LOST = "lost"  #: it died or hangs


@dataclass(frozen=True)
class PollResult:
    """What one piece of work came to.

    Args:
        sample_count: environment steps that were taken, answered or learned from.
        batch_count: batches that were posted, answered or learned from.
    """

    sample_count: int = 0
    batch_count: int = 0


@dataclass(frozen=True)
class Episode:
    """An episode that ended. Return, Length: as in `TrajInfo`; version: of the parameters that acted last."""

    Return: float
    Length: int
    version: int


@dataclass(frozen=True)
class WorkerReport:
    """What a worker tells its controller.

    Args:
        state: what it is doing.
        samples, batches: sums over what `_poll` returned.
        figures: measures of this kind of worker, by name.
        episodes: those that ended since the last report.
        notes: sentences for the log since the last report.
    """

    state: WorkerState
    samples: int = 0
    batches: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    episodes: Sequence[Episode] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class WorkerInformation:
    """Which worker of which run this is.

    Args:
        kind: "actor", "policy", "trainer", "eval", or what the user calls his own.
        index: its number among the workers of this kind.
        count: how many of this kind there are.
        seed: seed of the run.
    """

    kind: str
    index: int
    count: int
    seed: int

    @property
    def name(self) -> str:
        """What the system and all messages call it, such as "actor 0"."""
        return f"{self.kind} {self.index}"


@dataclass(frozen=True)
class Command:
    """What a controller asks.

    Args:
        verb: "configure", "start", "pause", "report" or "exit".
        argument: belongs to the verb.
    """

    verb: str
    argument: Any = None


class Commands(Protocol):
    """Where a worker's commands come from."""

    def next(self, timeout: float) -> Command | None:
        """Returns the next command; None if none comes within `timeout` seconds."""

    def answer(self, report: WorkerReport) -> None:
        """Answers the oldest command that has no answer yet."""


class Worker(ABC):
    """Base class of workers. A subclass defines `_configure` and `_poll`.

    Every command is answered with a `WorkerReport`: "configure", "start" and "pause" when they are done, "report" when
    the state changes, or after the seconds that its argument says, or before the answer of the next command.
    """

    def __init__(self) -> None:
        self.state = WorkerState.READY
        self.status = Status()  # of this process; replaced by one that the controller sees
        self._samples = self._batches = 0
        self._episodes: list[Episode] = []
        self._notes: list[str] = []
        self._information: WorkerInformation | None = None
        self._configured = self._exiting = False
        #: Ends what the work needs, whether it was configured to the end or not.
        self.resources = ExitStack()

    # ---- what a subclass defines ----

    @abstractmethod
    def _configure(self, config: Any) -> None:
        """Makes what the work needs. Called once.

        Args:
            config: what the experiment says about this worker.
        """

    @abstractmethod
    def _poll(self) -> PollResult:
        """Does one piece of work, or waits for its input, at most `TICK` seconds."""

    def _figures(self) -> Mapping[str, float]:
        """Returns measures for the report, by name."""
        return {}

    def _pause(self) -> None:  # noqa: B027 (most have nothing to do)
        """Called when the work is interrupted, and may go on later."""

    def _exit(self) -> None:  # noqa: B027
        """Saves what must not be lost. Called once, if `_configure` succeeded, before `resources` are closed."""

    # ---- what a subclass uses ----

    @property
    def information(self) -> WorkerInformation:
        """Which worker this is."""
        assert self._information is not None, "not configured yet"
        return self._information

    def complete(self) -> None:
        """Ends the work: `_poll` is not called again."""
        self.state = WorkerState.COMPLETED

    def note(self, sentence: str) -> None:
        """Sends a sentence to the log of the run."""
        self._notes.append(sentence)

    def add_episodes(self, episodes: Sequence[Episode]) -> None:
        """Adds episodes to the next report."""
        self._episodes += episodes

    # ---- the life of a worker ----

    def configure(self, information: WorkerInformation, config: Any) -> None:
        """Makes what the work needs; the worker is ready then."""
        if self._information is not None:
            raise ValueError(f"{self.information.name} was configured before; a worker is configured once")
        self._information = information
        self.status.enter(Phase.STARTING)
        self._configure(config)
        self._configured = True
        self.state = WorkerState.READY

    def start(self) -> None:
        """Begins the work, or goes on with it after a pause."""
        if not self._configured:
            raise ValueError("start() before configure()")
        if self.state in (WorkerState.READY, WorkerState.PAUSED):
            self.state = WorkerState.RUNNING

    def pause(self) -> None:
        """Interrupts the work until the next `start`."""
        if self.state is WorkerState.RUNNING:
            self._pause()
            self.state = WorkerState.PAUSED

    def exit(self) -> None:
        """Ends the worker: `run` returns."""
        self._exiting = True

    def report(self) -> WorkerReport:
        """Returns what has happened since the last report."""
        episodes, self._episodes = self._episodes, []
        notes, self._notes = self._notes, []
        figures = self._figures() if self._configured else {}
        return WorkerReport(self.state, self._samples, self._batches, figures, episodes, notes)

    def run(self, commands: Commands) -> None:
        """Works and obeys until it is told to exit.

        Args:
            commands: what the controller says.

        Raises:
            WorkerFailed: if the worker's own code raises; it names the worker and what it was doing.
            SamplerError: what the library raises, as it is.
        """
        asked: tuple[WorkerState, float] | None = None  # the state when a report was asked for, and when it is due
        try:
            while not self._exiting:
                due = TICK if asked is None else min(TICK, max(0.0, asked[1] - time.monotonic()))
                command = commands.next(0.0 if self.state is WorkerState.RUNNING else due)
                if command is not None:
                    if asked is not None:
                        commands.answer(self.report())
                        asked = None
                    if command.verb == "report":
                        asked = self.state, time.monotonic() + float(command.argument)
                    else:
                        self._obey(command)
                        if not self._exiting:
                            commands.answer(self.report())
                if self.state is WorkerState.RUNNING:
                    self._work()
                else:
                    self.status.enter(Phase.WAITING)  # waiting for a command is progress, too
                if asked is not None and (self.state is not asked[0] or time.monotonic() >= asked[1]):
                    commands.answer(self.report())
                    asked = None
        finally:
            with self._doing("exiting"), self.resources:
                if self._configured:
                    self._exit()

    def _obey(self, command: Command) -> None:
        with self._doing(_DOING[command.verb]):
            match command.verb:
                case "configure":
                    self.configure(*command.argument)
                case "start":
                    self.start()
                case "pause":
                    self.pause()
                case "exit":
                    self.exit()

    def _work(self) -> None:
        self.status.line[Status.PROGRESS] += 1
        with self._doing("working"):
            done = self._poll()
        self._samples += done.sample_count
        self._batches += done.batch_count

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Gives errors of the worker's own code its name and what it was doing."""
        try:
            yield
        except SamplerError:
            raise
        except Exception as error:
            name = type(self).__name__ if self._information is None else self._information.name
            message = f"{name} failed while {what}: {headline(error)}"
            raise WorkerFailed(message, traceback_text=traceback_of(error)) from error


_DOING = {"configure": "being configured", "start": "being started", "pause": "being paused", "exit": "exiting"}

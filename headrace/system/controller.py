"""The controller of a run: configures all workers, then starts them, watches them, starts dead ones anew, ends them."""

from __future__ import annotations

import logging
import math
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from headrace.errors import SamplerError
from headrace.system.members import Member
from headrace.system.worker import TICK, Episode, WorkerReport, WorkerState

__all__ = ["Controller", "summary"]

_log = logging.getLogger("headrace.system")

#: Seconds between two reports of a worker whose state does not change.
_REPORT_SECONDS = 0.5
#: A worker that lived this long was well; one that dies earlier so often in a row cannot be helped.
_WELL_SECONDS = 10.0
_MOST_EARLY_DEATHS = 3


class Controller:
    """Runs workers until all that have an end have completed.

    Args:
        members: the workers, in the order in which they are configured and started.
        decisive: the workers that end the run when all of them have completed.
        start_timeout: seconds without progress after which a worker that is being configured counts as hung.
        on_look: called twice a second, and at the end.
    """

    def __init__(
        self,
        members: Sequence[Member],
        decisive: Sequence[Member],
        *,
        start_timeout: float,
        on_look: Callable[[Controller], None] = lambda controller: None,
    ) -> None:
        self.members = list(members)
        self._decisive = list(decisive)
        self._start_timeout = start_timeout
        self._on_look = on_look
        self._stopping = False
        self._started = False  # whether workers start as soon as they are configured
        #: The episodes that ended last, newest last.
        self.episodes: deque[Episode] = deque(maxlen=100)
        self.n_episodes = 0

    def stop(self) -> None:
        """Ends the run in good order; may be called from a signal handler."""
        self._stopping = True

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def run(self) -> None:
        """Runs the workers; afterwards none of their processes is left.

        Raises:
            SamplerError: the first failure that ends the run.
            KeyboardInterrupt: after Ctrl-C, when the workers have ended in good order.
        """
        try:
            for member in self.members:
                member.begin()
                member.ask("configure", timeout=self._start_timeout)
            self._until(lambda: all(member.configured for member in self.members))
            self._started = True
            for member in self.members:
                member.ask("start")
            self._until(lambda: all(one.state is WorkerState.COMPLETED for one in self._decisive))
            self._end()
        except KeyboardInterrupt:
            self._end()
            raise
        finally:
            for member in self.members:
                member.kill()
            self._on_look(self)

    def _until(self, done: Callable[[], bool]) -> None:
        """Looks at the workers whenever one of them says something, until `done` or `stop`."""
        looked = 0.0
        while not done() and not self._stopping:
            self._wait()
            for member in self.members:
                self._look(member)
            if time.monotonic() >= looked + _REPORT_SECONDS:
                looked = time.monotonic()
                self._on_look(self)

    def _wait(self) -> None:
        """Waits until a worker answers or ends, for a tick at most."""
        poll = select.poll()
        for member in self.members:
            for fd in member.sources:
                poll.register(fd, select.POLLIN)
        poll.poll(TICK * 1e3)

    def _look(self, member: Member) -> None:
        """Reads a worker's answers, and asks for its next report."""
        try:
            for verb, report in member.look():
                self._note(member, report)
                if verb == "configure":
                    member.configured = True
                    if self._started:
                        member.ask("start")
                elif verb in ("start", "report"):
                    member.ask("report", _REPORT_SECONDS)
        except SamplerError as error:
            self._fallen(member, error)

    def _fallen(self, member: Member, error: SamplerError) -> None:
        """Starts a worker anew, or ends the run."""
        member.kill()
        member.state = WorkerState.LOST if member.report.state is not WorkerState.ERROR else WorkerState.ERROR
        member.early_deaths = 0 if member.lived >= _WELL_SECONDS else member.early_deaths + 1
        if not member.spec.restart or member.early_deaths == _MOST_EARLY_DEATHS:
            raise _named(member, error)
        member.restarts += 1
        _log.warning("%s is started anew: %s", member.name, error.message)
        member.begin()
        member.ask("configure", timeout=self._start_timeout)

    def _note(self, member: Member, report: WorkerReport) -> None:
        self.episodes.extend(report.episodes)
        self.n_episodes += len(report.episodes)
        for sentence in report.notes:
            _log.warning("%s: %s", member.name, sentence)

    def _end(self) -> None:
        """Pauses all workers, those that feed others first, then ends them; each saves what it has to."""
        alive = [member for member in reversed(self.members) if member.running]
        for member in alive:
            self._in_the_end(member, lambda one: one.ask("pause"))
        deadline = time.monotonic() + self._start_timeout
        while any(member.waits for member in alive) and time.monotonic() < deadline:
            self._wait()
            for member in alive:
                if member.waits:
                    self._in_the_end(member, self._take)
        for member in alive:
            if member.running:
                self._in_the_end(member, Member.stop)

    def _take(self, member: Member) -> None:
        for _, report in member.look():
            self._note(member, report)

    def _in_the_end(self, member: Member, act: Callable[[Member], None]) -> None:
        """Does something with a worker that is ending. What a worker had to do that can be started anew is done."""
        try:
            act(member)
        except SamplerError as error:
            member.kill()
            if not member.spec.restart:
                raise _named(member, error) from error
            _log.warning("%s failed while the run ended: %s", member.name, error.message)


def _named(member: Member, error: SamplerError) -> SamplerError:
    """Returns the error with the name of the worker, if its message does not begin with it."""
    if not error.message.startswith(member.name):
        died = f" (it died {member.early_deaths} times soon after its start)" if member.early_deaths > 1 else ""
        error = type(error)(f"{member.name}{died}: {error.message}", error.where, error.traceback_text)
    return error


def summary(controller: Controller) -> dict[str, Any]:
    """Returns what is known about all workers, as values for JSON; None in the place of NaN and infinity."""
    return {
        "episodes": controller.n_episodes,
        "mean_return": _number(_mean([episode.Return for episode in controller.episodes])),
        "workers": [
            {
                "name": member.name,
                "pid": member.pid,
                "state": str(member.state),
                "samples": member.samples,
                "batches": member.batches,
                "restarts": member.restarts,
                "figures": {name: _number(value) for name, value in member.report.figures.items()},
            }
            for member in controller.members
        ],
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")

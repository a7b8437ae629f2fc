"""What a worker process does first and last: signals, threads, its parent's death, and saying what went wrong.

This module loads neither torch nor an environment.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import pickle
import select
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

from headrace.errors import EnvFailed, SamplerError, Where, headline, traceback_of
from headrace.memory import keep_to_itself
from headrace.processes import descendants
from headrace.processes.lifeline import hold_on
from headrace.processes.status import Status, StatusBoard

__all__ = ["Channel", "Failure", "Start", "child_main", "watch_parent"]


#: What a worker may report, by name, besides SamplerError itself.
_KINDS = {kind.__name__: kind for kind in SamplerError.__subclasses__()}


@dataclass(frozen=True)
class Failure:
    """An error on its way to the parent, as text."""

    kind: str
    message: str
    where: Where | None
    traceback_text: str

    @staticmethod
    def of(error: BaseException, status: Status) -> Failure:
        """From any exception; what is not ours is user code that raised."""
        if isinstance(error, SamplerError):
            return Failure(type(error).__name__, error.message, error.where, error.traceback_text)
        return Failure(EnvFailed.__name__, f"the worker raised {headline(error)}", status.where(), traceback_of(error))

    def error(self, at: Where) -> SamplerError:
        """The exception to raise in the parent. at: the process it comes from; a worker of that stays where it was."""
        here = self.where or Where()
        process = at if here.worker is None else here
        where = Where(process.worker, process.pid, here.env_id, here.phase, here.step)
        return _KINDS.get(self.kind, SamplerError)(self.message, where, self.traceback_text)


class Channel:
    """A worker's end: commands in, replies out, and its status line."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.status = Status()  # until that on the board is here
        self._pid = os.getpid()
        self._forking: tuple[Where | None, str] = None, ""  # where the last fork was

    def receive(self) -> Any:
        """The next command; None means close and leave. Raises EOFError when the parent is gone.

        The one wait without a deadline: a worker has nothing to do until it is told, and its watch ends it when the
        parent dies.
        """
        self._require_owner()
        return self._pipe.recv()

    def receive_fd(self) -> int:
        """A descriptor sent with `WorkerGroup.send_fd`."""
        try:
            return reduction.recv_handle(self._pipe)
        except RuntimeError as error:  # the kernel had no number for it, and left it out
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error

    def reply(self, message: Any) -> None:
        """Answers a command. Raises what pickling raises, with nothing sent."""
        self._require_owner()
        self._send(message)

    def leave(self) -> None:
        """Answers the command to leave; a process that was forked here may first say that it came back, too."""
        self._require_owner()
        if self._forking[0] is not None:
            descendants.wait(1.0)
        self._send(None)

    def fail(self, error: BaseException) -> None:
        """Reports the error that ends this worker; the parent may be gone already."""
        self._require_owner()
        try:
            self._send(Failure.of(error, self.status))
        except OSError:
            os._exit(1)

    def fork(self) -> None:
        """Before this worker forks: notes where that is, for `_require_owner`."""
        if os.getpid() == self._pid:
            self._forking = self.status.where(), "".join(traceback.format_stack(limit=4)[:-1])

    def split(self) -> None:
        """In the process that was forked. It may be one that an environment has work for. If it comes back from the
        environment instead, it must do no harm: what it shares with others becomes its own, and its status line gives
        way under the next step.
        """
        self.status.line.release()
        keep_to_itself()

    def _require_owner(self) -> None:
        """Says what happened, and leaves, where the environment came back in a process that it forked."""
        if os.getpid() == self._pid:
            return
        where, stack = self._forking
        message = (
            "the environment forked its worker (os.fork) and came back in both processes: there would be two of it and "
            "one batch; end the forked process with os._exit(), or start a program with subprocess"
        )
        try:
            self._send(Failure(EnvFailed.__name__, message, where, stack))
        finally:
            os._exit(1)

    def _send(self, message: Any) -> None:
        self._pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


@dataclass(frozen=True)
class Start:
    """What a worker is told by who starts it.

    rank: its number among n_workers; parent_pid: of who starts it; tied: a lifeline is handed over; inherited:
    descriptors of the parent that a fork brought along and that must not be held open here: while a sibling holds the
    parent's end of a pipe, the parent's death does not close it.
    """

    rank: int
    n_workers: int
    parent_pid: int
    tied: bool
    inherited: Sequence[int]


def child_main(
    target: Callable[[Channel, Any], None],
    payload: Any,
    prologue: Callable[[int], None],
    pipe: Connection,
    start: Start,
) -> None:
    """The first function of every worker. target: runs the worker; payload: its argument, pickled unless forked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _go_on)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # the log of a group in the background may go to a terminal
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for fd in start.inherited:
        os.close(fd)
    descendants.lead()
    channel = Channel(pipe)
    try:
        with suppress(EOFError):  # the parent closed the pipe: it is gone, or it has what it wanted
            try:
                _open(channel, start)
                watch_parent(pipe.fileno(), start.parent_pid)
                os.register_at_fork(before=channel.fork, after_in_child=channel.split)
                prologue(start.rank)
                argument = pickle.loads(payload) if isinstance(payload, bytes) else payload
                target(channel, argument)
            except EOFError:
                raise
            except BaseException as error:
                channel.fail(error)
    finally:
        descendants.end()


def _go_on(signum: int, frame: object) -> None:
    """SIGTERM goes to a whole job: the parent finishes its batch and ends its workers itself.

    A handler and not SIG_IGN, which a program started by an environment would inherit: `terminate()` would not end it.
    """


def _open(channel: Channel, start: Start) -> None:
    """Takes the descriptors the group sends first: its lifeline, the status board, and the file for the stack of a
    dying process.
    """
    if start.tied:
        hold_on(channel.receive_fd())
    status_fd, dump_fd = channel.receive_fd(), channel.receive_fd()
    channel.status = StatusBoard(status_fd, start.n_workers).lines[start.rank]
    os.close(status_fd)
    faulthandler.enable(dump_fd, all_threads=True)
    faulthandler.register(signal.SIGUSR1, dump_fd, all_threads=True, chain=False)


def watch_parent(pipe_fd: int, parent_pid: int) -> None:
    """Ends this process, and what its environments started, when its parent is gone.

    The lifeline does it at once, and whatever this process is doing, where the system has one. But a process that the
    parent forked meanwhile may hold the other end open, of the lifeline as of the pipe: so the parent's pid is looked
    at once a second.
    """
    watch_pid = os.getppid() == parent_pid  # not so under a fork server
    hang_up = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
    poll = select.poll()
    poll.register(pipe_fd, hang_up)

    def watch() -> None:
        while True:
            events = poll.poll(1000)
            if any(event & hang_up for _, event in events) or (watch_pid and os.getppid() != parent_pid):
                os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="headrace-parent-watch", daemon=True).start()

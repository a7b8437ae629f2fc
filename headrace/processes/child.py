"""The start and end of a worker process: signals, threads, death of the parent, and error reports.

This module imports neither torch nor an environment.
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
from headrace.memory import make_private
from headrace.processes import descendants
from headrace.processes.lifeline import extend_to_group
from headrace.processes.status import LINE_BYTES, Status, StatusBoard

__all__ = ["Channel", "Failure", "Start", "child_main", "watch_parent"]


#: Errors that a worker may report, by name, besides SamplerError itself.
_KINDS = {kind.__name__: kind for kind in SamplerError.__subclasses__()}


@dataclass(frozen=True)
class Failure:
    """An error sent to the parent, as text.

    Args:
        kind: class name of the error.
        message: its message.
        where: the place in the worker.
        traceback_text: the worker's traceback.
    """

    kind: str
    message: str
    where: Where | None
    traceback_text: str

    @staticmethod
    def of(error: BaseException, status: Status) -> Failure:
        """Returns the report of any exception; exceptions that are not the library's were raised by user code."""
        if isinstance(error, SamplerError):
            return Failure(type(error).__name__, error.message, error.where, error.traceback_text)
        return Failure(EnvFailed.__name__, f"the worker raised {headline(error)}", status.where(), traceback_of(error))

    def error(self, at: Where) -> SamplerError:
        """Returns the exception to raise in the parent.

        Args:
            at: the process the report comes from; it is kept only if the report names no worker of its own.
        """
        here = self.where or Where()
        process = at if here.worker is None else here
        where = Where(process.worker, process.pid, here.env_id, here.phase, here.step)
        return _KINDS.get(self.kind, SamplerError)(self.message, where, self.traceback_text)


class Channel:
    """A worker's end of its pipe: receives commands, sends replies, and holds its status line."""

    #: How many times this worker was started again after it died; its environments are then new ones.
    restarts = 0

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.status = Status()  # replaced by the one on the status board
        self._pid = os.getpid()
        self._forking: tuple[Where | None, str] = None, ""  # place of the last fork

    def receive(self) -> Any:
        """Returns the next command; None means close and exit. Raises EOFError when the parent is gone.

        This is the only wait without a deadline: a worker has nothing to do until it gets a command, and its watch
        thread ends it when the parent dies.
        """
        self._require_owner()
        return self._pipe.recv()

    @property
    def fd(self) -> int:
        """The descriptor of the pipe, which is readable when a command has arrived."""
        return self._pipe.fileno()

    def has_command(self) -> bool:
        """Returns whether a command has arrived, or the parent has closed the pipe."""
        return self._pipe.poll(0)

    def receive_fd(self) -> int:
        """Receives a descriptor sent with `WorkerGroup.send_fd`."""
        try:
            return reduction.recv_handle(self._pipe)
        except RuntimeError as error:  # the kernel had no descriptor free and dropped it
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error

    def reply(self, message: Any) -> None:
        """Replies to a command. Raises what pickling raises; nothing is sent then."""
        self._require_owner()
        self._send(message)

    def leave(self) -> None:
        """Replies to the command to exit, after processes that were forked here had a second to report that they
        returned.
        """
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
        """Records, before this worker forks, where that happens, for `_require_owner`."""
        if os.getpid() == self._pid:
            self._forking = self.status.where(), "".join(traceback.format_stack(limit=4)[:-1])

    def split(self) -> None:
        """Detaches a forked child, which runs this after the fork.

        An environment may have forked it for work of its own. If it returns from the environment instead, it must do no
        harm: the shared memory becomes its own, and its next step fails on the released status line.
        """
        try:
            self.status.line.release()
        except BufferError:  # compiled code is using it, for a line of private memory from now on
            self.status.line = memoryview(bytearray(LINE_BYTES)).cast("q")
            self.status.line.release()
        make_private()

    def _require_owner(self) -> None:
        """Reports an environment that returned in a process that it forked, and exits that process."""
        if os.getpid() == self._pid:
            return
        where, stack = self._forking
        message = (
            "the environment forked its worker (os.fork) and returned in both processes, which would write the same "
            "batch; end the forked process with os._exit(), or start a program with subprocess"
        )
        try:
            self._send(Failure(EnvFailed.__name__, message, where, stack))
        finally:
            os._exit(1)

    def _send(self, message: Any) -> None:
        self._pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


@dataclass(frozen=True)
class Start:
    """What a worker is given by the process that starts it.

    Args:
        rank: its number among `n_workers`.
        n_workers: number of workers in the group.
        parent_pid: PID of the process that starts it.
        tied: whether a lifeline is sent to it.
        inherited: descriptors of the parent that a fork copied and that must be closed here: while a sibling holds the
            parent's end of a pipe open, the death of the parent does not close it.
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
    """Runs a worker; the first function that every worker calls.

    Args:
        target: the worker's function.
        payload: its argument, pickled unless forked.
        prologue: called with the rank before `target`.
        pipe: the worker's end of its pipe.
        start: what the parent gives it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _go_on)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a group in the background may log to a terminal
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for fd in start.inherited:
        os.close(fd)
    descendants.lead()
    channel = Channel(pipe)
    try:
        with suppress(EOFError):  # the parent closed the pipe: it is gone or needs nothing more
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
    """Ignores SIGTERM, which goes to a whole job: the parent finishes its batch and ends its workers itself.

    It is a handler instead of SIG_IGN because a program started by an environment would inherit SIG_IGN, and
    `terminate()` would not end it.
    """


def _open(channel: Channel, start: Start) -> None:
    """Receives the descriptors that the group sends first: the lifeline, the status board, and the file for the stack
    of a dying process.
    """
    if start.tied:
        extend_to_group(channel.receive_fd())
    status_fd, dump_fd = channel.receive_fd(), channel.receive_fd()
    channel.status = StatusBoard(status_fd, start.n_workers).lines[start.rank]
    os.close(status_fd)
    faulthandler.enable(dump_fd, all_threads=True)
    faulthandler.register(signal.SIGUSR1, dump_fd, all_threads=True, chain=False)


def watch_parent(pipe_fd: int, parent_pid: int) -> None:
    """Kills this process and the programs its environments started when its parent is gone.

    Where the system supports it, the lifeline does so at once, whatever this process is doing. But a process that the
    parent forked in the meantime may hold the other end of the lifeline, and of the pipe, open. So this also checks the
    parent's PID once a second.

    Args:
        pipe_fd: the pipe to the parent.
        parent_pid: the parent's PID.
    """
    watch_pid = os.getppid() == parent_pid  # false under a fork server
    hang_up = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
    poll = select.poll()
    poll.register(pipe_fd, hang_up)

    def watch() -> None:
        while True:
            events = poll.poll(1000)
            if any(event & hang_up for _, event in events) or (watch_pid and os.getppid() != parent_pid):
                os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="headrace-parent-watch", daemon=True).start()

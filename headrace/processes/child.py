"""What a worker process does first and last: signals, threads, its parent's death, and saying what went wrong.

This module loads neither torch nor an environment.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

from headrace.errors import EnvFailed, SamplerError, Where, headline, traceback_of
from headrace.processes.status import Status, StatusBoard

__all__ = ["Channel", "Failure", "child_main", "watch_parent"]


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

    def __init__(self, pipe: Connection, status: Status) -> None:
        self._pipe = pipe
        self.status = status

    def receive(self) -> Any:
        """The next command; None means close and leave. Raises EOFError when the parent is gone.

        The one wait without a deadline: a worker has nothing to do until it is told, and its watch ends it when the
        parent dies.
        """
        return self._pipe.recv()

    def receive_fd(self) -> int:
        """A descriptor sent with `WorkerGroup.send_fd`."""
        return reduction.recv_handle(self._pipe)

    def reply(self, message: Any) -> None:
        """Answers a command. Raises what pickling raises, with nothing sent."""
        self._pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def fail(self, error: BaseException) -> None:
        """Reports the error that ends this worker; the parent may be gone already."""
        try:
            self.reply(Failure.of(error, self.status))
        except OSError:
            os._exit(1)


def child_main(
    target: Callable[[Channel, Any], None],
    payload: Any,
    prologue: Callable[[int], None],
    rank: int,
    n_workers: int,
    pipe: Connection,
    inherited: Sequence[int],
    parent_pid: int,
) -> None:
    """The first function of every worker.

    target: runs the worker; payload: its argument, pickled unless forked; inherited: descriptors of the parent that a
    fork brought along and that must not be held open here: while a sibling holds the parent's end of a pipe, the
    parent's death does not close it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _go_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for fd in inherited:
        os.close(fd)
    with suppress(EOFError):  # the parent closed the pipe: it is gone, or it has what it wanted
        channel = _opened(pipe, rank, n_workers)
        watch_parent(pipe.fileno(), parent_pid)
        try:
            prologue(rank)
            argument = pickle.loads(payload) if isinstance(payload, bytes) else payload
            target(channel, argument)
        except EOFError:
            raise
        except BaseException as error:
            channel.fail(error)


def _go_on(signum: int, frame: object) -> None:
    """SIGTERM goes to a whole job: the parent finishes its batch and ends its workers itself.

    A handler and not SIG_IGN, which a program started by an environment would inherit: `terminate()` would not end it.
    """


def _opened(pipe: Connection, rank: int, n_workers: int) -> Channel:
    """Takes the descriptors the group sends first: the status board, and the file for the stack of a dying process."""
    status_fd, dump_fd = reduction.recv_handle(pipe), reduction.recv_handle(pipe)
    board = StatusBoard(status_fd, n_workers)
    os.close(status_fd)
    faulthandler.enable(dump_fd, all_threads=True)
    faulthandler.register(signal.SIGUSR1, dump_fd, all_threads=True, chain=False)
    return Channel(pipe, board.lines[rank])


def watch_parent(pipe_fd: int, parent_pid: int) -> None:
    """Ends this process when its parent is gone, whatever it is doing.

    The pipe hangs up when the parent's end closes. A process the parent forked meanwhile may hold that end open, so
    the parent's pid is looked at once a second too. (PR_SET_PDEATHSIG is no way: it fires when the *thread* that
    started the child ends.)
    """
    watch_pid = os.getppid() == parent_pid  # not so under a fork server
    hang_up = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
    poll = select.poll()
    poll.register(pipe_fd, hang_up)

    def watch() -> None:
        while True:
            events = poll.poll(1000)
            if any(event & hang_up for _, event in events) or (watch_pid and os.getppid() != parent_pid):
                os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="headrace-parent-watch", daemon=True).start()

"""The operating system's side of a group of processes: what there is to close and to kill, and how."""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import psutil

from headrace.processes.lifeline import Lifeline
from headrace.processes.status import StatusBoard

__all__ = ["GONE", "Members", "set_deadline", "sigint_blocked", "uninterrupted"]

_log = logging.getLogger("headrace.processes")

GONE = 1.0  # seconds a process that was killed, or said goodbye, may take to disappear


@dataclass
class Members:
    """The operating system's side of a group. Apart from it, so that a forgotten group can be cleaned up.

    handles: of the processes, which know a number that was given to somebody else; lifeline: what ends them when this
    process ends, None where the system has none.
    """

    board: StatusBoard
    lifeline: Lifeline | None
    processes: list[BaseProcess] = field(default_factory=list)
    handles: list[psutil.Process | None] = field(default_factory=list)
    pipes: list[Connection] = field(default_factory=list)
    dumps: list[int] = field(default_factory=list)
    owner: int = field(default_factory=os.getpid)

    def add(self, process: BaseProcess) -> None:
        """Takes a process that was started."""
        self.processes.append(process)
        self.handles.append(None)
        with suppress(psutil.Error):  # it has ended, and somebody else waited for it
            self.handles[-1] = psutil.Process(process.pid)

    def ended(self, rank: int) -> bool:
        """Whether a process is gone.

        Its exit code alone does not say: where the program ignores SIGCHLD, or waits for all of its children, that goes
        to the program, or to nobody.
        """
        if self.processes[rank].exitcode is not None:
            return True
        handle = self.handles[rank]
        return handle is None or not _lives(handle)

    def kill(self) -> None:
        """Kills the processes, with all that descends from them, and closes the descriptors."""
        if os.getpid() != self.owner:
            return  # a forked child has a copy of this object, and no business with its siblings
        with uninterrupted(deliver=False):  # it may be the interpreter's end, or anybody's turn to collect garbage
            for dump in self.dumps:  # first: where no descriptor is left, nobody can be looked for
                os.close(dump)
            families = [_family(handle) for handle in self.handles if handle is not None]
            for family in families:
                for member in family:
                    _kill(member)
            for rank, process in enumerate(self.processes):
                process.join(GONE)
                self._kill_group(rank)
                if process.exitcode is not None:
                    process.close()
                elif not self.ended(rank):
                    _log.error("process %s (pid %s) did not end after SIGKILL", process.name, process.pid)
            for pipe in self.pipes:
                pipe.close()
            if self.lifeline is not None:
                self.lifeline.close()
            self.board.close()

    def _kill_group(self, rank: int) -> None:
        """Kills what a process that has ended left behind: programs that its environments started.

        The number of a group is not given away before its last member has ended. So a process of that number is either
        the one we know, or a new one, and then nobody of the group was left.
        """
        pid, handle = self.processes[rank].pid, self.handles[rank]
        if pid is None or (psutil.pid_exists(pid) and not (handle is not None and handle.is_running())):
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def set_deadline(pipe: Connection, seconds: float) -> None:
    """Bounds every read and write on our end of a pipe: a worker may be stopped in the middle of a message."""
    interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.fromfd(pipe.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


class _Heard(list[int]):
    """A signal handler that takes notes."""

    def __call__(self, signum: int, frame: object) -> None:
        self.append(signum)


@contextmanager
def uninterrupted(deliver: bool) -> Iterator[None]:
    """Ctrl-C does not interrupt a clean-up. A second one, while the first is cleaned up after, is not heard; another is
    delivered afterwards if somebody is there to hear it. (To block the signal would not do: another thread of the
    program would take it for us.)
    """
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not callable(before) or isinstance(before, _Heard):
        yield
        return
    second = isinstance(sys.exc_info()[1], KeyboardInterrupt)
    heard = _Heard()
    signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard and deliver and not second:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """A child starts with SIGINT blocked until its prologue ignores it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _lives(process: psutil.Process) -> bool:
    """Whether it runs: one that has ended stays in the list of processes until its parent asks, a fork server say."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _family(process: psutil.Process) -> list[psutil.Process]:
    """A process's descendants, then the process."""
    try:
        return [*process.children(recursive=True), process]
    except (psutil.Error, OSError):  # it ended; or there is no descriptor left to look with
        return [process]


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.Error):  # it ended by itself
        process.kill()

"""The operating system's resources of a group of processes, and how to kill and close them."""

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
from multiprocessing.util import Finalize

import psutil

from headrace.processes.lifeline import Lifeline
from headrace.processes.status import StatusBoard

__all__ = ["EXIT_SECONDS", "Members", "set_deadline", "sigint_blocked", "uninterrupted"]

_log = logging.getLogger("headrace.processes")

EXIT_SECONDS = 1.0  # seconds that a killed or leaving process may take to disappear


@dataclass
class Members:
    """The processes and descriptors of a group.

    They are kept apart from `WorkerGroup`, so that they can be cleaned up after it is garbage collected.

    Args:
        board: status lines of the processes.
        lifeline: kills the processes when this process ends; None if the system does not support it.
        processes: the processes, by rank.
        handles: psutil handles of them, which detect that a PID was reused; None for one that had ended already.
        pipes: our ends of the pipes.
        dumps: descriptors of the files to which faulthandler writes stacks.
        owner: PID of the process that started them.
        at_exit: makes multiprocessing call `kill` before it waits for processes at exit.
        killed: whether `kill` was called.
    """

    board: StatusBoard
    lifeline: Lifeline | None
    processes: list[BaseProcess] = field(default_factory=list)
    handles: list[psutil.Process | None] = field(default_factory=list)
    pipes: list[Connection] = field(default_factory=list)
    dumps: list[int] = field(default_factory=list)
    owner: int = field(default_factory=os.getpid)
    at_exit: Finalize | None = None
    killed: bool = False

    def add(self, process: BaseProcess) -> None:
        """Adds a process that was started."""
        self.processes.append(process)
        self.handles.append(None)
        with suppress(psutil.Error):  # it has ended, and another part of the program waited for it
            self.handles[-1] = psutil.Process(process.pid)

    def ended(self, rank: int) -> bool:
        """Returns whether a process has ended.

        Its exit code alone is not enough: if the program ignores SIGCHLD or waits for all of its children, the exit
        code is lost or goes to the program.
        """
        process, handle = self.processes[rank], self.handles[rank]
        if process.exitcode is not None:
            return True
        if handle is None:
            return True
        if _is_living_child(handle.pid):  # 2 µs; the process list takes 300 µs
            return False
        return not _is_running(handle)

    def kill(self) -> None:
        """Kills the processes and all their descendants, and closes the descriptors. Safe to call twice."""
        if os.getpid() != self.owner:
            return  # a forked child has a copy of this object and must not kill its siblings
        with uninterrupted(deliver=False):  # may run at interpreter exit or in garbage collection
            if self.killed:
                return
            self.killed = True
            if self.at_exit is not None:
                self.at_exit.cancel()
            for dump in self.dumps:  # first: without a free descriptor no process can be looked up
                os.close(dump)
            trees = [_with_descendants(handle) for handle in self.handles if handle is not None]
            for tree in trees:
                for member in tree:
                    _kill(member)
            for rank, process in enumerate(self.processes):
                process.join(EXIT_SECONDS)
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

        The number of a process group is not reused before its last member has ended. So a process with that number is
        either the one we started, or a new one, in which case nothing of the group was left.
        """
        pid, handle = self.processes[rank].pid, self.handles[rank]
        if pid is None or (psutil.pid_exists(pid) and not (handle is not None and handle.is_running())):
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def set_deadline(pipe: Connection, seconds: float) -> None:
    """Sets a timeout for reads and writes on our end of a pipe: a worker may be stopped in the middle of a message."""
    interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.fromfd(pipe.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


class _RecordedSignals(list[int]):
    """A signal handler that records signals."""

    def __call__(self, signum: int, frame: object) -> None:
        self.append(signum)


@contextmanager
def uninterrupted(deliver: bool) -> Iterator[None]:
    """Keeps Ctrl-C from interrupting a clean-up.

    A Ctrl-C during the clean-up after an earlier one is ignored. Any other is delivered afterwards if `deliver` is set.
    (Blocking the signal would not work: another thread of the program would receive it.)
    """
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not callable(before) or isinstance(before, _RecordedSignals):
        yield
        return
    second = isinstance(sys.exc_info()[1], KeyboardInterrupt)
    recorded = _RecordedSignals()
    signal.signal(signal.SIGINT, recorded)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if recorded and deliver and not second:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Blocks SIGINT while a child starts, until its prologue ignores it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_living_child(pid: int) -> bool:
    """Returns whether a process is a child of this one and has not ended; it stays to be waited for in any case."""
    if sys.platform != "linux":  # Python has no `waitid` on macOS before 3.13
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:  # the child of a fork server, or somebody else has waited for it
        return False


def _is_running(process: psutil.Process) -> bool:
    """Returns whether a process runs. One that has ended stays in the process list until its parent, e.g. a fork
    server, waits for it.
    """
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _with_descendants(process: psutil.Process) -> list[psutil.Process]:
    """Returns a process's descendants, followed by the process."""
    try:
        return [*process.children(recursive=True), process]
    except (psutil.Error, OSError):  # it ended, or no descriptor is left to look it up
        return [process]


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.Error):  # it ended by itself
        process.kill()

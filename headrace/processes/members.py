"""The operating system's side of a group of processes: what there is to close and to kill, and how."""

from __future__ import annotations

import logging
import multiprocessing.process
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import psutil

from headrace.processes.status import StatusBoard

__all__ = ["GONE", "Members", "set_deadline", "sigint_blocked"]

_log = logging.getLogger("headrace.processes")

GONE = 1.0  # seconds a process that was killed, or said goodbye, may take to disappear


@dataclass
class Members:
    """The operating system's side of a group. Apart from it, so that a forgotten group can be cleaned up."""

    board: StatusBoard
    processes: list[multiprocessing.process.BaseProcess] = field(default_factory=list)
    pipes: list[Connection] = field(default_factory=list)
    dumps: list[int] = field(default_factory=list)
    owner: int = field(default_factory=os.getpid)

    def kill(self) -> None:
        """Kills the processes, their children first, and closes the descriptors."""
        if os.getpid() != self.owner:
            return  # a forked child has a copy of this object, and no business with its siblings
        with sigint_blocked():
            # Only of those that live: the number of one that ended may be somebody else's by now.
            families = [
                _family(process.pid)
                for process in self.processes
                if process.pid is not None and process.exitcode is None
            ]
            for family in families:
                for member in family:
                    _kill(member)
            for process in self.processes:
                process.join(GONE)
                if process.is_alive():
                    _log.error("process %s (pid %s) did not end after SIGKILL", process.name, process.pid)
                else:
                    process.close()
            for pipe in self.pipes:
                pipe.close()
            for dump in self.dumps:
                os.close(dump)
            self.board.close()


def set_deadline(pipe: Connection, seconds: float) -> None:
    """Bounds every read and write on our end of a pipe: a worker may be stopped in the middle of a message."""
    interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.fromfd(pipe.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """A child starts with SIGINT blocked until its prologue ignores it, and Ctrl-C cannot interrupt a clean-up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _family(pid: int) -> list[psutil.Process]:
    """A process's descendants, then the process."""
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):  # it ended by itself
        process.kill()

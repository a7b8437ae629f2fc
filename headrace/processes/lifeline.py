"""Kills workers when the process that started them ends, whatever they are doing at that time.

A thread that watches the parent needs the interpreter lock, and never gets it while C code of the environment loops and
holds it. So the kernel kills the workers. The process that starts workers holds the write end of a pipe and never
writes. Each worker has a read end of its own, which is set to send SIGKILL instead of SIGIO to the worker and the
programs its environments started: when the last write end closes, for whatever reason, they are killed.
(PR_SET_PDEATHSIG does not work here: it fires when the *thread* that started the worker ends, and the parent of a fork
server's children is the server.)
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys

__all__ = ["Lifeline", "extend_to_group"]


class Lifeline:
    """The pipe of one group of workers; Linux only, see `make`."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    @staticmethod
    def make() -> Lifeline | None:
        """Returns a lifeline; None if the system has no support, where only each worker's watch thread ends it."""
        return Lifeline() if sys.platform == "linux" and os.path.isdir("/proc/self/fd") else None

    @property
    def fds(self) -> list[int]:
        """Descriptors that a forked worker must close: otherwise it would keep itself and its siblings alive."""
        return [self._write] if self._read < 0 else [self._read, self._write]

    def tie(self, pid: int) -> int:
        """Returns a read end that kills the process `pid` from now on.

        The process passes it to `extend_to_group`; the caller closes it here. It is opened anew because the process
        that a descriptor signals is a property of the open file description, which `os.dup` would share.
        """
        fd = os.open(f"/proc/self/fd/{self._read}", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETOWN, pid)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
        return fd

    def complete(self) -> None:
        """Closes the read end; no more processes can be tied."""
        if self._read >= 0:
            os.close(self._read)
            self._read = -1

    def close(self) -> None:
        """Closes the write end, which kills all processes that are still tied."""
        self.complete()
        os.close(self._write)


def extend_to_group(fd: int) -> None:
    """Extends the lifeline of this worker, which leads a process group, to the whole group."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):  # the write end closed before the owner was changed: the signal may have been lost
        os.kill(os.getpid(), signal.SIGKILL)

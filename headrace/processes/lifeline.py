"""What ends workers when the process that started them is gone, whatever they are doing then.

A thread that watches the parent needs the interpreter: it never runs while a C loop of the environment holds it. So the
kernel does it. The process that starts workers holds the write end of a pipe and never writes. Each worker has a read
end of its own, which is set to send SIGKILL instead of SIGIO, to the worker and the programs its environments started:
when the last write end closes, for whatever reason, they are gone. (PR_SET_PDEATHSIG is no way: it fires when the
*thread* that started the worker ends, and a fork server's children have the server for a parent.)
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys

__all__ = ["Lifeline", "hold_on"]


class Lifeline:
    """The pipe of one group of workers; Linux only, see `make`."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    @staticmethod
    def make() -> Lifeline | None:
        """None where the system cannot do it: there the watch thread of a worker must do."""
        return Lifeline() if sys.platform == "linux" and os.path.isdir("/proc/self/fd") else None

    @property
    def fds(self) -> list[int]:
        """Those that a forked worker must not keep: it would hold itself and its siblings alive."""
        return [self._write] if self._read < 0 else [self._read, self._write]

    def tie(self, pid: int) -> int:
        """A read end that kills the process `pid` from now on; for that process to `hold_on` to, and to be closed here.

        Opened anew: whom a descriptor signals belongs to the opening, which `os.dup` would share.
        """
        fd = os.open(f"/proc/self/fd/{self._read}", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETOWN, pid)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
        return fd

    def complete(self) -> None:
        """Nobody else will be tied."""
        if self._read >= 0:
            os.close(self._read)
            self._read = -1

    def close(self) -> None:
        """Lets go: whoever is still tied dies."""
        self.complete()
        os.close(self._write)


def hold_on(fd: int) -> None:
    """In a worker that leads a process group: from now on the group is killed as a whole."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):  # the end came before the owner was changed: it may have gone unheard
        os.kill(os.getpid(), signal.SIGKILL)

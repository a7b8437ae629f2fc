"""A lock between processes that share memory: the kernel releases it when its holder dies."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time

from headrace.errors import StreamError
from headrace.streams.sample import remaining

__all__ = ["FileLock"]

_SECONDS = 10.0  # of waiting for a lock that is held for microseconds: its holder was stopped
_LOCK, _UNLOCK = (struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 1, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK))


class FileLock:
    """Locks the first byte of a file while it is entered, for microseconds. It also locks threads from one another.

    Entering it raises StreamError in a fork of the process that made it, with which it shares the open file; and if
    another process was stopped while it held the lock. It takes 4 µs.

    Args:
        fd: descriptor of shared memory.
    """

    def __init__(self, fd: int) -> None:
        self.pid = os.getpid()
        # The lock belongs to an open file; a descriptor from another process is of the same open file as there.
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        if os.getpid() != self.pid:
            raise StreamError(
                f"this end of the stream belongs to process {self.pid} and was used in its fork {os.getpid()}; make "
                "a producer or consumer in the process that uses it"
            )
        if not self._threads.acquire(timeout=_SECONDS):
            raise StreamError("another thread has held the lock of the stream for too long")
        try:
            if not self._locked():
                self._wait()
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *error: object) -> None:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _UNLOCK)
        finally:
            self._threads.release()

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def _locked(self) -> bool:
        """Takes the lock; returns False if another open file has it."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LOCK)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _wait(self) -> None:
        deadline = time.monotonic() + _SECONDS
        tries = 0
        while not self._locked():
            tries += 1
            if tries < 200:
                os.sched_yield()
            elif remaining(deadline):
                time.sleep(0.0005)  # its holder has lost its core
            else:
                raise StreamError(
                    f"a process has held the lock of the stream for {_SECONDS:g} s, so it was stopped; continue it, or "
                    "kill it"
                )

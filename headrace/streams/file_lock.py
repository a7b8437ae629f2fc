"""A lock between processes that share memory: the kernel releases it when its holder dies."""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from itertools import count

from headrace.errors import StreamError
from headrace.streams.sample import remaining

__all__ = ["FileLock"]

_SECONDS = 10.0  # of waiting for a lock that is held for microseconds: its holder was stopped
_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
_YIELDS = 200  # looks before the first pause, half a microsecond each if no other process wants the core
_FIRST_PAUSE, _LONGEST_PAUSE = 0.00005, 0.005


class FileLock:
    """Locks a file while it is entered, for microseconds. It also locks threads from one another.

    Entering it raises StreamError in a fork of the process that made it, with which it shares the open file; and if
    another process was stopped while it held the lock. It takes 2 µs.

    Args:
        fd: descriptor of shared memory.
    """

    def __init__(self, fd: int) -> None:
        self.pid = os.getpid()
        self._forked = False
        # The lock belongs to an open file; a descriptor from another process is of the same open file as there.
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        self._threads = threading.Lock()
        # To ask for the pid each time would take as long as the rest of Python's part.
        reference = weakref.ref(self)

        def note_fork() -> None:
            lock = reference()
            if lock is not None:
                lock._forked = True

        os.register_at_fork(after_in_child=note_fork)

    @property
    def forked(self) -> bool:
        """Whether this is the copy of the lock that a fork of its process got, which is of no use."""
        return self._forked

    def __enter__(self) -> None:
        if self._forked:
            raise StreamError(
                f"this end of the stream belongs to process {self.pid} and was used in its fork {os.getpid()}; make "
                "a producer or consumer in the process that uses it"
            )
        if not self._threads.acquire(False) and not self._threads.acquire(timeout=_SECONDS):
            raise StreamError("another thread has held the lock of the stream for too long")
        try:
            fcntl.flock(self._fd, _LOCK)
        except BlockingIOError:
            try:
                self._wait()
            except BaseException:
                self._threads.release()
                raise

    def __exit__(self, *error: object) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def _wait(self) -> None:
        """Waits for the lock: a wait for it in the kernel would have no deadline, and its release is no event."""
        deadline = time.monotonic() + _SECONDS
        pause = _FIRST_PAUSE
        for number in count():
            if number < _YIELDS:
                os.sched_yield()
            else:  # its holder has lost its core, for a time slice or for longer
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                fcntl.flock(self._fd, _LOCK)
                return
            except BlockingIOError:
                if not remaining(deadline):
                    raise StreamError(
                        f"a process has held the lock of the stream for {_SECONDS:g} s, so it was stopped; continue "
                        "it, or kill it"
                    ) from None

"""A lock that allows one writer per folder."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from headrace.errors import CheckpointError

__all__ = ["locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock file `folder/lock`, which contains the PID of this process; removes it afterwards.

    The lock file of a process that no longer exists is taken over. A POSIX lock on it makes this safe; workers do not
    inherit it, as they would a `flock`. POSIX locks are per process, so they do not exclude a second run in the same
    process, and they are lost when the process closes any other descriptor of the file. The contents of the file are
    therefore checked too.

    Raises:
        CheckpointError: if another run holds the lock.
    """
    path = folder / "lock"
    descriptor = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # the lock is still held, so no other run can have created the file
        os.close(descriptor)


def _acquire(path: Path) -> int:
    me = psutil.Process()
    mine = f"{me.pid} {me.create_time()}"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"{path} is not a file; remove it, or give another folder")
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise _in_use(path, _holder(descriptor)) from error
            holder = _holder(descriptor)
            if _lives(holder):
                raise _in_use(path, holder)
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, mine.encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder has unlinked this file meanwhile, so try again


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 100, 0).decode(errors="replace")


def _lives(holder: str) -> bool:
    pid, _, created = holder.partition(" ")
    try:
        process = psutil.Process(int(pid))
        # A killed process that nobody has waited for yet (a zombie) no longer holds anything.
        return bool(process.create_time() == float(created)) and process.status() != psutil.STATUS_ZOMBIE
    except (ValueError, OverflowError, psutil.NoSuchProcess):
        return False


def _in_use(path: Path, holder: str) -> CheckpointError:
    pid = holder.partition(" ")[0] or "just started"
    return CheckpointError(
        f"{path.parent} is being written by another run (process {pid}); wait for it, or choose another folder"
    )

"""Files that are written completely or not at all, whose damage is noticed when they are read; and their folders: one
that is closed to other users, and the lock on those that several processes change.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "DIGEST_BYTES",
    "Part",
    "append_whole",
    "digest",
    "file_lock",
    "framed",
    "make_folder",
    "state_folder",
    "unframed",
    "write_whole",
]

#: A piece of the contents of a file.
Part = bytes | memoryview

#: Length of a `digest`.
DIGEST_BYTES = hashlib.sha256().digest_size

_SHORTEST, _LONGEST = 0.0005, 0.02  # seconds between two looks at a lock, which tells nobody when it is released


def digest(*parts: Part) -> bytes:
    """Returns the SHA-256 of the parts, one after another."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return sha256.digest()


def framed(head: bytes, payload: Sequence[Part] = ()) -> list[Part]:
    """Returns `head`, the digest of head and payload, and the payload: what `unframed` can check.

    Args:
        head: says what the payload is; its end must be recognizable.
        payload: contents, in parts.
    """
    return [head, digest(head, *payload), *payload]


def unframed(content: memoryview, head_size: int) -> tuple[bytes, memoryview] | None:
    """Returns the digest and the payload of what `framed` returned; None if it is damaged.

    Args:
        content: head, digest and payload.
        head_size: length of the head.
    """
    start = head_size + DIGEST_BYTES
    found, payload = bytes(content[head_size:start]), content[start:]
    return (found, payload) if digest(content[:head_size], payload) == found else None


def write_whole(path: Path, parts: Sequence[Part], before: Callable[[], None] | None = None) -> None:
    """Writes a file under its final name only after it is completely on disk.

    Args:
        path: the file; an existing one is replaced.
        parts: contents.
        before: called when the contents are on disk, before the file gets its name.

    Raises:
        OSError: if it cannot be written; no partial file remains, and an existing file is unchanged.
    """
    needed = sum(len(part) for part in parts)
    # The temporary file is in the same directory, because renames are atomic only within one file system. `mkstemp` is
    # not used because other users could not read its files.
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            _write(file, parts)
        if before is not None:
            before()
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        raise OSError(
            error.errno,
            f"{path} was not written ({error.strerror}): it needs {needed:,} bytes, {_free(path.parent)}; "
            "the earlier file is unchanged",
        ) from error


def make_folder(path: Path) -> None:
    """Makes a folder and its parents, if they do not exist; they are on disk when this returns.

    Raises:
        OSError: if it cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        _sync_directory(folder.parent)


def append_whole(path: Path, size: int, parts: Sequence[Part]) -> int:
    """Appends to a file; the parts are on disk when this returns.

    Args:
        path: the file; it is created if it does not exist.
        size: length of its contents. What a failed append has left behind them is removed.
        parts: what to append.

    Returns:
        The new length.

    Raises:
        OSError: if it cannot be written; the contents up to `size` are unchanged.
    """
    with path.open("ab") as file:
        file.truncate(size)
        _write(file, parts)
    if not size:
        _sync_directory(path.parent)
    return size + sum(len(part) for part in parts)


def _write(file: BinaryIO, parts: Sequence[Part]) -> None:
    for part in parts:
        file.write(part)
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """Makes new names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(directory: Path) -> str:
    try:
        return f"{shutil.disk_usage(directory).free:,} are free there"
    except OSError:
        return "and its folder does not exist"


@contextmanager
def file_lock(path: Path, seconds: float, error: type[Exception]) -> Iterator[None]:
    """Holds the lock on a file, which is made if it does not exist, and stays. The system releases it at a crash.

    It excludes threads from one another, too, and other machines where the file system has locks (`flock`).

    Args:
        path: the file.
        seconds: how long to wait for another process that holds it.
        error: what to raise after that.

    Raises:
        OSError: if the file cannot be made, or cannot be locked.
    """
    # Writable, because NFS locks no other file. A link, which could lead to the file of somebody else, is not followed.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        deadline, pause = time.monotonic() + seconds, _SHORTEST
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise error(
                    f"{_holder(descriptor)} has been writing in {path.parent} for {seconds:g} seconds; if it is "
                    "stopped (state T in `ps`), let it continue, and if it hangs, kill it"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        try:
            yield
        finally:
            # A process that was forked meanwhile has the descriptor too, so closing it here would not be enough.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Locks an open file; returns False if another process has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # EACCES: on network file systems
            return False
        raise
    return True


def _holder(descriptor: int) -> str:
    """Returns who holds the lock of an open file, if it is a process on this machine that Linux shows us."""
    inode = f":{os.fstat(descriptor).st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # number: FLOCK ADVISORY WRITE pid device:device:inode start end
            if words[1] == "FLOCK" and words[5].endswith(inode) and int(words[4]) > 0:
                return f"process {words[4]}"
    return "another process"


def state_folder(what: str) -> Path:
    """Returns the folder for what headrace keeps between programs of this user, made if it does not exist.

    It is `headrace` in `$XDG_STATE_HOME`, or in `~/.local/state`, and closed to other users (mode 0700).

    Args:
        what: what is kept there, for the error.

    Raises:
        FileNotFoundError: if this user has no home folder.
        PermissionError: if another user owns the folder, or could have written into it.
        OSError: if it cannot be made.
    """
    folder = _state_home(what) / "headrace"
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    about = folder.stat()
    if {about.st_uid, folder.lstat().st_uid} != {os.geteuid()}:  # of a link, too, which its owner could change
        raise PermissionError(
            f"{folder} belongs to another user, who could change {what}; remove it, or set XDG_STATE_HOME to a folder "
            "of this user"
        )
    mode = stat.S_IMODE(about.st_mode)
    if mode & 0o022:
        raise PermissionError(
            f"other users could write into {folder} (mode {mode:04o}) and change {what}; look at what is in it, then "
            f"run `chmod 700 {folder}`"
        )
    if mode & 0o077:
        folder.chmod(0o700)
    return folder


def _state_home(what: str) -> Path:
    """Returns the folder for what programs of this user keep between runs; raises what `state_folder` raises."""
    given = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(given):
        return Path(given)
    try:
        return Path.home() / ".local" / "state"
    except RuntimeError as error:  # in containers: no HOME, and a user that the system does not know
        raise FileNotFoundError(
            errno.ENOENT, f"this user has no home folder for {what}; set HOME or XDG_STATE_HOME"
        ) from error

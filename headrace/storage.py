"""Files that are written completely or not at all, and whose damage is noticed when they are read."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "DIGEST_BYTES",
    "Part",
    "append_whole",
    "digest",
    "framed",
    "make_folder",
    "state_home",
    "unframed",
    "write_whole",
]

#: A piece of the contents of a file.
Part = bytes | memoryview

#: Length of a `digest`.
DIGEST_BYTES = hashlib.sha256().digest_size


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


def state_home(what: str) -> Path:
    """Returns the folder for what programs of this user keep between runs: `$XDG_STATE_HOME`, or `~/.local/state`.

    Args:
        what: what is kept there, for the error.

    Raises:
        FileNotFoundError: if this user has no home folder.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(given):
        return Path(given)
    try:
        return Path.home() / ".local" / "state"
    except RuntimeError as error:  # in containers: no HOME, and a user that the system does not know
        raise FileNotFoundError(
            errno.ENOENT, f"this user has no home folder for {what}; set HOME or XDG_STATE_HOME"
        ) from error

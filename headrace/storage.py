"""Writes files completely or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["sync_directory", "write_whole"]


def write_whole(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Writes a file under its final name only after it is completely on disk.

    Args:
        path: the file; an existing one is replaced.
        parts: contents.

    Raises:
        OSError: if it cannot be written; no partial file remains, and an existing file is unchanged.
    """
    needed = sum(len(part) for part in parts)
    # The temporary file is in the same directory, because renames are atomic only within one file system. `mkstemp` is
    # not used because other users could not read its files.
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
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


def sync_directory(directory: Path) -> None:
    """Makes renames in a directory durable."""
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

"""Records as files in a folder that several processes and machines share.

A record is one file, which is complete whenever it has its name. All files are in one folder, whatever the names say,
so that there are no folders of names to make and to remove while others add names to them.

**Changes** are made under a lock of the folder (`flock`, which NFS passes on to the server), because looking at a
record and replacing it are two steps. A new record gets its name by `link`, which fails if the name exists even where
the lock does not work.

**Time.** An owner renews a record by touching its file, and the file system's clock (on NFS the server's) writes the
time. A reader that sees a renewal for the first time asks the same clock for the time, with an unnamed new file, and so
learns how old the renewal is although clocks of machines differ. From then on it counts with its own monotonic clock.
So a record expires for every reader, those that start later included, and a clock that is set forward or back changes
nothing for what a reader has seen before. A reader that starts just after the file server's clock was set forward may
miss a record until its next renewal, a third of its time to live; after one was set back, it may see a dead record for
one time to live.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import unquote

from headrace.errors import NameEntryError, one_line
from headrace.services.names.records import MAX_VALUE, TOKEN_SIZE, Record, is_within, new_token, quoted, steady_seconds
from headrace.storage import file_lock, framed, unframed, write_whole

__all__ = ["FolderRecords", "folder_time"]

_HEAD = b"headrace name 1\n"
_ENDING = ".name"
_INSTANCE = "instance"
_LOCK = "lock"
_NEW, _TIME = ".new", "time-"  # ending of a file that has no name yet, beginning of one whose time is looked at
#: Files that writers leave which are killed, and nothing that a user might keep in the same folder.
_UNFINISHED = re.compile(
    rf"[0-9a-f]{{{TOKEN_SIZE}}}{re.escape(_NEW)}(\.[0-9a-f]{{8}}\.tmp)?|{_TIME}\w{{8}}{re.escape(_NEW)}"
)
_STALE_SECONDS = 3600.0  # age of an unfinished file whose writer must have died
_LOCK_SECONDS = 10.0  # for others to release the lock, which they hold for some calls of the file system
_DEAD_SECONDS = 600.0  # without a renewal after it has expired, after which a file is removed
_MAX_FILE = 7 * MAX_VALUE  # bytes; JSON writes a character of one byte in up to six
_N_STALE_HANDLES = 3  # how often a file that another machine has replaced is opened again


def folder_time(folder: Path) -> float:
    """Returns the time of the clock that writes the times of files in a folder, in seconds."""
    with tempfile.TemporaryFile(dir=folder, prefix=_TIME, suffix=_NEW) as file:
        return os.fstat(file.fileno()).st_mtime


class FolderRecords:
    """Records in a folder; see `Records`.

    Args:
        folder: made if it does not exist.
        clock: the time in seconds; it never goes back.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = steady_seconds) -> None:
        self._folder = folder
        self._clock = clock
        #: For each file with a time to live: the renewal that was seen last, and when it expires on our clock.
        self._seen: dict[str, tuple[tuple[str, int, int], float]] = {}
        with self._reached():
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()

    def put(self, record: Record, replace: bool) -> bool:
        """See `Records`."""
        path = self._path(record.name)
        entry = {"token": record.token, "ttl": record.ttl, "value": record.value}
        with self._reached(), self._written(json.dumps(entry).encode()) as new, self._locked():
            os.utime(new)  # its time to live begins now
            if replace:
                os.replace(new, path)
                return True
            if _linked(new, path):
                return True
            if self._live(path) is not None:
                return False
            path.unlink()  # expired, or damaged
            return _linked(new, path)

    def get(self, name: str) -> str | None:
        """See `Records`."""
        with self._reached():
            record = self._live(self._path(name))
            return None if record is None else record.value

    def subtree(self, root: str) -> dict[str, str]:
        """See `Records`; also removes files that no owner has renewed for a long time."""
        with self._reached():
            paths = self._paths(root)
            found = [self._live(path) for path in paths]
            self._forget_missing(root, paths)
            self._remove_dead(paths)
            return {record.name: record.value for record in found if record is not None}

    def renew(self, record: Record) -> bool:
        """See `Records`."""
        path = self._path(record.name)
        with self._reached(), self._locked():
            found = self._read(path)
            if found is None or found[0].token != record.token:
                return False
            os.utime(path)
            return True

    def remove(self, name: str, token: str | None = None) -> bool:
        """See `Records`."""
        path = self._path(name)
        with self._reached(), self._locked():
            record = self._live(path)
            if record is not None and token not in (None, record.token):
                return False
            path.unlink(missing_ok=True)
            return record is not None

    def clear(self, root: str) -> None:
        """See `Records`."""
        with self._reached(), self._locked():
            for path in self._paths(root):
                path.unlink(missing_ok=True)

    def instance(self) -> str:
        """See `Records`."""
        path = self._folder / _INSTANCE
        with self._reached():
            if not path.exists():
                with self._written(new_token().encode()) as new:
                    _linked(new, path)
            return self._content(path).decode()

    def changes(self) -> AbstractContextManager[Callable[[float], None]]:
        """See `Records`. Linux tells of no changes that another machine makes, so this waits the whole time."""
        return nullcontext(time.sleep)

    def close(self) -> None:
        """See `Records`."""

    def _path(self, name: str) -> Path:
        # "+" is encoded in names, and so is free to stand for the slash.
        return self._folder / (quoted(name).replace("/", "+") + _ENDING)

    def _name(self, file: str) -> str:
        return unquote(file.removesuffix(_ENDING).replace("+", "/"))

    def _paths(self, root: str) -> list[Path]:
        """Returns the files of a name and of all below it."""
        try:
            files = os.listdir(self._folder)
        except FileNotFoundError:  # somebody removed the folder, and so all names
            return []
        named = [file for file in files if file.endswith(_ENDING)]
        return [self._folder / file for file in named if is_within(self._name(file), root)]

    def _live(self, path: Path) -> Record | None:
        """Returns the record in a file; None if there is none, or it has expired."""
        found = self._read(path)
        if found is None:
            self._seen.pop(path.name, None)
            return None
        record, renewal, renewed = found
        if record.ttl is None:
            return record
        seen = self._seen.get(path.name)
        if seen is None or seen[0] != renewal:
            age = min(max(0.0, folder_time(self._folder) - renewed), record.ttl)
            seen = self._seen[path.name] = renewal, self._clock() + record.ttl - age
        return record if self._clock() < seen[1] else None

    def _forget_missing(self, root: str, paths: list[Path]) -> None:
        """Forgets renewals of files that others have removed."""
        listed = {path.name for path in paths}
        for file in [file for file in [*self._seen] if file not in listed and is_within(self._name(file), root)]:
            self._seen.pop(file, None)

    def _remove_dead(self, paths: list[Path]) -> None:
        """Removes files that expired long ago by our own clock, which nobody can have set forward."""

        def dead() -> list[Path]:
            now = self._clock()
            return [path for path in paths if now - self._seen.get(path.name, (None, now))[1] > _DEAD_SECONDS]

        if dead():
            with suppress(NameEntryError, OSError), self._locked():  # who only reads needs no lock
                for path in dead():
                    if self._live(path) is None:  # which looks for a renewal meanwhile
                        path.unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[Record, tuple[str, int, int], float] | None:
        """Returns the record in a file, what identifies its last renewal, and the time of that; None without one."""
        opened = _opened(path)
        if opened is None:
            return None
        content, status = opened
        payload = _payload(content)
        try:
            entry = json.loads(payload)
            token, ttl, value = entry["token"], entry["ttl"], entry["value"]
        except (ValueError, KeyError, TypeError):  # not written by this module
            return None
        if not isinstance(token, str) or not isinstance(value, str) or not isinstance(ttl, float | int | None):
            return None
        record = Record(self._name(path.name), value, token, ttl)
        return record, (token, status.st_ino, status.st_mtime_ns), status.st_mtime

    def _content(self, path: Path) -> bytes:
        opened = _opened(path)
        return b"" if opened is None else _payload(opened[0])

    @contextmanager
    def _written(self, payload: bytes) -> Iterator[Path]:
        """Yields a new file without a name of its own; removes it afterwards."""
        self._folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
        new = self._folder / f"{new_token()}{_NEW}"
        write_whole(new, framed(_HEAD, [payload]))
        try:
            yield new
        finally:
            new.unlink(missing_ok=True)

    def _remove_unfinished(self) -> None:
        """Removes files that writers have left which were killed."""
        unfinished = [self._folder / file for file in os.listdir(self._folder) if _UNFINISHED.fullmatch(file)]
        now = folder_time(self._folder) if unfinished else 0.0
        for path in unfinished:
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self._folder / _LOCK, _LOCK_SECONDS, NameEntryError):
            yield

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise NameEntryError(
                f"the folder of names {self._folder} cannot be used ({one_line(error)}); is it mounted, writable, and "
                "on a file system with locks and hard links?"
            ) from error


def _opened(path: Path) -> tuple[bytes, os.stat_result] | None:
    """Returns the contents and the status of a regular file; None if there is none."""
    # Opening makes NFS ask the server for the file's present times. A pipe of this name is not waited for.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(_N_STALE_HANDLES):
        try:
            descriptor = os.open(path, flags)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    return None
                with open(descriptor, "rb", closefd=False) as file:
                    return file.read(_MAX_FILE), status
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                return None
            if error.errno != errno.ESTALE:
                raise
    return None


def _payload(content: bytes) -> bytes:
    """Returns what `framed` got; empty if the file is damaged or something else."""
    found = unframed(memoryview(content), len(_HEAD)) if content.startswith(_HEAD) else None
    return b"" if found is None else bytes(found[1])


def _linked(new: Path, path: Path) -> bool:
    """Gives a file its name as well; returns False if the name exists."""
    try:
        os.link(new, path)
    except FileExistsError:
        # NFS may have repeated a call that had succeeded, whose reply was lost.
        return new.stat().st_nlink == 2
    return True

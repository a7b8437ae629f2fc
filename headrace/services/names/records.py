"""Name records, the interface of what stores them, and the store in the memory of one process."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NoReturn, Protocol
from urllib.parse import quote

from headrace.errors import NameEntryError
from headrace.schema import shown

__all__ = [
    "MAX_NAME",
    "MAX_VALUE",
    "TOKEN_SIZE",
    "MemoryRecords",
    "Record",
    "Records",
    "checked_name",
    "checked_seconds",
    "checked_ttl",
    "checked_value",
    "is_within",
    "new_token",
    "quoted",
    "steady_seconds",
]

#: Bytes of a name in which unusual characters are percent-encoded. With an ending it has to be the name of one file.
MAX_NAME = 240
#: Bytes of a value in UTF-8.
MAX_VALUE = 64 * 2**10
#: Characters of a token.
TOKEN_SIZE = 16
#: The shortest time to live in seconds; shorter ones would be lost in the waits of a busy machine.
_MIN_TTL = 0.1
_STEADY: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class Record:
    """A name and its value.

    Args:
        name: parts separated by slashes.
        value: any text.
        token: random; tells this record from any other of the same name, so that nobody renews or deletes another's.
        ttl: seconds after which it expires unless it is renewed; None: it does not expire.
    """

    name: str
    value: str
    token: str
    ttl: float | None


class Records(Protocol):
    """Stores records for all processes that use the same memory, folder, server or actor.

    Every method is one atomic step for the other processes, and raises `NameEntryError` where the store cannot be
    reached. Expired records do not exist.
    """

    def put(self, record: Record, replace: bool) -> bool:
        """Stores a record; returns False, and stores nothing, if the name has another and `replace` is False."""
        ...

    def get(self, name: str) -> str | None:
        """Returns the value of a name; None if it has none."""
        ...

    def subtree(self, root: str) -> dict[str, str]:
        """Returns the values of `root` and of all names below it, by name."""
        ...

    def renew(self, record: Record) -> bool:
        """Lets a record live for another `ttl`; returns False if the name has no record, or not this one."""
        ...

    def remove(self, name: str, token: str | None = None) -> bool:
        """Removes the record of a name, with a token only if it is this one; returns whether there was one."""
        ...

    def clear(self, root: str) -> None:
        """Removes the records of `root` and of all names below it."""
        ...

    def instance(self) -> str:
        """Returns an identifier of the stored data; another one means that the store lost its data."""
        ...

    def changes(self) -> AbstractContextManager[Callable[[float], None]]:
        """Returns a context whose function waits for new records, at most as many seconds as it is given.

        The function returns early if a record was put since the context was entered or the function returned last. A
        store that has no means to notice that waits the whole time.
        """
        ...

    def close(self) -> None:
        """Closes connections."""
        ...


def steady_seconds() -> float:
    """Returns the time in seconds by a clock that is never set. On Linux it counts while the machine is suspended."""
    return time.clock_gettime(_STEADY)


def new_token() -> str:
    """Returns a random token, the same in no two processes, forked ones included."""
    return secrets.token_hex(TOKEN_SIZE // 2)


def quoted(name: str) -> str:
    """Returns a name in which everything but letters, digits, `_.-~` and the slashes is percent-encoded."""
    return quote(name, safe="/")


def is_within(name: str, root: str) -> bool:
    """Returns whether a name is `root` or below it; "a/bc" is not below "a/b"."""
    return name == root or name.startswith(f"{root}/")


def checked_name(name: str) -> str:
    """Returns a name.

    Raises:
        TypeError: if it is no string.
        ValueError: if it has an empty part, a part "." or "..", a character that cannot be printed, or is too long.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__} {shown(name)}")
    parts = name.split("/")
    if not all(parts):
        raise ValueError(f'name {shown(name)} has an empty part; names are parts separated by single slashes, "a/b/c"')
    if "." in parts or ".." in parts:
        raise ValueError(f'name {shown(name)} has a part "." or ".."; give the parts other names')
    if not name.isprintable():  # surrogates included
        raise ValueError(f"name {shown(name)} has a character that cannot be printed; leave it out")
    size = len(quoted(name))
    if size > MAX_NAME:
        raise ValueError(f"name {shown(name)} has {size} bytes when it is percent-encoded; at most {MAX_NAME} fit")
    return name


def checked_value(value: str) -> str:
    """Returns a value.

    Raises:
        TypeError: if it is no string.
        ValueError: if it is too long.
    """
    if not isinstance(value, str):
        raise TypeError(f"value must be a string, got {type(value).__name__}; encode other values, for example as JSON")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"value cannot be encoded in UTF-8 ({error.reason}); leave surrogates out") from None
    if size > MAX_VALUE:
        raise ValueError(f"value has {size:,} bytes; at most {MAX_VALUE:,} fit, so put it into a file and add its path")
    return value


def checked_seconds(name: str, value: float, least: float = 0.0) -> float:
    """Returns a number of seconds.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is below `least` or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, got {type(value).__name__} {value!r}")
    if not least <= value < float("inf"):
        raise ValueError(f"{name} must be at least {least} seconds, and finite; got {value!r}")
    return value


def checked_ttl(ttl: float | None) -> float | None:
    """Returns a time to live; raises what `checked_seconds` raises."""
    return None if ttl is None else checked_seconds("keepalive_ttl", ttl, _MIN_TTL)


class MemoryRecords:
    """Records in the memory of one process.

    Args:
        clock: the time in seconds; it never goes back.
    """

    def __init__(self, clock: Callable[[], float] = steady_seconds) -> None:
        self._clock = clock
        self._entries: dict[str, tuple[Record, float]] = {}
        self._changed = threading.Condition()
        self._n_puts = 0
        self._instance = new_token()
        self._pid = os.getpid()

    def put(self, record: Record, replace: bool) -> bool:
        """See `Records`."""
        with self._entered():
            if not replace and self._live(record.name) is not None:
                return False
            self._entries[record.name] = record, self._expiry(record)
            self._n_puts += 1
            self._changed.notify_all()
            return True

    def get(self, name: str) -> str | None:
        """See `Records`."""
        with self._entered():
            record = self._live(name)
            return None if record is None else record.value

    def subtree(self, root: str) -> dict[str, str]:
        """See `Records`."""
        with self._entered():
            found = [self._live(name) for name in [*self._entries] if is_within(name, root)]
            return {record.name: record.value for record in found if record is not None}

    def renew(self, record: Record) -> bool:
        """See `Records`."""
        with self._entered():
            live = self._live(record.name)
            if live is None or live.token != record.token:
                return False
            self._entries[record.name] = record, self._expiry(record)
            return True

    def remove(self, name: str, token: str | None = None) -> bool:
        """See `Records`."""
        with self._entered():
            live = self._live(name)
            if live is None or token not in (None, live.token):
                return False
            del self._entries[name]
            return True

    def clear(self, root: str) -> None:
        """See `Records`."""
        with self._entered():
            for name in [name for name in self._entries if is_within(name, root)]:
                del self._entries[name]

    def instance(self) -> str:
        """See `Records`."""
        return self._instance

    @contextmanager
    def changes(self) -> Iterator[Callable[[float], None]]:
        """See `Records`."""
        seen = self._n_puts

        def until_change(seconds: float) -> None:
            nonlocal seen
            with self._entered():
                self._changed.wait_for(lambda: self._n_puts != seen, seconds)
                seen = self._n_puts

        yield until_change

    def close(self) -> None:
        """See `Records`; what another repository has here stays."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "names in memory exist in one process alone, so they cannot be pickled; use a folder, Redis or Ray for "
            "names that several processes share"
        )

    @contextmanager
    def _entered(self) -> Iterator[None]:
        if os.getpid() != self._pid:
            raise NameEntryError(
                f"names in memory exist in process {self._pid} alone, and this is process {os.getpid()}; use a folder, "
                "Redis or Ray for names that several processes share"
            )
        with self._changed:
            yield

    def _expiry(self, record: Record) -> float:
        return float("inf") if record.ttl is None else self._clock() + record.ttl

    def _live(self, name: str) -> Record | None:
        """Returns the record of a name, and forgets it if it has expired."""
        record, expiry = self._entries.get(name, (None, 0.0))
        if record is not None and self._clock() >= expiry:
            del self._entries[name]
            return None
        return record

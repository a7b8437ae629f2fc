"""Name resolving: processes publish under names where they can be reached, and others look the names up."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headrace.errors import NameEntryError, NameEntryExistsError, NameEntryNotFoundError
from headrace.processes.ray_session import RayCluster
from headrace.services.names.folder import FolderRecords
from headrace.services.names.own import LostRecord, OwnRecords
from headrace.services.names.ray_actor import RayRecords
from headrace.services.names.records import (
    MemoryRecords,
    Record,
    Records,
    checked_name,
    checked_seconds,
    checked_ttl,
    checked_value,
    new_token,
)
from headrace.services.names.redis_server import RedisRecords
from headrace.services.names.watch import NameWatch

__all__ = [
    "LostRecord",
    "MemoryNameRecordRepository",
    "NFSNameRecordRepository",
    "NameRecordRepository",
    "NameWatch",
    "NfsNameRecordRepository",
    "RayNameRecordRepository",
    "RedisNameRecordRepository",
    "make_repository",
]

_SUBENTRY_BYTES = 5  # of the random part of a name
_TRIES = 10  # to find a random name that is free

OnLost = Callable[[LostRecord], None]


class NameRecordRepository:
    """Names with values, for all processes that use the same store.

    Names are parts separated by slashes, "experiment/trial/learner"; every one can have a value, and they form a tree.
    Values are strings of at most 64 KiB.

    A record that is added with `keepalive_ttl` lives for so many seconds after its owner's end: a thread renews it after
    each third of that time. If the store cannot be reached for longer, the record expires for others; the owner is told
    (`lost`, `on_lost`, a warning in the log), and the record appears again when the store does, even if it comes back
    empty. A record that somebody deleted, or whose name was added again with `replace`, is given up. Only records with
    `keepalive_ttl` are looked after.

    Methods can be called from several threads. All raise `NameEntryError` if the store cannot be reached, or after
    `close`. A pickled repository is another one of the same store, without records of its own, and so is the copy in a
    forked process. This class is the base of the repositories below; it takes any implementation of the protocol
    `headrace.services.names.records.Records`.

    Args:
        records: the store.
        arguments: what the class is called with when a copy is unpickled.
        on_lost: called for each record that was lost, in the thread that renews records.
        clock: the time in seconds, for the renewals; it never goes back.
    """

    def __init__(
        self,
        records: Records,
        arguments: tuple[Any, ...] = (),
        *,
        on_lost: OnLost | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._arguments = arguments
        self._own = OwnRecords(records, on_lost, clock)
        self._watches: list[NameWatch] = []
        self._end = weakref.finalize(self, self._own.close)  # when garbage collected, and at exit

    def add(
        self,
        name: str,
        value: str,
        *,
        delete_on_exit: bool = True,
        keepalive_ttl: float | None = None,
        replace: bool = False,
    ) -> None:
        """Gives a name a value. Of several processes that add a name, exactly one succeeds.

        Args:
            name: the name.
            value: its value.
            delete_on_exit: delete it with `reset`, `close`, and when this process ends normally.
            keepalive_ttl: seconds after which it expires when this process has died; None: it stays.
            replace: take the name even if it has a value.

        Raises:
            NameEntryExistsError: if the name has a value, and `replace` is False.
            TypeError, ValueError: if the name, the value or the time is not valid.
        """
        record = Record(checked_name(name), checked_value(value), new_token(), checked_ttl(keepalive_ttl))
        if not self._own.add(record, delete_on_exit, replace):
            raise NameEntryExistsError(f"name {name!r} has a value; delete it first, or add it with replace=True")

    def add_subentry(
        self, name: str, value: str, *, delete_on_exit: bool = True, keepalive_ttl: float | None = None
    ) -> str:
        """Gives a new name below `name`, with a random last part, a value.

        Args:
            name: the name above.
            value: the value.
            delete_on_exit: see `add`.
            keepalive_ttl: see `add`.

        Returns:
            The whole name.
        """
        for _ in range(_TRIES):
            whole = f"{name}/{os.urandom(_SUBENTRY_BYTES).hex()}"
            try:
                self.add(whole, value, delete_on_exit=delete_on_exit, keepalive_ttl=keepalive_ttl)
                return whole
            except NameEntryExistsError:
                continue
        raise NameEntryExistsError(f"no free name was found below {name!r} in {_TRIES} tries; delete some")

    def get(self, name: str) -> str:
        """Returns the value of a name.

        Raises:
            NameEntryNotFoundError: if it has none.
        """
        value = self._get(checked_name(name))
        if value is None:
            raise NameEntryNotFoundError(f"name {name!r} has no value; wait() waits until somebody adds it")
        return value

    def get_subtree(self, name: str) -> list[str]:
        """Returns the values of a name and of all names below it, at any depth, in the order of the names."""
        return [value for _, value in self._subtree(name)]

    def find_subtree(self, name: str) -> list[str]:
        """Returns a name, if it has a value, and all names below it that have one, at any depth, sorted."""
        return [found for found, _ in self._subtree(name)]

    def wait(self, name: str, timeout: float = 300.0, poll_frequency: float = 0.1) -> str:
        """Waits until a name has a value. A store that cannot be reached is waited for as well.

        Args:
            name: the name.
            timeout: seconds to wait at most.
            poll_frequency: seconds between two looks. In memory and on Redis a new name is noticed at once.

        Returns:
            The value.

        Raises:
            TimeoutError: if it has none in time.
        """
        checked_name(name), checked_seconds("timeout", timeout), checked_seconds("poll_frequency", poll_frequency)
        deadline = time.monotonic() + timeout
        with self._records.changes() as until_change:
            while True:
                self._own.require_open()
                failure = None
                try:
                    if (value := self._records.get(name)) is not None:
                        return value
                except NameEntryError as error:
                    failure = error
                left = deadline - time.monotonic()
                if left <= 0:
                    why = "" if failure is None else f" ({failure})"
                    raise TimeoutError(f"name {name!r} had no value within {timeout:g} s{why}") from failure
                until_change(min(left, poll_frequency))

    def watch_names(
        self,
        names: str | Sequence[str],
        callback: Callable[[], None],
        poll_frequency: float = 1.0,
        wait_timeout: float = 300.0,
    ) -> NameWatch:
        """Calls a function when all names have gone, from a thread that first waits until each has been there.

        Args:
            names: one name or several.
            callback: called once, without arguments.
            poll_frequency: seconds between two looks.
            wait_timeout: seconds within which every name must appear; else the watch ends with a warning in the log.

        Returns:
            The watch; its `cancel` ends it, as does `close` of the repository.
        """
        found = [names] if isinstance(names, str) else [*names]
        if not found:
            raise ValueError("names must have at least one name, got none")
        for name in found:
            checked_name(name)
        checked_seconds("poll_frequency", poll_frequency), checked_seconds("wait_timeout", wait_timeout)
        self._own.require_open()
        watch = NameWatch(self._records.get, found, callback, poll_frequency, wait_timeout)
        self._watches = [one for one in self._watches if not one.done] + [watch]
        return watch

    def delete(self, name: str) -> None:
        """Deletes a name, whoever has added it.

        Raises:
            NameEntryNotFoundError: if it has no value.
        """
        if not self._own.remove(checked_name(name)):
            raise NameEntryNotFoundError(f"name {name!r} has no value, so it cannot be deleted")

    def clear_subtree(self, name: str) -> None:
        """Deletes a name, if it has a value, and all names below it, whoever has added them."""
        self._own.clear(checked_name(name))

    def reset(self) -> None:
        """Deletes what this repository has added with `delete_on_exit`, and nothing that others have added since."""
        self._own.reset()

    @property
    def lost(self) -> tuple[LostRecord, ...]:
        """The own records that others could not see for a while, or cannot any more; the latest last."""
        return self._own.lost

    def close(self) -> None:
        """Ends renewals and watches, and deletes what `reset` deletes. Safe to call twice."""
        for watch in self._watches:
            watch.cancel()
        self._end()

    def __enter__(self) -> Self:
        self._own.require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def _get(self, name: str) -> str | None:
        self._own.require_open()
        return self._records.get(name)

    def _subtree(self, name: str) -> list[tuple[str, str]]:
        checked_name(name)
        self._own.require_open()
        return sorted(self._records.subtree(name).items())


class MemoryNameRecordRepository(NameRecordRepository):
    """Names in the memory of this process, for its threads; it cannot be pickled.

    Args:
        records: those of another repository in this process; None: new ones.
        on_lost: see `NameRecordRepository`.
        clock: the time in seconds; it never goes back.
    """

    def __init__(
        self,
        records: MemoryRecords | None = None,
        *,
        on_lost: OnLost | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(MemoryRecords(clock) if records is None else records, on_lost=on_lost, clock=clock)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "names in memory exist in one process alone, so their repository cannot be pickled; use a folder, Redis or "
            "Ray for names that several processes share"
        )


class NFSNameRecordRepository(NameRecordRepository):
    """Names as files in a folder, on one machine or on a file system that several machines share.

    The file system has to have locks (`flock`) and hard links, as NFS has. New names appear on other machines at once if
    NFS is mounted with the option `lookupcache=positive`, otherwise after up to a minute.

    Args:
        folder: the folder, made if it does not exist; a `~` stands for the user's home.
        on_lost: see `NameRecordRepository`.
        clock: the time in seconds; it never goes back.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        on_lost: OnLost | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        path = Path(folder).expanduser().absolute()
        super().__init__(FolderRecords(path, clock), (path,), on_lost=on_lost, clock=clock)

    def __repr__(self) -> str:
        return f"NFSNameRecordRepository({str(self._arguments[0])!r})"


#: Another spelling of `NFSNameRecordRepository`.
NfsNameRecordRepository = NFSNameRecordRepository


class RedisNameRecordRepository(NameRecordRepository):
    """Names on a Redis server, version 6 or later, or Valkey. Needs `pip install "headrace[redis]"`.

    The repository connects when it is first used. Anybody who can connect to the server can read and change the names:
    use a password and TLS (`rediss://user:password@host`) beyond one machine.

    Args:
        url: "redis://host:port/db", "rediss://…" (TLS) or "unix://path".
        prefix: beginning of all keys, for several programs that use one server.
        timeout: seconds to wait for a connection or a reply.
        on_lost: see `NameRecordRepository`.

    Raises:
        ImportError: if redis-py is not installed.
        ValueError: if the URL is not valid.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379",
        prefix: str = "headrace",
        timeout: float = 5.0,
        *,
        on_lost: OnLost | None = None,
    ) -> None:
        records = RedisRecords(url, prefix, checked_seconds("timeout", timeout))
        self._address = records.address
        super().__init__(records, (url, prefix, timeout), on_lost=on_lost)

    def __repr__(self) -> str:
        return f"RedisNameRecordRepository({self._address!r})"


class RayNameRecordRepository(NameRecordRepository):
    """Names in a Ray actor, for all processes on a Ray cluster. Needs `pip install "headrace[ray]"`.

    The first repository makes the actor, and its end is the actor's end. The next call of another repository makes a new
    one, to which records with `keepalive_ttl` are added again, so use that, or make the first in a process that outlives
    the others.

    Args:
        actor: name of the actor.
        cluster: where to connect to if this process has no Ray session yet.
        timeout: seconds to wait for the actor.
        on_lost: see `NameRecordRepository`.

    Raises:
        ImportError: if Ray is not installed or too old.
        NameEntryError: if the cluster cannot be reached.
    """

    def __init__(
        self,
        actor: str = "headrace-names",
        cluster: RayCluster | None = None,
        timeout: float = 30.0,
        *,
        on_lost: OnLost | None = None,
    ) -> None:
        cluster = RayCluster() if cluster is None else cluster
        records = RayRecords(actor, cluster, checked_seconds("timeout", timeout))
        super().__init__(records, (actor, cluster, timeout), on_lost=on_lost)


def make_repository(spec: str | os.PathLike[str] | NameRecordRepository) -> NameRecordRepository:
    """Returns a repository.

    Args:
        spec: "memory"; a folder, as a path or as a string with a slash, or "nfs:folder"; "redis://host:port/db" (also
            "rediss://", "unix://"); "ray"; or a repository, which is returned.

    Raises:
        ValueError: for another string.
        TypeError: for anything else.
    """
    if isinstance(spec, NameRecordRepository):
        return spec
    if isinstance(spec, os.PathLike):
        return NFSNameRecordRepository(spec)
    if not isinstance(spec, str):
        raise TypeError(f"a repository of names is a string, a path or an instance, got {type(spec).__name__} {spec!r}")
    if spec == "memory":
        return MemoryNameRecordRepository()
    if spec == "ray":
        return RayNameRecordRepository()
    if spec.startswith(("redis://", "rediss://", "unix://")):
        return RedisNameRecordRepository(spec)
    folder = spec.removeprefix("nfs:")
    if folder and (folder != spec or os.sep in folder):
        return NFSNameRecordRepository(folder)
    raise ValueError(
        f'a repository of names is "memory", a folder ("/shared/names", "nfs:names"), "redis://host:port" or "ray", got '
        f"{spec!r}"
    )

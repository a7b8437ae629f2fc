"""Name resolving: processes publish under names where they can be reached, and others look the names up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from headrace.processes.ray_session import RayCluster
from headrace.schema import shown
from headrace.services.addresses import require_scheme, scheme_of
from headrace.services.names.folder import FolderRecords
from headrace.services.names.own import LostRecord
from headrace.services.names.ray_actor import RayRecords
from headrace.services.names.records import MemoryRecords, checked_seconds, steady_seconds
from headrace.services.names.redis_server import SCHEMES, RedisRecords
from headrace.services.names.repository import NameRecordRepository, OnLost
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
        clock: Callable[[], float] = steady_seconds,
    ) -> None:
        super().__init__(MemoryRecords(clock) if records is None else records, on_lost=on_lost, clock=clock)


class NFSNameRecordRepository(NameRecordRepository):
    """Names as files in a folder, on one machine or on a file system that several machines share.

    The file system has to have locks (`flock`) and hard links, as NFS has. New names appear on other machines at once
    if NFS is mounted with the option `lookupcache=positive`, otherwise after up to a minute.

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
        clock: Callable[[], float] = steady_seconds,
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

    The first repository makes the actor, and its end is the end of the actor. The next call of another repository makes
    a new one, to which records with `keepalive_ttl` are added again. So use that, or make the first repository in a
    process that outlives the others.

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
    if scheme_of(spec) or spec.partition(":")[0] in SCHEMES:  # the slashes may be missing
        require_scheme(spec, SCHEMES, "the address of a repository of names", ', a folder, "memory" or "ray"')
        return RedisNameRecordRepository(spec)
    folder = spec.removeprefix("nfs:")
    if folder and (folder != spec or os.sep in folder):
        return NFSNameRecordRepository(folder)
    raise ValueError(
        f'a repository of names is "memory", a folder ("/shared/names", "nfs:names"), "redis://host:port" or "ray", '
        f"got {shown(spec)}"
    )

"""All stores of names, for tests of what every one promises: in memory, in a folder, on Redis, in a Ray actor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from headrace.processes.ray_session import RayCluster
from headrace.services import (
    MemoryNameRecordRepository,
    NameRecordRepository,
    NFSNameRecordRepository,
    RayNameRecordRepository,
    RedisNameRecordRepository,
)
from headrace.services.names.folder import FolderRecords
from headrace.services.names.ray_actor import RayRecords
from headrace.services.names.records import MemoryRecords, Records, new_token
from headrace.services.names.redis_server import RedisRecords
from tests.leftovers import DEADLINE, until
from tests.ray_here import NEEDS_RAY, small_ray
from tests.redis_here import NEEDS_REDIS, RedisServer

__all__ = ["RAY", "SHARED", "Backend", "connect", "everywhere", "on", "root", "store", "wait_for_the_end"]

KINDS = ["memory", "folder", pytest.param("redis", marks=NEEDS_REDIS)]
SHARED = KINDS[1:]
RAY = pytest.param("ray", marks=[pytest.mark.programs, NEEDS_RAY])


@dataclass
class Backend:
    """Makes repositories of one store.

    Args:
        kind: of the store.
        connect: makes one more repository.
        store: makes one more connection without a repository, to do what the owner of a record does that dies then.
        address: of the store, for another program.
        environ: environment variables of such a program.
        opened: what is to be closed after the test.
    """

    kind: str
    connect: Callable[[], NameRecordRepository]
    store: Callable[[], Records]
    address: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    opened: list[NameRecordRepository | Records] = field(default_factory=list)

    def __call__(self) -> NameRecordRepository:
        self.opened.append(repository := self.connect())
        return repository

    def records(self) -> Records:
        self.opened.append(records := self.store())
        return records


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    kind = request.param
    if kind == "memory":
        records = MemoryRecords()
        yield Backend(kind, lambda: MemoryNameRecordRepository(records), lambda: records)
    elif kind == "folder":
        folder = tmp_path_factory.mktemp("names")
        yield Backend(kind, lambda: NFSNameRecordRepository(folder), lambda: FolderRecords(folder), str(folder))
    elif kind == "redis":
        server = RedisServer(tmp_path_factory.mktemp("redis"))
        try:
            yield Backend(
                kind,
                lambda: RedisNameRecordRepository(server.url),
                lambda: RedisRecords(server.url, "headrace", DEADLINE),
                server.url,
            )
        finally:
            server.kill()
    else:
        with small_ray() as ray:
            first = RayNameRecordRepository()  # the actor ends with it
            first.find_subtree("nothing")
            yield Backend(
                kind,
                RayNameRecordRepository,
                lambda: RayRecords("headrace-names", RayCluster(), DEADLINE),
                "ray",
                {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            )
            first.close()


@pytest.fixture
def connect(store: Backend) -> Iterator[Backend]:
    yield store
    while store.opened:
        store.opened.pop().close()


@pytest.fixture
def root() -> str:
    """Returns a name of this test alone."""
    return f"test {new_token()}"


def on(*kinds: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("store", kinds, indirect=True)


everywhere = on(*KINDS, RAY)


def wait_for_the_end(seen: Callable[[], bool]) -> None:
    """Waits until one reader sees that a record has expired, and then until all do: clocks of files are coarse."""
    assert until(seen)
    time.sleep(0.1)

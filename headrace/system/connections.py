"""How the workers of a run reach each other: streams, admission, names and parameters, made from one description."""

from __future__ import annotations

import os
import secrets
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headrace.services import ParameterDBClient, make_repository
from headrace.streams import (
    Admission,
    AdmissionClient,
    AdmissionGate,
    AdmissionServer,
    AllowList,
    InferenceClient,
    InferenceServer,
    InferenceStream,
    Keys,
    SampleConsumer,
    SampleProducer,
    SampleStream,
    make_client,
    make_consumer,
    make_producer,
    make_server,
)
from headrace.types import Tree

if TYPE_CHECKING:
    from headrace.services import NameRecordRepository

__all__ = ["Connections", "Transport"]

#: "shared_memory": all workers are on one machine; "zmq": on any machines, found by name.
Transport = Literal["shared_memory", "zmq"]
_TTL = 10.0  # seconds after which the address of a dead worker is forgotten


@dataclass(frozen=True)
class Connections:
    """What connects the workers of one run.

    Args:
        experiment, trial: names of the run.
        folder: folder of the run, which all its workers can read and write.
        transport: what carries samples, requests and leases.
        names: the name service, as `make_repository` takes it; for "zmq".
        host: the address of this machine that other workers reach it by.
        keys: CURVE keys that all workers of the run have; None: plain text, on this machine only.
    """

    experiment: str
    trial: str
    folder: Path
    transport: Transport = "shared_memory"
    names: str = ""
    host: str = "127.0.0.1"
    keys: Keys | None = field(default=None, repr=False)

    @staticmethod
    def run_keys(folder: Path) -> Keys:
        """Returns the keys of a run, which the first process that asks for them makes; only this user can read them.

        Args:
            folder: folder of the run.
        """
        path = folder / "keys.json"
        if not path.exists():
            new = folder / f"keys-{secrets.token_hex(8)}"
            Keys.generate().save(new)
            with suppress(FileExistsError):  # another process was first
                os.link(new, path)
            new.unlink()
        return Keys.load(path)

    def full_name(self, name: str) -> str:
        """Returns the name of a stream among those of all runs of this machine."""
        where = zlib.crc32(str(self.folder.resolve()).encode())
        return f"{self.experiment}/{self.trial}/{where:08x}/{name}"

    def parameters(self) -> ParameterDBClient:
        """Returns a client of the run's parameter database."""
        return ParameterDBClient(self.experiment, self.trial, self.folder / "parameters")

    def repository(self) -> NameRecordRepository:
        """Returns a client of the run's name service."""
        return make_repository(self.names or self.folder / "names")

    def producer(self, name: str, rank: int, qsize: int) -> SampleProducer:
        """Returns a producer of chunks."""
        return make_producer(self._samples(name, None, rank, qsize))

    def consumer(self, name: str, example: Tree, qsize: int) -> SampleConsumer:
        """Returns the consumer of chunks. example: a chunk as large as any."""
        return make_consumer(self._samples(name, example, 0, qsize))

    def client(self, name: str, example: tuple[Tree, Tree], rank: int, servers: int) -> InferenceClient:
        """Returns a client that asks for actions. servers: number of policy workers of the stream."""
        return make_client(self._inference(name, example, rank, servers))

    def server(self, name: str, example: tuple[Tree, Tree], rank: int, servers: int) -> InferenceServer:
        """Returns the server of a policy worker. rank: its number among the `servers` of the stream."""
        return make_server(self._inference(name, example, rank, servers))

    def admission(self, name: str, max_staleness: int, batch: int, lease_seconds: float) -> Admitting:
        """Returns the admission of a trainer. batch: chunks of an update."""
        full = self.full_name(name)
        shared = self.transport == "shared_memory"
        admission = Admission(max_staleness, batch, lease_seconds=lease_seconds, name=full if shared else None)
        if shared:
            return Admitting(admission, None, None)
        server = AdmissionServer(admission, f"{self.host}:0", keys=self.keys, allowed=self.allowed())
        names = self.repository()
        names.add(f"{full}/admission", server.address, keepalive_ttl=_TTL, replace=True)
        return Admitting(admission, server, names)

    def gate(self, name: str, timeout: float = 60.0) -> AdmissionGate | AdmissionClient:
        """Returns what an actor asks whether a chunk may begin."""
        full = self.full_name(name)
        if self.transport == "shared_memory":
            return AdmissionGate(full, timeout)
        with self.repository() as names:
            address = names.wait(f"{full}/admission", timeout=timeout)
        return AdmissionClient(address, keys=self.client_keys())

    def _samples(self, name: str, example: Tree, rank: int, qsize: int) -> SampleStream:
        full = self.full_name(name)
        if self.transport == "shared_memory":
            return SampleStream("shared_memory", name=full, example=example, qsize=qsize)
        consuming = example is not None
        return SampleStream(
            "name",
            name=full,
            address=f"{self.host}:0" if consuming else None,
            example=example,
            names=self.repository(),
            keys=self.keys if consuming else self.client_keys(),
            allowed=self.allowed(),
            rank=rank,
            capacity=qsize,
        )

    def _inference(self, name: str, example: tuple[Tree, Tree], rank: int, servers: int) -> InferenceStream:
        full = self.full_name(name)
        if self.transport == "shared_memory":
            return InferenceStream("shared_memory", name=full, example=example, rank=rank, servers=servers)
        return InferenceStream(
            "name",
            name=full,
            address=f"tcp://{self.host}:0",
            example=example,
            rank=rank,
            names=self.repository(),
            keys=self.client_keys(),
            allowed=self.allowed(),
        )

    def allowed(self) -> AllowList | None:
        """Returns who may connect: all that have the keys of the run; None without keys."""
        return None if self.keys is None else AllowList([self.keys.public])

    def client_keys(self) -> Keys | None:
        """Returns the keys with which a worker connects to another."""
        return None if self.keys is None else self.keys.of_server(self.keys.public)


@dataclass(frozen=True)
class Admitting:
    """A trainer's admission, and how actors of other machines reach it."""

    admission: Admission
    server: AdmissionServer | None
    names: NameRecordRepository | None

    def close(self) -> None:
        """Ends the admission; nothing may start any more."""
        for part in (self.names, self.server, self.admission):
            if part is not None:
                part.close()

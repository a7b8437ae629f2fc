"""Actor workers, which step environments: with actions from policy workers, or from an agent of their own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from headrace.envs.factory import EnvFactory
from headrace.errors import StreamTimeout
from headrace.processes.status import Status
from headrace.samplers.collection.slice import SliceReport
from headrace.streams import InferenceClient, Lease, SampleProducer
from headrace.streams.admission import Gate
from headrace.system.acting import Acting, Answer
from headrace.system.connections import Connections
from headrace.system.ring import RemoteSlice, slice_config
from headrace.system.worker import TICK, Episode, PollResult, Worker

__all__ = ["ActorSettings", "ActorWorker"]

#: Seconds between two questions whether a chunk may begin: first, and at most.
_ASK_FIRST, _ASK_MOST = 0.0005, 0.01


@dataclass(frozen=True, kw_only=True)
class ActorSettings:
    """What an actor worker needs.

    Args:
        connections: of the run.
        factory: makes the environments.
        env_ids: their global numbers, for each slice of the ring.
        acting: contents of chunks and requests.
        discount: for the statistics of episodes.
        env_info_keys: see `SamplerOptions`.
        max_decorrelation_steps: see `SamplerOptions`.
        inference_stream: name of the stream of policy workers; None: the actor has an agent of its own.
        servers: number of policy workers of the stream.
        rank: number of this actor.
        sample_streams: names of the streams to which chunks are posted: each of them gets all chunks.
        qsize: chunks on their way, for each stream.
        policy: name of the policy, whose parameters an agent of its own follows.
        agent: pickled agent of its own, or None.
        pull_interval: seconds between two looks for newer parameters.
        seed: of the run.
    """

    connections: Connections
    factory: EnvFactory
    env_ids: Sequence[Sequence[int]]
    acting: Acting
    discount: float
    env_info_keys: Any
    max_decorrelation_steps: int
    inference_stream: str | None
    servers: int
    rank: int
    sample_streams: Sequence[str]
    qsize: int
    policy: str
    agent: bytes | None
    pull_interval: float
    seed: int


class ActorWorker(Worker):
    """Steps the slices of its ring, each whenever its actions are there, and posts their chunks."""

    def _configure(self, config: ActorSettings) -> None:
        self._config = config
        connections = config.connections
        self._ring = Ring.of(config, self.status, self.resources)
        self._producers: list[SampleProducer] = []
        self._gates: list[Gate] = []
        for name in config.sample_streams:
            self._producers.append(self.resources.enter_context(connections.producer(name, config.rank, config.qsize)))
            gate = connections.gate(name)
            self.resources.callback(gate.close)
            self._gates.append(gate)
        self._leases: dict[int, list[Lease]] = {}  # by number of the slice
        self._renewed = time.monotonic()
        self._patience = _ASK_FIRST
        self._waited = 0.0
        self._late = 0

    def _poll(self) -> PollResult:
        ring = self._ring
        self._renew()
        for index in ring.idle():
            if not self._admitted(index):
                break
            ring.begin(index)
        if not ring.busy:
            begin = time.monotonic()
            time.sleep(self._patience)  # samples enough are on their way; the trainer's next update makes room
            self._patience = min(2 * self._patience, _ASK_MOST)
            self._waited += time.monotonic() - begin
            return PollResult()
        self._patience = _ASK_FIRST
        n_steps = n_chunks = 0
        for index, chunk, report in ring.advance():
            n_steps += chunk["reward"].size
            n_chunks += 1
            self._post(index, chunk, report)
        return PollResult(n_steps, n_chunks)

    def _admitted(self, index: int) -> bool:
        """Asks all trainers for a lease; returns whether a chunk of this slice may begin."""
        leases: list[Lease] = []
        for gate in self._gates:
            lease = gate.may_start()
            if lease is None:
                for given, other in zip(leases, self._gates, strict=False):
                    other.abandon(given)
                return False
            leases.append(lease)
        self._leases[index] = leases
        return True

    def _post(self, index: int, chunk: Mapping[str, Any], report: SliceReport) -> None:
        version = int(chunk["version"].min())
        for producer, gate, lease in zip(self._producers, self._gates, self._leases.pop(index), strict=True):
            if not gate.finish(lease):
                self._late += 1  # the lease has expired, and another chunk may have begun in its place
                continue
            producer.post(chunk, version)
            try:
                producer.flush(60.0)
            except StreamTimeout as error:
                raise StreamTimeout(
                    f"{error}; the trainer does not take the chunks of {self.information.name}"
                ) from None
        episodes = report.episodes
        if len(episodes.infos):
            pairs = zip(episodes.ret.tolist(), episodes.length.tolist(), strict=True)
            self.add_episodes([Episode(ret, int(length), version) for ret, length in pairs])
        for _, sentence in report.notes:
            self.note(sentence)

    def _renew(self) -> None:
        """Renews the leases of chunks that take long, a few times in their life."""
        now = time.monotonic()
        first = next(iter(self._leases.values()), None)
        if first is None or not first or now < self._renewed + first[0].seconds / 4:
            return
        self._renewed = now
        for leases in self._leases.values():
            for gate, lease in zip(self._gates, leases, strict=True):
                gate.renew(lease)

    def _figures(self) -> Mapping[str, float]:
        return {"waiting": self._waited, "late": self._late, "version": self._ring.version}


Finished = tuple[int, Mapping[str, Any], SliceReport]


class Ring(ABC):
    """The slices of an actor."""

    #: Version of the parameters that acted last.
    version = -1

    @staticmethod
    def of(config: ActorSettings, status: Status, stack: ExitStack) -> Ring:
        """Returns the ring of an actor, which `stack` closes."""
        if config.inference_stream is not None:
            return RemoteRing(config, status, stack)
        from headrace.system.inline import InlineRing  # needs torch

        return InlineRing(config, status, stack)

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether any slice is in a chunk."""

    @abstractmethod
    def idle(self) -> Sequence[int]:
        """Returns the slices that are in no chunk."""

    @abstractmethod
    def begin(self, index: int) -> None:
        """Begins a chunk of a slice."""

    @abstractmethod
    def advance(self) -> Sequence[Finished]:
        """Steps slices, or waits for actions at most `TICK` seconds; returns the chunks that are complete.

        They are valid until the next `begin` of their slice.
        """


class RemoteRing(Ring):
    """Slices whose actions come from policy workers. Any of them is stepped whose actions are there."""

    def __init__(self, config: ActorSettings, status: Status, stack: ExitStack) -> None:
        assert config.inference_stream is not None
        self._client: InferenceClient = stack.enter_context(
            config.connections.client(config.inference_stream, config.acting.example(), config.rank, config.servers)
        )
        self._slices: list[RemoteSlice] = []
        for env_ids in config.env_ids:
            one = RemoteSlice(slice_of(config, env_ids), config.acting, status)
            stack.callback(one.close)
            self._slices.append(one)
        self._agents = [self._client.register_agent() for _ in self._slices]
        self._asked: dict[int, int] = {}  # request of each slice that waits for its answer
        self._idle = list(range(len(self._slices)))

    @property
    def busy(self) -> bool:
        """See `Ring`."""
        return bool(self._asked)

    def idle(self) -> Sequence[int]:
        """See `Ring`."""
        return tuple(self._idle)

    def begin(self, index: int) -> None:
        """See `Ring`."""
        self._idle.remove(index)
        self._slices[index].begin()
        self._ask(index)

    def advance(self) -> Sequence[Finished]:
        """See `Ring`."""
        client = self._client
        if not self._flushed() or not client.wait_any(self._asked.values(), TICK):
            return []
        finished: list[Finished] = []
        for index, number in list(self._asked.items()):
            if not client.is_ready([number]):
                continue
            del self._asked[index]
            (result,) = client.consume_result([number])
            value = result.value
            self.version = result.policy_version
            answer = Answer(
                value["action"], value["agent_info"], value.get("state"), value.get("value"), result.policy_version
            )
            complete = self._slices[index].answer(answer)
            if complete is None:
                self._ask(index)
            else:
                finished.append((index, *complete))
                self._idle.append(index)
        self._flushed()
        return finished

    def _flushed(self) -> bool:
        """Sends what was posted; returns False if no policy worker is there, as while it is started anew."""
        try:
            self._client.flush(TICK)
        except StreamTimeout:
            return False
        return True

    def _ask(self, index: int) -> None:
        self._asked[index] = self._client.post_request(self._slices[index].request(), self._agents[index])


def slice_of(config: ActorSettings, env_ids: Sequence[int]) -> Any:
    """Returns the configuration of one slice of the ring."""
    return slice_config(
        config.factory,
        env_ids,
        seed=config.seed,
        discount=config.discount,
        env_info_keys=config.env_info_keys,
        max_decorrelation_steps=config.max_decorrelation_steps,
    )

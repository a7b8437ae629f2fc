"""What runs in a sampler process: any sampler, driven by its hooks, that collects ahead of the learner."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from headrace.agents.base import Agent
from headrace.agents.parameters import ParameterSlots
from headrace.buffers.samples import Samples, SlotSpec
from headrace.buffers.shared import Allocate, shared
from headrace.errors import SamplerError, SinkFailed, headline, traceback_of
from headrace.processes.affinity import Affinity
from headrace.processes.child import Channel
from headrace.processes.status import Phase, Status
from headrace.samplers.base import BaseSampler
from headrace.samplers.collection.make_envs import CollectorConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.config import SamplerSettings
from headrace.samplers.layout import Slice
from headrace.samplers.timing import ServerTiming
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.local import SlotMemory
from headrace.samplers.workers.main import Crew, obey
from headrace.samplers.workers.memory import Slots
from headrace.types import EnvSpaces

__all__ = ["AsyncMemory", "InnerPlan", "InnerSetup", "Plan", "Sink", "async_memory", "sampler_process"]


class AsyncMemory(NamedTuple):
    """What an asynchronous sampler shares with its processes, besides slots. evaluation: of a process that evaluates
    beside the others; the parameters it was told of must not be overwritten before it takes them.
    """

    parameters: ParameterSlots
    evaluation: ParameterSlots | None


def async_memory(agent: Agent, n_versions: int, evaluates: bool, allocate: Allocate) -> AsyncMemory:
    """The same in every process. n_versions: of parameters, at a time."""
    return AsyncMemory(
        ParameterSlots(agent, allocate, n_versions), ParameterSlots(agent, allocate, 1) if evaluates else None
    )


class Plan(Protocol):
    """What one of the processes is made from."""

    def crew(self, status: Status) -> Crew:
        """Makes its environments."""


def sampler_process(channel: Channel, plan: Plan) -> None:
    """The life of a sampler process: a sampler, then batches ahead of the learner until told to leave."""
    obey(channel, plan.crew(channel.status))


@contextmanager
def storing(status: Status) -> Iterator[None]:
    """Around what a sink does in a sampler process: what it raises is no failure of an environment."""
    status.enter(Phase.STORING)
    try:
        yield
    except SamplerError:
        raise
    except Exception as error:
        raise SinkFailed(
            f"the sink of the batches raised {headline(error)}", status.where(), traceback_of(error)
        ) from error


class Sink(Protocol):
    """What takes every batch, in the sampler process, before the learner hears of it: a replay. It is pickled."""

    def open(self, spec: SlotSpec) -> int:
        """In the learner, once it is known what a batch holds: makes shared memory; its descriptor, to be closed."""

    def attach(self, spec: SlotSpec, fd: int) -> Callable[[Samples], None]:
        """In the sampler process: what to call with each batch. It owns the descriptor."""


@dataclass(frozen=True)
class InnerPlan:
    """What a sampler process needs to make its sampler: the class, and what the one outside would give it.

    first_slice: of its slices, among all of the batch.
    """

    cls: type[BaseSampler]
    settings: SamplerSettings
    first_slice: int
    slices: tuple[Slice, ...]
    configs: tuple[CollectorConfig, ...]
    affinity: Affinity

    def crew(self, status: Status) -> InnerSampler:
        """See `Plan`."""
        return InnerSampler(self, status)


class InnerSampler:
    """A sampler inside a process of its own, whose environments exist; `station` makes it collect."""

    def __init__(self, plan: InnerPlan, status: Status) -> None:
        self._configs = plan.configs
        self.sampler = plan.cls.of(plan.settings)
        self.sampler._status = status
        self.sampler._slices = list(plan.slices)
        self.sampler._first_slice = plan.first_slice
        try:
            self._spaces = self.sampler._start(plan.configs, plan.affinity)
        except BaseException:
            self.sampler._kill()
            raise

    @property
    def spaces(self) -> list[EnvSpaces]:
        """One for each slice."""
        return [self._spaces] * len(self._configs)

    def setup(self, agent: Agent, spec: SlotSpec, slots: Slots) -> None:
        """Gives the sampler its agent and the slots."""
        self.sampler._agent = agent
        self.sampler._setup(spec, slots, self._configs)

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls training environments; answers by env id."""
        return self.sampler._call(name, args, env_ids)

    def close(self) -> None:
        """Closes the environments, with their processes."""
        try:
            self.sampler._stop()
        except BaseException:
            self.sampler._kill()
            raise


@dataclass(frozen=True)
class InnerSetup:
    """How a sampler process is set up. agent, sink: pickled; n_versions, evaluates: see `async_memory`."""

    slots: SlotMemory
    agent: bytes
    n_versions: int
    evaluates: bool
    sink: bytes | None

    def station(self, crew: InnerSampler, channel: Channel) -> InnerStation:
        """With the memory whose descriptors come behind the command: slots, parameters, that of the sink."""
        agent: Agent = pickle.loads(self.agent)
        append: Callable[[Samples], None] | None = None
        slots = Slots(self.slots.spec, self.slots.n_slots, channel.receive_fd())
        try:
            build = partial(async_memory, agent, self.n_versions, self.evaluates)
            arena, memory = shared(build, channel.receive_fd())
            arena.close_fd()
            if self.sink is not None:
                with storing(channel.status):
                    append = pickle.loads(self.sink).attach(self.slots.spec, channel.receive_fd())
            crew.setup(agent, self.slots.spec, slots)
        finally:
            slots.arena.close_fd()
        return InnerStation(crew.sampler, agent, memory.parameters, slots, append, channel.status)


class InnerStation:
    """The commands of a sampler process; each names the version of the parameters to act with."""

    def __init__(
        self,
        sampler: BaseSampler,
        agent: Agent,
        parameters: ParameterSlots,
        slots: Slots,
        append: Callable[[Samples], None] | None,
        status: Status,
    ) -> None:
        self._sampler = sampler
        self._agent = agent
        self._parameters = parameters
        self._slots = slots
        self._append = append
        self._status = status

    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport | ServerTiming | None]:
        """See `Station`; the last of the answer is the action server's."""
        self._status.enter(Phase.COLLECTING)
        self._parameters.load(self._agent, version)
        reports = self._sampler._collect(itr, version, batch_index)
        if self._append is not None:
            with storing(self._status):
                self._append(self._slots.samples(batch_index, reports))
        self._status.enter(Phase.WAITING)
        return [*reports, next(iter(self._sampler._servers), None)]

    def prepare(self, batch_index: int) -> None:
        """See `Station`; the sampler's own workers do."""

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """See `BaseSampler.evaluate_agent`."""
        self._parameters.load(self._agent, version)
        return self._sampler._evaluate(itr, version, evaluation_index)

    def state(self) -> list[SliceState]:
        """See `Station`."""
        return self._sampler._states()

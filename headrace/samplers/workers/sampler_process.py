"""The process of an asynchronous sampler: it runs an engine ahead of the learner."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.engine import Engine
from headrace.samplers.layout import Slice
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.hand_over import BatchReport, Follower, HandOver, HandOverSpec
from headrace.samplers.workers.memory import Slots
from headrace.types import EnvSpaces

__all__ = ["AsyncMemory", "SamplerProcess", "Shard", "Sink", "async_memory"]


class AsyncMemory(NamedTuple):
    """The memory that an asynchronous sampler shares with its processes, in addition to slots.

    Args:
        hand_over: commands and reports of batches.
        parameters: parameters for the sampler processes.
        evaluation: parameters for the evaluation process, or None. They are separate because they must not be
            overwritten before that process has loaded them.
    """

    hand_over: HandOver
    parameters: ParameterSlots
    evaluation: ParameterSlots | None


def async_memory(agent: Agent, spec: HandOverSpec, evaluates: bool, allocate: Allocate) -> AsyncMemory:
    """Allocates the shared memory; the layout is the same in every process.

    Args:
        agent: the agent whose parameters are stored.
        spec: what the memory of commands and reports depends on.
        evaluates: whether there is an evaluation process.
        allocate: allocates the arrays.
    """
    return AsyncMemory(
        HandOver(spec, allocate),
        # One version for each batch that may be outstanding, one for an evaluation, and one that is being written.
        ParameterSlots(agent, allocate, spec.n_slots + 1),
        ParameterSlots(agent, allocate, 1) if evaluates else None,
    )


class Sink(Protocol):
    """Receives every batch in the sampler process, before the learner gets it: a replay buffer. It is pickled."""

    def open(self, spec: SlotSpec) -> int:
        """Makes shared memory, in the learner, once the contents of a batch are known.

        Args:
            spec: the contents of a slot.

        Returns:
            The descriptor of the memory; the caller closes it.
        """

    def attach(self, spec: SlotSpec, fd: int) -> Callable[[Samples], None]:
        """Attaches to the shared memory, in the sampler process.

        Args:
            spec: the contents of a slot.
            fd: descriptor of the memory, which the sink now owns.

        Returns:
            A function that is called with each batch.
        """


class Shard(NamedTuple):
    """The part of a sampler that one sampler process runs.

    Args:
        make_engine: makes the engine, given the status of the process.
        slices: slices of the shard.
        configs: one per slice.
        first_slice: index of the shard's first slice among the slices of the batch.
        affinity: where the shard's workers run.
    """

    make_engine: Callable[[Status], Engine]
    slices: Sequence[Slice]
    configs: Sequence[SliceConfig]
    first_slice: int
    affinity: Affinity


class SamplerProcess:
    """Runs an engine; every command that acts names the version of the parameters. See `Worker`."""

    def __init__(self, shard: Shard, channel: Channel) -> None:
        self._channel = channel
        self._shard = shard
        self._append: Callable[[Samples], None] | None = None
        self._engine = shard.make_engine(channel.status)
        try:
            spaces = self._engine.start(shard.slices, shard.configs, shard.affinity)
        except BaseException:
            self._engine.kill()
            raise
        self.spaces: list[EnvSpaces] = [spaces] * len(shard.configs)

    def setup(
        self, rank: int, spec: HandOverSpec, evaluates: bool, agent_bytes: bytes, sink_bytes: bytes | None
    ) -> None:
        """Attaches to the shared memory and sets up the engine.

        The descriptors follow the command: slots, memory of the hand-over and of parameters, this process's bell, the
        learner's bell, the memory of the sink.

        Args:
            rank: number of this process among the sampler processes.
            spec: which memory to attach to.
            evaluates: see `async_memory`.
            agent_bytes: the pickled agent.
            sink_bytes: the pickled sink, or None.
        """
        channel = self._channel
        self._agent: Agent = pickle.loads(agent_bytes)
        self._slots = Slots(spec.slot, spec.n_slots, channel.receive_fd())
        try:
            arena, memory = shared(partial(async_memory, self._agent, spec, evaluates), channel.receive_fd())
            arena.close_fd()
            self._parameters = memory.parameters
            self._follower = Follower(memory.hand_over, rank, channel)
            if sink_bytes is not None:
                with _storing(channel.status):
                    self._append = pickle.loads(sink_bytes).attach(spec.slot, channel.receive_fd())
            shard = self._shard
            self._engine.setup(self._agent, spec.slot, self._slots, shard.configs, shard.first_slice)
        finally:
            self._slots.arena.close_fd()
        channel.status.enter(Phase.WAITING)

    def follow(self) -> None:
        """Collects batches on commands in shared memory; see `Follower.run`."""
        self._follower.run(self._collect, self.prepare)

    def _collect(self, itr: int, version: int, batch_index: int) -> BatchReport:
        """Collects a batch; see `Engine.collect`."""
        status = self._channel.status
        status.enter(Phase.COLLECTING)
        self._parameters.load(self._agent, version)
        reports = self._engine.collect(itr, version, batch_index)
        if self._append is not None:
            with _storing(status):
                self._append(self._slots.samples(batch_index, reports))
        status.enter(Phase.WAITING)
        return reports, self._engine.server_timings

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """See `Engine.evaluate`."""
        self._parameters.load(self._agent, version)
        return self._engine.evaluate(itr, version, evaluation_index)

    def states(self) -> list[SliceState]:
        """See `Engine.states`."""
        return self._engine.states()

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """See `Engine.call`."""
        return self._engine.call(name, args, env_ids)

    def prepare(self) -> None:
        """Does nothing: the engine's workers prepare themselves."""

    def close(self) -> None:
        """Closes the engine, with its environments and processes."""
        try:
            self._engine.stop()
        except BaseException:
            self._engine.kill()
            raise


@contextmanager
def _storing(status: Status) -> Iterator[None]:
    """Returns a context manager for calls of the sink, whose errors are not reported as an environment's."""
    status.enter(Phase.STORING)
    try:
        yield
    except SamplerError:
        raise
    except Exception as error:
        raise SinkFailed(
            f"the sink of the batches raised {headline(error)}", status.where(), traceback_of(error)
        ) from error

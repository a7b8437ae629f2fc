"""Collects with an agent in the environments' process: for `SerialSampler` and each worker of a `CpuSampler`."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.agents.base import Agent
from headrace.agents.parameters import ParameterSlots
from headrace.buffers.samples import Slot, SlotSpec, build_slot
from headrace.buffers.shared import Allocate, shared
from headrace.processes.child import Channel
from headrace.processes.status import Phase, Status
from headrace.rng import Stream
from headrace.samplers.collection.evaluation import EvalReport, EvalSlice, evaluation_episodes, evaluation_spec
from headrace.samplers.collection.loop import private_array
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport, TrainSlice
from headrace.samplers.collection.slot_view import SlotView
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.inference.actor import actor_for
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.hand_over import BatchReport, Follower, HandOver, HandOverSpec
from headrace.samplers.workers.memory import SlotMemory
from headrace.types import EnvSpaces

if TYPE_CHECKING:
    from headrace.samplers.inference.device import DeviceBatch

__all__ = ["LocalCollector", "LocalEvaluator", "LocalMemory", "LocalWorker", "local_memory", "parameter_memory"]


class LocalCollector:
    """Collects batches of one slice with an agent.

    Args:
        environments: the slice.
        agent: the agent that acts.
        spec: the contents of a slot, for the whole batch.
        slots: the columns of this slice in each slot.
        first_column: first column of this slice.
        status: where this process records what it is doing.
        parameters: shared parameters that are loaded into the agent. None: it is the learner's own agent.
        device_batch: the columns of this slice in a batch that stays on the agent's device, or None.
    """

    def __init__(
        self,
        environments: TrainSlice,
        agent: Agent,
        spec: SlotSpec,
        slots: Sequence[Slot],
        first_column: int,
        status: Status,
        *,
        parameters: ParameterSlots | None = None,
        device_batch: DeviceBatch | None = None,
    ) -> None:
        self._environments = environments
        self._agent = agent
        self._status = status
        self._parameters = parameters
        self._n_rows = spec.batch.T
        environments.setup(spec, [SlotView(slot, first_column) for slot in slots])
        self._n_slots = len(slots)
        self._next: int | None = None
        config = environments.config
        widths = (len(config.env_ids),)
        self._actor = actor_for(
            agent,
            slots,
            config.env_ids,
            widths,
            seed=config.seed,
            stream=Stream.ACTION,
            deterministic=config.deterministic,
            status=status,
            device_batch=device_batch,
        )
        if config.memory:
            self._actor.restore(config.memory)
        evaluation = environments.evaluation
        self._evaluator = None if evaluation is None else LocalEvaluator(evaluation, agent, spec, status, parameters)

    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        """Collects one batch.

        Args:
            itr: number of the batch, for the agent's schedules.
            version: version of the parameters.
            batch_index: counts batches from 0; addresses the batch's randomness.
        """
        if self._parameters is not None:
            self._parameters.load(self._agent, version)
        self._agent.sample_mode(itr)
        actor, slot = self._actor, batch_index % self._n_slots
        rows = self._environments.batch(batch_index, actor.load(slot))
        actor.begin(version, batch_index * self._n_rows, slot)
        for t in rows:
            actor.act(t)
            actor.record(t)
        self._status.enter(Phase.ACTING, step=self._n_rows)
        actor.finish()
        report = self._environments.report()
        if report.overflow is not None:
            report.overflow.state = actor.overflow[0]
        self._status.enter(Phase.WAITING)
        self._next = batch_index + 1
        return [report]

    def prepare(self) -> None:
        """Resets waiting environments and draws the noise of the next batch, ahead of its command."""
        if self._next is not None:
            self._environments.prepare()
            self._actor.draw(self._next * self._n_rows)
            self._next = None

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """Runs an evaluation in the evaluation environments of this slice, if it has any."""
        return [] if self._evaluator is None else self._evaluator.evaluate(itr, version, evaluation_index)

    def state(self) -> SliceState:
        """Returns the slice's state between batches."""
        return replace(self._environments.state(), memory=self._actor.memory())


class LocalEvaluator:
    """Evaluates an agent in the evaluation environments of one slice; see `LocalCollector` for `parameters`."""

    def __init__(
        self,
        environments: EvalSlice,
        agent: Agent,
        spec: SlotSpec,
        status: Status,
        parameters: ParameterSlots | None,
    ) -> None:
        self._environments = environments
        self._agent = agent
        self._parameters = parameters
        config = environments.config
        widths = (len(config.eval_env_ids),)
        eval_spec = evaluation_spec(spec, widths)
        slot = build_slot(eval_spec, private_array)
        environments.setup(eval_spec, SlotView(slot, 0))
        self._actor = actor_for(
            agent,
            [slot],
            config.eval_env_ids,
            widths,
            seed=config.seed,
            stream=Stream.EVAL_ACTION,
            deterministic=config.deterministic,
            status=status,
        )

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """Runs each evaluation environment for its number of episodes, greedily; returns unfinished episodes last."""
        environments, actor = self._environments, self._actor
        if self._parameters is not None:
            self._parameters.load(self._agent, version)
        self._agent.eval_mode(itr)
        environments.begin()
        actor.load()
        actor.restart()

        def collect(first_row: int, n_rows: int) -> list[EvalReport]:
            actor.begin(version, (evaluation_index << 32) + first_row)
            for t in environments.rows(n_rows, until_idle=True):
                actor.act(t)
            return [environments.report(first_row, n_rows)]

        return evaluation_episodes(collect, environments.config.eval_max_T)


class LocalWorker:
    """A worker process with its own agent; see `Worker`. Its layout has one group, so it has one slice."""

    def __init__(self, configs: Sequence[SliceConfig], channel: Channel) -> None:
        (config,) = configs
        self._channel = channel
        self._environments = TrainSlice(config, channel.status)
        self._collector: LocalCollector | None = None

    @property
    def spaces(self) -> list[EnvSpaces]:
        """See `Worker`."""
        return [self._environments.spaces]

    def setup(self, rank: int, memory: HandOverSpec, agent_bytes: bytes) -> None:
        """Attaches to shared memory, and makes the agent.

        The descriptors follow the command: slots, memory of the hand-over and of parameters, this worker's bell, the
        sampler's bell.

        Args:
            rank: number of this worker.
            memory: which memory to attach to.
            agent_bytes: the pickled agent.
        """
        agent: Agent = pickle.loads(agent_bytes)
        spec, index = memory.slot, memory.first_slice + rank
        batches = SlotMemory(spec, memory.n_slots).attach(self._channel)
        arena, (hand_over, parameters) = shared(partial(local_memory, agent, memory), self._channel.receive_fd())
        arena.close_fd()
        self._follower = Follower(hand_over, rank, self._channel)
        self._collector = LocalCollector(
            self._environments,
            agent,
            spec,
            [slot.slice(spec, index) for slot in batches],
            spec.first_column(index),
            self._channel.status,
            parameters=parameters,
        )
        self._channel.status.enter(Phase.WAITING)

    def follow(self) -> None:
        """Collects batches on commands in shared memory; see `Follower.run`."""
        self._follower.run(self._collect, self.prepare)

    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        """See `LocalCollector.collect`."""
        return self._ready.collect(itr, version, batch_index)

    def _collect(self, itr: int, version: int, batch_index: int) -> BatchReport:
        return self.collect(itr, version, batch_index), ()

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """See `LocalCollector.evaluate`."""
        return self._ready.evaluate(itr, version, evaluation_index)

    def states(self) -> list[SliceState]:
        """See `LocalCollector.state`."""
        return [self._ready.state()]

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls training environments; returns the results by env id."""
        return self._environments.call(name, args, env_ids)

    def prepare(self) -> None:
        """See `LocalCollector.prepare`."""
        if self._collector is not None:
            self._collector.prepare()

    def close(self) -> None:
        """Closes the environments."""
        self._environments.close()

    @property
    def _ready(self) -> LocalCollector:
        assert self._collector is not None
        return self._collector


class LocalMemory(NamedTuple):
    """The memory that a sampler shares with workers that have agents, in addition to slots.

    Args:
        hand_over: commands and reports of batches.
        parameters: parameters for the workers.
    """

    hand_over: HandOver
    parameters: ParameterSlots


def local_memory(agent: Agent, spec: HandOverSpec, allocate: Allocate) -> LocalMemory:
    """Allocates the shared memory; the layout is the same in every process.

    Args:
        agent: the agent whose parameters are stored.
        spec: what the memory of commands and reports depends on.
        allocate: allocates the arrays.
    """
    return LocalMemory(HandOver(spec, allocate), parameter_memory(agent, 2, allocate))


def parameter_memory(agent: Agent, n_versions: int, allocate: Allocate) -> ParameterSlots:
    """Allocates the memory of an agent's parameters; the layout is the same in every process.

    Args:
        agent: the agent whose parameters are stored.
        n_versions: number of versions stored at a time.
        allocate: allocates the arrays.
    """
    return ParameterSlots(agent, allocate, n_versions)

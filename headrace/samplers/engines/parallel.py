"""Engines with worker processes, and the engine whose workers each have an agent."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from typing_extensions import override

from headrace.agents.acting import acting_bytes
from headrace.agents.base import Agent
from headrace.buffers.samples import SlotSpec
from headrace.buffers.shared import Allocate, Arena, shared
from headrace.errors import EnvContractError, SamplerError, headline
from headrace.processes.affinity import Affinity, cores_shared_by, cpu_quota, usable_cores
from headrace.processes.causes import enough_descriptors
from headrace.processes.child import Channel
from headrace.processes.group import WorkerGroup
from headrace.processes.patience import Patience
from headrace.processes.start_method import choose_start_method
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.engine import Engine
from headrace.samplers.layout import Slice, slices_of
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.hand_over import Dispatcher, HandOverSpec
from headrace.samplers.workers.local import LocalMemory, LocalWorker, local_memory
from headrace.samplers.workers.main import Worker, initialize_worker, process_seeds, sampling_process
from headrace.samplers.workers.memory import Slots
from headrace.types import EnvSpaces

__all__ = [
    "CpuEngine",
    "ParallelEngine",
    "joined_answers",
    "pickled_agent",
    "require_picklable",
    "same_spaces",
]

_log = logging.getLogger("headrace.samplers")

#: How long workers poll for the next batch, and the sampler for the end of one. A loop without a learner asks for the
#: next batch within this time; a learner takes much longer.
_POLL_NS = 500_000

_Worker = TypeVar("_Worker", bound=Worker)
_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


class ParallelEngine(Engine, Generic[_Worker]):
    """Base of engines whose workers fill their columns of one shared batch.

    Each worker gets one command and sends one reply per batch.
    """

    _group: WorkerGroup | None = None
    _arena: Arena | None = None
    _dispatcher: Dispatcher | None = None

    @property
    def workers(self) -> WorkerGroup:
        """The worker processes."""
        assert self._group is not None
        return self._group

    @property
    def dispatcher(self) -> Dispatcher:
        """Hands over batches to workers that have agents."""
        assert self._dispatcher is not None
        return self._dispatcher

    @override
    def divide(self, env_ids: Sequence[int], affinity: Affinity) -> list[Slice]:
        return slices_of(env_ids, self.n_workers(affinity), self.layout.groups)

    def n_workers(self, affinity: Affinity) -> int:
        """Returns the number of processes to start.

        Raises:
            ValueError: if the affinity and the options disagree.
        """
        pinned = None if affinity.workers_cpus is None else len(affinity.workers_cpus)
        wanted, B = self.config.options.n_workers, self.config.options.batch_B
        if pinned is not None and wanted is not None and pinned != wanted:
            raise ValueError(
                f"affinity has workers_cpus for {pinned} workers, but n_workers is {wanted}; make them the same"
            )
        # An action server keeps one core busy, and so does the learner beside an asynchronous sampler.
        taken = self.layout.served + self.layout.asynchronous
        asked = pinned or wanted or max(1, usable_cores() - taken)
        if asked > B:
            _log.info("%d workers are too many for batch_B=%d; starting %d", asked, B, B)
        return min(asked, B)

    def start_workers(
        self,
        make: Callable[[Sequence[SliceConfig], Channel], Worker],
        slices: Sequence[Slice],
        configs: Sequence[SliceConfig],
        affinity: Affinity,
    ) -> EnvSpaces:
        """Starts the workers that own these slices.

        Args:
            make: makes a worker from the configurations of its slices and its channel; called in the worker's process.
            slices: all slices.
            configs: one per slice.
            affinity: where the workers run.

        Returns:
            The spaces of the environments.
        """
        n_workers = 1 + max(one.worker for one in slices)
        by_worker = [
            [config for config, one in zip(configs, slices, strict=True) if one.worker == worker]
            for worker in range(n_workers)
        ]
        seeds = [process_seeds(own[0], "worker", own[0].env_ids[0]) for own in by_worker]
        prologue = partial(initialize_worker, affinity, not self.layout.served, seeds)
        return self.start_group([partial(make, own) for own in by_worker], by_worker, prologue)

    def start_group(
        self,
        makers: Sequence[Callable[[Channel], Worker]],
        configs: Sequence[Sequence[SliceConfig]],
        prologue: Callable[[int], None],
        names: Sequence[str] | None = None,
    ) -> EnvSpaces:
        """Starts one process per maker; each replies with the spaces of its slices.

        Args:
            makers: functions that make the workers, called in their processes.
            configs: of each worker, the configurations of the slices whose spaces it replies with.
            prologue: called first in each process with its rank.
            names: names of the processes. Default: chosen by `WorkerGroup`.

        Returns:
            The spaces of the environments.

        Raises:
            EnvContractError: if the spaces differ between environments.
        """
        options = self.config.options
        with enough_descriptors(len(makers)):
            self._group = WorkerGroup(
                sampling_process,
                makers,
                start_method=choose_start_method(options.start_method),
                prologue=prologue,
                name=self.name,
                timeout=options.timeout,
                status=self.status,
                names=names,
            )
        found: list[list[EnvSpaces]] = self._group.replies(options.start_timeout)
        return same_spaces(found, configs)

    def share(self, slots: Slots, build: Callable[[Allocate], _Answer], setups: Sequence[tuple[Any, ...]]) -> _Answer:
        """Allocates shared memory and sends each worker its setup command and the descriptors of slots and memory.

        Call `wait_until_ready` afterwards.

        Args:
            slots: the sampler's slots.
            build: allocates what is shared in addition to the slots.
            setups: for each worker, the method and its arguments.

        Returns:
            What `build` returned. Do not keep it in a local variable while waiting for workers: the traceback of an
            error would keep the memory and its descriptor alive.
        """
        with enough_descriptors(len(setups)):
            self._arena, memory = shared(build)
            try:
                for rank, setup in enumerate(setups):
                    self.workers.send_to(rank, setup)
                for arena in (slots.arena, self._arena):
                    assert arena.fd is not None
                    self.workers.send_fd(arena.fd)
            finally:
                self._arena.close_fd()
        return memory

    @override
    def require_sendable(self, args: Sequence[Any]) -> None:
        require_picklable(args)

    def wait_until_ready(self) -> None:
        """Waits until every worker is ready for its first time step."""
        self.workers.replies(self.config.options.start_timeout)

    def command(
        self,
        method: Callable[Concatenate[_Worker, _Arguments], _Answer],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> list[_Answer]:
        """Makes every worker call one of its methods; returns the results in worker order."""
        if self._dispatcher is not None:
            self._dispatcher.end()
        assert not kwargs, "commands are sent with positional arguments"
        self.workers.send((method, *args))
        return self.workers.replies()

    @override
    def stop(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.end()
        group = self.forget()
        if group is not None:
            group.stop()

    @override
    def kill(self) -> None:
        group = self.forget()
        if group is not None:
            group.kill()

    def forget(self) -> WorkerGroup | None:
        """Drops the references to workers and memory; returns the workers, if there were any."""
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            dispatcher.close()
        group, self._group, self._arena = self._group, None, None
        return group


class CpuEngine(ParallelEngine[LocalWorker]):
    """Runs an agent in each worker, which loads the parameters of the version that the batch command names."""

    _agent: Agent | None = None
    _memory: LocalMemory | None = None
    _patience: Patience | None = None

    @override
    def start(self, slices: Sequence[Slice], configs: Sequence[SliceConfig], affinity: Affinity) -> EnvSpaces:
        self._affinity = affinity
        return self.start_workers(LocalWorker, slices, configs, affinity)

    @override
    def setup(
        self, agent: Agent, spec: SlotSpec, slots: Slots, configs: Sequence[SliceConfig], first_slice: int
    ) -> None:
        self._agent = agent
        ranks = range(len(configs))
        memory = HandOverSpec(spec, len(slots.all), (1,) * len(ranks), first_slice)
        agent_bytes = pickled_agent(agent)
        setups = [(LocalWorker.setup, rank, memory, agent_bytes) for rank in ranks]
        self._memory = self.share(slots, partial(local_memory, agent, memory), setups)
        self._dispatcher = Dispatcher(self.workers, ranks, self._memory.hand_over, LocalWorker.follow)
        cores, pids = cores_shared_by(self._affinity, len(ranks)), [os.getpid(), *self.workers.pids]
        self._patience = Patience(self._memory.hand_over.spin_ns, pids, cores, cpu_quota(), _POLL_NS)
        self.wait_until_ready()

    @override
    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        assert self._patience is not None
        self._patience.decide()
        self._publish(version)
        self.dispatcher.command((itr, version, batch_index))
        return [report for reports, _ in self.dispatcher.take() for report in reports]

    @override
    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        self._publish(version)
        return [part for own in self.command(LocalWorker.evaluate, itr, version, evaluation_index) for part in own]

    @override
    def states(self) -> list[SliceState]:
        return [state for own in self.command(LocalWorker.states) for state in own]

    @override
    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        return joined_answers(self.command(LocalWorker.call, name, args, env_ids))

    @override
    def forget(self) -> WorkerGroup | None:
        self._memory = self._patience = None
        return super().forget()

    def _publish(self, version: int) -> None:
        """Publishes the agent's parameters as `version`; the command makes workers act with this version."""
        assert self._memory is not None
        assert self._agent is not None
        self._memory.parameters.publish(self._agent, version)


def pickled_agent(agent: Agent) -> bytes:
    """Returns the agent, pickled on the CPU: workers act there and must not touch the learner's GPU.

    Raises:
        SamplerError: if the agent cannot be pickled.
    """
    device = agent.device
    agent.to_device("cpu")
    try:
        return acting_bytes(agent)
    except Exception as error:
        raise SamplerError(
            f"the agent cannot be pickled: {headline(error)}; it is sent to the workers by cloudpickle, so keep "
            "open files, locks and generators out of it"
        ) from error
    finally:
        agent.to_device(device)


def same_spaces(found: Sequence[Sequence[EnvSpaces]], configs: Sequence[Sequence[SliceConfig]]) -> EnvSpaces:
    """Returns the spaces that all slices have.

    Args:
        found: of each worker, the spaces of its slices.
        configs: of each worker, the configurations of its slices.

    Raises:
        EnvContractError: if the spaces differ between environments.
    """
    first, spaces = configs[0][0], found[0][0]
    for own, answers in zip(configs, found, strict=True):
        for config, other in zip(own, answers, strict=True):
            if other != spaces:
                raise EnvContractError(
                    f"{config.factory.name}: env {config.env_ids[0]} has {other}, env {first.env_ids[0]} has "
                    f"{spaces}; all must be the same"
                )
    return spaces


def require_picklable(args: Sequence[Any]) -> None:
    """Raises TypeError if the arguments of `call_envs` cannot be pickled."""
    try:
        pickle.dumps(args)
    except Exception as error:
        raise TypeError(f"args of call_envs cannot be pickled: {headline(error)}; pass values that can") from error


def joined_answers(answers: Sequence[dict[int, Any]]) -> dict[int, Any]:
    """Returns the results of all workers by env id."""
    return {env_id: value for own in answers for env_id, value in own.items()}

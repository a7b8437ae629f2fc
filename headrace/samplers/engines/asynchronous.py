"""The engine that collects ahead of the learner: it runs the engine of any other layout in a separate process."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, TypeVar

import cloudpickle
from typing_extensions import override

from headrace.agents.base import Agent
from headrace.buffers.samples import SlotSpec
from headrace.errors import SamplerError
from headrace.processes.affinity import Affinity
from headrace.processes.child import Channel
from headrace.processes.group import WorkerGroup
from headrace.processes.status import ProgressWatch, Status
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.config import SamplerConfig
from headrace.samplers.engines.make import make_engine
from headrace.samplers.engines.parallel import ParallelEngine, joined_answers, pickled_agent
from headrace.samplers.layout import Layout, Slice, slices_of, spread
from headrace.samplers.timing import ServerTiming
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.eval_process import EvalProcess, Notes, eval_config
from headrace.samplers.workers.hand_over import Dispatcher, HandOverSpec
from headrace.samplers.workers.main import Worker, initialize_worker, process_seeds
from headrace.samplers.workers.memory import Slots
from headrace.samplers.workers.sampler_process import AsyncMemory, SamplerProcess, Shard, Sink, async_memory
from headrace.types import EnvSpaces

__all__ = ["AsynchronousEngine"]

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


class AsynchronousEngine(ParallelEngine[SamplerProcess]):
    """Runs one sampler process per device, which collect up to `n_slots` − 1 batches ahead of the caller.

    `collect` publishes the parameters, commands the next batch (to be collected with them into the slot that this call
    frees) and returns the batch that was commanded earlier. Evaluations, `states` and `call` run after the batches that
    were already commanded. With the option eval_process a separate process evaluates.
    """

    _agent: Agent | None = None
    _memory: AsyncMemory | None = None

    def __init__(self, name: str, layout: Layout, config: SamplerConfig, status: Status) -> None:
        super().__init__(name, layout, config, status)
        #: Receives every batch in the sampler process.
        self.sink: Sink | None = None
        self._shards: list[list[Slice]] = []
        self._finished: deque[list[SliceReport]] = deque()  # batches that were collected and not requested yet
        self._ranks: Sequence[int] = ()  # of the sampler processes; the evaluation process, if any, comes after them
        self._evaluating: ProgressWatch | None = None  # watches the evaluation whose episodes are not collected yet
        self._next: int | None = None  # number of the next batch to command
        self._began = 0.0
        self._server_timings: Sequence[ServerTiming] = ()
        #: Log messages from evaluation environments.
        self.notes: Notes = []

    @property
    def evaluates_beside(self) -> bool:
        """Whether a separate process evaluates."""
        return self.config.options.eval_process and self.config.options.eval_n_envs > 0

    @property
    @override
    def server_timings(self) -> Sequence[ServerTiming]:
        return self._server_timings

    @override
    def divide(self, env_ids: Sequence[int], affinity: Affinity) -> list[Slice]:
        """Splits the columns into one shard per device; each shard has adjacent columns."""
        if not self.layout.processes:
            self._shards = [slices_of(env_ids, 1, self.layout.groups)]
            return self._shards[0]
        n_workers = self.n_workers(affinity)
        n_shards = min(len(self._devices), len(env_ids))
        shares = [max(1, len(own)) for own in spread(range(n_workers), n_shards)]
        parts = spread(env_ids, n_shards)
        self._shards = [
            slices_of(part, min(share, len(part)), self.layout.groups)
            for part, share in zip(parts, shares, strict=True)
        ]
        return [one for shard in self._shards for one in shard]

    @property
    def _devices(self) -> Sequence[Any]:
        device = self.config.options.device
        return device if isinstance(device, tuple) else [device]

    @override
    def start(self, slices: Sequence[Slice], configs: Sequence[SliceConfig], affinity: Affinity) -> EnvSpaces:
        if self.sink is not None and len(self._shards) > 1:
            raise SamplerError(
                "feed() needs a single sampler process, and each device has its own; pass one device, or append the "
                "batches in the learner, as MinibatchRl does"
            )
        makers: list[Callable[[Channel], Worker]] = []
        answering: list[Sequence[SliceConfig]] = []
        first = first_worker = 0
        for slices_of_shard, device in zip(self._shards, self._devices, strict=False):
            stop, n_workers = first + len(slices_of_shard), 1 + max(one.worker for one in slices_of_shard)
            cpus = affinity.workers_cpus and affinity.workers_cpus[first_worker : first_worker + n_workers]
            answering.append([self._inner_config(config) for config in configs[first:stop]])
            shard = Shard(
                partial(make_engine, self.name, self.layout.inner, self.config.on_device(device)),
                slices_of_shard,
                answering[-1],
                first,
                replace(affinity, workers_cpus=cpus),
            )
            makers.append(partial(SamplerProcess, shard))
            first, first_worker = stop, first_worker + n_workers
        seeds = [process_seeds(own[0], "sampler process", own[0].env_ids[0]) for own in answering]
        self._ranks = range(len(makers))
        names = [f"sampler process {rank}" for rank in self._ranks]
        if self.evaluates_beside:
            makers.append(partial(EvalProcess, eval_config(configs)))
            answering.append(())  # this process compares its spaces with the agent's in `setup`
            names.append("evaluation process")
            seeds.append(process_seeds(configs[0], "evaluation process", configs[0].env_ids[0]))
        own = Affinity(worker_torch_threads=affinity.worker_torch_threads)
        return self.start_group(makers, answering, partial(initialize_worker, own, True, seeds), names)

    def _inner_config(self, config: SliceConfig) -> SliceConfig:
        return replace(config, eval_env_ids=(), eval_saved={}) if self.evaluates_beside else config

    @override
    def setup(
        self, agent: Agent, spec: SlotSpec, slots: Slots, configs: Sequence[SliceConfig], first_slice: int
    ) -> None:
        self._agent = agent
        sizes = tuple(len(shard) for shard in self._shards)
        memory, evaluates = HandOverSpec(spec, len(slots.all), sizes), self.evaluates_beside
        sink_bytes = None if self.sink is None else cloudpickle.dumps(self.sink)
        agent_bytes = pickled_agent(agent)
        setups: list[tuple[Any, ...]] = [
            (SamplerProcess.setup, rank, memory, evaluates, agent_bytes, sink_bytes) for rank in self._ranks
        ]
        if evaluates:
            setups.append((EvalProcess.setup, memory, agent_bytes, self._devices[0], self.layout.served))
        self._memory = self.share(slots, partial(async_memory, agent, memory, evaluates), setups)
        self._dispatcher = Dispatcher(self.workers, self._ranks, self._memory.hand_over, SamplerProcess.follow)
        if self.sink is not None:
            fd = self.sink.open(spec)
            try:
                self.workers.send_fd_to(0, fd)  # only one sampler process feeds a sink
            finally:
                os.close(fd)
        self.wait_until_ready()

    @override
    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        if self._next is None:
            self._next, self._began = batch_index, perf_counter()
        self._publish(version)
        while self._next < batch_index + self.config.n_slots:
            self.dispatcher.command((itr + self._next - batch_index, version, self._next))
            self._next += 1
        if not self._finished:
            self._take_one()
        return self._finished.popleft()

    @override
    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        if self.evaluates_beside:
            self.begin_evaluation(itr, version, evaluation_index)
            return self.evaluation()
        self._publish(version)
        answers = self.command(SamplerProcess.evaluate, itr, version, evaluation_index)
        return [part for own in answers for part in own]

    # ---- evaluation beside training ----

    @property
    def evaluating(self) -> bool:
        """Whether an evaluation was begun whose episodes were not collected."""
        return self._evaluating is not None

    def begin_evaluation(self, itr: int, version: int, evaluation_index: int) -> None:
        """Starts an evaluation in the evaluation process."""
        memory = self._shared.evaluation
        assert memory is not None
        assert self._agent is not None
        memory.publish(self._agent, version)
        self.workers.send_to(self._evaluator, (EvalProcess.evaluate, itr, version, evaluation_index))
        self._evaluating = self.workers.watch()

    def evaluation_ended(self) -> bool:
        """Whether `evaluation` would return without waiting."""
        assert self._evaluating is not None
        return self.workers.answered(self._evaluator, self._evaluating)

    def evaluation(self) -> list[Episodes]:
        """Waits for the evaluation that was begun; returns its episodes."""
        self._evaluating = None
        answer: tuple[list[Episodes], Notes] = self.workers.replies(ranks=[self._evaluator])[0]
        episodes, notes = answer
        self.notes += notes
        return episodes

    @property
    def _evaluator(self) -> int:
        """Rank of the evaluation process."""
        return len(self._ranks)

    # ---- between batches ----

    @override
    def states(self) -> list[SliceState]:
        if self.evaluating:
            return [SliceState(why_not="an evaluation was running")]
        states = [state for own in self.command(SamplerProcess.states) for state in own]
        if self.evaluates_beside:
            self.workers.send_to(self._evaluator, (EvalProcess.states,))
            states += self.workers.replies(ranks=[self._evaluator])[0]
        return states

    @override
    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        return joined_answers(self.command(SamplerProcess.call, name, args, env_ids))

    @override
    def command(
        self,
        method: Callable[Concatenate[SamplerProcess, _Arguments], _Answer],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> list[_Answer]:
        """Makes the sampler processes call a method after the batches that were already commanded.

        Returns:
            The results, one per sampler process.
        """
        while self.dispatcher.n_outstanding:
            self._take_one()
        self.dispatcher.end()
        assert not kwargs, "commands are sent with positional arguments"
        self.workers.send((method, *args), self._ranks)
        return self.workers.replies(ranks=self._ranks)

    def _take_one(self) -> None:
        answers = self.dispatcher.take()
        self._server_timings = [timing for _, timings in answers for timing in timings]
        self._finished.append([report for reports, _ in answers for report in reports])

    @property
    def _shared(self) -> AsyncMemory:
        assert self._memory is not None
        return self._memory

    def _publish(self, version: int) -> None:
        assert self._agent is not None
        self._shared.parameters.publish(self._agent, version)

    @override
    def n_commanded(self, n_batches: int) -> int:
        return n_batches if self._next is None else self._next

    @override
    def seconds(self, inside: float) -> float:
        """Returns the seconds since the first batch was commanded, including the learner's time."""
        return perf_counter() - self._began if self._began else 0.0

    @override
    def stop(self) -> None:
        while self._dispatcher is not None and self._dispatcher.n_outstanding:
            self._take_one()
        if self.evaluating:
            self.evaluation()
        super().stop()

    @override
    def forget(self) -> WorkerGroup | None:
        self._memory = None
        return super().forget()

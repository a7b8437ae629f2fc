"""Asynchronous samplers: any sampler in a process of its own, collecting ahead of the learner."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, ClassVar

import cloudpickle

from headrace.buffers.samples import SlotSpec
from headrace.errors import SamplerError
from headrace.processes.affinity import Affinity
from headrace.processes.status import ProgressWatch
from headrace.samplers.alternating import AlternatingSampler, NoOverlapAlternatingSampler
from headrace.samplers.base import BaseSampler
from headrace.samplers.collection.make_envs import CollectorConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.cpu import CpuSampler
from headrace.samplers.engines.parallel import ParallelSamplerBase
from headrace.samplers.engines.serial import SerialSampler
from headrace.samplers.engines.served import GpuSampler
from headrace.samplers.exclusive import exclusive
from headrace.samplers.inference.action_server import (
    ActionServer,
    AlternatingActionServer,
    NoOverlapAlternatingActionServer,
)
from headrace.samplers.layout import Layout, Slice, slices_of, spread
from headrace.samplers.timing import TimingReport
from headrace.samplers.traj_info import Episodes, TrajInfo
from headrace.samplers.validate import checked_arguments
from headrace.samplers.workers.eval_process import EvaluatorPlan, EvaluatorSetup
from headrace.samplers.workers.local import SlotMemory
from headrace.samplers.workers.main import Setup, initialize_worker, process_seeds
from headrace.samplers.workers.memory import Slots
from headrace.samplers.workers.sampler_process import (
    AsyncMemory,
    InnerPlan,
    InnerSetup,
    Plan,
    Sink,
    async_memory,
    sampler_process,
)
from headrace.types import EnvSpaces

__all__ = [
    "AsyncActionServer",
    "AsyncAlternatingActionServer",
    "AsyncAlternatingSampler",
    "AsyncAlternatingSamplerBase",
    "AsyncCpuSampler",
    "AsyncGpuSampler",
    "AsyncGpuSamplerBase",
    "AsyncNoOverlapAlternatingActionServer",
    "AsyncNoOverlapAlternatingSampler",
    "AsyncSamplerBase",
    "AsyncSerialSampler",
]


class AsyncSamplerBase(ParallelSamplerBase):
    """Collects while the caller learns: a process of its own runs a sampler that is up to `n_slots` − 1 batches ahead.

    The same calls as of every sampler. `obtain_samples(itr)` publishes the agent's parameters, commands the next batch,
    to be collected with them into the slot that is given back by this call, and returns the batch that was commanded
    before. So batch n was collected with the parameters of call n − (n_slots − 1), whichever process was faster (the
    first call's batches with those of the first call), `samples.agent.version` records it, and a run is reproducible.
    A batch that is commanded ahead is told the itr it will be asked for with: one more for each batch.

    Evaluations, `state()` and `call_envs()` take place between batches, after those that were commanded. With
    `eval_process=True` a process of its own has the evaluation environments and an agent: `begin_evaluation` sends it
    the parameters and returns, batches go on, `evaluation` has the episodes. They are those that `evaluate_agent` would
    have had at this place.
    """

    SamplerCls: ClassVar[type[BaseSampler]]

    def _prepare(self) -> None:
        super()._prepare()
        self._sink: Sink | None = None
        self._shards: list[list[Slice]] = []
        self._finished: deque[list[SliceReport]] = deque()  # batches that were collected and not asked for
        self._n_outstanding = 0  # batches that were commanded and not yet replied to
        self._samplers: Sequence[int] = ()  # ranks of the sampler processes; behind them may be one that evaluates
        self._evaluating: ProgressWatch | None = None  # of the evaluation that was begun and not taken
        self._next: int | None = None  # number of the next batch to command
        self._began = 0.0

    def feed(self, sink: Sink) -> None:
        """Before `initialize`: has the sampler process give `sink` every batch that it collects, in their order."""
        if self._state != "new":
            raise SamplerError("feed() comes before initialize(): the sampler process is told where to put its batches")
        self._sink = sink

    def _divided(self, env_ids: Sequence[int], affinity: Affinity) -> list[Slice]:
        """One sampler process for each device, with columns of its own, side by side."""
        if not self.SamplerCls.layout.processes:
            self._shards = [SerialSampler.of(self._settings)._divided(env_ids, affinity)]
            return self._shards[0]
        n_workers = self._n_workers(affinity)
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
        device = self._settings.device
        return device if isinstance(device, tuple) else [device]

    def _start(self, configs: Sequence[CollectorConfig], affinity: Affinity) -> EnvSpaces:
        if self._sink is not None and len(self._shards) > 1:
            raise SamplerError(
                "a sink is fed by one sampler process; give one device, or have the learner append the batches it gets "
                "(MinibatchRl does)"
            )
        plans: list[Plan] = []
        answering: list[Sequence[CollectorConfig]] = []
        first = first_worker = 0
        for shard, device in zip(self._shards, self._devices, strict=False):
            stop, n_workers = first + len(shard), 1 + max(one.worker for one in shard)
            cpus = affinity.workers_cpus and affinity.workers_cpus[first_worker : first_worker + n_workers]
            answering.append([self._inner_config(config) for config in configs[first:stop]])
            plans.append(
                InnerPlan(
                    self.SamplerCls,
                    replace(self._settings, device=device),
                    first,
                    tuple(shard),
                    tuple(answering[-1]),
                    replace(affinity, workers_cpus=cpus),
                )
            )
            first, first_worker = stop, first_worker + n_workers
        seeds = [process_seeds(own[0], "sampler process", own[0].env_ids[0]) for own in answering]
        self._samplers = range(len(plans))
        names = [f"sampler process {rank}" for rank in self._samplers]
        if self.evaluates_beside:
            plans.append(EvaluatorPlan.of(configs))
            answering.append(())  # it compares its spaces with the agent's
            names.append("evaluation process")
            seeds.append(process_seeds(configs[0], "evaluation process", configs[0].env_ids[0]))
        own = Affinity(worker_torch_threads=affinity.worker_torch_threads)
        return self._start_group(sampler_process, plans, answering, partial(initialize_worker, own, True, seeds), names)

    def _inner_config(self, config: CollectorConfig) -> CollectorConfig:
        return replace(config, eval_env_ids=(), eval_saved={}) if self.evaluates_beside else config

    def _setup(self, spec: SlotSpec, slots: Slots, configs: Sequence[CollectorConfig]) -> None:
        n_slots = len(slots.all)
        # One version for each batch that may be commanded, one for an evaluation, and the one that is being written.
        n_versions = n_slots + 1
        sink = None if self._sink is None else cloudpickle.dumps(self._sink)
        agent, evaluates = self._pickled_agent(), self.evaluates_beside
        inner = InnerSetup(SlotMemory(spec, n_slots), agent, n_versions, evaluates, sink)
        setups: list[Setup] = [inner] * len(self._samplers)
        if evaluates:
            setups.append(EvaluatorSetup(spec, agent, n_versions, self._devices[0], self.layout.served))
        self._share(slots, partial(async_memory, self._agent, n_versions, evaluates), setups)
        if self._sink is not None:
            fd = self._sink.open(spec)
            try:
                self._workers.send_fd_to(0, fd)  # a sink is fed by one sampler process
            finally:
                os.close(fd)
        self._standing()

    def _collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        if self._next is None:
            self._next, self._began = batch_index, perf_counter()
        self._publish(version)
        while self._next < batch_index + self._settings.n_slots:
            self._workers.send(("collect", itr + self._next - batch_index, version, self._next), self._samplers)
            self._next += 1
            self._n_outstanding += 1
        if not self._finished:
            self._take_one()
        return self._finished.popleft()

    def _evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        if self.evaluates_beside:
            self._have_evaluated(itr, version, evaluation_index)
            return self._evaluated()
        self._publish(version)
        return [part for parts in self._command("evaluate", itr, version, evaluation_index) for part in parts]

    # ---- evaluation beside training ----

    @exclusive
    def evaluate_agent(self, itr: int) -> list[TrajInfo]:
        """See `BaseSampler.evaluate_agent`."""
        self._require_none_begun()
        return super().evaluate_agent(itr)

    @property
    def evaluates_beside(self) -> bool:
        """Whether evaluation has a process of its own."""
        return self._settings.eval_process and self._settings.eval_n_envs > 0

    @exclusive
    def begin_evaluation(self, itr: int) -> None:
        """Has the agent as it is now evaluated beside training; `evaluation` is to be called before the next one.

        Needs `eval_process=True` and evaluation environments.
        """
        self._require_open()
        if not self.evaluates_beside:
            raise SamplerError(
                "begin_evaluation() needs a process for it; give the sampler eval_process and eval_n_envs"
            )
        self._require_none_begun()
        checked_arguments(itr=itr)
        try:
            self._have_evaluated(itr, self._next_version(), self._n_evaluations)
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        self._n_evaluations += 1

    @exclusive
    def evaluation(self, wait: bool = True) -> list[TrajInfo] | None:
        """The episodes of the evaluation that was begun, as `evaluate_agent` gives them; None while it lasts, if not to
        wait for it. Raises SamplerError if none was begun, and what ended it.
        """
        self._require_open()
        if self._evaluating is None:
            raise SamplerError("evaluation() has nothing to wait for; call begin_evaluation(itr) first")
        try:
            if not wait and not self._workers.answered(self._evaluator, self._evaluating):
                return None
            return self._traj_infos(self._evaluated())
        except BaseException as error:
            raise self._abandon(error) from error.__cause__

    def _require_none_begun(self) -> None:
        if self._evaluating is not None:
            raise SamplerError("an evaluation was begun before; take its episodes with evaluation() first")

    @property
    def _evaluator(self) -> int:
        """Its rank."""
        return len(self._samplers)

    def _have_evaluated(self, itr: int, version: int, evaluation_index: int) -> None:
        assert self._shared.evaluation is not None
        self._shared.evaluation.publish(self._agent, version)
        self._workers.send_to(self._evaluator, ("evaluate", itr, version, evaluation_index))
        self._evaluating = self._workers.watch()

    def _evaluated(self) -> list[Episodes]:
        self._evaluating = None
        answer: list[Any] = self._workers.replies(ranks=[self._evaluator])[0]
        self._say(answer[-1])
        return answer[:-1]

    # ---- between batches ----

    def _states(self) -> list[SliceState]:
        if self._evaluating is not None:
            return [SliceState(why_not="an evaluation was going on")]
        states = super()._states()
        if self.evaluates_beside:
            self._workers.send_to(self._evaluator, ("state",))
            states += self._workers.replies(ranks=[self._evaluator])[0]
        return states

    def _command(self, name: str, *arguments: Any) -> list[Any]:
        """Has the sampler processes do something after the batches they were told to collect; returns their answers."""
        self._workers.send((name, *arguments), self._samplers)
        while self._n_outstanding:
            self._take_one()
        return self._workers.replies(ranks=self._samplers)

    def _take_one(self) -> None:
        answers = self._workers.replies(ranks=self._samplers)
        self._servers = [timing for *_, timing in answers if timing is not None]
        self._finished.append([report for *reports, _ in answers for report in reports])
        self._n_outstanding -= 1

    @property
    def _shared(self) -> AsyncMemory:
        assert isinstance(self._memory, AsyncMemory)
        return self._memory

    def _publish(self, version: int) -> None:
        self._shared.parameters.publish(self._agent, version)

    def _n_begun(self) -> int:
        return self._n_batches if self._next is None else self._next

    def timing(self) -> TimingReport:
        """Where the time went since the first batch was commanded, the learner's included."""
        report = TimingReport.of(self._timings, perf_counter() - self._began if self._began else 0.0)
        return report.with_servers(self._servers)

    def _stop(self) -> None:
        while self._n_outstanding:  # the reply to the farewell comes behind theirs
            self._take_one()
        if self._evaluating is not None:
            self._evaluated()
        super()._stop()


class AsyncSerialSampler(AsyncSamplerBase):
    """`SerialSampler` in a process of its own: one core samples, this one learns."""

    SamplerCls = SerialSampler
    layout = Layout(processes=True, asynchronous=True)


class AsyncCpuSampler(AsyncSamplerBase):
    """`CpuSampler` beside the learner, which keeps a core busy: `n_workers` defaults to the usable ones but that."""

    SamplerCls = CpuSampler
    layout = Layout(processes=True, asynchronous=True)


#: A server is the same one whoever waits for its batches; these are rlpyt's names for it in a sampler process.
AsyncActionServer = ActionServer
AsyncAlternatingActionServer = AlternatingActionServer
AsyncNoOverlapAlternatingActionServer = NoOverlapAlternatingActionServer


class AsyncGpuSamplerBase(AsyncSamplerBase):
    """Samplers with an action server, which serves in the sampler process, beside the learner.

    device may be several, `["cuda:0", "cuda:1"]`: a sampler process for each, with its share of columns and workers.
    """

    #: What runs there; see `sampler_process`.
    action_server_process = staticmethod(sampler_process)


class AsyncGpuSampler(AsyncGpuSamplerBase):
    """`GpuSampler` beside the learner."""

    SamplerCls = GpuSampler
    layout = Layout(processes=True, served=True, asynchronous=True)


class AsyncAlternatingSamplerBase(AsyncGpuSamplerBase):
    """Two groups of environments, of which one steps while actions are computed for the other; beside the learner."""


class AsyncAlternatingSampler(AsyncAlternatingSamplerBase):
    """`AlternatingSampler` beside the learner."""

    SamplerCls = AlternatingSampler
    layout = Layout(processes=True, served=True, groups=2, asynchronous=True)


class AsyncNoOverlapAlternatingSampler(AsyncAlternatingSamplerBase):
    """`NoOverlapAlternatingSampler` beside the learner."""

    SamplerCls = NoOverlapAlternatingSampler
    layout = Layout(processes=True, served=True, groups=2, asynchronous=True)

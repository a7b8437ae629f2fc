"""Asynchronous samplers: any sampler in a process of its own, collecting ahead of the learner."""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, ClassVar, Protocol

import cloudpickle

from headrace.agents.base import Agent
from headrace.agents.parameters import ParameterSlots
from headrace.buffers.samples import Samples, SlotSpec
from headrace.buffers.shared import shared
from headrace.errors import SamplerError
from headrace.processes.affinity import Affinity
from headrace.processes.child import Channel
from headrace.processes.status import Status
from headrace.samplers.alternating import AlternatingSampler, NoOverlapAlternatingSampler
from headrace.samplers.base import BaseSampler
from headrace.samplers.collector import SliceReport
from headrace.samplers.cpu import CpuSampler
from headrace.samplers.drive import SlotMemory, local_memory
from headrace.samplers.gpu import GpuSampler
from headrace.samplers.layout import Layout, Slice, slices_of, spread
from headrace.samplers.parallel import ParallelSamplerBase
from headrace.samplers.serial import SerialSampler
from headrace.samplers.settings import SamplerSettings
from headrace.samplers.slice_envs import CollectorConfig
from headrace.samplers.slots import Slots
from headrace.samplers.snapshot import SliceState
from headrace.samplers.timing import TimingReport
from headrace.samplers.traj_info import Episodes
from headrace.samplers.worker import initialize_worker, obey
from headrace.types import EnvSpaces

__all__ = [
    "AsyncAlternatingSampler",
    "AsyncAlternatingSamplerBase",
    "AsyncCpuSampler",
    "AsyncGpuSampler",
    "AsyncGpuSamplerBase",
    "AsyncNoOverlapAlternatingSampler",
    "AsyncSamplerBase",
    "AsyncSerialSampler",
    "Sink",
    "sampler_process",
]


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


def sampler_process(channel: Channel, plan: InnerPlan) -> None:
    """The life of a sampler process: a sampler, then batches ahead of the learner until told to leave."""
    obey(channel, InnerSampler(plan, channel.status))


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
    """How a sampler process is set up. agent, sink: pickled; n_versions: of parameters, at a time."""

    slots: SlotMemory
    agent: bytes
    n_versions: int
    sink: bytes | None

    def station(self, crew: InnerSampler, channel: Channel) -> InnerStation:
        """With the memory whose descriptors come behind the command: slots, parameters, that of the sink."""
        agent: Agent = pickle.loads(self.agent)
        append: Callable[[Samples], None] | None = None
        slots = Slots(self.slots.spec, self.slots.n_slots, channel.receive_fd())
        try:
            arena, parameters = shared(partial(local_memory, agent, self.n_versions), channel.receive_fd())
            arena.close_fd()
            if self.sink is not None:
                append = pickle.loads(self.sink).attach(self.slots.spec, channel.receive_fd())
            crew.setup(agent, self.slots.spec, slots)
        finally:
            slots.arena.close_fd()
        return InnerStation(crew.sampler, agent, parameters, slots, append)


class InnerStation:
    """The commands of a sampler process; each names the version of the parameters to act with."""

    def __init__(
        self,
        sampler: BaseSampler,
        agent: Agent,
        parameters: ParameterSlots,
        slots: Slots,
        append: Callable[[Samples], None] | None,
    ) -> None:
        self._sampler = sampler
        self._agent = agent
        self._parameters = parameters
        self._slots = slots
        self._append = append

    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        """See `Station`."""
        self._parameters.load(self._agent, version)
        reports = self._sampler._collect(itr, version, batch_index)
        if self._append is not None:
            self._append(self._slots.samples(batch_index, reports))
        return reports

    def prepare(self, batch_index: int) -> None:
        """See `Station`; the sampler's own workers do."""

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """See `BaseSampler.evaluate_agent`."""
        self._parameters.load(self._agent, version)
        return self._sampler._evaluate(itr, version, evaluation_index)

    def state(self) -> list[SliceState]:
        """See `Station`."""
        return self._sampler._states()


class AsyncSamplerBase(ParallelSamplerBase):
    """Collects while the caller learns: a process of its own runs a sampler that is up to `n_slots` − 1 batches ahead.

    The same calls as of every sampler. `obtain_samples(itr)` publishes the agent's parameters, commands the next batch,
    to be collected with them into the slot that is given back by this call, and returns the batch that was commanded
    before. So batch n was collected with the parameters of call n − (n_slots − 1), whichever process was faster (the
    first call's batches with those of the first call), `samples.agent.version` records it, and a run is reproducible.
    A batch that is commanded ahead is told the itr it will be asked for with: one more for each batch.

    Evaluations, `state()` and `call_envs()` take place between batches, after those that were commanded.
    """

    SamplerCls: ClassVar[type[BaseSampler]]

    def _prepare(self) -> None:
        super()._prepare()
        self._sink: Sink | None = None
        self._shards: list[list[Slice]] = []
        self._finished: deque[list[SliceReport]] = deque()  # batches that were collected and not asked for
        self._n_outstanding = 0  # batches that were commanded and not yet replied to
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
                "a sink is fed by one sampler process; give one device, or append what obtain_samples gives"
            )
        plans: list[InnerPlan] = []
        first = first_worker = 0
        for shard, device in zip(self._shards, self._devices, strict=False):
            stop, n_workers = first + len(shard), 1 + max(one.worker for one in shard)
            cpus = affinity.workers_cpus and affinity.workers_cpus[first_worker : first_worker + n_workers]
            plans.append(
                InnerPlan(
                    self.SamplerCls,
                    replace(self._settings, device=device),
                    first,
                    tuple(shard),
                    tuple(configs[first:stop]),
                    replace(affinity, workers_cpus=cpus),
                )
            )
            first, first_worker = stop, first_worker + n_workers
        own = Affinity(worker_torch_threads=affinity.worker_torch_threads)
        prologue = partial(initialize_worker, own, True)
        return self._start_group(
            sampler_process, plans, [plan.configs for plan in plans], prologue, noun="sampler process"
        )

    def _setup(self, spec: SlotSpec, slots: Slots, configs: Sequence[CollectorConfig]) -> None:
        n_slots = len(slots.all)
        # One version for each batch that may be commanded, one for an evaluation, and the one that is being written.
        n_versions = n_slots + 1
        sink = None if self._sink is None else cloudpickle.dumps(self._sink)
        setup = InnerSetup(SlotMemory(spec, n_slots), self._pickled_agent(), n_versions, sink)
        self._share(slots, partial(local_memory, self._agent, n_versions), [setup] * len(self._shards))
        if self._sink is not None:
            fd = self._sink.open(spec)
            try:
                self._workers.send_fd(fd)
            finally:
                os.close(fd)
        self._standing()

    def _collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        if self._next is None:
            self._next, self._began = batch_index, perf_counter()
        self._publish(version)
        while self._next < batch_index + self._settings.n_slots:
            self._workers.send(("collect", itr + self._next - batch_index, version, self._next))
            self._next += 1
            self._n_outstanding += 1
        if not self._finished:
            self._take_one()
        return self._finished.popleft()

    def _evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        self._publish(version)
        return [part for parts in self._command("evaluate", itr, version, evaluation_index) for part in parts]

    def _command(self, name: str, *arguments: Any) -> list[Any]:
        """Has the sampler process do something after the batches it was told to collect; returns its answer."""
        self._workers.send((name, *arguments))
        while self._n_outstanding:
            self._take_one()
        return self._workers.replies()

    def _take_one(self) -> None:
        self._finished.append([report for reports in self._workers.replies() for report in reports])
        self._n_outstanding -= 1

    def _publish(self, version: int) -> None:
        assert isinstance(self._memory, ParameterSlots)
        self._memory.publish(self._agent, version)

    def _n_begun(self) -> int:
        return self._n_batches if self._next is None else self._next

    def timing(self) -> TimingReport:
        """Where the time went since the first batch was commanded, the learner's included."""
        return TimingReport.of(self._timings, perf_counter() - self._began if self._began else 0.0)

    def _stop(self) -> None:
        while self._n_outstanding:  # the reply to the farewell comes behind theirs
            self._take_one()
        super()._stop()


class AsyncSerialSampler(AsyncSamplerBase):
    """`SerialSampler` in a process of its own: one core samples, this one learns."""

    SamplerCls = SerialSampler
    layout = Layout(processes=True, asynchronous=True)


class AsyncCpuSampler(AsyncSamplerBase):
    """`CpuSampler` beside the learner, which keeps a core busy: `n_workers` defaults to the usable ones but that."""

    SamplerCls = CpuSampler
    layout = Layout(processes=True, asynchronous=True)


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

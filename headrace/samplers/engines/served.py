"""The engine whose actions are computed by an action server in this process, on any torch device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from typing_extensions import override

from headrace.agents.base import Agent
from headrace.buffers.samples import Slot, SlotSpec
from headrace.processes.affinity import Affinity, cores_shared_by, cpu_quota
from headrace.processes.causes import enough_descriptors
from headrace.processes.group import WorkerGroup
from headrace.processes.handoff import Bell
from headrace.processes.patience import Patience
from headrace.processes.watch import WorkerBells, WorkerWatch
from headrace.rng import Stream
from headrace.samplers.collection.evaluation import EvalReport, evaluation_episodes, evaluation_spec
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.engines.parallel import ParallelEngine, joined_answers
from headrace.samplers.inference.action_server import ActionServer, ServedGroup
from headrace.samplers.inference.actor import actor_for
from headrace.samplers.inference.device import DeviceBatch, Pinned, device_batch, serving_device
from headrace.samplers.layout import Slice
from headrace.samplers.timing import ServerTiming
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.memory import SlotMemory, Slots
from headrace.samplers.workers.served import HandoffCells, RowCounters, ServedMemory, ServedWorker, served_memory
from headrace.types import EnvSpaces

__all__ = ["ServedEngine"]


@dataclass(frozen=True)
class _Stage:
    """The columns of training or evaluation, slice by slice, and the counters of their hand-offs.

    Args:
        counters: shared row counters.
        slots: the slots that batches are written into in turn.
        spec: the contents of a slot.
        stream: stream of the action noise.
        env_ids: global numbers of the environments of each slice.
        first_slice: index of this engine's first slice among the slices of the slots.
        device_batch: the batch on the agent's device, if it is kept there.
    """

    counters: RowCounters
    slots: Sequence[Slot]
    spec: SlotSpec
    stream: Stream
    env_ids: Sequence[tuple[int, ...]]
    first_slice: int = 0
    device_batch: DeviceBatch | None = None


class ServedEngine(ParallelEngine[ServedWorker]):
    """Runs an `ActionServer` in this process that acts for all environments at once, while workers step them.

    The agent stays in this process, and workers do not load torch.
    """

    _memory: ServedMemory | None = None
    _server: ActionServer | None = None
    _bells: WorkerBells | None = None
    _pinned: Pinned | None = None

    @property
    def server(self) -> ActionServer:
        """The action server."""
        assert self._server is not None
        return self._server

    @property
    @override
    def server_timings(self) -> Sequence[ServerTiming]:
        return () if self._server is None else (self._server.timing,)

    @override
    def start(self, slices: Sequence[Slice], configs: Sequence[SliceConfig], affinity: Affinity) -> EnvSpaces:
        self._slices, self._affinity = tuple(slices), affinity
        return self.start_workers(ServedWorker, slices, configs, affinity)

    @override
    def setup(
        self, agent: Agent, spec: SlotSpec, slots: Slots, configs: Sequence[SliceConfig], first_slice: int
    ) -> None:
        slices, n_workers = self._slices, len(self.workers)
        eval_widths = tuple(len(config.eval_env_ids) for config in configs)
        eval_spec = evaluation_spec(spec, eval_widths) if any(eval_widths) else None
        memory = SlotMemory(spec.plain(), len(slots.all))
        plain_eval = None if eval_spec is None else eval_spec.plain()
        setups = [(ServedWorker.setup, worker, first_slice, memory, plain_eval, slices) for worker in range(n_workers)]
        self._memory = self.share(slots, partial(served_memory, eval_spec, slices), setups)
        with enough_descriptors(n_workers):
            self._bells = WorkerBells(self.workers, range(n_workers))
        self.wait_until_ready()
        # CUDA must be used only after the workers have started: a process that has used CUDA cannot be forked.
        device = serving_device(self.config.options.device)
        agent.to_device(device)
        if device.type == "cuda":
            self._pinned = Pinned(slots.arena)
        if self.config.options.samples_device is not None:
            self.device_batch = device_batch(slots.all[0], agent, device)
        eval_slot, cells = self._memory
        bells = [*self._bells.of_workers(cells.parked[:-1]), self._bells.own(cells.parked[-1])]
        watch = WorkerWatch(self.workers, self._bells.read_fd)
        groups = partial(self._groups, agent, cells, bells, watch, configs[0])
        pids = [os.getpid(), *self.workers.pids]
        patience = Patience(cells.spin_ns, pids, cores_shared_by(self._affinity, n_workers), cpu_quota())
        env_ids = [config.env_ids for config in configs]
        train_stage = _Stage(cells.train, slots.all, spec, Stream.ACTION, env_ids, first_slice, self.device_batch)
        train, evaluation = groups(train_stage), []
        if eval_spec is not None and eval_slot is not None:
            eval_ids = [config.eval_env_ids for config in configs]
            eval_stage = _Stage(cells.evaluation, [eval_slot], eval_spec, Stream.EVAL_ACTION, eval_ids)
            evaluation = groups(eval_stage)
        recurrent = {env_id: state for config in configs for env_id, state in config.memory.items()}
        for group in train if recurrent else ():
            group.actor.restore(recurrent)
        overlap = self.layout.overlap
        self._server = ActionServer(agent, train, evaluation, patience, self.status, overlap=overlap)

    @override
    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        server, T = self.server, self.config.options.batch_T
        server.update_spin()
        self.workers.send((ServedWorker.collect, batch_index, server.load(itr, batch_index)))
        server.serve_actions(version, batch_index, T)
        reports = self._in_column_order(self.workers.replies())
        for group in server.groups:
            group.give_states(reports)
        return reports

    @override
    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        server = self.server
        server.update_spin()
        self.command(ServedWorker.begin_evaluation)
        server.begin_evaluation(itr)
        rows = partial(self._evaluate_rows, version, evaluation_index << 32)
        return evaluation_episodes(rows, self.config.eval_max_T)

    def _evaluate_rows(self, version: int, first_step: int, first_row: int, n_rows: int) -> list[EvalReport]:
        self.workers.send((ServedWorker.evaluate_rows, first_row, n_rows))
        self.server.serve_actions_evaluation(version, first_step + first_row, n_rows)
        return [report for reports in self.workers.replies() for report in reports]

    @override
    def states(self) -> list[SliceState]:
        environments = [state for own in self.command(ServedWorker.states) for state in own]
        return [*environments, *(SliceState(memory=group.actor.memory()) for group in self.server.groups)]

    @override
    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        return joined_answers(self.command(ServedWorker.call, name, args, env_ids))

    @override
    def forget(self) -> WorkerGroup | None:
        pinned, self._pinned, self._server, self._memory = self._pinned, None, None, None
        self.device_batch = None
        if pinned is not None:
            pinned.release()
        bells, self._bells = self._bells, None
        if bells is not None:
            bells.close()
        return super().forget()

    def _groups(
        self,
        agent: Agent,
        cells: HandoffCells,
        bells: Sequence[Bell],
        watch: WorkerWatch,
        config: SliceConfig,
        stage: _Stage,
    ) -> list[ServedGroup]:
        """Returns the server's `ServedGroup`s of a stage, for the groups that have environments."""
        groups = []
        spec = stage.spec
        for number in range(self.layout.groups):
            own = [index for index, one in enumerate(self._slices) if one.group == number]
            members = [index for index in own if stage.env_ids[index]]
            if not members:
                continue
            first, stop = stage.first_slice + own[0], stage.first_slice + own[-1] + 1
            columns = spec.first_column(first), spec.first_column(stop)
            actor = actor_for(
                agent,
                [slot.slices(spec, first, stop) for slot in stage.slots],
                [env_id for index in own for env_id in stage.env_ids[index]],
                spec.widths[first:stop],
                seed=config.seed,
                stream=stage.stream,
                deterministic=config.deterministic,
                status=self.status,
                device_batch=None if stage.device_batch is None else stage.device_batch.columns(*columns),
            )
            ranks = [self._slices[index].worker for index in members]
            groups.append(ServedGroup(cells.server(stage.counters, members, bells), watch, ranks, own, actor))
        return groups

    def _in_column_order(self, answers: Sequence[Sequence[SliceReport]]) -> list[SliceReport]:
        """Sorts the reports of all workers, each in group order, into the column order of the batch."""
        left = [iter(reports) for reports in answers]
        return [next(left[one.worker]) for one in self._slices]

"""Samplers whose actions come from an action server in this process: `GpuSampler` and what the others share with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from headrace.buffers.samples import Slot, SlotSpec
from headrace.processes.affinity import cores_shared_by, cpu_quota
from headrace.processes.causes import enough_descriptors
from headrace.processes.group import Sentry, WorkerGroup
from headrace.processes.handoff import Bell
from headrace.processes.patience import Patience
from headrace.rng import Stream
from headrace.samplers.board import Board, Turns
from headrace.samplers.collection.evaluation import EvalReport, evaluation_episodes, evaluation_spec
from headrace.samplers.collection.make_envs import CollectorConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.engines.parallel import ParallelSamplerBase
from headrace.samplers.inference.action_server import ActionServer, ServedGroup
from headrace.samplers.inference.actor import actor_for
from headrace.samplers.inference.device import DeviceBatch, device_batch
from headrace.samplers.layout import Layout
from headrace.samplers.pinned import Pinned
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.local import ServedMemory, ServedSetup, SlotMemory, served_memory
from headrace.samplers.workers.memory import Slots

__all__ = ["GpuSampler", "GpuSamplerBase", "serving_device"]


def serving_device(device: torch.device | None) -> torch.device:
    """Where a server acts: `device`, by default the first GPU if there is one."""
    if device is not None:
        return device
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class _Stage:
    """Training or evaluation: its columns, slice by slice, and by which numbers they are handed over.

    first_slice: where in the slots our slices begin.
    """

    turns: Turns
    slots: Sequence[Slot]
    spec: SlotSpec
    stream: Stream
    env_ids: Sequence[tuple[int, ...]]
    first_slice: int = 0
    kept: DeviceBatch | None = None


class GpuSamplerBase(ParallelSamplerBase):
    """Workers step environments, an `ActionServer` in this process acts for all of them at once, on any torch device.

    The agent never leaves this process, and workers do not load torch. `n_workers` defaults to the usable cores but
    one, which the server keeps busy.
    """

    #: The server's class, which says whether groups may step at once.
    ServerCls: ClassVar[type[ActionServer]] = ActionServer
    _memory: ServedMemory | None = None
    _server: ActionServer | None = None
    #: Of the server's bell, read and write, and the write ends of the workers'.
    _pipe_ends: tuple[int, ...] = ()
    _pinned: Pinned | None = None

    def _setup(self, spec: SlotSpec, slots: Slots, configs: Sequence[CollectorConfig]) -> None:
        slices, n_workers = tuple(self._slices), len(self._workers)
        eval_widths = tuple(len(config.eval_env_ids) for config in configs)
        eval_spec = evaluation_spec(spec, eval_widths) if any(eval_widths) else None
        memory = SlotMemory(spec.plain(), len(slots.all))
        plain_eval = None if eval_spec is None else eval_spec.plain()
        setups = [ServedSetup(worker, self._first_slice, memory, plain_eval, slices) for worker in range(n_workers)]
        self._share(slots, partial(served_memory, eval_spec, slices), setups)
        with enough_descriptors(n_workers):
            self._send_bells(n_workers)
        self._standing()
        self._agent_init(slots)
        self._serve(spec, slots, eval_spec, configs)

    def _serve(
        self, spec: SlotSpec, slots: Slots, eval_spec: SlotSpec | None, configs: Sequence[CollectorConfig]
    ) -> None:
        """Makes the server, now that all workers stand."""
        assert self._memory is not None
        eval_slot, board = self._memory
        n_workers = len(self._workers)
        if self._settings.samples_device is not None:
            self._kept = device_batch(slots.all[0], self._agent, self._device)
        pids = [os.getpid(), *self._workers.pids]
        patience = Patience(board.spin_ns, pids, cores_shared_by(self._affinity, n_workers), cpu_quota())
        env_ids = [config.env_ids for config in configs]
        stages = [_Stage(board.train, slots.all, spec, Stream.ACTION, env_ids, self._first_slice, self._kept)]
        if eval_spec is not None and eval_slot is not None:
            eval_ids = [config.eval_env_ids for config in configs]
            stages.append(_Stage(board.evaluation, [eval_slot], eval_spec, Stream.EVAL_ACTION, eval_ids))
        read, _, *writes = self._pipe_ends
        bells = [Bell(board.parked[rank], write_fd=write) for rank, write in enumerate(writes)]
        bells.append(Bell(board.parked[-1], read_fd=read))
        sentry = self._workers.sentry(read)
        train, *evaluation = [self._groups(board, bells, sentry, configs[0], stage) for stage in stages]
        memory = {env_id: state for config in configs for env_id, state in config.memory.items()}
        for group in train if memory else ():
            group.actor.go_on(memory)
        self._server = self.ServerCls(self._agent, train, evaluation[0] if evaluation else (), patience, self._status)
        self._servers = [self._server.timing]

    def _agent_init(self, slots: Slots) -> None:
        """Puts the agent on its device, now that workers exist: a process that has used CUDA cannot be forked."""
        self._device = serving_device(self._settings.device)
        self._agent.to_device(self._device)
        if self._device.type == "cuda":
            self._pinned = Pinned(slots.arena)

    def _collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        server, T = self._serving, self.batch_spec.T
        server.look_around()
        self._workers.send(("collect", itr, version, batch_index))
        server.serve_actions(itr, version, batch_index, T)
        reports = self._in_column_order(self._workers.replies())
        for group in server.groups:
            group.give_states(reports)
        return reports

    def _evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        server = self._serving
        server.look_around()
        self._command("begin_evaluation")
        server.begin_evaluation(itr)
        rows = partial(self._evaluate_rows, version, evaluation_index << 32)
        return evaluation_episodes(rows, self._settings.eval_max_T)

    def _evaluate_rows(self, version: int, first_step: int, first_row: int, n_rows: int) -> list[EvalReport]:
        self._workers.send(("evaluation", first_row, n_rows))
        self._serving.serve_actions_evaluation(version, first_step + first_row, n_rows)
        return [report for reports in self._workers.replies() for report in reports]

    def _states(self) -> list[SliceState]:
        own = [SliceState(memory=group.actor.memory()) for group in self._serving.groups]
        return [*super()._states(), *own]

    def _let_go(self) -> WorkerGroup | None:
        pinned, self._pinned, self._server = self._pinned, None, None
        if pinned is not None:
            pinned.release()
        ends, self._pipe_ends = self._pipe_ends, ()
        for end in ends:
            os.close(end)
        return super()._let_go()

    @property
    def _serving(self) -> ActionServer:
        assert self._server is not None
        return self._server

    def _send_bells(self, n_workers: int) -> None:
        """A pipe to wake each worker, and one to wake the server: hands out their ends, and keeps the others."""
        self._pipe_ends = Bell.pipe()
        write = self._pipe_ends[1]
        for rank in range(n_workers):
            worker_read, worker_write = Bell.pipe()
            self._pipe_ends += (worker_write,)
            try:
                self._workers.send_fd_to(rank, worker_read)
                self._workers.send_fd_to(rank, write)
            finally:
                os.close(worker_read)

    def _groups(
        self, board: Board, bells: Sequence[Bell], sentry: Sentry, config: CollectorConfig, stage: _Stage
    ) -> list[ServedGroup]:
        """The groups of a stage that have environments, as the server sees them."""
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
                self._agent,
                [slot.slices(spec, first, stop) for slot in stage.slots],
                [env_id for index in own for env_id in stage.env_ids[index]],
                spec.widths[first:stop],
                config,
                stage.stream,
                self._status,
                None if stage.kept is None else stage.kept.columns(*columns),
            )
            ranks = [self._slices[index].worker for index in members]
            groups.append(ServedGroup(board.server(stage.turns, members, bells), sentry, ranks, own, actor))
        return groups

    def _in_column_order(self, answers: Sequence[Sequence[SliceReport]]) -> list[SliceReport]:
        """The reports of all workers, each in the order of its groups, as the slices lie in the batch."""
        left = [iter(reports) for reports in answers]
        return [next(left[one.worker]) for one in self._slices]


class GpuSampler(GpuSamplerBase):
    """All environments step, then one inference chooses all actions: for slow inference and fast environments, on a GPU
    or a CPU core of its own.
    """

    layout = Layout(processes=True, served=True)

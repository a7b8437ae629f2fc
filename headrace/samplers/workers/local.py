"""Who drives the collection loops of a process: an agent beside them, or a worker's hands to an action server.

A `Station` is what a process does for its slices. The commands of a worker are its methods.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple, Protocol

from headrace.buffers.samples import Slot, SlotSpec, build_slot, build_slots
from headrace.buffers.shared import Allocate, shared
from headrace.processes.child import Channel
from headrace.processes.handoff import Bell, Handoff
from headrace.processes.status import Phase, Status
from headrace.rng import Stream
from headrace.samplers.board import Board, build_board
from headrace.samplers.collection.eval_slice import EvalCollector
from headrace.samplers.collection.evaluation import EvalReport, evaluation_episodes, evaluation_spec
from headrace.samplers.collection.loop import SlotView, private_array
from headrace.samplers.collection.slice import Collector, Collectors, SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.layout import Slice
from headrace.samplers.traj_info import Episodes
from headrace.types import Timing

if TYPE_CHECKING:
    from headrace.agents.base import Agent
    from headrace.agents.parameters import ParameterSlots
    from headrace.samplers.inference.device import DeviceBatch

__all__ = [
    "LocalSetup",
    "LocalStation",
    "ServedMemory",
    "ServedSetup",
    "ServedStation",
    "SlotMemory",
    "Station",
    "local_memory",
    "served_memory",
]


class Station(Protocol):
    """The slices of one process."""

    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        """One batch. batch_index counts batches from 0: the address of the batch's randomness."""

    def prepare(self, batch_index: int) -> None:
        """What the next batch needs and can have before its command comes."""

    def state(self) -> list[SliceState]:
        """Where every slice stands, between batches."""


# ---- an agent beside the environments ----


class LocalStation:
    """One slice and an agent: `SerialSampler`'s work, or one `CpuSampler` worker's.

    slots: this slice of each; parameters: where the agent's parameters come from, None: it is the learner's own agent;
    kept: this slice of a batch that stays on the agent's device.
    """

    def __init__(
        self,
        collector: Collector,
        agent: Agent,
        spec: SlotSpec,
        slots: Sequence[Slot],
        first_column: int,
        status: Status,
        *,
        parameters: ParameterSlots | None = None,
        kept: DeviceBatch | None = None,
    ) -> None:
        from headrace.samplers.inference.actor import actor_for  # loads torch; served slices do without

        self._collector = collector
        self._agent = agent
        self._status = status
        self._parameters = parameters
        self._n_rows = spec.batch.T
        collector.setup(spec, [SlotView(slot, first_column) for slot in slots])
        self._n_slots = len(slots)
        config = collector.config
        widths = (len(config.env_ids),)
        self._actor = actor_for(agent, slots, config.env_ids, widths, config, Stream.ACTION, status, kept)
        if config.memory:
            self._actor.go_on(config.memory)
        evaluation = collector.evaluation
        self._evaluation = None if evaluation is None else LocalEvaluation(evaluation, agent, spec, status, parameters)

    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        """See `Station`."""
        if self._parameters is not None:
            self._parameters.load(self._agent, version)
        self._agent.sample_mode(itr)
        actor, rows = self._actor, self._collector.batch(batch_index)
        actor.begin(version, batch_index * self._n_rows, batch_index % self._n_slots)
        for t in rows:
            actor.act(t)
            actor.record(t)
        self._status.enter(Phase.ACTING, step=self._n_rows)
        actor.finish()
        report = self._collector.report()
        if report.overflow is not None:
            report.overflow.state = actor.overflow[0]
        self._status.enter(Phase.WAITING)
        return [report]

    def prepare(self, batch_index: int) -> None:
        """Resets of waiting rows, and noise."""
        self._collector.prepare()
        self._actor.draw(batch_index * self._n_rows)

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """See `LocalEvaluation`."""
        return [] if self._evaluation is None else self._evaluation.evaluate(itr, version, evaluation_index)

    def state(self) -> list[SliceState]:
        """See `Station`."""
        return [replace(self._collector.state(), memory=self._actor.memory())]


class LocalEvaluation:
    """The evaluation environments of one slice and an agent. parameters: as of `LocalStation`."""

    def __init__(
        self,
        collector: EvalCollector,
        agent: Agent,
        spec: SlotSpec,
        status: Status,
        parameters: ParameterSlots | None,
    ) -> None:
        from headrace.samplers.inference.actor import actor_for

        self._collector = collector
        self._agent = agent
        self._parameters = parameters
        config = collector.config
        widths = (len(config.eval_env_ids),)
        eval_spec = evaluation_spec(spec, widths)
        slot = build_slot(eval_spec, private_array)
        collector.setup(eval_spec, SlotView(slot, 0))
        self._actor = actor_for(agent, [slot], config.eval_env_ids, widths, config, Stream.EVAL_ACTION, status, None)

    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """Runs each evaluation environment for its number of episodes, greedily; unfinished ones come last."""
        collector, actor = self._collector, self._actor
        if self._parameters is not None:
            self._parameters.load(self._agent, version)
        self._agent.eval_mode(itr)
        collector.begin()
        actor.restart()

        def collect(first_row: int, n_rows: int) -> list[EvalReport]:
            actor.begin(version, (evaluation_index << 32) + first_row)
            for t in collector.rows(n_rows, until_idle=True):
                actor.act(t)
            return [collector.report(first_row, n_rows)]

        return evaluation_episodes(collect, collector.config.eval_max_T)


def local_memory(agent: Agent, n_versions: int, allocate: Allocate) -> ParameterSlots:
    """What a sampler shares, besides slots, with processes that have an agent each; the same in every process."""
    from headrace.agents.parameters import ParameterSlots  # loads torch

    return ParameterSlots(agent, allocate, n_versions)


@dataclass(frozen=True)
class SlotMemory:
    """The slots a batch is written into in turn: enough to attach to their arena."""

    spec: SlotSpec
    n_slots: int

    def attach(self, channel: Channel) -> list[Slot]:
        """With the arena whose descriptor comes next."""
        arena, slots = shared(partial(build_slots, self.spec, self.n_slots), channel.receive_fd())
        arena.close_fd()
        return slots


@dataclass(frozen=True)
class LocalSetup:
    """How a worker with an agent is set up. index: its slice; agent: pickled."""

    index: int
    slots: SlotMemory
    agent: bytes

    def station(self, crew: Collectors, channel: Channel) -> LocalStation:
        """With the arenas whose descriptors come behind the command: slots, parameters."""
        agent: Agent = pickle.loads(self.agent)
        spec, slots = self.slots.spec, self.slots.attach(channel)
        arena, parameters = shared(partial(local_memory, agent, 2), channel.receive_fd())
        arena.close_fd()
        return LocalStation(
            crew.all[0],
            agent,
            spec,
            [slot.slice(spec, self.index) for slot in slots],
            spec.first_column(self.index),
            channel.status,
            parameters=parameters,
        )


# ---- actions from a server ----


class ServedStation:
    """A worker's slices, at most one of each group; a server acts for them.

    collectors: in the order of the groups, as the server takes them; handoffs: one each; evaluating: the same for those
    that have evaluation environments.
    """

    def __init__(
        self,
        collectors: Sequence[Collector],
        handoffs: Sequence[Handoff],
        evaluating: Sequence[tuple[EvalCollector, Handoff]],
    ) -> None:
        self._collectors = collectors
        self._handoffs = handoffs
        self._evaluating = evaluating

    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        """See `Station`."""
        drive_served(
            [
                (collector.batch(batch_index), hands, collector.timing)
                for collector, hands in zip(self._collectors, self._handoffs, strict=True)
            ]
        )
        return [collector.report() for collector in self._collectors]

    def prepare(self, batch_index: int) -> None:
        """Resets of waiting rows."""
        for collector in self._collectors:
            collector.prepare()

    def begin_evaluation(self) -> None:
        """Before the first rows of an evaluation."""
        for collector, _ in self._evaluating:
            collector.begin()

    def evaluation(self, first_row: int, n_rows: int) -> list[EvalReport]:
        """Some rows of an evaluation; all of them, in step with slices elsewhere, even if every episode ended here."""
        drive_served(
            [(collector.rows(n_rows, until_idle=False), hands, Timing()) for collector, hands in self._evaluating]
        )
        return [collector.report(first_row, n_rows) for collector, _ in self._evaluating]

    def state(self) -> list[SliceState]:
        """See `Station`."""
        return [collector.state() for collector in self._collectors]


def drive_served(loops: Sequence[tuple[Iterator[int], Handoff, Timing]]) -> None:
    """Drives one loop of each group in turn: while the server acts for one, the other steps. All have as many rows.

    The row behind the last one is handed over, too: the server then knows that nobody of a group steps any more.
    """
    for rows, handoff, _ in loops:
        next(rows)
        handoff.post()
    running = list(loops)
    while running:
        for loop in tuple(running):
            rows, handoff, timing = loop
            timing.turned_to_ns = perf_counter_ns()
            handoff.wait_for(handoff.count)  # as many rows acted for as there were ready
            if next(rows, None) is None:
                running.remove(loop)
            handoff.post()


class ServedMemory(NamedTuple):
    """What a sampler shares, besides slots, with workers that it serves."""

    eval_slot: Slot | None
    board: Board


def served_memory(eval_spec: SlotSpec | None, slices: Sequence[Slice], allocate: Allocate) -> ServedMemory:
    """The same in every process."""
    eval_slot = None if eval_spec is None else build_slot(eval_spec, allocate)
    return ServedMemory(eval_slot, build_board(slices, allocate))


@dataclass(frozen=True)
class ServedSetup:
    """How a worker is set up that is served. worker: its number; first_slice: of `slices`, among all of the batch."""

    worker: int
    first_slice: int
    slots: SlotMemory
    eval_spec: SlotSpec | None
    slices: tuple[Slice, ...]

    def station(self, crew: Collectors, channel: Channel) -> ServedStation:
        """With the descriptors that come behind the command: slots, board, own bell, the server's bell."""
        spec, eval_spec, slices = self.slots.spec, self.eval_spec, self.slices
        batches = self.slots.attach(channel)
        arena, memory = shared(partial(served_memory, eval_spec, slices), channel.receive_fd())
        arena.close_fd()
        board = memory.board
        bell = Bell(board.parked[self.worker], read_fd=channel.receive_fd())
        server = Bell(board.parked[-1], write_fd=channel.receive_fd())
        own = [index for index, one in enumerate(slices) if one.worker == self.worker]
        everybody = range(len(slices))
        evaluating = [index for index in everybody if eval_spec is not None and eval_spec.widths[index]]
        handoffs, eval_handoffs = [], []
        for index, collector in zip(own, crew.all, strict=True):
            if memory.eval_slot is not None and eval_spec is not None and collector.evaluation is not None:
                view = SlotView(memory.eval_slot.slice(eval_spec, index), eval_spec.first_column(index))
                collector.evaluation.setup(eval_spec, view)
                hands = board.worker(board.evaluation, board.members(index, evaluating), index, bell, server)
                eval_handoffs.append((collector.evaluation, hands))
            place = self.first_slice + index
            views = [SlotView(slot.slice(spec, place), spec.first_column(place)) for slot in batches]
            collector.setup(spec, views)
            handoffs.append(board.worker(board.train, board.members(index, everybody), index, bell, server))
        return ServedStation(crew.all, handoffs, eval_handoffs)

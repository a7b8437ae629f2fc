"""A worker whose actions are computed by an action server. It does not load torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns
from typing import Any, NamedTuple

from headrace.buffers.samples import Slot, SlotSpec, build_slot
from headrace.buffers.shared import Allocate, shared
from headrace.processes.child import Channel
from headrace.processes.handoff import Bell, Cell, Handoff, make_cell
from headrace.processes.status import Phase
from headrace.samplers.collection.evaluation import EvalReport, EvalSlice
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport, TrainSlices
from headrace.samplers.collection.slot_view import SlotView
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.layout import Slice
from headrace.samplers.workers.memory import SlotMemory
from headrace.types import EnvSpaces, Timing

__all__ = ["HandoffCells", "RowCounters", "ServedMemory", "ServedWorker", "drive_served", "served_memory"]


@dataclass
class RowCounters:
    """Shared counters of rows.

    Args:
        ready: for each slice, how many rows it has written.
        acted: for each group, how many rows have their actions.
    """

    ready: list[Cell]
    acted: list[Cell]


@dataclass
class HandoffCells:
    """The shared numbers with which workers and an action server hand off rows; see `headrace.processes.handoff`.

    Args:
        slices: the slices of all workers.
        train: counters of batches.
        evaluation: counters of evaluations, in which not every slice takes part.
        parked: which processes sleep: one cell per worker, then the server's.
        spin_ns: nanoseconds to spin before sleeping.
    """

    slices: Sequence[Slice]
    train: RowCounters
    evaluation: RowCounters
    parked: list[Cell]
    spin_ns: Cell

    def server(self, counters: RowCounters, members: Sequence[int], bells: Sequence[Bell]) -> Handoff:
        """Returns the server's side of the hand-off to one group.

        Args:
            counters: counters of batches or of evaluations.
            members: numbers of the group's slices.
            bells: bells of the workers, then the server's.
        """
        return Handoff(
            counters.acted[self.slices[members[0]].group],
            [counters.ready[index] for index in members],
            bells[-1],
            [bells[self.slices[index].worker] for index in members],
            spin_ns=self.spin_ns,
        )

    def worker(self, counters: RowCounters, members: Sequence[int], index: int, bell: Bell, server: Bell) -> Handoff:
        """Returns a worker's side of the hand-off for its slice.

        Args:
            counters: counters of batches or of evaluations.
            members: numbers of the group's slices.
            index: number of the worker's slice, one of `members`.
            bell: the worker's bell.
            server: the server's bell.
        """
        return Handoff(
            counters.ready[index],
            [counters.acted[self.slices[index].group]],
            bell,
            [server],
            companions=[counters.ready[other] for other in members if other != index],
            spin_ns=self.spin_ns,
        )

    def members(self, index: int, taking_part: Sequence[int]) -> list[int]:
        """Returns the slices in `taking_part` that are in the same group as slice `index`."""
        group = self.slices[index].group
        return [other for other in taking_part if self.slices[other].group == group]


class ServedMemory(NamedTuple):
    """The memory that a sampler shares with the workers that it serves, in addition to slots.

    Args:
        eval_slot: the slot of evaluations, or None.
        cells: the numbers for the hand-off.
    """

    eval_slot: Slot | None
    cells: HandoffCells


def served_memory(eval_spec: SlotSpec | None, slices: Sequence[Slice], allocate: Allocate) -> ServedMemory:
    """Allocates the shared memory; every process makes the same calls in the same order, so the addresses match."""
    n_groups = 1 + max(one.group for one in slices)
    n_workers = 1 + max(one.worker for one in slices)

    def new(n: int) -> list[Cell]:
        return [make_cell(allocate) for _ in range(n)]

    eval_slot = None if eval_spec is None else build_slot(eval_spec, allocate)
    train, evaluation = (RowCounters(new(len(slices)), new(n_groups)) for _ in range(2))
    return ServedMemory(eval_slot, HandoffCells(slices, train, evaluation, new(n_workers + 1), make_cell(allocate)))


class ServedWorker:
    """A worker process with at most one slice of each group; see `Worker`."""

    def __init__(self, configs: Sequence[SliceConfig], channel: Channel) -> None:
        self._channel = channel
        self._environments = TrainSlices(configs, channel.status)
        self._handoffs: list[Handoff] = []
        self._evaluating: list[tuple[EvalSlice, Handoff]] = []

    @property
    def spaces(self) -> list[EnvSpaces]:
        """See `Worker`."""
        return self._environments.spaces

    def setup(
        self,
        worker: int,
        first_slice: int,
        slots: SlotMemory,
        eval_spec: SlotSpec | None,
        slices: Sequence[Slice],
    ) -> None:
        """Attaches to the shared memory and prepares the hand-offs.

        The descriptors follow the command: slots, hand-off, the worker's own bell, the server's bell.

        Args:
            worker: rank of this worker.
            first_slice: index of the first of `slices` among all slices of the batch.
            slots: which memory to attach to.
            eval_spec: the contents of the slot of evaluations, or None.
            slices: the slices of all workers.
        """
        channel, spec = self._channel, slots.spec
        batches = slots.attach(channel)
        arena, (eval_slot, cells) = shared(partial(served_memory, eval_spec, slices), channel.receive_fd())
        arena.close_fd()
        bell = Bell(cells.parked[worker], read_fd=channel.receive_fd())
        server = Bell(cells.parked[-1], write_fd=channel.receive_fd())
        own = [index for index, one in enumerate(slices) if one.worker == worker]
        everybody = range(len(slices))
        evaluating = [index for index in everybody if eval_spec is not None and eval_spec.widths[index]]
        for index, environments in zip(own, self._environments.all, strict=True):
            if eval_slot is not None and eval_spec is not None and environments.evaluation is not None:
                view = SlotView(eval_slot.slice(eval_spec, index), eval_spec.first_column(index))
                environments.evaluation.setup(eval_spec, view)
                members = cells.members(index, evaluating)
                handoff = cells.worker(cells.evaluation, members, index, bell, server)
                self._evaluating.append((environments.evaluation, handoff))
            place = first_slice + index
            views = [SlotView(slot.slice(spec, place), spec.first_column(place)) for slot in batches]
            environments.setup(spec, views)
            members = cells.members(index, everybody)
            self._handoffs.append(cells.worker(cells.train, members, index, bell, server))
        channel.status.enter(Phase.WAITING)

    def collect(self, batch_index: int, reads_previous: bool) -> list[SliceReport]:
        """Collects one batch, for which the server writes the actions.

        Args:
            batch_index: counts batches from 0.
            reads_previous: see `CollectionLoop.collect`.
        """
        collectors = self._environments.all
        drive_served(
            [
                (environments.batch(batch_index, reads_previous), handoff, environments.timing)
                for environments, handoff in zip(collectors, self._handoffs, strict=True)
            ]
        )
        return [environments.report() for environments in collectors]

    def begin_evaluation(self) -> None:
        """Resets the evaluation environments."""
        for environments, _ in self._evaluating:
            environments.begin()

    def evaluate_rows(self, first_row: int, n_rows: int) -> list[EvalReport]:
        """Collects rows of an evaluation.

        All rows are collected, in step with the slices of other workers, even if every episode of this worker has
        ended.

        Args:
            first_row: number of the first row.
            n_rows: number of rows.
        """
        drive_served(
            [
                (environments.rows(n_rows, until_idle=False), handoff, Timing())
                for environments, handoff in self._evaluating
            ]
        )
        return [environments.report(first_row, n_rows) for environments, _ in self._evaluating]

    def states(self) -> list[SliceState]:
        """Returns the state of every slice between batches."""
        return [environments.state() for environments in self._environments.all]

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls training environments; returns the results by env id."""
        return self._environments.call(name, args, env_ids)

    def prepare(self) -> None:
        """Resets waiting environments ahead of the next batch."""
        if self._handoffs:
            for environments in self._environments.all:
                environments.prepare()

    def close(self) -> None:
        """Closes the environments."""
        self._environments.close()


def drive_served(loops: Sequence[tuple[Iterator[int], Handoff, Timing]]) -> None:
    """Runs the loops of all groups in turn: while the server acts for one group, another steps.

    All loops have the same number of rows. The row after the last one is handed off too, so that the server knows when
    no environment of a group is still stepping.

    Args:
        loops: for each group, the iterator over rows, the hand-off and the counters.
    """
    for rows, handoff, _ in loops:
        next(rows)
        handoff.post()
    running = list(loops)
    while running:
        for loop in tuple(running):
            rows, handoff, timing = loop
            timing.turned_to_ns = perf_counter_ns()
            handoff.wait_for(handoff.count)  # until all ready rows have their actions
            if next(rows, None) is None:
                running.remove(loop)
            handoff.post()

"""A worker whose actions come from an action server. It does without torch."""

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
from headrace.samplers.collection.loop import SlotView
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport, TrainSlices
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.layout import Slice
from headrace.samplers.workers.memory import SlotMemory
from headrace.types import EnvSpaces, Timing

__all__ = ["HandoffCells", "RowCounters", "ServedMemory", "ServedWorker", "drive_served", "served_memory"]


@dataclass
class RowCounters:
    """ready: of each slice, how many rows it has written; acted: of each group, how many rows have their actions."""

    ready: list[Cell]
    acted: list[Cell]


@dataclass
class HandoffCells:
    """The shared numbers by which workers and an action server hand rows over; see `headrace.processes.handoff`.

    Args:
        slices: of all workers.
        train: counters of batches.
        evaluation: counters of evaluations, in which not every slice takes part.
        parked: who sleeps; of each worker, and of the server last.
        spin_ns: how long to look before sleeping.
    """

    slices: Sequence[Slice]
    train: RowCounters
    evaluation: RowCounters
    parked: list[Cell]
    spin_ns: Cell

    def server(self, counters: RowCounters, members: Sequence[int], bells: Sequence[Bell]) -> Handoff:
        """The server's end of a hand-off to one group.

        Args:
            counters: of batches or of evaluations.
            members: the numbers of the group's slices.
            bells: of the workers, and the server's last.
        """
        return Handoff(
            counters.acted[self.slices[members[0]].group],
            [counters.ready[index] for index in members],
            bells[-1],
            [bells[self.slices[index].worker] for index in members],
            spin_ns=self.spin_ns,
        )

    def worker(self, counters: RowCounters, members: Sequence[int], index: int, bell: Bell, server: Bell) -> Handoff:
        """A worker's end of the hand-off for its slice number `index`, one of the `members` of a group."""
        return Handoff(
            counters.ready[index],
            [counters.acted[self.slices[index].group]],
            bell,
            [server],
            companions=[counters.ready[other] for other in members if other != index],
            spin_ns=self.spin_ns,
        )

    def members(self, index: int, taking_part: Sequence[int]) -> list[int]:
        """The slices of the same group as slice `index`, of those that take part."""
        group = self.slices[index].group
        return [other for other in taking_part if self.slices[other].group == group]


class ServedMemory(NamedTuple):
    """What a sampler shares, besides slots, with the workers that it serves."""

    eval_slot: Slot | None
    cells: HandoffCells


def served_memory(eval_spec: SlotSpec | None, slices: Sequence[Slice], allocate: Allocate) -> ServedMemory:
    """The same calls in the same order, so the same places, in every process."""
    n_groups = 1 + max(one.group for one in slices)
    n_workers = 1 + max(one.worker for one in slices)

    def new(n: int) -> list[Cell]:
        return [make_cell(allocate) for _ in range(n)]

    eval_slot = None if eval_spec is None else build_slot(eval_spec, allocate)
    train, evaluation = (RowCounters(new(len(slices)), new(n_groups)) for _ in range(2))
    return ServedMemory(eval_slot, HandoffCells(slices, train, evaluation, new(n_workers + 1), make_cell(allocate)))


class ServedWorker:
    """A worker process with a slice of each group, at most one of each; see `Worker`."""

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
        """Attaches to what the descriptors behind the command are of: slots, hand-off, own bell, the server's bell.

        Args:
            worker: number of this one.
            first_slice: of `slices`, among all of the batch.
            slots: which memory they are.
            eval_spec: of the slot of evaluations, if there are any.
            slices: of all workers.
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

    def collect(self, batch_index: int) -> list[SliceReport]:
        """Collects one batch, whose actions the server writes. batch_index: counts batches from 0."""
        collectors = self._environments.all
        drive_served(
            [
                (environments.batch(batch_index), handoff, environments.timing)
                for environments, handoff in zip(collectors, self._handoffs, strict=True)
            ]
        )
        return [environments.report() for environments in collectors]

    def begin_evaluation(self) -> None:
        """Resets the evaluation environments."""
        for environments, _ in self._evaluating:
            environments.begin()

    def evaluate_rows(self, first_row: int, n_rows: int) -> list[EvalReport]:
        """Some rows of an evaluation; all of them, in step with slices elsewhere, even if every episode ended here."""
        drive_served(
            [
                (environments.rows(n_rows, until_idle=False), handoff, Timing())
                for environments, handoff in self._evaluating
            ]
        )
        return [environments.report(first_row, n_rows) for environments, _ in self._evaluating]

    def states(self) -> list[SliceState]:
        """Where every slice stands, between batches."""
        return [environments.state() for environments in self._environments.all]

    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        """Calls training environments; answers by env id."""
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

"""The shared numbers by which workers and an action server hand rows over; see `headrace.processes.handoff`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.buffers.shared import Allocate
from headrace.processes.handoff import Bell, Cell, Handoff, make_cell
from headrace.samplers.layout import Slice

__all__ = ["Board", "Turns", "build_board"]


@dataclass
class Turns:
    """ready: per slice, how many rows it has stood at; acted: per group, how many of them have their actions."""

    ready: list[Cell]
    acted: list[Cell]


@dataclass
class Board:
    """train, evaluation: whose turn it is (not every slice takes part in evaluations); parked: who sleeps, per worker,
    and the server last; spin_ns: how long to look before sleeping.
    """

    slices: Sequence[Slice]
    train: Turns
    evaluation: Turns
    parked: list[Cell]
    spin_ns: Cell

    def server(self, turns: Turns, members: Sequence[int], bells: Sequence[Bell]) -> Handoff:
        """The server's hands for a group. members: its slices, by number; bells: of the workers, and the server's."""
        return Handoff(
            turns.acted[self.slices[members[0]].group],
            [turns.ready[index] for index in members],
            bells[-1],
            [bells[self.slices[index].worker] for index in members],
            spin_ns=self.spin_ns,
        )

    def worker(self, turns: Turns, members: Sequence[int], index: int, bell: Bell, server: Bell) -> Handoff:
        """A worker's hands for its slice number `index`, one of the `members` of a group."""
        return Handoff(
            turns.ready[index],
            [turns.acted[self.slices[index].group]],
            bell,
            [server],
            companions=[turns.ready[other] for other in members if other != index],
            spin_ns=self.spin_ns,
        )

    def members(self, index: int, taking_part: Sequence[int]) -> list[int]:
        """The slices of the same group as slice `index`, of those that take part."""
        group = self.slices[index].group
        return [other for other in taking_part if self.slices[other].group == group]


def build_board(slices: Sequence[Slice], allocate: Allocate) -> Board:
    """The same calls in the same order give the same places in every process."""
    n_groups = 1 + max(one.group for one in slices)
    n_workers = 1 + max(one.worker for one in slices)

    def cells(n: int) -> list[Cell]:
        return [make_cell(allocate) for _ in range(n)]

    return Board(
        slices,
        Turns(cells(len(slices)), cells(n_groups)),
        Turns(cells(len(slices)), cells(n_groups)),
        cells(n_workers + 1),
        make_cell(allocate),
    )

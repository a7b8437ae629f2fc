"""`SlotView`: the columns of one slice in a slot, as the collection loop writes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.buffers.samples import FinalRegion, Slot
from headrace.buffers.tree import tree_leaves, tree_map, tree_rows
from headrace.types import Tree

__all__ = ["SlotView"]


class SlotView:
    """One slice of a slot with precomputed views of every row, so that a step does no slicing."""

    def __init__(self, slot: Slot, first_column: int) -> None:
        T = len(slot.reward)
        self.slot = slot
        self.first_column = first_column
        self.step_rows = [slot.step_row(t) for t in range(T)]
        self.actions = [tree_rows(slot.action, t) for t in range(T)]
        self.action_leaves = [tree_leaves(action) for action in self.actions]
        self.prev_action_leaves = [tree_leaves(tree_rows(slot.prev_action, t)) for t in range(T + 1)]
        self.prev_rewards = list(slot.prev_reward)
        self.rewards = list(slot.reward)
        self.is_first = list(slot.is_first)
        self._ends = {t: self._row(t) for t in (0, T)}

    def row(self, t: int) -> list[np.ndarray]:
        """Returns the arrays of row t that the loop carries from one batch to the next."""
        return self._ends[t] if t in self._ends else self._row(t)

    def _row(self, t: int) -> list[np.ndarray]:
        slot = self.slot
        return tree_leaves(tree_rows((slot.observation, slot.is_first, slot.prev_action, slot.prev_reward), t))

    def begin(self) -> None:
        """Sets the values that most cells of a batch have, so that a step writes only exceptions."""
        slot = self.slot
        slot.terminated[:] = False
        slot.truncated[:] = False
        slot.valid[:] = True
        slot.is_first[1:] = False

    def write_previous(self, n_rows: int, times: Sequence[int], columns: Sequence[int]) -> None:
        """Writes previous actions, previous rewards and is_first of rows 1 to `n_rows` at once.

        Args:
            n_rows: number of rows collected.
            times: `[N]`, time steps in which episodes ended.
            columns: `[N]`, columns of the slice in which they ended.
        """
        slot = self.slot
        starts = np.array(times, np.intp) + 1, np.array(columns, np.intp)
        slot.is_first[starts] = True
        previous, taken = tree_leaves((slot.prev_action, slot.prev_reward)), tree_leaves((slot.action, slot.reward))
        for to, value in zip(previous, taken, strict=True):
            to[1 : n_rows + 1] = value[:n_rows]
            to[starts] = 0

    def write_finals(
        self, times: Sequence[int], columns: Sequence[int], observations: Sequence[Tree]
    ) -> FinalRegion | None:
        """Writes the batch's ended episodes into the final region.

        Args:
            times: `[N]`, time steps in which episodes ended, in (time, column) order.
            columns: `[N]`, columns of the slice in which they ended.
            observations: trees of `[k, ...]` whose concatenation has the N final observations in that order.

        Returns:
            The entries that did not fit, without states; None if all did.
        """
        if not times:
            return None
        slot, region = self.slot, self.slot.final[0]
        time, column = np.array(times), np.array(columns)
        entries = FinalRegion(
            time=time,
            column=column + self.first_column,
            observation=tree_map(lambda *leaves: np.concatenate(leaves), *observations),
            prev_action=tree_rows(slot.action, (time, column)),
            prev_reward=slot.reward[time, column],
            state=None,
        )
        return region.fill(entries)

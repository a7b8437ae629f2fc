"""Reading transitions of up to n steps out of a ring."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from headrace.buffers.tree import tree_leaves, tree_map, tree_to_torch
from headrace.replays.base import Transitions
from headrace.replays.frames import stack_positions, stacks
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.rows import FIRST, TERMINATED, TRUNCATED
from headrace.types import StepInputs, Tree

__all__ = ["Gather"]


class Gather:
    """Copies transitions out; n-step returns are summed here, from the rewards as they were appended::

        return_ = Σ_{k<m} γ^k r_{t+k},   discount = γ^m, or 0 where the episode terminated

    with m = n, or less where the episode ended earlier (Sutton and Barto, "Reinforcement Learning", 2nd edition,
    equation 7.1). The sum never crosses the end of an episode.
    """

    def __init__(self, spec: ReplaySpec, ring: ReplayRing, n_step: int, discount: float) -> None:
        self._spec = spec
        self._n_step = n_step
        self._powers = discount ** np.arange(n_step + 1, dtype=np.float64)

        def by_place(leaf: np.ndarray) -> np.ndarray:
            return leaf.reshape(spec.size, *leaf.shape[2:])

        self._observation = tree_map(by_place, ring.observation)
        self._action = tree_map(by_place, ring.action)
        self._reward, self._flags, self._final = (by_place(leaf) for leaf in (ring.reward, ring.flags, ring.final))
        self._final_observation = ring.final_observation

    def __call__(self, index: np.ndarray) -> tuple[Transitions, np.ndarray]:
        """The transitions that start at `index`, int64 `[N]`, row · B + column; and the oldest row each was read from.

        What was overwritten meanwhile is not noticed here. Weights are 1.
        """
        B, size = self._spec.batch.B, self._spec.size
        is_first = (self._flags.take(index % size) & FIRST) != 0
        return_, n_steps, last = self._forward(index)
        flags = self._flags.take(last % size)
        terminated = (flags & TERMINATED) != 0
        truncated = ((flags & TRUNCATED) != 0) & ~terminated
        observation, oldest = self._observations(index)
        next_observation, _ = self._observations(np.where(terminated | truncated, last, last + B))
        self._put_finals(next_observation, truncated.nonzero()[0], last % size)
        before = (index - B) % size
        inputs = StepInputs(
            observation,
            tree_map(lambda leaf: _masked(_taken(leaf, before), is_first), self._action),
            _masked(self._reward.take(before), is_first),
            is_first,
        )
        last = last % size
        next_inputs = StepInputs(
            next_observation,
            tree_map(lambda leaf: _taken(leaf, last), self._action),
            self._reward.take(last),
            np.zeros_like(is_first),
        )
        transitions = Transitions(
            inputs=tree_to_torch(inputs),
            action=tree_to_torch(tree_map(lambda leaf: _taken(leaf, index % size), self._action)),
            return_=torch.from_numpy(return_.astype(np.float32)),
            next_inputs=tree_to_torch(next_inputs),
            discount=torch.from_numpy(_masked(self._powers[n_steps], terminated).astype(np.float32)),
            weights=torch.ones(len(index)),
            indices=index,
        )
        return transitions, np.minimum(oldest, np.where(is_first, index, index - B)) // B

    def _forward(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(float64 sums of rewards, numbers of steps m, index of the last step), each `[N]`."""
        B, size = self._spec.batch.B, self._spec.size
        return_, last = self._reward.take(index % size).astype(np.float64), index
        n_steps = np.ones(len(index), np.int64)
        goes_on = True
        for power in self._powers[1:-1]:
            goes_on = goes_on & ((self._flags.take(last % size) & (TERMINATED | TRUNCATED)) == 0)
            last = last + B * goes_on
            return_ += np.where(goes_on, power * self._reward.take(last % size), 0.0)
            n_steps += goes_on
        return return_, n_steps, last

    def _observations(self, index: np.ndarray) -> tuple[Tree, np.ndarray]:
        """(Observations `[N, ...]`, index of the oldest row each was made of)."""
        B, size = self._spec.batch.B, self._spec.size
        if not self._spec.frames:
            place = index % size
            return tree_map(lambda leaf: _taken(leaf, place), self._observation), index
        positions, blank = stack_positions(self._flags, index, self._spec.frames, B)
        return stacks(self._observation, positions % size, blank), positions[:, 0]

    def _put_finals(self, observation: Tree, rows: np.ndarray, last: np.ndarray) -> None:
        """Puts the final observations of the episodes that end at the places `last` into these rows."""
        if not len(rows):
            return
        slots = self._final.take(last[rows])
        if self._spec.frames:
            observation[rows, :-1] = observation[rows, 1:]
            observation[rows, -1] = _taken(self._final_observation, slots)
            return
        for to, finals in zip(tree_leaves(observation), tree_leaves(self._final_observation), strict=True):
            to[rows] = _taken(finals, slots)


def _taken(leaf: np.ndarray, place: np.ndarray) -> np.ndarray:
    """`leaf[place]`, `[N, ...]`, faster."""
    return np.take(leaf, place, axis=0)


def _masked(values: np.ndarray, mask: np.ndarray) -> Any:
    """Values `[N, ...]`, zero where the mask `[N]` is set; in place."""
    values[mask] = 0
    return values

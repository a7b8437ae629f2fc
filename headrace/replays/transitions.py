"""Reads transitions of up to n steps from a ring."""

from __future__ import annotations

import numpy as np
import torch

from headrace.buffers.tree import tree_leaves, tree_map, tree_to_torch
from headrace.replays.base import Transitions
from headrace.replays.frames import stack_positions, stacks
from headrace.replays.ring import FIRST, TERMINATED, TRUNCATED, ReplayRing, ReplaySpec
from headrace.replays.window import Starts, TransitionStarts
from headrace.types import StepInputs, Tree

__all__ = ["Gather"]

_ENDS = TERMINATED | TRUNCATED


class Gather:
    """Copies transitions out of a ring and sums their n-step returns from the rewards as they were appended::

        return_ = Σ_{k<m} γ^k r_{t+k},   discount = γ^m, or 0 where the episode terminated

    with m = n, or less where the episode ended earlier (Sutton and Barto, "Reinforcement Learning", 2nd edition,
    equation 7.1). The sum never crosses the end of an episode.
    """

    def __init__(self, spec: ReplaySpec, ring: ReplayRing, n_step: int, discount: float) -> None:
        if n_step < 1:
            raise ValueError(f"n_step must be at least 1, got {n_step}")
        self.starts: Starts = TransitionStarts(spec, n_step)
        self._B, self._size, self._frames = spec.batch.B, spec.size, spec.frames
        self._powers = discount ** np.arange(n_step + 1, dtype=np.float64)

        def by_place(leaf: np.ndarray) -> np.ndarray:
            return leaf.reshape(spec.size, *leaf.shape[2:])

        self._observation = tree_map(by_place, ring.observation)
        self._action = tree_map(by_place, ring.action)
        self._reward, self._flags, self._final = (by_place(leaf) for leaf in (ring.reward, ring.flags, ring.final))
        self._final_observation = ring.final_observation

    def __call__(self, index: np.ndarray, weights: np.ndarray) -> tuple[Transitions, np.ndarray]:
        """See `Reader`; index: int64 `[N]`, row · B + column of the first steps."""
        place = index % self._size
        begun = (self._flags.take(place) & FIRST) != 0
        before = index - self._B * ~begun  # at the first step of an episode the result is masked
        return_, discount, last = self._forward(place, index)
        last_place = last % self._size
        ends = self._flags.take(last_place) & _ENDS
        discount[(ends & TERMINATED) != 0] = 0
        observation, oldest = self._observations(index)
        next_observation, _ = self._observations(last + self._B * (ends == 0))
        self._put_finals(next_observation, (ends == TRUNCATED).nonzero()[0], last_place)
        before_place = before % self._size
        prev_action, prev_reward = self._actions(before_place), self._reward.take(before_place)
        for leaf in (*tree_leaves(prev_action), prev_reward):
            leaf[begun] = 0
        inputs = StepInputs(observation, prev_action, prev_reward, begun)
        last_action, last_reward = self._actions(last_place), self._reward.take(last_place)
        next_inputs = StepInputs(next_observation, last_action, last_reward, np.zeros_like(begun))
        transitions = Transitions(
            inputs=tree_to_torch(inputs),
            action=tree_to_torch(self._actions(place)),
            return_=torch.from_numpy(return_),
            next_inputs=tree_to_torch(next_inputs),
            discount=torch.from_numpy(discount),
            weights=torch.from_numpy(weights),
            indices=index,
        )
        return transitions, np.minimum(oldest, before)

    def put(self, drawn: Transitions, positions: np.ndarray, others: Transitions, chosen: np.ndarray) -> None:
        """See `Reader`."""
        for to, values in zip(tree_leaves(drawn), tree_leaves(others), strict=True):
            np.asarray(to)[positions] = np.asarray(values)[chosen]

    def _forward(self, place: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns Σ γ^k r_{t+k} (summed in float64), γ^m and the index of the last step, each `[N]`."""
        reward, last = self._reward.take(place), index
        if len(self._powers) == 2:
            return reward, np.full(len(index), self._powers[1], np.float32), last
        total, n_steps, goes_on = reward.astype(np.float64), np.ones(len(index), np.int64), np.True_
        for power in self._powers[1:-1]:
            goes_on = goes_on & ((self._flags.take(place) & _ENDS) == 0)
            last = last + self._B * goes_on
            place = last % self._size
            total += goes_on * (power * self._reward.take(place))
            n_steps += goes_on
        return total.astype(np.float32), self._powers.take(n_steps).astype(np.float32), last

    def _actions(self, place: np.ndarray) -> Tree:
        """Returns the actions at these positions, a tree of `[N, ...]`."""
        return _taken(self._action, place)

    def _observations(self, index: np.ndarray) -> tuple[Tree, np.ndarray]:
        """Returns the observations `[N, ...]` and the index of the oldest row that each was built from."""
        if not self._frames:
            return _taken(self._observation, index % self._size), index
        positions, blank = stack_positions(self._flags, index, self._frames, self._B)
        return stacks(self._observation, positions % self._size, blank), positions[:, 0]

    def _put_finals(self, observation: Tree, chosen: np.ndarray, last_place: np.ndarray) -> None:
        """Writes the final observations of the `chosen` transitions, whose episodes end at `last_place`."""
        if not len(chosen):
            return
        finals = _taken(self._final_observation, self._final.take(last_place[chosen]))
        if self._frames:
            observation[chosen, :-1] = observation[chosen, 1:]
            observation[chosen, -1] = finals
            return
        for to, values in zip(tree_leaves(observation), tree_leaves(finals), strict=True):
            to[chosen] = values


def _taken(tree: Tree, place: np.ndarray) -> Tree:
    """Returns `leaf[place]` of every leaf; `take` is faster than indexing."""
    return tree_map(lambda leaf: leaf.take(place, axis=0), tree)

"""Hindsight experience replay: sampled transitions get the goals that their episodes reached later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headrace.buffers.tree import tree_leaves
from headrace.config import checked_names
from headrace.memory import fence
from headrace.replays.base import Transitions
from headrace.replays.ring import FOLLOWS, TERMINATED, TRUNCATED, ReplayRing, ReplaySpec
from headrace.replays.transitions import Gather
from headrace.types import Tree

__all__ = ["GoalFunction", "HindsightConfig", "HindsightGather"]

_ENDS = TERMINATED | TRUNCATED

#: `compute_reward(achieved_goal, desired_goal, info)` of Gymnasium's goal environments, for many goals at once: takes
#: two arrays `[N, ...]` and an empty dict, returns an array `[N]`.
GoalFunction = Callable[[np.ndarray, np.ndarray, dict[str, Any]], Any]


@checked_names
@dataclass(frozen=True, kw_only=True)
class HindsightConfig:
    """The settings of hindsight experience replay; see `HindsightGather`.

    Args:
        compute_reward: returns the rewards of steps, float `[N]`, from the goals achieved after these steps and the
            desired ones, both `[N, ...]`, and an empty dict in the place of infos, which a replay does not hold. The
            method `compute_reward` of an environment with Gymnasium's interface for goals, if it is vectorized.
        compute_terminated: returns in the same way whether the episode terminates, bool `[N]`. None: steps terminate
            where they did with the goals that were desired.
        n_relabels: k, how many transitions have their goals replaced for each one that keeps its own, on average; with
            4, of 5 sampled transitions 4.
    """

    compute_reward: GoalFunction
    compute_terminated: GoalFunction | None = None
    n_relabels: int = 4

    def __post_init__(self) -> None:
        for name in ("compute_reward", "compute_terminated"):
            function = getattr(self, name)
            if not callable(function) and (name == "compute_reward" or function is not None):
                raise TypeError(
                    f"{name} must be a function of (achieved_goal, desired_goal, info), got {function!r}; it computes "
                    "all transitions of a batch at once"
                )
        if not self.n_relabels >= 1:
            raise ValueError(
                f"n_relabels must be at least 1, got {self.n_relabels}; for no new goals, leave out hindsight"
            )


class HindsightGather(Gather):
    """Copies transitions out of a ring, and replaces the goals of most by goals that were reached later.

    Andrychowicz et al., "Hindsight experience replay", 2017, with the strategy "future": the new goal of a transition
    is what the same episode achieved after a step drawn uniformly from the transition's first step and all later ones
    that the ring holds. Each transition gets a new goal with probability k / (1 + k). Rewards, also the previous one
    that the agent saw, are then computed for the new goal, and so is where the episode terminates if
    `compute_terminated` is given; an n-step return stops there.

    Observations are dicts with the keys "observation", "achieved_goal" and "desired_goal".

    Args:
        spec: layout of the ring, with `all_finals`, because the goal that the last step achieved is in the observation
            after it.
        ring: the memory to read.
        n_step: maximum number of steps of a transition.
        discount: γ per step.
        config: the settings.
        random: generator of the draws.

    Raises:
        ValueError: if observations have no goals, or the ring lacks final observations.
    """

    def __init__(
        self,
        spec: ReplaySpec,
        ring: ReplayRing,
        n_step: int,
        discount: float,
        config: HindsightConfig,
        random: np.random.Generator,
    ) -> None:
        super().__init__(spec, ring, n_step, discount)
        require_goals(spec.observation)
        if not spec.all_finals:
            raise ValueError(
                "hindsight needs the final observations of all episodes, and this replay keeps those of truncated "
                "ones; make it with all_finals=True"
            )
        self._config = config
        self._random = random
        self._share = config.n_relabels / (1 + config.n_relabels)
        self._ends = EpisodeEnds(spec, ring)
        self._n_step = n_step

    def __call__(self, index: np.ndarray, weights: np.ndarray) -> tuple[Transitions, np.ndarray]:
        """See `Gather`."""
        transitions, oldest = super().__call__(index, weights)
        chosen = (self._random.random(len(index)) < self._share).nonzero()[0]
        if len(chosen):
            self._relabel(transitions, chosen, index[chosen])
        return transitions, oldest

    def _relabel(self, transitions: Transitions, chosen: np.ndarray, index: np.ndarray) -> None:
        """Replaces the goals of the `chosen` transitions, int64 `[M]`, which start at `index`."""
        goal = self._achieved_after(self._later(index))
        reward, terminated, n_steps = self._steps(index, goal)
        last = index + self._B * (n_steps - 1)
        last_place = last % self._size
        ended = (self._flags.take(last_place) & _ENDS) != 0
        number, each = np.arange(self._n_step)[:, None], np.arange(len(index))
        total = (np.where(number < n_steps, reward, 0.0) * self._powers[:-1, None]).sum(axis=0)
        discount = np.where(terminated[n_steps - 1, each], 0.0, self._powers.take(n_steps))
        following, _ = self._observations(last + self._B * ~ended)
        self._put_finals(following, ended.nonzero()[0], last_place)

        inputs, next_inputs = transitions.inputs, transitions.next_inputs
        begun = _array(inputs.is_first)[chosen]
        before = self._reward_for(_array(inputs.observation["achieved_goal"])[chosen], goal)
        _array(inputs.prev_reward)[chosen] = np.where(begun, 0.0, before)
        _array(inputs.observation["desired_goal"])[chosen] = goal
        _array(transitions.return_)[chosen] = total
        _array(transitions.discount)[chosen] = discount
        _put(next_inputs.observation, chosen, following)
        _array(next_inputs.observation["desired_goal"])[chosen] = goal
        _put(next_inputs.prev_action, chosen, self._actions(last_place))
        _array(next_inputs.prev_reward)[chosen] = reward[n_steps - 1, each]

    def _later(self, index: np.ndarray) -> np.ndarray:
        """Draws, for each step, it or a later step of the same episode, after which the observation is known."""
        last = self._ends.last(index)
        ended = (self._flags.take(last % self._size) & _ENDS) != 0
        n_steps = (last - index) // self._B + ended
        drawn: np.ndarray = index + self._B * (self._random.random(len(index)) * n_steps).astype(np.int64)
        return drawn

    def _steps(self, index: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns rewards and ends of the steps from `index`, int64 `[M]`, on, for other goals.

        Args:
            index: the first steps.
            goal: `[M, ...]`.

        Returns:
            Rewards, float64 `[n_step, M]`, and terminations, bool `[n_step, M]`, repeated after the end of the recorded
            episode; and the number of steps until the first termination or end, int64 `[M]`.
        """
        compute = self._config.compute_terminated
        shape, step = (self._n_step, len(index)), index
        rewards, terminations = np.zeros(shape), np.zeros(shape, np.bool_)
        n_steps, goes_on = np.zeros(len(index), np.int64), np.ones(len(index), np.bool_)
        for number in range(self._n_step):
            achieved, flags = self._achieved_after(step), self._flags.take(step % self._size)
            rewards[number] = self._reward_for(achieved, goal)
            if compute is None:
                terminations[number] = (flags & TERMINATED) != 0
            else:
                terminations[number] = _checked(compute(achieved, goal, {}), "compute_terminated", len(goal))
            n_steps += goes_on
            ended = (flags & _ENDS) != 0
            goes_on &= ~(ended | terminations[number])
            step = step + self._B * ~ended
        return rewards, terminations, n_steps

    def _achieved_after(self, step: np.ndarray) -> np.ndarray:
        """Returns the goals achieved after these steps, `[M, ...]`: those of the observations that follow."""
        place = step % self._size
        ended = (self._flags.take(place) & _ENDS) != 0
        goals: np.ndarray = self._observation["achieved_goal"].take((step + self._B * ~ended) % self._size, axis=0)
        finals = self._final.take(place[ended])
        goals[ended] = self._final_observation["achieved_goal"].take(finals, axis=0)
        return goals

    def _reward_for(self, achieved: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return _checked(self._config.compute_reward(achieved, goal, {}), "compute_reward", len(goal))


class EpisodeEnds:
    """Keeps track of the last step of each episode in a ring, in the reader's own memory.

    Args:
        spec: layout of the ring.
        ring: the memory to read.
    """

    def __init__(self, spec: ReplaySpec, ring: ReplayRing) -> None:
        self._spec, self._ring = spec, ring
        self._flags = ring.flags.reshape(spec.size)
        # What is left from a row that was overwritten is smaller than the index of the row that replaced it.
        self._last = np.full(spec.size, -1, np.int64)
        self._begin = np.zeros(spec.batch.B, np.int64)  # row in which the latest episode of each column begins
        self._cursor = 0
        self._lock = threading.Lock()

    def last(self, index: np.ndarray) -> np.ndarray:
        """Returns the last known step of the episode of each step: int64 `[N]`, row · B + column, as `index`."""
        self._update()
        last, B = self._last.take(index % self._spec.size), self._spec.batch.B
        newest = (self._cursor - 1) * B + index % B
        found: np.ndarray = np.where(last < index, newest, last)
        return found

    def _update(self) -> None:
        """Accounts for the rows that were appended since the last call.

        Rows that the writer overwrites meanwhile are read wrongly. This changes nothing for the rows that stay.
        """
        cursor: int = self._ring.cursor[0]
        if cursor == self._cursor:
            return
        fence(self._lock)
        oldest: int = self._ring.oldest[0]
        first, B = max(self._cursor, oldest), self._spec.batch.B
        self._cursor = cursor
        self._begin = np.maximum(self._begin, oldest)  # so that no more is written than the ring holds
        if first >= cursor:
            return
        follows = (self._ring.flags[np.arange(first, cursor) % self._spec.n_rows] & FOLLOWS) != 0
        column, row = (~follows.T).nonzero()  # where episodes, or padding, begin, by column
        if not len(row):
            return
        row = row + first
        # What was before each of them begins where the one before it in its column does, or at `_begin`.
        begin = np.where(np.diff(column, prepend=-1) == 0, np.roll(row, 1), self._begin[column])
        length = np.maximum(row - begin, 0)
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        index = np.repeat(begin * B + column, length) + within * B
        self._last[index % self._spec.size] = np.repeat((row - 1) * B + column, length)
        np.maximum.at(self._begin, column, row)


def require_goals(observation: Tree) -> None:
    """Raises ValueError if an example of an observation has no goals to replace, with what is missing."""
    needed = ("observation", "achieved_goal", "desired_goal")
    if not isinstance(observation, dict) or not observation.keys() >= set(needed):
        came = f"a Dict with {sorted(observation)}" if isinstance(observation, dict) else "no Dict"
        missing = [key for key in needed if not isinstance(observation, dict) or key not in observation]
        raise ValueError(
            f"hindsight needs a Dict observation space with {', '.join(needed)}; this one is {came} and lacks "
            f"{', '.join(missing)}: leave out hindsight, or give the environment these keys"
        )
    achieved, desired = observation["achieved_goal"], observation["desired_goal"]
    alike = [
        f"{goal.dtype} {list(goal.shape)}" if isinstance(goal, np.ndarray) else "a tree" for goal in (achieved, desired)
    ]
    if alike[0] != alike[1] or "a tree" in alike:
        raise ValueError(
            f"hindsight needs achieved_goal and desired_goal to be arrays of one shape and dtype, got {alike[0]} and "
            f"{alike[1]}; make them alike in the environment's observation space"
        )


def _checked(computed: Any, name: str, n: int) -> np.ndarray:
    """Returns what a function of the user computed for n goals, `[n]`; raises ValueError if it has another shape."""
    values = np.asarray(computed)
    if values.shape != (n,):
        raise ValueError(
            f"{name} returned {values.dtype} {list(values.shape)} for goals [{n}, ...], expected [{n}]; it must "
            "compute all transitions at once, for example with numpy.linalg.norm(achieved - desired, axis=-1)"
        )
    return values


def _array(leaf: torch.Tensor) -> np.ndarray:
    """Returns the memory of a tensor as an array."""
    array: np.ndarray = leaf.numpy()
    return array


def _put(tree: Tree, chosen: np.ndarray, values: Tree) -> None:
    """Replaces the `chosen` rows of every leaf, a tensor."""
    for to, these in zip(tree_leaves(tree), tree_leaves(values), strict=True):
        _array(to)[chosen] = these

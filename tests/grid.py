"""A small grid world in which the values of all states are known: they depend on the distance to the goal."""

from typing import Any

import gymnasium as gym
import numpy as np

_MOVES = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])


class GridWorld(gym.Env[np.ndarray, np.int64]):
    """Five by five cells; episodes start in a random cell, end in the last one, and are truncated after 100 steps.

    goal: reward of the step that reaches the last cell; step: reward of all other steps.
    """

    SIZE = 5

    def __init__(self, goal: float = 1.0, step: float = -0.01) -> None:
        self.observation_space = gym.spaces.Box(0.0, self.SIZE - 1.0, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(len(_MOVES))
        self._goal, self._step = goal, step

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._n = 0
        self._cell = np.array(divmod(int(self.np_random.integers(self.SIZE**2 - 1)), self.SIZE))
        return self._cell.astype(np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._n += 1
        self._cell = np.clip(self._cell + _MOVES[action], 0, self.SIZE - 1)
        arrived = bool((self._cell == self.SIZE - 1).all())
        observation, reward = self._cell.astype(np.float32), self._goal if arrived else self._step
        return observation, reward, arrived, not arrived and self._n == 100, {}


def large_rewards() -> GridWorld:
    """Makes a grid world with returns of 2 to 10, so that their differences matter."""
    return GridWorld(goal=10.0, step=-1.0)

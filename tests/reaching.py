"""An environment with Box actions whose best action is known. Loads no torch."""

from typing import Any

import gymnasium as gym
import numpy as np

__all__ = ["HIGH", "LOW", "Reach", "best"]

#: Bounds that are neither symmetric nor equal.
LOW, HIGH = np.array([1.0, -3.0], np.float32), np.array([5.0, -2.0], np.float32)


def best(x: np.ndarray) -> np.ndarray:
    """The best action where the observation is `x`: 0.8 x of the way from the middle to the bounds."""
    return 0.5 * (LOW + HIGH) + 0.4 * (HIGH - LOW) * x


class Reach(gym.Env[np.ndarray, np.ndarray]):
    """The reward of a step is 1 minus the squared distance from the best action, in units of the bounds.

    Args:
        terminates: whether episodes terminate or are truncated, after five steps.
    """

    def __init__(self, terminates: bool = True) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gym.spaces.Box(LOW, HIGH, dtype=np.float32)
        self._terminates = terminates

    def _drawn(self) -> np.ndarray:
        self._x = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self._x.copy()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._n = 0
        return self._drawn(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._n += 1
        off = (action - best(self._x)) / (0.5 * (HIGH - LOW))
        ends = self._n == 5
        return self._drawn(), 1.0 - float(np.square(off).sum()), ends and self._terminates, ends, {}

"""Environments in a module that imports nothing heavy, for interpreters that import it: workers that are not forked,
and the interpreter that tries copies of environments.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from tests.walk import Walk


class Light(gym.Env[np.ndarray, np.int64]):
    """Random observations and episodes of five steps; reports whether torch is loaded in its process."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._n = 0
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._n += 1
        return self.np_random.normal(size=2).astype(np.float32), 1.0, self._n == 5, False, {}

    def torch_is_loaded(self) -> bool:
        return "torch" in sys.modules


class Counts(gym.Env[Any, Any]):
    """Observations are four stacked frames, each filled with the number of a step; episodes have 30 to 45 steps."""

    observation_space = gym.spaces.Box(0, 255, (4, 1), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._n, self._limit = 0, int(self.np_random.integers(30, 45))
        return self._stack(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._n += 1
        return self._stack(), 1.0, self._n == self._limit, False, {}

    def _stack(self) -> np.ndarray:
        return np.maximum(0, np.arange(self._n - 3, self._n + 1)).astype(np.uint8)[:, None]


class Peaks(Walk):
    """With a peak, every step takes some time, and only episode number `peak` has rewards."""

    def __init__(self, peak: int = 0) -> None:
        super().__init__()
        self._peak, self._resets = peak, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._resets += 1
        return super().reset(seed=seed)

    def step(self, action: np.int64) -> Any:
        observation, reward, *rest = super().step(action)
        if self._peak:
            time.sleep(0.02)
            reward = float(self._resets == self._peak)
        return observation, reward, *rest


class Numbered(gym.Env[np.ndarray, np.int64]):
    """Observes the number of its episode and the step; the reward is the step. Truncated after 3 to 14 steps or
    terminated at random.
    """

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._number, self._n, self._limit = self.np_random.random(), 0, int(self.np_random.integers(3, 15))
        return np.array([self._number, 0], np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._n += 1
        over = bool(self.np_random.random() < 0.05)
        return np.array([self._number, self._n], np.float32), float(self._n), over, self._n >= self._limit, {}


class Signal(gym.Env[np.ndarray, np.int64]):
    """Gives a reward of 1 for the action that the observation names. Episodes have 5 steps; every other one is
    truncated.
    """

    def __init__(self, length: int = 5) -> None:
        self.observation_space = gym.spaces.Box(0.0, 1.0, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(3)
        self._length, self._episode = length, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._n, self._episode = 0, self._episode + 1
        return self._show(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, self._n = float(action == self._wanted), self._n + 1
        ended = self._n == self._length
        return self._show(), reward, ended and self._episode % 2 == 0, ended and self._episode % 2 == 1, {}

    def _show(self) -> np.ndarray:
        self._wanted = int(self.np_random.integers(3))
        return np.eye(3, dtype=np.float32)[self._wanted]


class Pays(Walk):
    """Episodes of 4 steps whose return is a function of the number of the episode, given by a schedule."""

    def __init__(self, returns: Sequence[float]) -> None:
        super().__init__()
        self._returns, self._episode = returns, -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, _ = super().reset(seed=seed)
        self._episode += 1
        self._left = 4
        return observation, {}

    def step(self, action: Any) -> Any:
        self._left -= 1
        pay = self._returns[min(self._episode, len(self._returns) - 1)]
        return super().step(action)[0], pay / 4, self._left == 0, False, {}


class Breaks(Walk):
    """Raises in its 50th step."""

    steps = 0

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 50:
            raise RuntimeError("out of coffee")
        return super().step(action)


class Wanders(Walk):
    """Changes the working directory."""

    def reset(self, **more: Any) -> Any:
        os.chdir("/")
        return super().reset(**more)

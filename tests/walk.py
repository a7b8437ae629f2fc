"""A stochastic environment whose observations depend on the actions, the order of resets and its seed."""

import os
from typing import Any

import gymnasium as gym
import numpy as np
import psutil


class Walk(gym.Env[np.ndarray, np.int64]):
    """A random walk pushed by the action; terminates at random, truncated after 3 to 14 steps."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._x = self.np_random.normal(size=3).astype(np.float32)
        self._n, self._limit = 0, int(self.np_random.integers(3, 15))
        return self._x.copy(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._n += 1
        push = 0.3 * (int(action) - 1)
        self._x = (0.9 * self._x + push + self.np_random.normal(size=3)).astype(np.float32)
        terminated = bool(self.np_random.random() < 0.05)
        return self._x.copy(), float(self._x.sum()), terminated, self._n >= self._limit, {"n": self._n}


class Named(Walk):
    """Knows its process, and may start a program."""

    @property
    def pid(self) -> int:
        return os.getpid()

    def start_program(self) -> int:
        return psutil.Popen(["sleep", "1000"]).pid


class Wide(Named):
    """Has observations, and therefore parameters, that are large enough for Ray's object store. Infos of resets name
    the process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (512,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.resize(super().reset(seed=seed)[0], 512), {"pid": self.pid}

    def step(self, action: np.int64) -> Any:
        observation, *rest = super().step(action)
        return np.resize(observation, 512), *rest

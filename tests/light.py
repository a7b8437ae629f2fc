"""An environment whose module loads nothing heavy, and which tells what else was loaded beside it."""

import sys
from typing import Any

import gymnasium as gym
import numpy as np


class Light(gym.Env[np.ndarray, np.int64]):
    """Random observations, episodes of five steps."""

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

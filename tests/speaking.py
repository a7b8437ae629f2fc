"""Environments whose observations have no fixed shape."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

__all__ = ["Missions", "Speaks"]

WORDS = ("go", "open the door", "pick up 2 keys")


class Missions(spaces.Space[str]):
    """A space of strings that is not Gymnasium's Text, like that of MiniGrid."""

    def __init__(self) -> None:
        super().__init__(dtype=str)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return str(self.np_random.choice(WORDS))

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)


class Speaks(gym.Env[Any, Any]):
    """Observations with a text, a sequence of tools and a position; episodes have 7 steps."""

    def __init__(self, words: bool = True) -> None:
        tool = spaces.Dict({"size": spaces.Box(1.0, 2.0, (2,), np.float32), "kind": spaces.Discrete(3, start=1)})
        parts: dict[str, spaces.Space[Any]] = {
            "here": spaces.Box(-9, 9, (1,), np.float32),
            "mission": Missions(),
            "bag": spaces.Dict({"tools": spaces.Sequence(tool), "label": spaces.Text(5, charset="cba")}),
            "path": spaces.Tuple((spaces.Discrete(2), spaces.Sequence(spaces.Discrete(4), stack=True))),
        }
        self.observation_space = spaces.Dict(parts) if words else spaces.Dict({"here": parts["here"]})
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n += 1
        return self._observation(), float(action), self.n == 7, False, {}

    def _observation(self) -> Any:
        k = int(self.np_random.integers(4))
        sizes = self.np_random.uniform(1, 2, (k, 2)).astype(np.float32)
        return {
            "here": np.array([self.n], np.float32),
            "mission": WORDS[k % 3],
            "bag": {"tools": tuple({"size": size, "kind": 1 + k % 3} for size in sizes), "label": "abc"[:k]},
            "path": (k % 2, np.arange(k)),
        }

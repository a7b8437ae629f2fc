"""Environments of the old gym package and of its older four-value API, and the same environments for Gymnasium."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from headrace.envs.legacy_gym import import_gym

gym: Any = import_gym()

LIMIT = 9


class OldWalk(gym.Env):  # type: ignore[misc]
    """A random walk that ends at random, in the API before 0.26: `seed()`, four values from `step`, a time limit."""

    def __init__(self, start: int = 0) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(3, start=start)
        self._random = np.random.default_rng()
        self.seeds: list[int | None] = []
        self.drawings: list[str] = []
        self.closed = 0

    def seed(self, seed: int | None = None) -> list[int | None]:
        self.seeds.append(seed)
        self._random = np.random.default_rng(seed)
        return [seed]

    def reset(self) -> np.ndarray:
        self._n = 0
        self._x = self._random.normal(size=3).astype(np.float32)
        return self._x.copy()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        self._n += 1
        push = 0.3 * int(action) + 0.01 * int(self.action_space.sample())
        self._x = (0.9 * self._x + push + self._random.normal(size=3)).astype(np.float32)
        done, info = bool(self._random.random() < 0.08), {}
        if self._n == LIMIT:
            info["TimeLimit.truncated"] = not done
            done = True
        return self._x.copy(), float(self._x.sum()), done, info

    def render(self, mode: str = "human") -> str:
        self.drawings.append(mode)
        return f"drawn for {mode}"

    def close(self) -> None:
        self.closed += 1


class NewWalk(gymnasium.Env[np.ndarray, np.int64]):
    """The same walk, written for Gymnasium."""

    def __init__(self, start: int = 0) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3, start=start)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._n = 0
        self._x = self.np_random.normal(size=3).astype(np.float32)
        return self._x.copy(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._n += 1
        push = 0.3 * int(action) + 0.01 * int(self.action_space.sample())
        self._x = (0.9 * self._x + push + self.np_random.normal(size=3)).astype(np.float32)
        terminated = bool(self.np_random.random() < 0.08)
        truncated = self._n == LIMIT and not terminated
        info = {"TimeLimit.truncated": truncated} if self._n == LIMIT else {}
        return self._x.copy(), float(self._x.sum()), terminated, truncated, info


class Scripted(gym.Env):  # type: ignore[misc]
    """Returns given results from `reset` and `step`."""

    def __init__(
        self,
        first: Any,
        answer: Any,
        observation_space: Any = None,
        action_space: Any = None,
    ) -> None:
        self.observation_space = observation_space or gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = action_space or gym.spaces.Discrete(2)
        self._first, self._answer = first, answer

    def reset(self) -> Any:
        return self._first

    def step(self, action: Any) -> Any:
        return self._answer


class LookAlikeBox:
    """A space of a package that defines its own `Box`."""

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        self.low, self.high = np.array(low, np.float32), np.array(high, np.float32)
        self.shape, self.dtype = self.low.shape, self.low.dtype


class Box(LookAlikeBox):
    pass


class Discrete:
    def __init__(self, n: int) -> None:
        self.n = n


class LookAlike:
    """Has the older API, but is not derived from a class of gym."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = Box([-1, -1], [1, 1]), Discrete(2)
        self._n = 0

    def reset(self) -> np.ndarray:
        self._n = 0
        return np.zeros(2, np.float32)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        self._n += 1
        return np.full(2, self._n / 4, np.float32), float(action), self._n == 4, {}

    def render(self, mode: str = "human") -> str:
        return mode

    def close(self) -> None:
        pass


class Parallel(gym.spaces.Space):  # type: ignore[misc]
    """A space that only its own package has."""


class Unseeded(OldWalk):
    """Has no `seed` method; the walk is always the same."""

    seed = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self._random = np.random.default_rng(5)


class Endless(OldWalk):
    """Has no time limit of its own."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        self._n = -1
        return super().step(action)


class Joypad(gym.Wrapper):  # type: ignore[misc]
    """A wrapper like that of nes-py: its `reset` takes no seed, even if that of the environment does."""

    def reset(self) -> Any:
        return self.env.reset()

    def step(self, action: Any) -> Any:
        return self.env.step(action)


class TakesSeed(OldWalk):
    """`reset` takes a seed and returns only an observation, `step` returns four values, as in nes-py 8."""

    def reset(self, seed: int | None = None, options: Any = None) -> np.ndarray:
        if seed is not None:
            self.seed(seed)
        return super().reset()


class Interop(gym.Env):  # type: ignore[misc]
    """Like procgen as gym3 adapts it: `env` and `unwrapped` are objects of another kind, which cannot be reset."""

    def __init__(self) -> None:
        self.env, self._walk = object(), OldWalk()
        self.observation_space, self.action_space = self._walk.observation_space, self._walk.action_space

    @property
    def unwrapped(self) -> Any:
        return self.env

    def reset(self) -> Any:
        return self._walk.reset()

    def step(self, action: Any) -> Any:
        return self._walk.step(action)

    def close(self) -> None:
        self._walk.close()


gym.register("tests/Endless-v0", Endless, max_episode_steps=LIMIT)
gym.register("tests/Unseeded-v0", Unseeded, max_episode_steps=LIMIT)
gym.register("tests/Compatible-v0", Unseeded, max_episode_steps=LIMIT, apply_api_compatibility=True)

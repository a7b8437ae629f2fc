"""Vector environments for tests: Gymnasium's own around single environments, and one with an invalid result."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from headrace.envs import VectorEnvs
from tests.environments import BOX3, SEED, numbers_of

Answer = tuple[Any, ...]

MODES = ["NEXT_STEP", "SAME_STEP", "DISABLED"]


def side_by_side(
    num_envs: int, make: Callable[..., gym.Env[Any, Any]], mode: str, own: dict[str, Any] | None = None
) -> VectorEnv[Any, Any, Any]:
    """Makes Gymnasium's SyncVectorEnv of `make(**own)`, which returns the same arrays again and again."""
    single = [lambda: make(**(own or {}))] * num_envs
    return SyncVectorEnv(single, copy=False, autoreset_mode=AutoresetMode[mode])


def in_processes(
    num_envs: int, make: Callable[..., gym.Env[Any, Any]], own: dict[str, Any]
) -> VectorEnv[Any, Any, Any]:
    """Makes Gymnasium's AsyncVectorEnv of `make(**own)`, which resets nothing by itself."""
    return AsyncVectorEnv([lambda: make(**own)] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


#: Actions of `World`.
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete from 2": spaces.Discrete(3, start=2),
    "continuous": spaces.Box(np.array([-1, 0], np.float32), np.array([3, 1], np.float32)),
}

#: What `World` offers in its info at every step; there is "fell" besides, where it did.
WORLD_INFO = {"age": ("int32", ()), "pair": ("float32", (2,)), "odd": ("bool", ())}


class World(gym.Env[Any, Any]):
    """Dict observations, random ends of both kinds, rewards that are often 0; a seed restarts all of it.

    deaf: actions have no effect. Episodes have 1 to 9 steps.
    """

    def __init__(self, action_space: spaces.Space[Any], deaf: bool = False) -> None:
        self.observation_space = spaces.Dict(
            {
                "x": spaces.Box(-np.inf, np.inf, (3,), np.float32),
                "image": spaces.Box(0, 255, (2, 4), np.uint8),
                "gear": spaces.Discrete(4, start=1),
            }
        )
        self.action_space = deepcopy(action_space)
        self._deaf = deaf
        self.lengthening = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._age, self._length = 0, int(self.np_random.integers(1, 10)) + self.lengthening
        self._x = np.zeros(3)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._age += 1
        push = 0.0 if self._deaf else float(np.sum(action))
        self._x = 0.5 * self._x + push + self.np_random.normal(size=3)
        fell = bool(self.np_random.random() < 0.1)
        reward = float(self._x.sum()) if self.np_random.random() < 0.7 else 0.0
        info: dict[str, Any] = {"age": self._age, "pair": self._x[:2].astype(np.float32), "odd": bool(self._age % 2)}
        if fell:
            info["fell"] = 1.5
        return self._observation(), reward, fell, self._age == self._length, info

    def lengthen(self, steps: int) -> tuple[str, int]:
        """Makes later episodes longer."""
        self.lengthening += steps
        return "longer by", self.lengthening

    def fail(self) -> None:
        """Raises."""
        raise ValueError("the simulator is unhappy")

    def _observation(self) -> dict[str, Any]:
        image = self.np_random.integers(0, 256, (2, 4), np.uint8)
        return {"x": self._x.astype(np.float32), "image": image, "gear": np.int64(1 + image[0, 0] % 4)}


class Steady(gym.Env[np.ndarray, np.int64]):
    """Observations are (number, age, sum of the actions). Nothing is random, and a reset clears everything but the
    number.

    Environment k has episodes of 3 + k % 4 steps, which end by truncation if k is odd.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(3)
        self._numbers = numbers_of(SEED)
        self._number = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self._number = self._numbers[seed]
        self._age = self._sum = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._age += 1
        self._sum += int(action)
        ended, odd = self._age == 3 + self._number % 4, self._number % 2 == 1
        return self._observation(), self._age + int(action) / 4, ended and not odd, ended and odd, {"age": self._age}

    def _observation(self) -> np.ndarray:
        return np.array([self._number, self._age, self._sum], np.float32)


#: What a string can name.
CARTPOLES = VectorEnvs("CartPole-v1")

#: Calls of `step` and `reset`, from 1, that a moment means.
INVALID_CALLS = {"reset": 1, "late reset": 2, "step": 6, "end": 3}


class InvalidOnceVector(VectorEnv[Any, Any, Any]):
    """A valid vector environment, except for one result of the one that contains environment number `invalid_env`.

    Column r ends in steps 5 − r, 10 − r, … of the vector environment. change: see `tests.environments.InvalidOnce`; at:
    "constructor", "reset" (the first), "late reset" (the second), "step" (the 6th, in which none ends), "end" (the 3rd,
    in which only column 2 ends) or "close". `stepped`: the observations of its steps.
    """

    def __init__(
        self,
        num_envs: int,
        change: Callable[[list[Any]], Any] = tuple,
        at: str = "step",
        mode: Any = AutoresetMode.SAME_STEP,
        invalid_env: int = 2,
        observation_space: spaces.Space[Any] = BOX3,
        info: dict[str, Any] | None = None,
        made: list[Any] | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = deepcopy(observation_space), spaces.Discrete(2)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self._mode, self._change, self._at, self._invalid_env = mode, change, at, invalid_env
        self._info = {} if info is None else info
        self._numbers: Sequence[int] = []
        self._steps = self._resets = 0
        self._ended = np.zeros(num_envs, np.bool_)
        self.closes = 0
        self.stepped: list[Any] = []
        if at == "constructor":
            change([])
        if made is not None:
            made.append(self)

    def reset(self, *, seed: Any = None, options: Any = None) -> Answer:
        if seed is not None and options is None:
            self.observation_space.seed(seed[0])
            self._numbers = [numbers_of(SEED)[one] for one in seed]
        self._resets += 1
        call = self._at if self._at.endswith("reset") else "reset"
        return self._answer([self.observation_space.sample(), {}], call, self._resets)

    def step(self, actions: Any) -> Answer:
        self._steps += 1
        ends = (self._steps + np.arange(self.num_envs)) % 5 == 0
        info = dict(self._info)
        if self._mode is AutoresetMode.SAME_STEP and ends.any():
            info |= {"final_obs": self.observation_space.sample(), "_final_obs": ends.copy()}
        never = np.zeros(self.num_envs, np.bool_)
        self.stepped.append(self.observation_space.sample())
        answer = [self.stepped[-1], np.ones(self.num_envs), ends, never, info]
        return self._answer(answer, "end" if self._at == "end" else "step", self._steps)

    def close(self, **kwargs: Any) -> None:
        self.closes += 1
        if self._at == "close" and self._invalid_env in self._numbers:
            self._change([])

    def per_row(self) -> tuple[int, ...]:
        """Returns one result for each column."""
        return tuple(10 * number for number in self._numbers)

    def whole(self, word: str) -> tuple[str, int, int]:
        """Returns one result for all columns, in three parts."""
        return word, self.num_envs, 0

    def _answer(self, answer: list[Any], call: str, count: int) -> Answer:
        applies = self._invalid_env in self._numbers and self._at == call and count == INVALID_CALLS[call]
        changed: Answer = self._change(answer) if applies else tuple(answer)
        return changed

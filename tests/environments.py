"""Environments for tests. Each finds its number from the seed of its first reset, so it acts alike in any sampler."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from headrace.rng import Stream, env_seeds

#: The seed most tests give to samplers.
SEED = 5

Answer = tuple[Any, ...]


def numbers_of(seed: int, count: int = 64) -> dict[int, int]:
    """Returns the number of an environment by the seed of its first reset: k for env id k, 1000 + k in evaluations."""
    train = {env_seeds(seed, env_id)[0]: env_id for env_id in range(count)}
    return train | {env_seeds(seed, env_id, Stream.EVAL_ENV)[0]: 1000 + env_id for env_id in range(count)}


class EpisodeStep(gym.Env[np.ndarray, np.int64]):
    """The observation is (episode, step), both from 0. Nothing is random; all numbers are exact in float32.

    lengths: the episodes of environment k have the lengths `lengths[k % len(lengths)]`, repeated. Episode e of
    environment k ends with `ENDS[(e + k) % 3]`. The reward is 10 · episode + step − 1 + action / 4 of the step taken.
    """

    ENDS = ((True, False), (False, True), (True, True))

    def __init__(self, lengths: Sequence[Sequence[int]] = ((3, 5),), seed: int = SEED, n_actions: int = 3) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(n_actions)
        self._lengths, self._numbers = lengths, numbers_of(seed)
        self._episode, self._step = -1, 0
        self.number = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            assert self.number == -1, "seeded twice"
            self.number = self._numbers[seed]
        self._episode, self._step = self._episode + 1, 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = 10 * self._episode + self._step - 1 + int(action) / 4
        self._step += 1
        lengths = self._lengths[self.number % len(self._lengths)]
        ended = self._step == lengths[self._episode % len(lengths)]
        assert self._step <= lengths[self._episode % len(lengths)], "stepped after its end"
        terminated, truncated = self.ENDS[(self._episode + self.number) % 3] if ended else (False, False)
        return self._observation(), reward, terminated, truncated, self._info()

    def _observation(self) -> np.ndarray:
        return np.array([self._episode, self._step], np.float32)

    def _info(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "pair": np.array([self._episode, self._step], np.float32),
            "odd": bool(self._step % 2),
        }


#: What `EpisodeStep` offers in its info.
EPISODE_STEP_INFO = {"number": ("int32", ()), "pair": ("float32", (2,)), "odd": ("bool", ())}


class Stochastic(gym.Env[np.ndarray, np.int64]):
    """Observations, rewards and lengths are random, all from `self.np_random`; observations include a digest of all
    actions.
    """

    def __init__(self, longest: int = 12) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(4)
        self._longest = longest
        self._digest = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, self._longest + 1))
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        self._digest = 0.5 * self._digest + float(action)
        fell = bool(self.np_random.random() < 0.05)
        return self._observation(), float(self.np_random.normal()), fell, self._left == 0, {"left": self._left}

    def _observation(self) -> np.ndarray:
        noise = self.np_random.normal(size=2)
        return np.array([*noise, self._digest], np.float32)


#: One of each kind of space a batch can hold, and nests of them.
SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-2.0, 3.0, (3,), np.float32),
    "box float64": spaces.Box(-2.0, 3.0, (2,), np.float64),
    "box scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "image": spaces.Box(0, 255, (2, 4, 3), np.uint8),
    "discrete": spaces.Discrete(5),
    "discrete from 7": spaces.Discrete(3, start=7),
    "discrete from -2": spaces.Discrete(4, start=-2),
    "multi-discrete": spaces.MultiDiscrete([3, 5]),
    "multi-discrete from 1 and -4": spaces.MultiDiscrete([3, 5], start=[1, -4]),
    "multi-discrete matrix": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary matrix": spaces.MultiBinary((2, 3)),
    "dict": spaces.Dict({"position": spaces.Box(-1, 1, (2,), np.float32), "gear": spaces.Discrete(4, start=1)}),
    "dict with an empty part": spaces.Dict({"none": spaces.Box(-1, 1, (0,), np.float32), "gear": spaces.Discrete(4)}),
    "tuple": spaces.Tuple((spaces.MultiBinary(2), spaces.Box(-1, 1, (2,), np.float32))),
    "nested": spaces.Dict(
        {
            "camera": spaces.Tuple((spaces.Box(0, 255, (2, 2), np.uint8), spaces.Discrete(3))),
            "body": spaces.Dict({"joints": spaces.Box(-1, 1, (3,), np.float32), "modes": spaces.MultiDiscrete([2, 2])}),
        }
    ),
}

#: Spaces without a fixed shape.
SHAPELESS: dict[str, spaces.Space[Any]] = {
    "Text": spaces.Text(5),
    "Graph": spaces.Graph(spaces.Box(0, 1, (2,), np.float32), None),
    "Sequence": spaces.Sequence(spaces.Discrete(3)),
    "Text in a Dict": spaces.Dict({"word": spaces.Text(5), "x": spaces.Discrete(2)}),
    "Sequence in a Tuple": spaces.Tuple((spaces.Discrete(2), spaces.Sequence(spaces.Discrete(3)))),
}


class AnySpaces(gym.Env[Any, Any]):
    """Samples its observations from its space; keeps the observations and the actions. Episodes have 4 steps."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], made: list[Any] | None = None
    ) -> None:
        self.observation_space, self.action_space = deepcopy(observation_space), deepcopy(action_space)
        self.shown: list[Any] = []
        self.actions: list[Any] = []
        self.closed = 0
        if made is not None:
            made.append(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        self._steps = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self._steps += 1
        return self._show(), 1.0, self._steps == 4, False, {}

    def close(self) -> None:
        self.closed += 1

    def _show(self) -> Any:
        self.shown.append(self.observation_space.sample())
        return self.shown[-1]


class Varied(AnySpaces):
    """`AnySpaces` with random rewards; episodes of 1 to 7 steps, terminated or truncated at random."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        gym.Env.reset(self, seed=seed)
        self._left = int(self.np_random.integers(1, 8))
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        observation, *_ = super().step(action)
        cut = bool(self.np_random.random() < 0.5)
        ended = self._left == 0
        return observation, float(self.np_random.normal()), ended and not cut, ended and cut, {}


BOX3 = spaces.Box(-np.inf, np.inf, (3,), np.float32)


#: The count of the step, or of the reset, that a moment means.
INVALID_STEPS = {"step": 7, "first step": 1, "end": 5}
INVALID_RESETS = {"reset": 1, "late reset": 2}


class InvalidOnce(gym.Env[Any, Any]):
    """A valid environment, except for one result in the environment with the given number. Episodes have 5 steps.

    change: gets the list of what `step` or `reset` is about to return, and returns what is returned instead, or raises;
    at: "reset" (the first), "late reset" (the second), "step" (the 7th step), "first step", "end" (the 5th step, the
    last of an episode), "constructor" or "close"; number: of the environment that changes its result, see `numbers_of`;
    info: of every step.
    """

    def __init__(
        self,
        change: Callable[[list[Any]], Any] = tuple,
        at: str = "step",
        number: int = 2,
        observation_space: spaces.Space[Any] = BOX3,
        info: dict[str, Any] | None = None,
        made: list[Any] | None = None,
    ) -> None:
        self.observation_space, self.action_space = deepcopy(observation_space), spaces.Discrete(2)
        self._change, self._at, self._invalid_env = change, at, number
        self._numbers = numbers_of(SEED)
        self._number = -1
        self._steps = self._resets = 0
        self.closed = 0
        self._info = {} if info is None else info
        if at == "constructor" and (made is None or len(made) == number):
            change([])
        if made is not None:
            made.append(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Answer:
        if seed is not None:
            self.observation_space.seed(seed)
            self._number = self._numbers[seed]
        self._resets += 1
        answer = [self.observation_space.sample(), {}]
        applies = self._number == self._invalid_env and self._resets == INVALID_RESETS.get(self._at)
        return self._change(answer) if applies else tuple(answer)

    def step(self, action: Any) -> Answer:
        self._steps += 1
        answer = [self.observation_space.sample(), 1.0, self._steps % 5 == 0, False, self._info]
        applies = self._number == self._invalid_env and self._steps == INVALID_STEPS.get(self._at)
        return self._change(answer) if applies else tuple(answer)

    def close(self) -> None:
        self.closed += 1
        if self._at == "close" and self._number == self._invalid_env:
            self._change([])


def replace(index: int, value: Any) -> Callable[[list[Any]], Answer]:
    """Returns a change that sets the entry `index` of a result to `value`."""

    def change(answer: list[Any]) -> Answer:
        return (*answer[:index], value, *answer[index + 1 :])

    return change


def raising(error: BaseException) -> Callable[[list[Any]], Answer]:
    """Returns a change that raises an error."""

    def change(answer: list[Any]) -> Answer:
        raise error

    return change

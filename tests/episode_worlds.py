"""Environments whose episodes say which they are."""

import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Lengths(gym.Env[np.ndarray, np.int64]):
    """Episodes of random lengths. Observes (step, number of the episode); rewards are the steps; infos name both.

    Args:
        most: greatest length.
        long_every: every so many episodes is `long` steps long; 0: none.
        long: length of the long ones.
        truncates: whether episodes end by truncation.
    """

    observation_space = spaces.Box(-1, 1e6, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, most: int = 9, long_every: int = 0, long: int = 200, truncates: bool = False) -> None:
        self._most, self._long_every, self._long, self._truncates = most, long_every, long, truncates
        self._number = -1
        # One array, written in place: whoever keeps a view of it sees the next observation instead of this one.
        self._observation = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._number += 1
        self._length = int(self.np_random.integers(1, self._most + 1))
        if self._long_every and self._number % self._long_every == 0:
            self._length = self._long
        self._observation[:] = 0, self._number
        return self._observation, {"number": self._number}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._observation[0] += 1
        step = int(self._observation[0])
        ended = step >= self._length
        info = {"step": step, "action": int(action)}
        return self._observation, float(step), ended and not self._truncates, ended and self._truncates, info


class Limited(Lengths):
    """Refuses a step after the end of an episode."""

    _over = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._over = False
        return super().reset(seed=seed, options=options)

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise RuntimeError("step() after the end of an episode")
        answer = super().step(action)
        self._over = answer[2] or answer[3]
        return answer


class Kills(Lengths):
    """Kills its process in its `at`-th step."""

    def __init__(self, at: int = 20) -> None:
        super().__init__()
        self._left = at

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Pictures(Lengths):
    """Observes pictures of one brightness, the step."""

    observation_space: Any = spaces.Box(0, 255, (48, 48), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        _, info = super().reset(seed=seed, options=options)
        return np.zeros((48, 48), np.uint8), info

    def step(self, action: np.int64) -> Any:
        observation, *others = super().step(action)
        return np.full((48, 48), observation[0], np.uint8), *others


class Zeros:
    """A policy that always chooses action 0."""

    def reset(self, do_resets: Any = None) -> None:
        pass

    def get_actions(self, observations: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros(len(observations), np.int64), {}

    def get_param_values(self) -> Any:
        return None

    def set_param_values(self, params: Any) -> None:
        pass


class Fails:
    """A policy whose `reset` raises."""

    def reset(self, do_resets: Any = None) -> None:
        raise RuntimeError("this policy does not start")

    def get_actions(self, observations: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros(len(observations), np.int64), {}

    def get_param_values(self) -> Any:
        return None

    def set_param_values(self, params: Any) -> None:
        pass

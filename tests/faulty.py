"""Environments that fail in a chosen way at a chosen moment, as a faulty simulator would."""

import ctypes
import os
import signal
import time
from typing import Any

import gymnasium as gym
import numpy as np

from headrace.rng import Stream, env_seeds

SEED = 11
#: The environment that fails, of training and of evaluation; the others are well.
BAD_ENV = 2
BAD_SEEDS = {env_seeds(SEED, BAD_ENV)[0]: "train", env_seeds(SEED, BAD_ENV, Stream.EVAL_ENV)[0]: "eval"}


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("this exception cannot be pickled")


class OddConstructor(Exception):
    def __init__(self, first: int, second: int, *, third: int) -> None:
        super().__init__(f"{first} {second} {third}")


class FaultyEnv(gym.Env[np.ndarray, np.int64]):
    """A random walk with episodes of 5 steps, of which environment number `BAD_ENV` performs `fault` in `phase`.

    phase: "constructor" (in every environment, because none has a number yet), "reset" (the first), "step" (the 7th),
    "late reset" (the second), "evaluation" (the third step of an evaluation environment) or "close".
    """

    def __init__(self, fault: str, phase: str) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._fault, self._phase, self._kind = fault, phase, ""
        self._resets = self._steps = 0
        if phase == "constructor":
            do(fault)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._kind = BAD_SEEDS.get(seed, "") if seed is not None else self._kind
        self._resets += 1
        self._length = 0
        bad = self._kind == "train" and {"reset": 1, "late reset": 2}.get(self._phase) == self._resets
        observation = self.np_random.normal(size=3).astype(np.float32)
        return (do(self._fault, observation)[0] if bad else observation), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._length += 1
        observation, reward = self.np_random.normal(size=3).astype(np.float32), float(action)
        bad = (self._kind, self._phase, self._steps) in (("train", "step", 7), ("eval", "evaluation", 3))
        if bad:
            observation, reward = do(self._fault, observation, reward)
        return observation, reward, self._length == 5, False, {}

    def close(self) -> None:
        if self._kind == "train" and self._phase == "close":
            do(self._fault)


def do(fault: str, observation: Any = None, reward: float = 0.0) -> tuple[Any, Any]:
    """Performs the fault; faults that only change a result return an invalid (observation, reward)."""
    match fault:
        case "raise":
            raise ValueError("the simulator is unhappy")
        case "raise unpicklable":
            raise Unpicklable("cannot travel")
        case "raise odd constructor":
            raise OddConstructor(1, 2, third=3)
        case "SystemExit":
            raise SystemExit("the simulator left")
        case "raise mutely":
            os.close(1)
            os.close(2)
            raise ValueError("the simulator is mute")
        case "_exit":
            os._exit(3)
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case "SIGKILL beside a child":
            if os.fork() == 0:  # which holds everything open that was, for longer than any test may take
                time.sleep(1000)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        case "fork":
            os.fork()  # and both come back
        case "SIGSEGV":
            ctypes.string_at(0)
        case "SIGSTOP":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "python loop":
            while True:
                time.sleep(0.001)
        case "C loop":
            libc = ctypes.PyDLL(None)  # keeps the interpreter lock: no Python code runs, no thread, no signal handler
            while True:
                libc.sleep(1000)
        case "NaN":
            return np.full(3, np.nan, np.float32), reward
        case "Inf reward":
            return observation, float("inf")
        case "shape":
            return np.zeros(4, np.float32), reward
        case "broadcastable shape":
            return np.zeros(1, np.float32), reward
        case "dtype":
            return np.full(3, 2**24 + 1), reward
    return observation, reward

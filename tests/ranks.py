"""Environments, models and algorithms for trainings with several learners."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from headrace.algos.base import OptInfo
from headrace.algos.pg import A2C
from headrace.buffers.samples import Samples
from headrace.models import RunningNorm
from headrace.types import EnvSpaces


class Drift(gymnasium.Env[np.ndarray, Any]):
    """A walk on a line that ends at random, by the environment's own generator, with rewards of its own scale."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._place, self._pull, self._n = 0.0, float(self.np_random.normal()), 0
        return self._observed(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._place += 1.0 if action else -1.0
        self._n += 1
        reward = self._place * self._pull * 3.0
        return self._observed(), reward, bool(self.np_random.random() < 0.1), self._n >= 12, {}

    def _observed(self) -> np.ndarray:
        return np.array([self._place, 7.0 + 5.0 * self._pull, self._n], np.float32)


def in_rank(rank: int) -> bool:
    """Whether this process is a rank that a runner has started."""
    return multiprocessing.current_process().name == f"headrace-rank-{rank}"


class Faulty(Drift):
    """Fails in rank 1. how: "kill at start", "kill" or "raise", at its eighth step."""

    def __init__(self, how: str) -> None:
        self._how, self._steps = how, 0
        if how == "kill at start" and in_rank(1):
            os.kill(os.getpid(), signal.SIGKILL)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if in_rank(1) and self._steps == 8:
            if self._how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._how == "raise":
                raise ArithmeticError("no such place")
        return super().step(action)


class Failing(A2C):
    """Learns as A2C until batch 3, in which rank 1 fails as `how` says."""

    how: str

    def optimize_agent(self, itr: int, samples: Samples) -> OptInfo:
        if itr == 3 and self.how == "exchange":  # killed while it waits for rank 0
            if self.ranks.rank == 1:
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                time.sleep(1.0)
        elif itr == 3 and self.ranks.rank == 1:
            if self.how == "nan":
                samples.env.reward[:] = torch.nan
            elif self.how == "other number":  # of updates
                return {}
            else:
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[self.how])
        return super().optimize_agent(itr, samples)


class Exact(torch.nn.Module):
    """An actor-critic in float64 with normalized observations; the value is rounded when it is recorded."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__()
        self.norm = RunningNorm(3)
        self.body = torch.nn.Linear(3, 8, dtype=torch.float64)
        self.head = torch.nn.Linear(8, n_outputs + 1, dtype=torch.float64)

    def forward(self, observation: Any, prev_action: Any, prev_reward: Any) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.head(torch.tanh(self.body(self.norm(observation.double()))))
        return outputs[..., :-1], outputs[..., -1]

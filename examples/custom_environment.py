"""An environment of your own: any class or function that returns a gymnasium.Env, with numbers of its info recorded."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np

from headrace import Affinity
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import PPO
from headrace.runners import MinibatchRl, RunnerConfig
from headrace.samplers import CpuSampler


class Corridor(gymnasium.Env[np.ndarray, np.int64]):
    """Walk right to the end of a corridor of `length` cells; 1 point at the end, a little less for every step."""

    def __init__(self, length: int = 10, max_steps: int = 50) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._length, self._max_steps = length, max_steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._cell, self._steps = 0, 0
        return self._observation(), {"cell": 0}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._cell = max(0, self._cell + (1 if action == 1 else -1))
        self._steps += 1
        arrived = self._cell == self._length
        cut = self._steps == self._max_steps  # a limit, not an end: the value of what follows is bootstrapped
        return self._observation(), float(arrived) - 0.01, arrived, cut and not arrived, {"cell": self._cell}

    def _observation(self) -> np.ndarray:
        return np.array([self._cell / self._length], np.float32)


def main(n_steps: int = 10_000) -> None:
    sampler = CpuSampler(
        Corridor,
        {"length": 12},
        batch_T=32,
        batch_B=16,
        env_info_keys={"cell": (np.int32, ())},  # recorded as samples.env.env_info["cell"], [T, B]
    )
    one_thread = Affinity(master_torch_threads=1)  # with a model this small, more threads only wait for each other
    config = RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=2_500)
    runner = MinibatchRl(PPO(), CategoricalPgAgent(), sampler, config, affinity=one_thread)
    episodes = runner.train()
    mean = sum(info.Length for info in episodes) / len(episodes)
    print(f"the last {len(episodes)} episodes took {mean:.1f} steps; the shortest way is 12")


if __name__ == "__main__":  # workers may start by importing this file
    main(*map(int, sys.argv[1:]))

"""Dict observations, with a mask of the allowed actions: a card game in which a card can be played once only."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import PPO, PPOConfig
from headrace.samplers import SerialSampler

Observation = dict[str, Any]


class HighestCards(gymnasium.Env[Observation, np.int64]):
    """Eight cards, four turns; a card played scores its value, which the table shows for this episode."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "table": spaces.Box(0.0, 1.0, (8,), np.float32),
                "turn": spaces.Discrete(5),
                "action_mask": spaces.MultiBinary(8),  # this key is the agent's: what has a 0 here is never drawn
            }
        )
        self.action_space = spaces.Discrete(8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._table = self.np_random.random(8, np.float32)
        self._allowed = np.ones(8, np.int8)
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        assert self._allowed[action], "the mask forbids this card"
        self._allowed[action] = 0
        return self._observation(), float(self._table[action]), int(self._allowed.sum()) == 4, False, {}

    def _observation(self) -> Observation:
        turn = 8 - int(self._allowed.sum())
        return {"table": self._table, "turn": turn, "action_mask": self._allowed.copy()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    n_itr = 30
    agent, algo = CategoricalPgAgent(), PPO(PPOConfig(learning_rate=3e-3))
    sampler = SerialSampler(HighestCards, batch_T=16, batch_B=32)  # random actions of the decorrelation obey masks too
    with sampler.initialize(agent, seed=0, bootstrap_value=True):
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec)
        for itr in range(n_itr):
            samples, traj_infos = sampler.obtain_samples(itr)
            algo.optimize_agent(itr, samples)
            if itr in (0, n_itr - 1):
                mean = sum(info.Return for info in traj_infos) / len(traj_infos)
                print(f"batch {itr}: mean return {mean:.2f}")  # random 2.0, best about 2.8
        print("masks were recorded:", list(samples.env.observation["action_mask"].shape))

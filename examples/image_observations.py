"""Image observations: uint8 frames go through a convolutional network; each is stored once, as bytes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import PPO, PPOConfig
from headrace.samplers import SerialSampler


class Catch(gymnasium.Env[np.ndarray, np.int64]):
    """A ball falls through a picture of 48 × 48 pixels; a paddle below goes left, stays, or goes right."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (48, 48, 1), np.uint8)
        self.action_space = spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._ball, self._paddle, self._row = int(self.np_random.integers(8)), int(self.np_random.integers(8)), 0
        return self._frame(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._paddle = min(max(self._paddle + int(action) - 1, 0), 7)
        self._row += 1
        landed = self._row == 7
        return self._frame(), float(landed and self._ball == self._paddle), landed, False, {}

    def _frame(self) -> np.ndarray:
        frame = np.zeros((8, 6, 8, 6, 1), np.uint8)  # 8 × 8 fields of 6 × 6 pixels
        frame[self._row, :, self._ball] = 255
        frame[7, :, self._paddle] = 128
        return frame.reshape(48, 48, 1)


if __name__ == "__main__":
    torch.set_num_threads(2)
    n_itr = 4
    agent = CategoricalPgAgent()  # its default model sees that observations are images
    algo = PPO(PPOConfig(learning_rate=1e-3, epochs=2, value_loss_coeff=0.5))
    with SerialSampler(Catch, batch_T=14, batch_B=16).initialize(agent, seed=0, bootstrap_value=True) as sampler:
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec)
        for itr in range(n_itr):
            samples, traj_infos = sampler.obtain_samples(itr)
            algo.optimize_agent(itr, samples)
            caught = sum(info.Return for info in traj_infos) / len(traj_infos)
            print(f"batch {itr}: {caught:.0%} caught")
        print("frames", samples.env.observation.dtype, list(samples.env.observation.shape))

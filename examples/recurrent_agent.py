"""An agent with memory: CartPole that shows positions only, so velocities must be worked out from what was seen before.

    headrace train --env examples.recurrent_agent:hidden_velocities --recurrent lstm

trains it to the end from the root of the repository; this file shows a few batches.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from headrace.agents.pg import RecurrentCategoricalPgAgent
from headrace.algos.pg import PPO, PPOConfig
from headrace.samplers import CpuSampler


class PositionsOnly(gymnasium.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """The cart's position and the pole's angle, without their velocities."""

    def __init__(self, env: gymnasium.Env[np.ndarray, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        self.observation_space = gymnasium.spaces.Box(space.low[[0, 2]], space.high[[0, 2]], dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]]


def hidden_velocities() -> gymnasium.Env[np.ndarray, Any]:
    return PositionsOnly(gymnasium.make("CartPole-v1"))


if __name__ == "__main__":  # workers may start by importing this file
    torch.set_num_threads(1)
    n_itr = 10
    agent = RecurrentCategoricalPgAgent(model_kwargs={"cell": "gru", "hidden_size": 32})
    # Minibatches are whole columns: each is a sequence of 32 steps, begun with the state recorded at its first row.
    algo = PPO(PPOConfig(minibatches=4, epochs=4))
    sampler = CpuSampler(hidden_velocities, batch_T=32, batch_B=32)
    with sampler.initialize(agent, seed=0, bootstrap_value=True):
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec)
        lengths: list[int] = []
        for itr in range(n_itr):
            samples, traj_infos = sampler.obtain_samples(itr)
            (state,) = samples.agent.first_state  # [1, 32, 32]: what the GRU remembered when the batch began
            opt_info = algo.optimize_agent(itr, samples)
            lengths += [info.Length for info in traj_infos]
        print(f"state {list(state.shape)}, mean length of the last 50 episodes {np.mean(lengths[-50:]):.1f}")

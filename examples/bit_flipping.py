"""Hindsight experience replay: DQN learns to flip bits one by one until they equal a goal.

    python examples/bit_flipping.py          # solves 12 bits
    python examples/bit_flipping.py 0        # without hindsight it meets no reward to learn from

Of 4,096 goals a random policy reaches hardly any. With hindsight, DQN also learns from the goals that its episodes
reached by accident (Andrychowicz et al., "Hindsight experience replay", 2017, section 3.1).
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from headrace.agents.dqn import DqnAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.replays import HindsightConfig
from headrace.samplers import SerialSampler


class BitFlipping(gym.Env[Any, np.int64]):
    """Each action flips one of n bits; a step costs 1 unless the bits then equal the goal, which ends the episode.

    An episode has at most n steps, in which every goal can be reached.

    Args:
        n: number of bits.
    """

    def __init__(self, n: int = 12) -> None:
        bits = gym.spaces.Box(0.0, 1.0, (n,), np.float32)
        self.observation_space = gym.spaces.Dict(observation=bits, achieved_goal=bits, desired_goal=bits)
        self.action_space = gym.spaces.Discrete(n)
        self._n = n

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self._bits, self._goal = self.np_random.integers(0, 2, (2, self._n)).astype(np.float32)
        self._n_steps = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self._bits[action] = 1.0 - self._bits[action]
        self._n_steps += 1
        reached = bool(equal(self._bits, self._goal, {}))
        return self._observation(), float(reached) - 1.0, reached, self._n_steps == self._n, {}

    def _observation(self) -> dict[str, np.ndarray]:
        return {"observation": self._bits.copy(), "achieved_goal": self._bits.copy(), "desired_goal": self._goal.copy()}


def equal(achieved: np.ndarray, desired: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    """Returns whether goals are reached, bool `[N]`, from two arrays `[N, n]`."""
    return (achieved == desired).all(axis=-1)


def cost(achieved: np.ndarray, desired: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    """Returns the rewards of steps, `[N]`: 0 where the goal is reached, else −1."""
    return equal(achieved, desired, info) - 1.0


def main(n_relabels: int = 4, n_bits: int = 12, n_itr: int = 600) -> float:
    """Returns how many of 200 goals the trained agent reaches, from 0 to 1."""
    torch.set_num_threads(1)  # with a model this small, more threads only wait for each other
    hindsight = None
    if n_relabels:
        hindsight = HindsightConfig(compute_reward=cost, compute_terminated=equal, n_relabels=n_relabels)
    algo = DQN(
        DQNConfig(
            discount=0.98,
            n_step=1,
            replay_ratio=16.0,
            target_update_interval=1,
            target_update_tau=0.02,
            linear_lr_schedule=False,
            hindsight=hindsight,
        )
    )
    agent = DqnAgent(model_kwargs={"hidden_sizes": (256,)}, eps_final=0.1, eps_itr_max=n_itr // 4)
    sampler = SerialSampler(BitFlipping, {"n": n_bits}, batch_T=8, batch_B=8, eval_n_envs=50, eval_max_trajectories=200)
    reached = 0.0
    with sampler.initialize(agent, seed=0):
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec)
        for itr in range(n_itr):
            samples, _ = sampler.obtain_samples(itr)
            algo.optimize_agent(itr, samples)
            if itr % 100 == 99:
                greedy = sampler.evaluate_agent(itr)
                reached = sum(info.Return > -n_bits for info in greedy) / len(greedy)
                print(f"{(itr + 1) * sampler.batch_spec.size} steps: {reached:.0%} of goals reached", flush=True)
    return reached


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

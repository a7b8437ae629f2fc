"""R2D1 in an environment that only an agent with a memory solves, and what stored states and burn-in are good for.

python examples/memory_length.py
python examples/memory_length.py zero_state      # sequences start without a memory
python examples/memory_length.py no_burn_in      # the whole sequence is learned from, from the recorded state on
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import torch

from headrace.agents.dqn import R2d1Agent
from headrace.algos.dqn import R2D1, R2D1Config
from headrace.samplers import SerialSampler


class MemoryLength(gymnasium.Env[np.ndarray, np.int64]):
    """Shows a bit in the first step and asks for it in the last: +1 for the right action then, −1 for the other one.

    As "memory_len" of bsuite (Osband et al., "Behaviour suite for reinforcement learning", 2020). Observations are the
    bit as ±1, 0 after the first step; whether this is the last step; and the part of the episode that is left.
    """

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = 15) -> None:
        self._length = length

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._bit, self._step = int(self.np_random.integers(2)), 0
        return self._shown(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._step += 1
        ends = self._step == self._length
        reward = (1.0 if int(action) == self._bit else -1.0) if ends else 0.0
        return self._shown(), reward, ends, False, {}

    def _shown(self) -> np.ndarray:
        bit = 2.0 * self._bit - 1.0 if self._step == 0 else 0.0
        return np.array([bit, self._step == self._length - 1, 1.0 - self._step / self._length], np.float32)


SETTINGS = R2D1Config(
    discount=0.99,
    batch_T=20,  # as long as an episode, or no gradient reaches from the question back to the bit
    warmup_T=10,
    n_step=3,
    batch_size=32,
    replay_ratio=16.0,
    replay_size=50_000,
    min_steps_learn=2_000,
    target_update_interval=100,
    learning_rate=2e-3,
    value_eps=None,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "stored_state": {},
    "zero_state": {"stored_state": False},
    "no_burn_in": {"warmup_T": 0},
}


def main(variant: str = "stored_state", n_steps: int = 16_000, seed: int = 0) -> float:
    """Trains and returns the mean return of greedy episodes."""
    torch.set_num_threads(1)
    T, B = 20, 16
    n_itr = n_steps // (T * B)
    agent = R2d1Agent(
        model_kwargs={"hidden_size": 32, "input_size": 32, "forget_bias": 2.0}, eps_final=0.4, eps_final_min=0.01
    )
    algo = R2D1(R2D1Config(**{**vars(SETTINGS), **VARIANTS[variant]}))
    sampler = SerialSampler(MemoryLength, batch_T=T, batch_B=B, state_interval=5, eval_n_envs=50)
    mean = 0.0
    with sampler.initialize(agent, seed=seed):
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec, seed=seed)
        for itr in range(n_itr):
            samples, _ = sampler.obtain_samples(itr)
            info = algo.optimize_agent(itr, samples)
            if itr % 5 == 4 or itr == n_itr - 1:
                mean = float(np.mean([one.Return for one in sampler.evaluate_agent(itr)]))
                error = info.get("tdAbsErr", 0.0)
                print(f"{variant}, {(itr + 1) * T * B} steps: greedy return {mean:.2f}, error {error:.3f}")
    return mean


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "stored_state", *map(int, sys.argv[2:]))

"""DQN with prioritized replay: worker processes collect, each environment with an exploration rate of its own.

    headrace train --algo dqn --env CartPole-v1

trains it to the end; this file shows the loop.
"""

from __future__ import annotations

import sys

import torch

from headrace.agents.dqn import DqnAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.samplers import CpuSampler


def main(n_itr: int = 150) -> None:
    torch.set_num_threads(1)  # with a model this small, more threads only wait for each other
    # Known before the workers start, and a function of the batch: environment 0 ends at 0.3, the last one at 0.01.
    agent = DqnAgent(eps_final=0.3, eps_final_min=0.01, eps_itr_max=100)
    algo = DQN(DQNConfig(prioritized_replay=True, replay_ratio=16.0))
    sampler = CpuSampler("CartPole-v1", batch_T=8, batch_B=16, n_workers=2, eval_n_envs=10)
    with sampler.initialize(agent, seed=0):
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec)
        for itr in range(n_itr):
            samples, _ = sampler.obtain_samples(itr)
            opt_info = algo.optimize_agent(itr, samples)  # into the replay, then 16 updates
            if itr % 50 == 49:
                greedy = sampler.evaluate_agent(itr)
                mean = sum(info.Return for info in greedy) / len(greedy)
                print(f"itr {itr + 1}: greedy return {mean:.1f}, error {opt_info['tdAbsErr']:.2f}")


if __name__ == "__main__":  # workers may start by importing this file
    main(*map(int, sys.argv[1:]))

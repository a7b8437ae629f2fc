"""DQN beside its sampler: a process of its own steps the environments and fills the replay.

    python examples/async_dqn.py 150000

trains to the end; without a number it shows the beginning. On the command line:

    headrace train --algo dqn --env CartPole-v1 --sampler async-cpu
"""

from __future__ import annotations

import sys

import torch

from headrace.agents.dqn import DqnAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.runners import AsyncRlEval, RunnerConfig
from headrace.samplers import AsyncCpuSampler


def main(n_steps: int = 6_000) -> None:
    torch.set_num_threads(1)  # with a model this small, more threads only wait for each other
    sampler = AsyncCpuSampler("CartPole-v1", batch_T=8, batch_B=8, n_workers=1, eval_n_envs=8)
    runner = AsyncRlEval(
        DQN(DQNConfig()),
        DqnAgent(eps_itr_max=n_steps // 64 // 4),
        sampler,
        RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=max(3_000, n_steps // 15)),
    )
    runner.train()


if __name__ == "__main__":  # workers may start by importing this file
    main(*map(int, sys.argv[1:]))

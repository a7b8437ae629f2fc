"""PPO beside its sampler: the next batch is collected while the agent learns from this one.

    python examples/async_ppo.py 400000

trains to the end; without a number it shows the beginning. Only the names of sampler and runner differ from what one
would write without `Async`. On the command line:

    headrace train --env CartPole-v1 --sampler async-cpu
"""

from __future__ import annotations

import sys

import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import PPO, PPOConfig
from headrace.runners import AsyncRlEval, RunnerConfig
from headrace.samplers import AsyncCpuSampler


def main(n_steps: int = 20_000) -> None:
    torch.set_num_threads(1)  # with a model this small, more threads only wait for each other
    sampler = AsyncCpuSampler("CartPole-v1", batch_T=32, batch_B=64, n_workers=1, eval_n_envs=8)
    runner = AsyncRlEval(
        PPO(PPOConfig()),
        CategoricalPgAgent(),
        sampler,
        RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=max(10_000, n_steps // 10)),
    )
    runner.train()


if __name__ == "__main__":  # workers may start by importing this file
    main(*map(int, sys.argv[1:]))

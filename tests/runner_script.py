"""A program that trains until it is stopped; run by test_runners.py. Arguments: a directory for the log."""

import sys

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import A2C
from headrace.runners import MinibatchRl, RunnerConfig
from headrace.samplers import CpuSampler

if __name__ == "__main__":
    sampler = CpuSampler("CartPole-v1", batch_T=16, batch_B=4, n_workers=2)
    config = RunnerConfig(n_steps=1e9, seed=0, log_interval_steps=64)
    runner = MinibatchRl(A2C(), CategoricalPgAgent(), sampler, config, log_dir=sys.argv[1])
    runner.train()

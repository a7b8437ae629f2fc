"""Ratio of the CPU time of updates with losses compiled by torch.compile to that without; interleaved, in one process.

    python benchmarks/compiled_losses.py [batches]

On a GPU, the losses run as CUDA graphs; set the device by HEADRACE_DEVICE.
"""

import os
import statistics
import sys
import time
from typing import Any

import torch

from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.algos.pg import PPO, PPOConfig
from headrace.samplers import SerialSampler

DEVICE = os.environ.get("HEADRACE_DEVICE", "cpu")


def learners(make: Any, n: int) -> list[float]:
    """Returns the ratio of each batch, compiled to plain; both learn from batches of their own."""
    sides = []
    for on in (False, True):
        algo, agent = make(on)
        sampler = SerialSampler("CartPole-v1", batch_T=32, batch_B=64)
        sampler.initialize(agent, seed=0, bootstrap_value=True)
        agent.to_device(DEVICE)
        algo.initialize(agent, n_itr=n + 5, batch_spec=sampler.batch_spec)
        sides.append((sampler, algo))
    seconds: list[list[float]] = [[], []]
    for itr in range(n + 5):
        for side in (0, 1) if itr % 2 else (1, 0):
            sampler, algo = sides[side]
            samples, _ = sampler.obtain_samples(itr)
            begin = time.process_time() if DEVICE == "cpu" else time.perf_counter()
            algo.optimize_agent(itr, samples)
            seconds[side].append((time.process_time() if DEVICE == "cpu" else time.perf_counter()) - begin)
    for sampler, _ in sides:
        sampler.shutdown()
    return [on / off for off, on in zip(seconds[0][5:], seconds[1][5:], strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    n_batches = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    cases = {
        "PPO": lambda on: (PPO(PPOConfig(compile=on)), CategoricalPgAgent()),
        "DQN": lambda on: (DQN(DQNConfig(compile=on, min_steps_learn=2048, replay_ratio=4)), DqnAgent()),
    }
    for name, make in cases.items():
        ratios = learners(make, n_batches)
        print(f"{name}: compiled / plain {statistics.median(ratios):.2f} (median of {len(ratios)} batches)", flush=True)

"""Native vector environments in samplers, beside the bare loop `env.step` + policy, interleaved in one run.

    python benchmarks/vector_envs.py --B 64 256 1024
    python benchmarks/vector_envs.py --B 256 --sampler cpu --W 2

Gymnasium's CartPole vector environment and the MLP 64-64 agent. The bare loop steps one vector environment of B and
calls `agent.step` in turn, records and checks nothing, on one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from sampling import collect_seconds

from headrace import Affinity
from headrace.agents.pg import CategoricalPgAgent
from headrace.envs import VectorEnvs
from headrace.samplers import AlternatingSampler, BaseSampler, CpuSampler, GpuSampler, SerialSampler
from headrace.types import StepInputs

SAMPLERS: dict[str, type[BaseSampler]] = {
    "serial": SerialSampler,
    "cpu": CpuSampler,
    "gpu": GpuSampler,
    "alternating": AlternatingSampler,
}


def vector_cartpole(num_envs: int) -> VectorEnv[Any, Any, Any]:
    return gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point")


def bare_loop_seconds(
    agent: CategoricalPgAgent, B: int, rows: int, make: Callable[..., VectorEnv[Any, Any, Any]] = vector_cartpole
) -> Callable[[], float]:
    """Seconds of `rows` rows."""
    envs = make(num_envs=B)
    observation, _ = envs.reset(seed=0)
    zeros = torch.zeros(B)
    noise = torch.rand(rows, B, 1).clamp(0.01, 0.99)

    def measure() -> float:
        nonlocal observation
        begin = time.perf_counter()
        for t in range(rows):
            with torch.inference_mode():
                inputs = StepInputs(torch.from_numpy(observation), zeros.long(), zeros, zeros.bool(), noise[t])
                action = agent.step(inputs, None).action.numpy()
            observation, *_ = envs.step(action)
        return time.perf_counter() - begin

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampler", choices=sorted(SAMPLERS), default="serial")
    parser.add_argument("--T", type=int, default=64)
    parser.add_argument("--B", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--W", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batches", type=int, default=8, help="per repeat")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for B in args.B:
        agent = CategoricalPgAgent()
        options: dict[str, Any] = {"batch_T": args.T, "batch_B": B, "max_decorrelation_steps": 0, "n_workers": args.W}
        affinity = Affinity.one_core_each(args.W)
        with SAMPLERS[args.sampler](VectorEnvs("CartPole-v1"), **options).initialize(
            agent, affinity, seed=0
        ) as sampler:
            bare = bare_loop_seconds(agent, B, args.T * args.batches)
            collect_seconds(sampler, 3)
            bare()
            ratios, rates = [], []
            for _ in range(args.repeats):
                loop, own = bare(), collect_seconds(sampler, args.batches)
                ratios.append(loop / own)
                rates.append(args.batches * args.T * B / own)
            low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            print(
                f"{args.sampler}, W={args.W}, B={B}: {statistics.median(rates):,.0f} rows·columns/s, "
                f"{middle:.3f} of the bare loop ({low:.3f} … {high:.3f})"
            )
            print(f"    {sampler.timing()}")


if __name__ == "__main__":
    main()

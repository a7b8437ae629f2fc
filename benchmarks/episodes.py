"""Samplers of whole episodes beside samplers of batches, as ratios within one run.

    python benchmarks/episodes.py
    python benchmarks/episodes.py --rounds 40 --steps 4096

Printed: the median over rounds of each rate, in steps/s, and of these ratios, with quartiles:

- local / serial: `LocalSampler` with a `VecWorker` of 8 environments, `SerialSampler` with 8 columns.
- processes / local: `MultiprocessingSampler` with as many workers as cores, each with 8 environments, and a
  `LocalSampler` with the same workers.
- cpu / serial: the same comparison for batches, `CpuSampler` and `SerialSampler`: what a second core is worth here.
- long / short: `LocalSampler` on episodes of 20 steps, of which one in 100 has 2,000, and on episodes of 20 steps.

Within a round the samplers collect in turn; the machine's speed changes more slowly than that.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np


class Walk(gym.Env[np.ndarray, np.int64]):
    """Episodes of 20 steps; of every `long_every`-th, 2,000."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, long_every: int = 0) -> None:
        self._long_every = long_every
        self._left = self._number = 0
        self._observation = np.zeros(4, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None and self._long_every:  # so that long episodes do not begin together
            self._number = int(self.np_random.integers(self._long_every))
        self._number += 1
        self._left = 2_000 if self._long_every and self._number % self._long_every == 0 else 20
        return self._observation, {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        return self._observation, 1.0, self._left == 0, False, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4096, help="steps of one measurement, about")
    parser.add_argument("--W", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()

    import torch

    from headrace.agents.pg import CategoricalPgAgent
    from headrace.samplers import CpuSampler, LocalSampler, MultiprocessingSampler, SerialSampler, VecWorker

    torch.set_num_threads(1)
    common: dict[str, Any] = {"worker_class": VecWorker, "seed": 0}
    serial = SerialSampler("CartPole-v1", batch_T=args.steps // 8, batch_B=8)
    serial.initialize(CategoricalPgAgent(), seed=0)

    columns = 8 * args.W
    wide = SerialSampler("CartPole-v1", batch_T=args.steps // columns, batch_B=columns)
    wide.initialize(CategoricalPgAgent(), seed=0)
    cpu = CpuSampler("CartPole-v1", batch_T=args.steps // columns, batch_B=columns, n_workers=args.W)
    cpu.initialize(CategoricalPgAgent(), seed=0)

    def batch(sampler: Any) -> int:
        return int(sampler.obtain_samples(0)[0].env.reward.numel())

    def obtained(sampler: Any) -> Callable[[], int]:
        return lambda: len(sampler.obtain_samples(0, args.steps).rewards)

    samplers = {
        "local": LocalSampler(CategoricalPgAgent(), "CartPole-v1", n_workers=1, **common),
        "local, all workers": LocalSampler(CategoricalPgAgent(), "CartPole-v1", n_workers=args.W, **common),
        "processes": MultiprocessingSampler(CategoricalPgAgent(), "CartPole-v1", n_workers=args.W, **common),
        "short": LocalSampler(CategoricalPgAgent(), Walk, n_workers=1, max_episode_length=5_000, **common),
        "long": LocalSampler(CategoricalPgAgent(), partial(Walk, 100), n_workers=1, max_episode_length=5_000, **common),
    }
    batches = {"serial": serial, "serial, all columns": wide, "cpu": cpu}
    calls: dict[str, Callable[[], int]] = {name: partial(batch, sampler) for name, sampler in batches.items()}
    calls |= {name: obtained(sampler) for name, sampler in samplers.items()}
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(args.rounds + 2):
        for name, call in calls.items():
            begin = perf_counter()
            rate = call() / (perf_counter() - begin)
            if number >= 2:  # the first rounds are warm-up
                rates[name].append(rate)
    for name, found in rates.items():
        print(f"{name:>20} {statistics.median(found):>10,.0f} steps/s")
    pairs = (
        ("local", "serial"),
        ("processes", "local, all workers"),
        ("cpu", "serial, all columns"),
        ("long", "short"),
    )
    for one, other in pairs:
        ratios = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{one + ' / ' + other:>32} {middle:.2f} ({low:.2f} to {high:.2f})")
    for sampler in samplers.values():
        sampler.shutdown_worker()
    for batch_sampler in batches.values():
        batch_sampler.shutdown()


if __name__ == "__main__":
    main()

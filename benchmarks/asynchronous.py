"""Sampling beside learning against sampling and learning in turn, interleaved in one run.

    python benchmarks/asynchronous.py --sampler cpu --W 1
    python benchmarks/asynchronous.py --sampler serial --share 0.5 --slots 3

The "optimizer" computes for as long as the synchronous sampler takes for a batch, times --share. Printed, medians over
the repeats (and quartiles):

    sync, async   steps/s of a loop of obtain_samples and optimizer
    ratio         async / sync
    of the limit  async / min(X, N / t_opt), X the synchronous sampler's own rate, N steps of a batch
    hand-over     µs of `obtain_samples` when the batch is ready: what the learner waits for
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from sampling import collect_seconds, env_of

from headrace.agents.pg import CategoricalPgAgent
from headrace.samplers import (
    AlternatingSampler,
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncSerialSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    SerialSampler,
)

PAIRS: dict[str, tuple[type[BaseSampler], type[BaseSampler]]] = {
    "serial": (SerialSampler, AsyncSerialSampler),
    "cpu": (CpuSampler, AsyncCpuSampler),
    "gpu": (GpuSampler, AsyncGpuSampler),
    "alternating": (AlternatingSampler, AsyncAlternatingSampler),
}


def compute(seconds: float) -> None:
    """An optimizer: keeps one core busy."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def loop_seconds(sampler: BaseSampler, batches: int, t_opt: float) -> float:
    begin = time.perf_counter()
    for itr in range(batches):
        sampler.obtain_samples(itr)
        compute(t_opt)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--sampler", choices=sorted(PAIRS), default="cpu")
    parser.add_argument("--T", type=int, default=64)
    parser.add_argument("--B", type=int, default=64)
    parser.add_argument("--W", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--slots", type=int, default=2, help="n_slots of the asynchronous one")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batches", type=int, default=10, help="per repeat")
    args = parser.parse_args()
    torch.set_num_threads(1)
    options: dict[str, Any] = {"batch_T": args.T, "batch_B": args.B, "n_workers": args.W}
    samplers = [
        cls(env_of(args.env), **options, n_slots=n_slots).initialize(CategoricalPgAgent(), seed=0)
        for cls, n_slots in zip(PAIRS[args.sampler], (None, args.slots), strict=True)
    ]
    for sampler in samplers:
        collect_seconds(sampler, 5)
    steps = args.T * args.B
    rows = []
    for _ in range(args.repeats):
        t_batch = collect_seconds(samplers[0], args.batches) / args.batches
        t_opt = t_batch * args.share
        sync, alongside = (args.batches * steps / loop_seconds(one, args.batches, t_opt) for one in samplers)
        hand_over = []
        for itr in range(10):
            compute(3 * t_batch)
            begin = time.perf_counter()
            samplers[1].obtain_samples(itr)
            hand_over.append((time.perf_counter() - begin) * 1e6)
        limit = min(steps / t_batch, steps / t_opt)
        rows.append((sync, alongside, alongside / sync, alongside / limit, statistics.median(hand_over)))
    low, middle, high = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
    print(f"{args.sampler}, W={args.W}, T={args.T}, B={args.B}, {args.slots} slots, optimizer {args.share:g} x a batch")
    print(f"  sync {middle[0]:,.0f}, async {middle[1]:,.0f} steps/s")
    print(f"  ratio {middle[2]:.2f} ({low[2]:.2f} … {high[2]:.2f})")
    print(f"  of the limit {middle[3]:.2f} ({low[3]:.2f} … {high[3]:.2f})")
    print(f"  hand-over {middle[4]:.0f} µs ({low[4]:.0f} … {high[4]:.0f})")
    for sampler in samplers:
        sampler.shutdown()


if __name__ == "__main__":
    main()

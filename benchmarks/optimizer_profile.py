"""Where the time of `PPO.optimize_agent` goes, by the operators PyTorch runs and the Python around them.

    python benchmarks/optimizer_profile.py

The default settings of `headrace train --env CartPole-v1`. Times are self CPU times of PyTorch's profiler, summed by
what they belong to, in one thread.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import PPO
from headrace.samplers import SerialSampler

#: Which operators are what; the first that fits.
KINDS = {
    "matrix products (forward and backward)": ("addmm", "aten::mm", "aten::linear"),
    "tanh": ("tanh",),
    "the distribution: softmax, logarithms, gather": ("softmax", "log", "gather", "scatter", "exp"),
    "choosing rows of minibatches": ("index", "randperm"),
    "Adam": ("adam",),
    "norm and clipping": ("norm", "linalg_vector"),
    "elementwise arithmetic and sums": ("aten::",),
    "autograd": ("Backward", "autograd", "Accumulate"),
}


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--T", type=int, default=32)
    parser.add_argument("--B", type=int, default=64)
    parser.add_argument("--calls", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    agent, algo = CategoricalPgAgent(), PPO()
    sampler = SerialSampler("CartPole-v1", batch_T=args.T, batch_B=args.B)
    with sampler.initialize(agent, seed=0, bootstrap_value=True):
        algo.initialize(agent, n_itr=100, batch_spec=sampler.batch_spec)
        samples = sampler.obtain_samples(0)[0].copy()
    for itr in range(3):
        algo.optimize_agent(itr, samples)
    begin = time.perf_counter()
    for itr in range(args.calls):
        algo.optimize_agent(itr, samples)
    bare = (time.perf_counter() - begin) / args.calls
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for itr in range(args.calls):
            algo.optimize_agent(itr, samples)
    shares: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        shares[kind_of(event.key)] += event.self_cpu_time_total / args.calls * 1e-6
    # Shares, not times: the profiler's own cost makes every operator look longer.
    profiled = sum(shares.values())
    updates = algo.config.epochs * algo.config.minibatches
    print(
        f"one call {bare * 1e3:.2f} ms, {updates} updates of {bare / updates * 1e6:.0f} µs; operators in the profile:"
    )
    for kind, seconds in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"  {seconds / profiled:5.1%}  {kind}")


if __name__ == "__main__":
    main()

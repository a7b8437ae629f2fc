"""Memory of the worker processes of a sampler, beyond what they share with the sampler.

    python benchmarks/memory.py
    python benchmarks/memory.py --samplers gpu cpu --start-methods fork --env ALE/Pong-v5

Printed for each sampler and start method, the largest over the workers and over the batches: USS in MB, the memory that
a process has to itself. Pages of the batch that no other process has touched yet are in it, so it is an upper bound.
Workers that are not forked import the program, and what it imports at its top level: a program that imports torch there
adds some 130 MB to each.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import psutil

KINDS = ("gpu", "alternating", "cpu")


def largest_uss(kind: str, start_method: str, args: argparse.Namespace) -> float:
    """Returns the peak in MB over the workers. Fork servers have children, so they do not count."""
    import torch  # here, as the command line does; see above

    from headrace.agents.pg import CategoricalPgAgent
    from headrace.cli.place import SAMPLERS

    torch.set_num_threads(1)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    sampler: Any = SAMPLERS[kind](
        args.env,
        batch_T=args.T,
        batch_B=args.B,
        n_workers=args.W,
        start_method=start_method,
        max_decorrelation_steps=10,
    )
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        peak = 0
        for itr in range(args.batches):
            sampler.obtain_samples(itr)
            for child in psutil.Process().children(recursive=True):
                if child.pid not in before and not child.children() and "resource_tracker" not in str(child.cmdline()):
                    peak = max(peak, child.memory_full_info().uss)
    return peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--samplers", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--start-methods", nargs="+", default=["fork", "forkserver", "spawn"])
    parser.add_argument("--T", type=int, default=64)
    parser.add_argument("--B", type=int, default=64)
    parser.add_argument("--W", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batches", type=int, default=20)
    args = parser.parse_args()
    for kind in args.samplers:
        for start_method in args.start_methods:
            megabytes = largest_uss(kind, start_method, args)
            print(f"{kind:14} {start_method:11} {megabytes:6.1f} MB", flush=True)


if __name__ == "__main__":
    main()

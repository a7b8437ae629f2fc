"""What a batch costs more in Ray actors than in worker processes: `RayBatchSampler` beside `CpuSampler`, in one run.

    python benchmarks/ray_batches.py --T 64 --B 16 --W 2
    python benchmarks/ray_batches.py --env ALE/Pong-v5 --T 16 --B 8 --W 2

Both have the same environments and agent, and collect in turn. Printed, medians over the repeats (and the quartiles):

    cpu, ray   ms per batch
    ray − cpu  ms per batch, of the same repeat
    bytes      of the batch, which is copied into Ray by the actors and out of it by the sampler; and of the parameters
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from sampling import env_of

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.tree import tree_leaves
from headrace.processes.ray_session import RayActors, RayCluster
from headrace.samplers import BaseSampler, CpuSampler, RayBatchSampler


def milliseconds(sampler: BaseSampler, first: int, n: int) -> float:
    """Returns the time of a batch, of `n` that begin with number `first`."""
    begin = time.perf_counter()
    for itr in range(first, first + n):
        sampler.obtain_samples(itr)
    return (time.perf_counter() - begin) / n * 1e3


def summary(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:7.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--T", type=int, default=64)
    parser.add_argument("--B", type=int, default=16)
    parser.add_argument("--W", type=int, default=2)
    parser.add_argument("--batches", type=int, default=20, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    env, sizes = env_of(options.env), {"batch_T": options.T, "batch_B": options.B, "n_workers": options.W}
    cpu = CpuSampler(env, **sizes).initialize(CategoricalPgAgent(), seed=0)
    agent = CategoricalPgAgent()
    ray = RayBatchSampler(
        env,
        **sizes,
        cluster=RayCluster(num_cpus=options.W, object_store_memory=2**28),
        actors=RayActors(),
    ).initialize(agent, seed=0)
    with cpu, ray:
        samples, _ = ray.obtain_samples(0)
        n_bytes = sum(leaf.numpy().nbytes for leaf in tree_leaves(samples))
        parameters = sum(tensor.nbytes for tensor in agent.acting_state())
        found: dict[str, list[float]] = {"cpu": [], "ray": []}
        for repeat in range(options.repeats):
            first = 1 + repeat * options.batches
            for name, sampler in (("cpu", cpu), ("ray", ray))[:: 1 - 2 * (repeat % 2)]:
                found[name].append(milliseconds(sampler, first, options.batches))
    print(f"{options.env}, T={options.T}, B={options.B}, W={options.W}: ms per batch")
    for name, values in found.items():
        print(f"{name:9} {summary(values)}")
    print(f"ray − cpu {summary([ray - cpu for cpu, ray in zip(found['cpu'], found['ray'], strict=True)])}")
    print(f"bytes     {n_bytes} of the batch, {parameters} of the parameters")


if __name__ == "__main__":
    main()

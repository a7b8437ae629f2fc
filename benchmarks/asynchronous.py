"""Sampling beside learning against sampling and learning in turn, interleaved in one run.

    python benchmarks/asynchronous.py --sampler cpu --W 1
    python benchmarks/asynchronous.py --sampler serial --share 0.5 --slots 3

The "optimizer" computes for as long as the synchronous sampler takes for a batch, times --share. Printed, medians over
the repeats (and quartiles):

    sync, async   steps/s of a loop of obtain_samples and optimizer
    ratio         async / sync
    of the limit  async / min(X, N / t_opt), X the synchronous sampler's own rate, N steps of a batch
    hand-over     µs of `obtain_samples` when the batch is ready: what the learner waits for
    bare          µs of no more than copying the parameters, a message to a busy process and the one that came from it
"""

from __future__ import annotations

import argparse
import multiprocessing
import select
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def echo(pipe: Any, seconds: float) -> None:
    """Answers every message, and computes."""
    while True:
        pipe.send(pipe.recv())
        compute(seconds)


@contextmanager
def bare_hand_over(tensors: list[torch.Tensor], seconds: float) -> Iterator[Any]:
    """What to call for the least that a hand-over is: parameters, command, and the answer that is there already."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=echo, args=(theirs, seconds), daemon=True)
    process.start()
    slots = [torch.empty_like(tensor) for tensor in tensors]
    poll = select.poll()
    poll.register(ours.fileno(), select.POLLIN)

    @torch.no_grad()
    def hand_over(itr: int) -> None:
        for slot, tensor in zip(slots, tensors, strict=True):
            slot.copy_(tensor)
        ours.send(("collect", itr, itr, itr))
        poll.poll(1e3)
        ours.recv()

    try:
        ours.send(None)
        yield hand_over
    finally:
        process.kill()
        process.join()


def waited(hand_over: Any, seconds: float) -> float:
    """µs, the median of ten, after computing for so long that what it waits for is there."""
    times = []
    for itr in range(10):
        compute(seconds)
        begin = time.perf_counter()
        hand_over(itr)
        times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times)


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
    agents = [CategoricalPgAgent(), CategoricalPgAgent()]
    samplers = [
        cls(env_of(args.env), **options, n_slots=n_slots).initialize(agent, seed=0)
        for cls, n_slots, agent in zip(PAIRS[args.sampler], (None, args.slots), agents, strict=True)
    ]
    for sampler in samplers:
        collect_seconds(sampler, 5)
    steps = args.T * args.B
    rows = []
    for _ in range(args.repeats):
        t_batch = collect_seconds(samplers[0], args.batches) / args.batches
        t_opt = t_batch * args.share
        sync, alongside = (args.batches * steps / loop_seconds(one, args.batches, t_opt) for one in samplers)
        ours = waited(samplers[1].obtain_samples, 3 * t_batch)
        with bare_hand_over(agents[1].acting_state(), t_batch) as hand_over:
            bare = waited(hand_over, 3 * t_batch)
        limit = min(steps / t_batch, steps / t_opt)
        rows.append((sync, alongside, alongside / sync, alongside / limit, ours, bare))
    low, middle, high = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
    print(f"{args.sampler}, W={args.W}, T={args.T}, B={args.B}, {args.slots} slots, optimizer {args.share:g} x a batch")
    print(f"  sync {middle[0]:,.0f}, async {middle[1]:,.0f} steps/s")
    print(f"  ratio {middle[2]:.2f} ({low[2]:.2f} … {high[2]:.2f})")
    print(f"  of the limit {middle[3]:.2f} ({low[3]:.2f} … {high[3]:.2f})")
    print(f"  hand-over {middle[4]:.0f} µs ({low[4]:.0f} … {high[4]:.0f})")
    print(f"  bare {middle[5]:.0f} µs ({low[5]:.0f} … {high[5]:.0f})")
    for sampler in samplers:
        sampler.shutdown()


if __name__ == "__main__":
    main()

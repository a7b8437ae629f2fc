"""`SerialSampler`, native and in pure Python, beside Gymnasium's SyncVectorEnv with the same policy and recording.

    python benchmarks/native.py --B 8 64

Each contender runs in a process of its own; they take turns batch by batch. CPU time, so that other work on the machine
matters less. The ratio of one set of processes differs from that of another by some percent, so there are several sets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from plain_cartpole import PlainCartPole

from headrace.agents.pg import CategoricalPgAgent
from headrace.samplers import SerialSampler
from headrace.types import EnvSpaces, StepInputs

T = 64
CONTENDERS = {"native": {"HEADRACE_PURE": "0"}, "pure": {"HEADRACE_PURE": "1"}, "gymnasium": {"HEADRACE_PURE": "0"}}


def sampler_batch(B: int) -> Callable[[], None]:
    sampler = SerialSampler(PlainCartPole, batch_T=T, batch_B=B)
    sampler.initialize(CategoricalPgAgent(), seed=0, bootstrap_value=True)
    itr = 0

    def collect() -> None:
        nonlocal itr
        sampler.obtain_samples(itr)
        itr += 1

    return collect


def gymnasium_batch(B: int) -> Callable[[], None]:
    """What a careful user writes: one forward pass a row; everything that an actor-critic learns from is kept."""
    envs = gym.vector.SyncVectorEnv([PlainCartPole] * B)
    agent = CategoricalPgAgent()
    agent.initialize(EnvSpaces(envs.single_observation_space, envs.single_action_space), seed=0)
    seen = np.zeros((T + 1, B, 4), np.float32)
    action = np.zeros((T, B), np.int64)
    reward, value = np.zeros((T, B), np.float32), np.zeros((T, B), np.float32)
    terminated, truncated = np.zeros((T, B), np.bool_), np.zeros((T, B), np.bool_)
    logits = np.zeros((T, B, 2), np.float32)
    zeros = torch.zeros(B)
    seen[T], _ = envs.reset(seed=0)

    def collect() -> None:
        seen[0] = seen[T]
        noise = torch.rand(T, B, 1).clamp(1e-6, 1 - 1e-6)
        with torch.inference_mode():
            for t in range(T):
                inputs = StepInputs(torch.from_numpy(seen[t]), zeros.long(), zeros, zeros.bool(), noise[t])
                step = agent.step(inputs, None)
                action[t] = step.action.numpy()
                value[t], logits[t] = step.agent_info.value.numpy(), step.agent_info.dist.logits.numpy()
                seen[t + 1], reward[t], terminated[t], truncated[t], _ = envs.step(action[t])

    return collect


def serve(contender: str) -> None:
    """Answers (B, batches) on standard input with CPU seconds."""
    torch.set_num_threads(1)
    batches: dict[int, Callable[[], None]] = {}
    for line in sys.stdin:
        B, n = json.loads(line)
        if B not in batches:
            batches[B] = (gymnasium_batch if contender == "gymnasium" else sampler_batch)(B)
            for _ in range(5):
                batches[B]()
        begin = time.process_time()
        for _ in range(n):
            batches[B]()
        print(time.process_time() - begin, flush=True)


def compare(B: int, repeats: int) -> dict[str, float]:
    """CPU µs per environment step of each contender, the median of its repeats, in one set of processes."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        for name, variables in CONTENDERS.items()
    }
    n = max(1, 64 // B)
    taken: dict[str, list[float]] = {name: [] for name in processes}
    for repeat in range(repeats):
        for name in list(processes)[:: 1 if repeat % 2 else -1]:
            process = processes[name]
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([B, n]) + "\n")
            process.stdin.flush()
            taken[name].append(float(process.stdout.readline()) / (n * T * B) * 1e6)
    for process in processes.values():
        process.communicate(timeout=60)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--B", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--sets", type=int, default=5, help="sets of processes")
    parser.add_argument("--repeats", type=int, default=15, help="in each set")
    parser.add_argument("--serve", choices=[*CONTENDERS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    for B in args.B:
        sets = [compare(B, args.repeats) for _ in range(args.sets)]
        times = {name: statistics.median(one[name] for one in sets) for name in CONTENDERS}
        print(f"B={B:<4d} CPU µs per step: " + ", ".join(f"{name} {value:.2f}" for name, value in times.items()))
        for name in ("pure", "gymnasium"):
            ratios = sorted(one[name] / one["native"] for one in sets)
            middle = statistics.median(ratios)
            print(f"       native is {middle:.2f} times as fast as {name} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()

"""From how many parameters on does a second torch thread pay? One update of an actor-critic, with 1 thread and with 2.

    python benchmarks/torch_threads.py [--seconds 120] [--busy]

Interleaved, medians. --busy: beside a process that wants a core of its own, as workers do while an asynchronous runner
learns. The result decides `headrace.runners.threads.SMALL`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from gymnasium import spaces

from headrace.agents.pg import CategoricalPgAgent
from headrace.types import EnvSpaces, StepInputs

NUMBERS = spaces.Box(-np.inf, np.inf, (16,), np.float32)
IMAGES = spaces.Box(0, 255, (84, 84, 4), np.uint8)


@dataclass
class Case:
    """A model and a minibatch, and what its updates took, in seconds, by the number of threads."""

    name: str
    agent: CategoricalPgAgent
    inputs: StepInputs
    optimizer: torch.optim.Optimizer
    seconds: dict[int, list[float]] = field(default_factory=lambda: {1: [], 2: []})

    @staticmethod
    def of(name: str, space: spaces.Box, n: int, model_kwargs: dict[str, object]) -> Case:
        agent = CategoricalPgAgent(model_kwargs=model_kwargs)
        agent.initialize(EnvSpaces(space, spaces.Discrete(4)), seed=0)
        rows = np.random.default_rng(0).integers(0, 255, (n, *space.shape)).astype(space.dtype)
        inputs = StepInputs(
            torch.from_numpy(rows),
            torch.zeros(n, dtype=torch.int64),
            torch.zeros(n),
            torch.zeros(n, dtype=torch.bool),
        )
        return Case(name, agent, inputs, torch.optim.Adam(agent.parameters()))

    def update(self) -> None:
        info = self.agent(self.inputs)
        loss = info.dist.log_prob(self.inputs.prev_action).mean() + info.value.square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def measure(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.update()  # the pool of threads wakes
        for _ in range(3):
            begin = time.perf_counter()
            self.update()
            self.seconds[threads].append(time.perf_counter() - begin)

    @property
    def line(self) -> str:
        n_parameters = sum(parameter.numel() for parameter in self.agent.parameters())
        one, two = (1e3 * statistics.median(self.seconds[threads]) for threads in (1, 2))
        least_one, least_two = (1e3 * min(self.seconds[threads]) for threads in (1, 2))
        return (
            f"{self.name:14} {n_parameters:>10,} {len(self.inputs.is_first):>6} {one:9.2f} {two:9.2f} {one / two:7.2f}"
            f" {least_one:12.2f} {least_two:9.2f} {least_one / least_two:7.2f}"
        )


def spin() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--busy", action="store_true")
    args = parser.parse_args()
    cases = [
        Case.of(f"MLP {width}-{width}", NUMBERS, n, {"hidden_sizes": (width, width)})
        for width in (64, 256, 512, 1024)
        for n in (64, 256, 1024)
    ]
    cases += [Case.of("Nature CNN", IMAGES, n, {}) for n in (32, 256)]
    other = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    if args.busy:
        other.start()
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        for case in random.sample(cases, len(cases)):
            for threads in random.sample((1, 2), 2):
                case.measure(threads)
    if args.busy:
        other.kill()
    print("                            rows    median of an update, ms      least, ms")
    print("model          parameters       1 thread 2 threads   ratio     1 thread 2 threads   ratio")
    for case in cases:
        print(case.line)


if __name__ == "__main__":
    main()

"""How much dearer the same code is when it has not run for a while: why a loop is slower than the sum of its parts.

    python benchmarks/cold_caches.py

Waits in an empty loop, then times a little NumPy work and one `agent.step` of 64 rows. On a core of its own
the times would hardly change; on a virtual machine the neighbours of the core use the caches meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces

from headrace.agents.pg import CategoricalPgAgent
from headrace.types import EnvSpaces, StepInputs

ROW = np.zeros((64, 4), np.float32)
OBSERVATION = np.zeros(4, np.float32)


def record() -> None:
    for b in range(8):
        ROW[b] = OBSERVATION
    np.isfinite(ROW).all()


def policy() -> Callable[[], None]:
    agent = CategoricalPgAgent()
    agent.initialize(EnvSpaces(spaces.Box(-1, 1, (4,)), spaces.Discrete(2)), seed=0)
    zeros = torch.zeros(64)
    inputs = StepInputs(torch.zeros(64, 4), zeros.long(), zeros, zeros.bool(), torch.full((64, 1), 0.5))

    def step() -> None:
        with torch.inference_mode():
            agent.step(inputs, None)

    return step


def after_waiting(work: Callable[[], None], microseconds: float, repeats: int = 300) -> float:
    """Median µs of `work` after `microseconds` in an empty loop."""
    taken = []
    for _ in range(repeats):
        end = time.perf_counter() + microseconds * 1e-6
        while time.perf_counter() < end:
            pass
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * 1e6


def main() -> None:
    torch.set_num_threads(1)
    step = policy()
    print("waited     record 8 rows   agent.step(64)")
    for microseconds in (0, 100, 400, 1000, 5000):
        print(
            f"{microseconds:5} µs   {after_waiting(record, microseconds):10.1f} µs   "
            f"{after_waiting(step, microseconds):10.1f} µs"
        )


if __name__ == "__main__":
    main()

"""How long a failure takes to become an error: from the moment of the failure to the exception in the caller.

    python benchmarks/failures.py

For each fault the median and the worst of `--repeats` samplers with two workers on CartPole-v1. A hang counts from its
begin, and `timeout` (0.5 s here) is taken off. Each line ends with what the fault left behind, which should be nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import signal
import statistics
import time
from typing import Any

import gymnasium as gym
import psutil

from headrace.agents.pg import CategoricalPgAgent
from headrace.errors import SamplerError
from headrace.samplers import CpuSampler

TIMEOUT = 0.5
FAULTS = ["raise", "exit", "SIGKILL", "SIGSEGV", "hang", "SIGSTOP"]
#: When the failure began; one double in shared memory.
BEGAN = multiprocessing.RawValue("d", 0.0)


class Failing(gym.Wrapper[Any, Any, Any, Any]):
    """Fails at step 1000 of one environment."""

    def __init__(self, env: gym.Env[Any, Any], fault: str) -> None:
        super().__init__(env)
        self._fault, self._steps = fault, 0

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._steps == 1000 and BEGAN.value == 0.0:
            BEGAN.value = time.monotonic()
            match self._fault:
                case "raise":
                    raise ValueError("the pole broke")
                case "exit":
                    os._exit(3)
                case "SIGSEGV":
                    ctypes.string_at(0)
                case "hang":
                    time.sleep(1000)
                case name:
                    os.kill(os.getpid(), signal.Signals[name])
        return self.env.step(action)


def seconds_to_error(fault: str) -> float:
    BEGAN.value = 0.0
    sampler = CpuSampler(
        lambda: Failing(gym.make("CartPole-v1"), fault),
        batch_T=64,
        batch_B=8,
        n_workers=2,
        timeout=TIMEOUT,
        start_method="fork",
    )
    sampler.initialize(CategoricalPgAgent(), seed=0)
    try:
        for itr in range(100):
            sampler.obtain_samples(itr)
    except SamplerError:
        waited = TIMEOUT if fault in ("hang", "SIGSTOP") else 0.0
        return time.monotonic() - BEGAN.value - waited
    raise AssertionError(f"{fault} was not noticed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    for fault in FAULTS:
        seconds = [seconds_to_error(fault) for _ in range(args.repeats)]
        left = len(psutil.Process().children(recursive=True))
        middle, worst = statistics.median(seconds) * 1e3, max(seconds) * 1e3
        print(f"{fault:8} median {middle:6.1f} ms   worst {worst:6.1f} ms   processes left: {left}")


if __name__ == "__main__":
    main()

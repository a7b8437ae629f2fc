"""Run by test_master.py: a program that samples until it is stopped, and prints the stages it reaches."""

import os
import sys
import time

import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.samplers import AlternatingSampler, AsyncCpuSampler, CpuSampler, GpuSampler, SerialSampler
from tests.walk import Walk


def reached(stage: str) -> None:
    """Prints a stage in one write, because two workers may print at once."""
    os.write(1, f"{stage}\n".encode())


class SlowStart(Walk):
    def __init__(self, stage: str) -> None:
        super().__init__()
        if stage == "start":
            reached("start")
            time.sleep(1000)
        self._stage = stage

    def close(self) -> None:
        if self._stage == "shutdown":
            reached("shutdown")
            time.sleep(1000)


def main() -> None:
    stage, sampler_name, start_method = sys.argv[1:]
    torch.set_num_threads(1)
    kinds = {
        "cpu": CpuSampler,
        "serial": SerialSampler,
        "gpu": GpuSampler,
        "alternating": AlternatingSampler,
        "async": AsyncCpuSampler,
    }
    cls = kinds[sampler_name]
    sampler = cls(SlowStart, {"stage": stage}, batch_T=64, batch_B=4, n_workers=2, start_method=start_method)
    sampler.initialize(CategoricalPgAgent(), seed=0)
    sampler.obtain_samples(0)
    if stage == "idle":
        reached("idle")
        time.sleep(1000)
    if stage == "forget":
        reached("forget")
        return  # without shutdown()
    for itr in range(1, 10**9 if stage == "sampling" else 2):
        sampler.obtain_samples(itr)
        if itr == 1 and stage == "sampling":
            reached("sampling")
    sampler.shutdown()


if __name__ == "__main__":
    main()
